"""Docstrings of every public name: arguments, shapes, errors, examples and papers."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from docstring_examples import namespace, run_examples
from tiny_application import eagerly  # noqa: F401

import mtl_keras
from mtl_keras import balancing, fusion, sharing
from mtl_keras.ops import solvers

_TENSOR = re.compile(r"tf\.(Tensor|IndexedSlices)|np\.ndarray|ArrayLike|NDArray")
_SHAPE = re.compile(r"`[^`]*\[[^`]*\][^`]*`|\bscalars?\b|\bshapes?\b|\bnumber\b")
_DTYPE = re.compile(r"float|\bu?int|bool|string|bytes|dtype|[Nn]umber|[01] or [01]")
_PAPER = re.compile(r"arXiv[ :]\d{4}\.\d{5}|\b(?:19|20)\d\d\b")
# For a part that does what another one says; that one is checked itself.
_ELSEWHERE = re.compile(r"(?:[Ss]ee|made by) `(?P<name>[A-Za-z_.]+)`")
# What nobody's paper is about.
_UNPUBLISHED = {
    *("equal", "static", "concat", "random_orders", "nonnegative_qp"),
    *("EPS", "noise_of"),
}


class Public(NamedTuple):
    """A class or function that a room exports, or a method of such a class."""

    name: str
    value: Any
    owner: type | None

    @property
    def own(self) -> str:
        """Its own docstring; none is inherited."""
        return self.value.__doc__ or ""

    @property
    def function(self) -> Callable[..., Any] | None:
        """The called function: itself, the property's getter, or the constructor."""
        if inspect.isclass(self.value):
            written = _written_out(self.value)
            return vars(self.value)["__init__"] if written else None
        return self.value.fget if isinstance(self.value, property) else self.value

    @property
    def documented_above(self) -> bool:
        """Whether it overrides a method of Keras or TensorFlow Datasets."""
        part = self.name.rsplit(".", 1)[1]
        return self.owner is not None and any(
            part in vars(base) and not base.__module__.startswith("mtl_keras")
            for base in self.owner.__mro__
        )


def _written_out(cls: type) -> bool:
    """Whether the constructor is in the source: not a dataclass's or protocol's."""
    constructor = vars(cls).get("__init__")
    return inspect.isfunction(constructor) and not (
        hasattr(cls, "__dataclass_fields__") or getattr(cls, "_is_protocol", False)
    )


def _rooms() -> Iterator[Any]:
    yield mtl_keras
    for module in pkgutil.walk_packages(mtl_keras.__path__, "mtl_keras."):
        if module.ispkg:
            room = importlib.import_module(module.name)
            if hasattr(room, "__all__"):
                yield room


def _everything() -> list[Public]:
    by_id: dict[int, Public] = {}
    for room in _rooms():
        for name in room.__all__:
            value = getattr(room, name)
            if not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            by_id.setdefault(id(value), Public(f"{room.__name__}.{name}", value, None))
            for part, member in vars(value).items() if inspect.isclass(value) else ():
                member = getattr(member, "__func__", member)
                if not part.startswith("_") and (
                    inspect.isfunction(member) or isinstance(member, property)
                ):
                    full = f"{room.__name__}.{name}.{part}"
                    by_id.setdefault(id(member), Public(full, member, value))
    return sorted(by_id.values(), key=lambda public: public.name)


EVERYTHING = _everything()


