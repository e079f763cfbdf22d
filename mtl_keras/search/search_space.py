"""The whole space of a search: plain settings, methods with arguments, loss weights.

A method is searched together with its own arguments:

    sharing = ["hard", "mmoe"]                                   as they are
    sharing = { class_name = "ple", search = true }              what is searched of it
    sharing = { class_name = "ple", search = { num_levels = [1, 2] } }
    balancing = ["equal", { class_name = "dwa", search = true }] both kinds

Arguments in `search` are searched, those in `config` are fixed. The same forms hold
for `optimizer`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from pydantic import StrictStr

from mtl_keras import balancing, sharing
from mtl_keras.decoding import Decodable, decode
from mtl_keras.errors import InputError, unknown_name
from mtl_keras.search.space import (
    SETTINGS,
    Dimension,
    Fixed,
    LossWeights,
    parse_dimension,
    parse_loss_weights,
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
KNOWN = (*_CLASSES, *SETTINGS, "loss_weights")


@dataclasses.dataclass(frozen=True)
class _Table(Decodable):
    """A method as a study file has it."""

    class_name: StrictStr
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    search: Any = None


@dataclasses.dataclass(frozen=True)
class Component:
    """One method, with its fixed arguments and those that are searched.

    Attributes:
        label: Its value in KerasTuner.
        class_name: Its name; for a list of a loss balancer and a gradient
            balancer, all of it.
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
        drawn = None
        for value in self.values:
            # Entered for all, so that one call makes the whole space known.
            with hp.conditional_scope(name, [value.label]):
                spec = self._draw(hp, name, value)
            drawn = spec if value.label == label else drawn
        return drawn

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
            weights = parse_loss_weights(value)
        elif name in _CLASSES:
            dimensions[name] = parse_components(name, value)
        elif name in SETTINGS or others:
            dimensions[name] = parse_dimension(name, value, SETTINGS.get(name))
        else:
            raise unknown_name("key in [space]", name, KNOWN)
    return SearchSpace(dimensions, weights)


def parse_components(setting: str, value: Any) -> Components:
    """Returns `space.sharing`, `space.balancing` or `space.optimizer`, checked."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InputError(f"Expected space.{setting} to list at least one value.")
    components = tuple(_component(setting, item) for item in values)
    labels = [component.label for component in components]
    if len(set(labels)) < len(labels):
        raise InputError(
            f"Expected the values of space.{setting} to differ. Received: {value!r}."
        )
    return Components(components)


def _component(setting: str, value: Any) -> Component:
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
    table = decode(_Table, value, f"space.{setting}")
    name, config = table.class_name, table.config
    cls = _CLASSES[setting](name)
    searched = _searched(setting, cls, table) if "search" in value else {}
    _check_arguments(name, cls, [*config, *searched])
    arguments = {
        argument: parse_dimension(f"{setting}.{argument}", space)
        for argument, space in searched.items()
    }
    return Component(
        json.dumps(value) if config or searched else name, name, config, arguments
    )


def _searched(setting: str, cls: type, table: _Table) -> dict[str, Any]:
    searched = table.search
    if searched is True:
        declared = getattr(cls, "search_space", _OPTIMIZERS.get(cls, {}))
        searched = {k: v for k, v in declared.items() if k not in table.config}
    if not isinstance(searched, dict) or not searched:
        raise InputError(
            f"Expected space.{setting} to have search = true, where "
            f"{table.class_name!r} declares arguments to search, or a table of "
            f"arguments. Received: search = {table.search!r}."
        )
    for argument in searched:
        if argument in table.config:
            raise InputError(
                f"Expected {argument!r} of {table.class_name!r} in space.{setting} to "
                "be either fixed in config or searched, not both."
            )
    return searched


def _check_arguments(name: str, cls: type, arguments: list[str]) -> None:
    """Raises an InputError for an argument that the method's class lacks."""
    known: dict[str, None] = {}
    # Without `object`, whose signature names nothing.
    for base in cls.__mro__[:-1]:
        for parameter in inspect.signature(base).parameters.values():
            if parameter.kind in (
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                inspect.Parameter.KEYWORD_ONLY,
            ):
                known[parameter.name] = None
    known.pop("name", None)
    for argument in arguments:
        if argument not in known:
            raise unknown_name(f"argument of {name!r}", argument, known)
