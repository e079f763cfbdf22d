"""The space of a search: plain settings, methods with arguments, loss weights.

| In a study file                           | Meaning                          |
|-------------------------------------------|----------------------------------|
| `width = 32`                              | fixed                            |
| `width = [16, 32, 64]`                    | one of these                     |
| `depth = { min = 2, max = 4 }`            | a range, both ends included      |
| `learning_rate = { min = 1e-4, max = 1e-2, log = true }` | searched by magnitude |
| `loss_weights = { max_ratio = 4.0 }`      | searched, see `LossWeights`      |
| `loss_weights = { left = 1.0, mask = 2.0 }` | fixed                          |

A method is searched together with its own arguments: those in `search`, while those
in `config` are fixed. The same forms hold for `sharing`, `balancing`, `optimizer`.

    sharing = ["hard", "mmoe"]                                   as they are
    sharing = { class_name = "ple", search = true }              what is searched of it
    sharing = { class_name = "ple", search = { num_levels = [1, 2] } }
    balancing = ["equal", { class_name = "dwa", search = true }] both kinds
    balancing = ["cagrad(c=0.5)", "uncertainty + pcgrad"]        as text, fixed
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import keras
from pydantic import Field, StrictBool, StrictStr

from mtl_keras import balancing, sharing
from mtl_keras.decoding import Decodable, Finite, decode
from mtl_keras.errors import InputError, is_number, unknown_name
from mtl_keras.runs.config import RunConfig
from mtl_keras.specs import read_spec

# The plain settings of a run that a study may search.
SETTINGS = (
    "backbone",
    "schedule",
    "precision",
    "jit",
    "steps_per_execution",
    "width",
    "depth",
    "batch_size",
    "learning_rate",
)
# Keras's optimizers declare nothing of the kind themselves.
_OPTIMIZERS: dict[type, dict[str, Any]] = {
    keras.optimizers.AdamW: {"weight_decay": {"min": 1e-4, "max": 0.1, "log": True}},
    keras.optimizers.Lion: {"weight_decay": {"min": 1e-4, "max": 0.1, "log": True}},
    keras.optimizers.RMSprop: {"momentum": {"min": 0.0, "max": 0.9}},
    keras.optimizers.SGD: {"momentum": {"min": 0.0, "max": 0.99}},
}


def _optimizer_class(name: str) -> type:
    try:
        return type(keras.optimizers.get(name))
    except ValueError as error:
        raise InputError(
            f"Unknown optimizer {name!r}. Expected the name of a Keras optimizer, "
            "for example 'adam', 'adamw' or 'sgd'."
        ) from error


# How each setting finds its classes by name.
_CLASSES: dict[str, Callable[[str], type]] = {
    "balancing": balancing.get_class,
    "sharing": sharing.get_class,
    "optimizer": _optimizer_class,
}


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A setting that is the same in every trial."""

    value: Any
    searched = False

    def sample(self, hp: Any, name: str) -> Any:
        """Returns the value; nothing is searched.

        Args:
            hp: KerasTuner's hyperparameters, as for any hypermodel.
            name: Name of the setting.
        """
        return self.value

    def examples(self) -> list[Any]:
        """Returns values that a check has to accept."""
        return [self.value]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A setting that takes one of several values."""

    values: tuple[Any, ...]
    searched = True

    def sample(self, hp: Any, name: str) -> Any:
        """Draws from KerasTuner; see `Fixed.sample`."""
        encoded = self._encoded()
        drawn = hp.Choice(name, encoded)
        # KerasTuner gives None for settings that their conditions switch off.
        return None if drawn is None else self.values[encoded.index(drawn)]

    def _encoded(self) -> list[Any]:
        """Returns the values as KerasTuner takes them: JSON texts where they differ."""
        for kind in (str, bool):
            if all(isinstance(value, kind) for value in self.values):
                return list(self.values)
        if all(map(is_number, self.values)):
            whole = all(isinstance(value, int) for value in self.values)
            return list(map(int if whole else float, self.values))
        return [json.dumps(value) for value in self.values]

    def examples(self) -> list[Any]:
        """Returns values that a check has to accept."""
        return list(self.values)


@dataclasses.dataclass(frozen=True)
class Range:
    """A number between two ends, both included.

    Attributes:
        low: The lower end.
        high: The upper end.
        step: Distance of the values; None means 1 for whole numbers, and any
            value for others.
        log: Whether to search by magnitude rather than by value.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False
    searched = True

    def sample(self, hp: Any, name: str) -> Any:
        """Draws from KerasTuner; see `Fixed.sample`."""
        sampling = "log" if self.log else "linear"
        if isinstance(self.low, int) and isinstance(self.high, int):
            step = None if self.log else (self.step or 1)
            return hp.Int(name, self.low, self.high, step=step, sampling=sampling)
        return hp.Float(name, self.low, self.high, step=self.step, sampling=sampling)

    def examples(self) -> list[Any]:
        """Returns values that a check has to accept."""
        return [self.low, self.high]


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Searched loss weights.

    Only the ratios of the weights matter to where a training converges; their
    common factor acts like the learning rate. The weights are therefore points of
    the simplex (scaled to sum to the number of tasks), by their log-ratios: each
    task's weight is searched as its ratio to the first task's, by magnitude, from
    `1 / max_ratio` to `max_ratio`.

    Attributes:
        max_ratio: The largest ratio to the first task's weight, above 1.
    """

    max_ratio: float
    searched = True

    def sample(self, hp: Any, tasks: Sequence[str]) -> dict[str, float]:
        """Draws one weight per task from KerasTuner.

        Args:
            hp: KerasTuner's hyperparameters, as for any hypermodel.
            tasks: Names of the tasks.
        """
        low, high = 1.0 / self.max_ratio, self.max_ratio
        ratios = {tasks[0]: 1.0}
        for task in tasks[1:]:
            name = f"loss_weight/{task}"
            ratios[task] = hp.Float(name, low, high, sampling="log", default=1.0)
        scale = len(tasks) / sum(ratios.values())
        return {task: ratio * scale for task, ratio in ratios.items()}


Dimension = Fixed | Choice | Range


@dataclasses.dataclass(frozen=True)
class Component:
    """One method, with its fixed arguments and those that are searched.

    `label` is its value in KerasTuner; `class_name` its name or, for a list of a loss
    balancer and a gradient balancer, all of it.
    """

    label: str
    class_name: str | list[Any]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arguments: Mapping[str, Dimension] = dataclasses.field(default_factory=dict)

    def spec(self, drawn: Mapping[str, Any]) -> Any:
        """Returns the configuration for the registry's `get`, with these arguments."""
        config = {**self.config, **drawn}
        if not config:
            return self.class_name
        return {"class_name": self.class_name, "config": config}


