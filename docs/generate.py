"""Writes the generated parts of the documentation.

    python docs/generate.py     # rewrites the pages of `PAGES`

What the page on balancing says of each method is made of the docstrings; tables and
pictures of what was measured of benchmarks/results, by `evidence`.

A docstring holds, before its sections, the formula, the paper and every departure from
it, and a paragraph `Cost: ... . Choose it when ... .`
"""

from __future__ import annotations

import functools
import inspect
import pathlib
import re
from typing import NamedTuple

import evidence

from mtl_keras import balancing

DOCS = pathlib.Path(__file__).parent
PAGES = tuple(DOCS.parent / name for name in evidence.PAGES)
_COST = re.compile(
    r"Cost: (?P<backward>[^,;.]*?) backward(?:, (?P<forward>[^,;.]*?) forward)?"
    r"(?:; state: (?P<state>[^;.]*))?(?:; needs: (?P<needs>[^;]*?))?\. "
    r"Choose it when (?P<when>.*)\.$"
)
_SECTION = re.compile(r"\n\n(?:Args|Raises|Example):\n")
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")
_INDEX = re.compile(r"([^\W\d_]+)_([a-z]+)")
_VENUE = re.compile(r"\b([A-Z][A-Za-z]+(?: [A-Z][a-z]+)? \d{4})\b")
_HEADER = (
    "| Name | Choose it when | Backward | Extra forward | State | Needs | Paper |\n"
    "|---|---|---|---|---|---|---|\n"
)


class Method(NamedTuple):
    """Parts of the docstring of a method.

    Attributes:
        name: Its registered name.
        cls: Its class.
        text: Formula, paper and departures, in Markdown.
        cost: The groups of `_COST`; None where a method has no such thing.
        paper: A link or a venue; a dash for baselines.
    """

    name: str
    cls: type[balancing.Balancer]
    text: str
    cost: dict[str, str | None]
    paper: str


def read(cls: type[balancing.Balancer]) -> Method:
    """Reads the docstring of a method's class.

    Raises:
        ValueError: If it has no paragraph on cost and choice.
    """
    documented = _SECTION.split(inspect.cleandoc(cls.__doc__ or ""))[0].rstrip()
    *text, last = documented.split("\n\n")
    match = _COST.fullmatch(" ".join(last.split()))
    if match is None:
        raise ValueError(
            f"Expected the docstring of {cls.__name__} to end, before sections, with "
            "'Cost: ... backward[, N forward][; state: ...][; needs: ...]. Choose it "
            f"when ... .' Received: {last!r}."
        )
    words = " ".join(documented.split())
    arxiv, venue = _ARXIV.search(words), _VENUE.search(words)
    paper = venue[1] if venue else "–"
    if arxiv:
        paper = f"[{arxiv[1]}](https://arxiv.org/abs/{arxiv[1]})"
    return Method(cls.method, cls, "\n\n".join(text), match.groupdict(), paper)


def methods() -> list[Method]:
    """Returns all methods, in the order of their names."""
    instances = (balancing.get(name) for name in balancing.names())
    return [read(type(balancer)) for balancer in instances]


def row(method: Method) -> str:
    """Returns the line of a method in its table."""
    cost = {key: value or "–" for key, value in method.cost.items()}
    cells = (
        f"[`{method.name}`](#{method.name})",
        cost["when"],
        cost["backward"],
        method.cost["forward"] or "0",
        cost["state"],
        cost["needs"],
        method.paper,
    )
    return f"| {' | '.join(cells)} |\n"


def text_of(method: Method) -> str:
    """Returns what the docstring says, with the indices of formulas lowered."""
    pieces = method.text.split("`")
    # Every other piece is code, where an underscore stays one.
    pieces[::2] = [_INDEX.sub(r"\1<sub>\2</sub>", piece) for piece in pieces[::2]]
    return "`".join(pieces)


@functools.cache
def parts() -> dict[str, str]:
    """Returns the generated parts of all pages by name."""
    all_methods = methods()
    tables = {
        name: _HEADER + "".join(row(m) for m in all_methods if issubclass(m.cls, base))
        for name, base in (
            ("losses", balancing.LossBalancer),
            ("gramian", balancing.GramBalancer),
            ("matrix", balancing.MatrixBalancer),
        )
    }
    tables["methods"] = "\n".join(
        f"### {m.name}\n\n`{m.cls.__name__}`: {text_of(m)}\n" for m in all_methods
    )
    return tables | evidence.parts()


def page(text: str) -> str:
    """Returns a page with its generated parts as docstrings and results have them."""
    for name, part in parts().items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if begin in text:
            before, rest = text.split(begin)
            text = before + begin + "\n" + part + "\n" + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path.read_text("utf-8")), "utf-8")
    evidence.draw()
