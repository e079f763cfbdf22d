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
class Option:
    """A value, or a method with its fixed arguments and those that are searched.

    `label` is its value in KerasTuner; `value` is the setting's, the name of a method
    or a list of a loss balancer and a gradient balancer.
    """

    label: Any
    value: Any
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arguments: Mapping[str, Choice | Range] = dataclasses.field(default_factory=dict)

    def spec(self, drawn: Mapping[str, Any]) -> Any:
        """Returns the value or, with arguments, what the registry's `get` takes."""
        config = {**self.config, **drawn}
        return {"class_name": self.value, "config": config} if config else self.value


@dataclasses.dataclass(frozen=True)
class Choice:
    """A setting that has one value, or takes one of several.

    KerasTuner sees `"<setting>"`, where there are several, and under it
    `"<setting>/<name>/<argument>"`, which is active for that method alone.
    """

    options: tuple[Option, ...]

    @property
    def searched(self) -> bool:
        """Whether trials differ in it."""
        return len(self.options) > 1 or bool(self.options[0].arguments)

    def sample(self, hp: Any, name: str) -> Any:
        """Draws the setting `name` from KerasTuner's hyperparameters."""
        if len(self.options) == 1:
            return self._draw(hp, name, self.options[0])
        label = hp.Choice(name, [option.label for option in self.options])
        specs = {option.label: option.spec({}) for option in self.options}
        for option in self.options:
            if option.arguments:
                # Whatever was drawn, so that one call makes the whole space known.
                with hp.conditional_scope(name, [option.label]):
                    specs[option.label] = self._draw(hp, name, option)
        # KerasTuner gives None for settings that their conditions switch off.
        return specs.get(label)

    def _draw(self, hp: Any, name: str, option: Option) -> Any:
        return option.spec(
            {
                argument: dimension.sample(hp, f"{name}/{option.value}/{argument}")
                for argument, dimension in option.arguments.items()
            }
        )

    def examples(self) -> list[Any]:
        """Returns values that a check has to accept."""
        specs = []
        for option in self.options:
            ends = {name: d.examples() for name, d in option.arguments.items()}
            for index in range(max(map(len, ends.values()), default=1)):
                drawn = {n: e[min(index, len(e) - 1)] for n, e in ends.items()}
                specs.append(option.spec(drawn))
        return specs


@dataclasses.dataclass(frozen=True)
class Range(Decodable):
    """A number between two ends, both included.

    `step` None means 1 for whole numbers, and any value for others; `log` searches by
    magnitude rather than by value.
    """

    min: Finite
    max: Finite
    step: Annotated[Finite, Field(gt=0)] | None = None
    log: StrictBool = False
    searched = True

    def __post_init__(self) -> None:
        for key, holds, expected in (
            ("min", self.min < self.max, "below max"),
            ("min", not self.log or self.min > 0, "above 0 with log = true"),
            ("step", not self.log or self.step is None, "left out with log = true"),
        ):
            if not holds:
                raise InputError(
                    f"Expected {key} to be {expected}. Received: {vars(self)!r}."
                )

    def sample(self, hp: Any, name: str) -> Any:
        """Draws from KerasTuner's hyperparameters; see `Choice.sample`."""
        sampling = "log" if self.log else "linear"
        if isinstance(self.min, int) and isinstance(self.max, int):
            step = None if self.log else (self.step or 1)
            return hp.Int(name, self.min, self.max, step=step, sampling=sampling)
        return hp.Float(name, self.min, self.max, step=self.step, sampling=sampling)

    def examples(self) -> list[Any]:
        """Returns values that a check has to accept."""
        return [self.min, self.max]


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Searched loss weights of tasks.

    Only the ratios of the weights matter to where a training converges; their
    common factor acts like the learning rate. The weights are therefore points of
    the simplex (scaled to sum to the number of tasks), by their log-ratios: each
    task's weight is searched as its ratio to the first task's, by magnitude, from
    `1 / max_ratio` to `max_ratio`, which is above 1.
    """

    tasks: tuple[str, ...]
    max_ratio: float
    searched = True

    def sample(self, hp: Any, name: str) -> dict[str, float]:
        """Draws one weight per task; see `Choice.sample`."""
        low, high = 1.0 / self.max_ratio, self.max_ratio
        ratios = {self.tasks[0]: 1.0}
        for task in self.tasks[1:]:
            ratios[task] = hp.Float(
                f"loss_weight/{task}", low, high, sampling="log", default=1.0
            )
        scale = len(self.tasks) / sum(ratios.values())
        return {task: ratio * scale for task, ratio in ratios.items()}

    def examples(self) -> list[Any]:
        """Returns values that a check has to accept."""
        return [dict.fromkeys(self.tasks, 1.0)]


Space = Mapping[str, Choice | Range | LossWeights]


def sample(space: Space, hp: Any) -> dict[str, Any]:
    """Returns every setting's value, and registers the whole space in `hp`."""
    return {name: dimension.sample(hp, name) for name, dimension in space.items()}


