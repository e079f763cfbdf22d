"""The whole space of a search: every setting's dimension, and the loss weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_keras.errors import unknown_name
from mtl_keras.search import components
from mtl_keras.search.components import Components, parse_components
from mtl_keras.search.space import (
    SETTINGS,
    Dimension,
    Fixed,
    LossWeights,
    parse_argument,
    parse_dimension,
    parse_loss_weights,
)

KNOWN = (*components.SETTINGS, *SETTINGS, "loss_weights")


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
        names = [
            name
            for name, dimension in self.dimensions.items()
            if (
                dimension.searched
                if isinstance(dimension, Components)
                else not isinstance(dimension, Fixed)
            )
        ]
        if isinstance(self.loss_weights, LossWeights):
            names.append("loss_weights")
        return names

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
        elif name in components.SETTINGS:
            dimensions[name] = parse_components(name, value)
        elif name in SETTINGS:
            dimensions[name] = parse_dimension(name, value)
        elif others:
            dimensions[name] = parse_argument(name, value)
        else:
            raise unknown_name("key in [space]", name, KNOWN)
    return SearchSpace(dimensions, weights)