@dataclasses.dataclass(frozen=True)
class Components:
    """Methods to choose from, of which some have arguments to search.

    KerasTuner sees `"<setting>"`, where there are several, and under it
    `"<setting>/<name>/<argument>"`, which is active for that method alone.
    """

    values: tuple[Component, ...]

    @property
    def searched(self) -> bool:
        """Whether trials differ in it."""
        return len(self.values) > 1 or bool(self.values[0].arguments)

    def sample(self, hp: Any, name: str) -> Any:
        """Draws from KerasTuner."""
        if len(self.values) == 1:
            return self._draw(hp, name, self.values[0])
        label = hp.Choice(name, [value.label for value in self.values])
        specs = {}
        for value in self.values:
            # Entered for all, so that one call makes the whole space known.
            with hp.conditional_scope(name, [value.label]):
                specs[value.label] = self._draw(hp, name, value)
        return specs.get(label)

    def _draw(self, hp: Any, name: str, chosen: Component) -> Any:
        return chosen.spec(
            {
                argument: dimension.sample(hp, f"{name}/{chosen.class_name}/{argument}")
                for argument, dimension in chosen.arguments.items()
            }
        )

    def examples(self) -> list[Any]:
        """Returns values that a check has to accept."""
        specs = []
        for value in self.values:
            ends = {name: d.examples() for name, d in value.arguments.items()}
            for index in range(max(map(len, ends.values()), default=1)):
                drawn = {n: e[min(index, len(e) - 1)] for n, e in ends.items()}
                specs.append(value.spec(drawn))
        return specs


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """The fixed settings of a search, and the searched ones with their ranges.

    Attributes:
        dimensions: By setting; settings left out take their defaults.
        loss_weights: How the losses are weighted; None means equally.
    """

    dimensions: Mapping[str, Dimension | Components]
    loss_weights: LossWeights | Fixed | None = None

    @property
    def searched(self) -> list[str]:
        """The names of the settings that differ between trials."""
        named = {**self.dimensions, "loss_weights": self.loss_weights}
        return [name for name, d in named.items() if d is not None and d.searched]

    def sample(self, hp: Any, tasks: Sequence[str]) -> dict[str, Any]:
        """Returns every setting's value, and registers the whole space in `hp`.

        Args:
            hp: KerasTuner's hyperparameters.
            tasks: The tasks that the losses are weighted of.
        """
        drawn = {name: d.sample(hp, name) for name, d in self.dimensions.items()}
        if isinstance(self.loss_weights, LossWeights):
            drawn["loss_weights"] = self.loss_weights.sample(hp, tasks)
        elif self.loss_weights is not None:
            drawn["loss_weights"] = self.loss_weights.value
        return drawn