def flaws(public: Public) -> list[str]:
    """Returns the flaws of a docstring, texts."""
    if not public.own.strip():
        return ["no docstring"]
    function = public.function
    if function is None or public.documented_above:
        return []
    match = _ELSEWHERE.search(public.own)
    if match and "Args:" not in public.own:
        documented = _documented(public.owner, match["name"])
        return (
            [] if documented else [f"refers to {match['name']!r}, which says nothing"]
        )
    lacking = []
    annotations = " ".join(map(str, getattr(function, "__annotations__", {}).values()))
    if _TENSOR.search(annotations):
        lacking += ["no shape"] if not _SHAPE.search(public.own) else []
        lacking += ["no dtype"] if not _DTYPE.search(public.own) else []
    parameters = [
        name
        for name in inspect.signature(function).parameters
        if name not in ("self", "cls")
    ]
    if len(parameters) > 1 or "Args:" in public.own:
        lacking += [
            f"nothing on the argument {name!r}"
            for name in parameters
            if not re.search(rf"^ +\**{name}: ", public.own, re.MULTILINE)
        ]
    above = public.owner.__doc__ or "" if public.owner else ""
    if "Raises:" not in public.own + above and (raised := _raised(function)):
        lacking.append(f"nothing on raising {', '.join(raised)}")
    return lacking


def _documented(owner: type | None, name: str) -> bool:
    """Whether a base class's part, or something public, has a docstring."""
    cls, _, part = name.partition(".")
    bases = owner.__mro__ if owner else ()
    own = [getattr(base, part, None) for base in bases if base.__name__ == cls]
    public = [p.value for p in EVERYTHING if p.name.endswith(f".{name}")]
    return any(getattr(value, "__doc__", None) for value in (*own, *public))


def _raised(function: Callable[..., Any]) -> list[str]:
    """Returns the exceptions that a function's own source raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = [
        ast.unparse(node.exc).split("(")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and node.exc is not None
    ]
    return [name for name in raised if name != "NotImplementedError"]


@pytest.mark.parametrize("public", EVERYTHING, ids=lambda public: public.name)
def test_docstring(public):
    assert not flaws(public)


_WITH_EXAMPLES = (
    "balancing",
    "callbacks",
    "evaluation",
    "pareto",
    "serving",
    "sharing",
)


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """The folder of an export of the examples' model."""
    path = tmp_path_factory.mktemp("models")
    return mtl_keras.serving.export(namespace()["model"], path / "mine")


@pytest.mark.parametrize(
    "public",
    [
        public
        for public in EVERYTHING
        if public.owner is None and public.name.split(".")[1] in _WITH_EXAMPLES
    ],
    ids=lambda public: public.name,
)
@pytest.mark.usefixtures("eagerly")
def test_example(public, version, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = namespace() | {"version": version}
    assert run_examples(public.name, public.value, names) > 0


def _named_after_papers() -> dict[str, str]:
    documented = {
        name: type(registry.get(name)).__doc__
        for registry in (balancing, sharing)
        for name in registry.names()
    }
    documented |= {name: fusion.get(name).__doc__ for name in fusion.names()}
    documented |= {name: getattr(solvers, name).__doc__ for name in solvers.__all__}
    return {
        name: text or ""
        for name, text in documented.items()
        if name not in _UNPUBLISHED
    }


@pytest.mark.parametrize("name", _named_after_papers())
def test_docstring_names_the_paper(name):
    assert _PAPER.search(_named_after_papers()[name])


def test_the_check_finds_missing_parts():
    def undocumented():
        pass

    def bare(gramian: tf.Tensor, scale: float) -> tf.Tensor:  # noqa: F821
        """Returns something."""
        raise ValueError

    def good(gramian: tf.Tensor, scale: float) -> tf.Tensor:  # noqa: F821
        """Returns float64 `[T]`.

        Args:
            gramian: `[T, T]`.
            scale: A factor.

        Raises:
            ValueError: Always.
        """
        raise ValueError

    def referring():
        """See `Balancer.nowhere`."""

    def inheriting():
        """See `GramBalancer.weights`."""

    assert flaws(Public("a.undocumented", undocumented, None)) == ["no docstring"]
    assert flaws(Public("a.bare", bare, None)) == [
        "no shape",
        "no dtype",
        "nothing on the argument 'gramian'",
        "nothing on the argument 'scale'",
        "nothing on raising ValueError",
    ]
    assert flaws(Public("a.good", good, None)) == []
    mgda = balancing.MGDA
    assert "says nothing" in flaws(Public("a.referring", referring, mgda))[0]
    assert flaws(Public("a.inheriting", inheriting, mgda)) == []
