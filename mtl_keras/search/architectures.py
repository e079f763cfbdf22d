"""Searching a way to share together with its own arguments.

    sharing = ["hard", "mmoe"]                                   as they are
    sharing = { class_name = "ple", search = true }              its `search_space`
    sharing = { class_name = "ple", search = { num_levels = [1, 2] } }
    sharing = ["hard", { class_name = "mmoe", search = true }]   both kinds

What `search` names is searched; arguments in `config` are fixed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mtl_keras import sharing
from mtl_keras.errors import InputError, unknown_name
from mtl_keras.search.space import Dimension, parse_argument, parse_dimension


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One way to share, with the arguments that are searched.

    Attributes:
        label: What stands for it in KerasTuner.
        class_name: Its name.
        config: Its fixed arguments.
        arguments: Its searched arguments.
    """

    label: str
    class_name: str
    config: Mapping[str, Any]
    arguments: Mapping[str, Dimension]

    def spec(self, drawn: Mapping[str, Any]) -> Any:
        """Returns what `sharing.get` takes, with values of the arguments."""
        config = {**self.config, **drawn}
        if not config:
            return self.class_name
        return {"class_name": self.class_name, "config": config}


@dataclasses.dataclass(frozen=True)
class Architectures:
    """Ways to share, of which some have arguments to search.

    KerasTuner sees `"sharing"`, where there are several, and under it
    `"sharing/<name>/<argument>"`, which is active for that way to share alone.
    """

    values: tuple[Architecture, ...]

    def sample(self, hp: Any, name: str) -> Any:
        """Draws from KerasTuner."""
        if len(self.values) == 1:
            return self._draw(hp, name, self.values[0])
        label = hp.Choice(name, [value.label for value in self.values])
        (chosen,) = (value for value in self.values if value.label == label)
        with hp.conditional_scope(name, [label]):
            return self._draw(hp, name, chosen)

    def _draw(self, hp: Any, name: str, chosen: Architecture) -> Any:
        prefix = f"{name}/{chosen.class_name}"
        return chosen.spec(
            {
                argument: dimension.sample(hp, f"{prefix}/{argument}")
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


def parse_sharing(value: Any) -> Dimension | Architectures:
    """Reads `space.sharing`.

    Raises:
        InputError: If a key, type or name is wrong, or there is nothing to search.
    """
    values = value if isinstance(value, list) else [value]
    if not any(isinstance(item, dict) and "search" in item for item in values):
        return parse_dimension("sharing", value)
    architectures = tuple(map(_architecture, values))
    labels = [architecture.label for architecture in architectures]
    if len(set(labels)) < len(labels):
        raise InputError(
            f"Expected the values of space.sharing to differ. Received: {value!r}."
        )
    return Architectures(architectures)


def _architecture(value: Any) -> Architecture:
    if isinstance(value, str):
        return Architecture(value, value, {}, {})
    known = ("class_name", "config", "search")
    if not isinstance(value, dict) or "class_name" not in value:
        raise InputError(
            "Expected space.sharing to be a name or a table with class_name. "
            f"Received: {value!r}."
        )
    for key in value:
        if key not in known:
            raise unknown_name("key in space.sharing", key, known)
    name, config = value["class_name"], dict(value.get("config", {}))
    searched = value.get("search", {})
    if searched is True:
        searched = {
            argument: space
            for argument, space in sharing.get(name).search_space.items()
            if argument not in config
        }
    if not isinstance(searched, dict) or ("search" in value and not searched):
        raise InputError(
            f"Expected space.sharing to have search = true, where {name!r} declares "
            "arguments to search, or a table of arguments. "
            f"Received: search = {value['search']!r}."
        )
    arguments = {
        argument: parse_argument(f"sharing.{argument}", space)
        for argument, space in searched.items()
    }
    return Architecture(json.dumps(value), name, config, arguments)