def parse_space(table: Mapping[str, Any], *, others: bool = False) -> SearchSpace:
    """Reads `[space]` of a study file.

    Args:
        table: Values of the file, by setting.
        others: Whether settings of other names are allowed; their values may be
            of any type.

    Raises:
        InputError: If a name is unknown, a type is wrong or a range is empty.
    """
    dimensions: dict[str, Dimension | Components] = {}
    weights = None
    for name, value in table.items():
        if name == "loss_weights":
            weights = _loss_weights(value)
        elif name in _CLASSES:
            dimensions[name] = parse_components(name, value)
        elif name in SETTINGS or others:
            dimensions[name] = parse_dimension(name, value)
        else:
            known = (*_CLASSES, *SETTINGS, "loss_weights")
            raise unknown_name("key in [space]", name, known)
    return SearchSpace(dimensions, weights)


def parse_dimension(name: str, value: Any) -> Dimension:
    """Returns a setting or argument: a list of values, `{ min, max }`, or one value.

    Raises an InputError if the type is wrong, or the list or the range is empty.
    """
    if isinstance(value, dict):
        return _range(name, value)
    if not isinstance(value, list):
        return Fixed(_typed(name, value))
    values = tuple(_typed(name, item) for item in _not_empty(name, value))
    if len(values) == 1:
        return Fixed(values[0])
    try:
        texts = [json.dumps(value, sort_keys=True, allow_nan=False) for value in values]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Expected the values of space.{name} to be finite numbers, texts, true or "
            f"false, or lists or tables of these. Received: {values!r}."
        ) from error
    _check_different(name, texts, value)
    _check_different(name, list(filter(is_number, values)), value)
    return Choice(values)


def _typed(name: str, value: Any) -> Any:
    """Returns the value of a run's setting in its type, any other as it is."""
    if name not in SETTINGS:
        return value
    config = decode(RunConfig, {"application": "", name: value}, "space")
    return getattr(config, name)


def _not_empty(name: str, values: list[Any]) -> list[Any]:
    if not values:
        raise InputError(f"Expected space.{name} to list at least one value.")
    return values


def _check_different(name: str, values: Sequence[Any], received: Any) -> None:
    if len(set(values)) < len(values):
        raise InputError(
            f"Expected the values of space.{name} to differ. Received: {received!r}."
        )


@dataclasses.dataclass(frozen=True)
class _RangeTable(Decodable):
    min: Finite
    max: Finite
    step: Annotated[Finite, Field(gt=0)] | None = None
    log: StrictBool = False