def parse_space(
    table: Mapping[str, Any], tasks: Sequence[str], *, others: bool = False
) -> Space:
    """Reads `[space]` of a study file; settings left out take their defaults.

    With `others`, settings of other names are allowed, whose values may be of any type.
    Raises an InputError if a name is unknown, a type is wrong or a range is empty.
    """
    space: dict[str, Choice | Range | LossWeights] = {}
    # Loss weights last, as where settings are listed.
    for name in sorted(table, key=lambda name: name == "loss_weights"):
        if name == "loss_weights":
            space[name] = _loss_weights(table[name], tuple(tasks))
        elif name in _CLASSES:
            space[name] = parse_methods(name, table[name])
        elif name in SETTINGS or others:
            space[name] = parse_dimension(name, table[name])
        else:
            known = (*_CLASSES, *SETTINGS, "loss_weights")
            raise unknown_name("key in [space]", name, known)
    return space


def parse_dimension(name: str, value: Any) -> Choice | Range:
    """Returns a setting or argument: a list of values, `{ min, max }`, or one value.

    Raises an InputError if the type is wrong, or the list or the range is empty.
    """
    if isinstance(value, dict):
        return _range(name, value)
    items = _not_empty(name, value if isinstance(value, list) else [value])
    values = [_typed(name, item) for item in items]
    if len(values) == 1:
        return Choice((Option(None, values[0]),))
    try:
        texts = [json.dumps(value, sort_keys=True, allow_nan=False) for value in values]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Expected the values of space.{name} to be finite numbers, texts, true or "
            f"false, or lists or tables of these. Received: {values!r}."
        ) from error
    _check_different(name, texts, value)
    _check_different(name, list(filter(is_number, values)), value)
    return Choice(tuple(map(Option, _labels(values), values)))


def _labels(values: list[Any]) -> list[Any]:
    """Returns the values as KerasTuner takes them: JSON texts where types differ."""
    for kind in (str, bool):
        if all(isinstance(value, kind) for value in values):
            return values
    if all(map(is_number, values)):
        whole = all(isinstance(value, int) for value in values)
        return list(map(int if whole else float, values))
    return [json.dumps(value) for value in values]


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


def _range(name: str, table: dict[str, Any]) -> Range:
    checked = decode(Range, table, f"space.{name}")
    keys = [key for key in ("min", "max", "step") if table.get(key) is not None]
    numbers = {key: _typed(name, table[key]) for key in keys}
    if not all(isinstance(number, int) for number in numbers.values()):
        numbers = {key: float(number) for key, number in numbers.items()}
    return dataclasses.replace(checked, **numbers)


def _loss_weights(value: Any, tasks: tuple[str, ...]) -> LossWeights | Choice:
    """Returns `space.loss_weights`: `{ max_ratio = R }`, or one number per task."""
    received = f"Received: {value!r}."
    if not isinstance(value, dict) or not value:
        raise InputError(
            "Expected space.loss_weights to be { max_ratio = NUMBER } or a table of "
            f"one number per task. {received}"
        )
    if "max_ratio" not in value:
        return Choice((Option(None, value),))
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
    if len(tasks) < 2:
        raise InputError(
            "Expected at least two tasks to search loss_weights over. "
            f"Received: {', '.join(tasks)}."
        )
    return LossWeights(tasks, float(ratio))


@dataclasses.dataclass(frozen=True)
class _Method(Decodable):
    """A method as a study file has it."""

    class_name: StrictStr
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    search: Any = None


def parse_methods(setting: str, value: Any) -> Choice:
    """Returns `space.sharing`, `space.balancing` or `space.optimizer`, checked."""
    values = _not_empty(setting, value if isinstance(value, list) else [value])
    options = tuple(_method(setting, item) for item in values)
    _check_different(setting, [option.label for option in options], value)
    return Choice(options)


def _method(setting: str, value: Any) -> Option:
    if isinstance(value, str):
        value = read_spec(value)
    if isinstance(value, str):
        _CLASSES[setting](value)
        return Option(value, value)
    if setting == "balancing" and isinstance(value, list) and value:
        for item in value:
            if _method(setting, item).arguments:
                raise InputError(
                    "Expected the members of a list in space.balancing to have "
                    f"nothing to search. Received: {item!r}."
                )
        return Option(json.dumps(value), value)
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
    return Option(label, name, config, arguments)


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
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    # Without `object`, whose signature names nothing.
    return {
        name
        for base in cls.__mro__[:-1]
        for name, parameter in inspect.signature(base).parameters.items()
        if parameter.kind not in several
    } - {"name"}