def _range(name: str, table: dict[str, Any]) -> Range:
    checked = decode(_RangeTable, table, f"space.{name}")
    for key, holds, expected in (
        ("min", checked.min < checked.max, "below max"),
        ("min", not checked.log or checked.min > 0, "above 0 with log = true"),
        ("step", not checked.log or checked.step is None, "left out with log = true"),
    ):
        if not holds:
            raise InputError(
                f"Expected space.{name}.{key} to be {expected}. Received: {table!r}."
            )
    keys = [key for key in ("min", "max", "step") if table.get(key) is not None]
    numbers = {key: _typed(name, table[key]) for key in keys}
    if not all(isinstance(number, int) for number in numbers.values()):
        numbers = {key: float(number) for key, number in numbers.items()}
    return Range(numbers["min"], numbers["max"], numbers.get("step"), checked.log)


def _loss_weights(value: Any) -> LossWeights | Fixed:
    """Returns `space.loss_weights`: `{ max_ratio = R }`, or one number per task."""
    received = f"Received: {value!r}."
    if not isinstance(value, dict) or not value:
        raise InputError(
            "Expected space.loss_weights to be { max_ratio = NUMBER } or a table of "
            f"one number per task. {received}"
        )
    if "max_ratio" not in value:
        return Fixed(value)
    ratio = value["max_ratio"]
    if len(value) > 1:
        raise InputError(
            "Expected space.loss_weights to hold either max_ratio or weights of "
            f"tasks, not both. {received}"
        )
    if not is_number(ratio) or not 1 < ratio < math.inf:
        raise InputError(
            f"Expected space.loss_weights.max_ratio to be a number above 1. {received}"
        )
    return LossWeights(float(ratio))


@dataclasses.dataclass(frozen=True)
class _Method(Decodable):
    """A method as a study file has it."""

    class_name: StrictStr
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    search: Any = None


def parse_components(setting: str, value: Any) -> Components:
    """Returns `space.sharing`, `space.balancing` or `space.optimizer`, checked."""
    values = _not_empty(setting, value if isinstance(value, list) else [value])
    components = tuple(_component(setting, item) for item in values)
    _check_different(setting, [component.label for component in components], value)
    return Components(components)


def _component(setting: str, value: Any) -> Component:
    if isinstance(value, str):
        value = read_spec(value)
    if isinstance(value, str):
        _CLASSES[setting](value)
        return Component(value, value)
    if setting == "balancing" and isinstance(value, list) and value:
        for item in value:
            if _component(setting, item).arguments:
                raise InputError(
                    "Expected the members of a list in space.balancing to have "
                    f"nothing to search. Received: {item!r}."
                )
        return Component(json.dumps(value), value)
    if not isinstance(value, dict):
        raise InputError(
            f"Expected space.{setting} to be a name or a table with class_name. "
            f"Received: {value!r}."
        )
    method = decode(_Method, value, f"space.{setting}")
    name, config = method.class_name, method.config
    cls = _CLASSES[setting](name)
    searched = _searched(setting, cls, method) if "search" in value else {}
    known = _arguments(cls)
    for argument in (*config, *searched):
        if argument not in known:
            raise unknown_name(f"argument of {name!r}", argument, known)
    arguments = {
        argument: parse_dimension(f"{setting}.{argument}", space)
        for argument, space in searched.items()
    }
    label = json.dumps(value) if config or searched else name
    return Component(label, name, config, arguments)


def _searched(setting: str, cls: type, method: _Method) -> dict[str, Any]:
    searched = method.search
    if searched is True:
        declared = getattr(cls, "search_space", _OPTIMIZERS.get(cls, {}))
        searched = {k: v for k, v in declared.items() if k not in method.config}
    if not isinstance(searched, dict) or not searched:
        raise InputError(
            f"Expected space.{setting} to have search = true, where "
            f"{method.class_name!r} declares arguments to search, or a table of "
            f"arguments. Received: search = {method.search!r}."
        )
    for argument in searched:
        if argument in method.config:
            raise InputError(
                f"Expected {argument!r} of {method.class_name!r} in space.{setting} to "
                "be either fixed in config or searched, not both."
            )
    return searched


def _arguments(cls: type) -> set[str]:
    """Returns the names of the arguments of a method's class but `name`."""
    # Without `object`, whose signature names nothing.
    signatures = (inspect.signature(base) for base in cls.__mro__[:-1])
    kinds = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    return {
        parameter.name
        for signature in signatures
        for parameter in signature.parameters.values()
        if parameter.kind in kinds
    } - {"name"}
