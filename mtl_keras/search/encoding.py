"""KerasTuner's search space as numbers that a Gaussian process can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine import hyperparameters as hp_types


class SpaceEncoding:
    """Points of the unit cube as settings, and settings as features.

    Every hyperparameter that is not fixed has one coordinate in [0, 1], by
    KerasTuner's own `prob_to_value` and `value_to_prob`. Features differ from
    coordinates in two ways: values without an order (names of methods) take one
    column each, so that no two of them are nearer to each other than others; and
    a hyperparameter that its conditions switch off reads as its default, so that
    settings which train the same model have the same features.
    """

    def __init__(self, space: Sequence[Any]):
        self._space = [hp for hp in space if not isinstance(hp, hp_types.Fixed)]
        self._all = list(space)

    @property
    def dimensions(self) -> int:
        """Number of coordinates."""
        return len(self._space)

    def values(self, point: np.ndarray) -> dict[str, Any]:
        """Returns the active settings of a point `[D]`, as KerasTuner keeps them."""
        coordinates = dict(zip((id(hp) for hp in self._space), point, strict=True))
        settings = keras_tuner.HyperParameters()
        for hp in self._all:
            settings.merge([hp])
            if settings.is_active(hp):
                coordinate = coordinates.get(id(hp))
                settings.values[hp.name] = (
                    hp.default
                    if coordinate is None
                    else hp.prob_to_value(float(coordinate))
                )
        return settings.values

    def point(self, settings: keras_tuner.HyperParameters) -> np.ndarray:
        """Returns the coordinates `[D]` of a trial's settings."""
        return np.asarray(
            [
                hp.value_to_prob(
                    settings.values[hp.name]
                    if settings.is_active(hp) and hp.name in settings.values
                    else hp.default
                )
                for hp in self._space
            ]
        )

    def features(self, points: np.ndarray) -> np.ndarray:
        """Returns the features `[N, F]` of points `[N, D]`."""
        columns: list[np.ndarray] = []
        drawn: dict[str, np.ndarray] = {}
        count = len(points)
        for hp, coordinates in zip(self._space, points.T, strict=True):
            active = np.ones(count, bool)
            for condition in hp.conditions:
                parent = drawn.get(condition.name)
                # A parent that is fixed switches nothing.
                if parent is not None:
                    active &= np.isin(parent, np.asarray(condition.values, object))
            if _continuous(hp):
                default = hp.value_to_prob(hp.default)
                columns.append(np.where(active, coordinates, default))
                continue
            known = np.asarray(hp.values if _is_choice(hp) else [], object)
            values = np.empty(count, object)
            values[:] = [hp.prob_to_value(float(c)) for c in coordinates]
            # An inactive value of a name may be declared again for another parent.
            others = drawn.get(hp.name, np.full(count, None, object))
            drawn[hp.name] = np.where(active, values, others)
            values[~active] = hp.default
            if _is_choice(hp) and not hp.ordered:
                # At a distance of 1 from each other, as the ends of a range are.
                same = values[:, None] == known[None, :]
                columns.extend((same / np.sqrt(2.0)).T)
            else:
                columns.append(np.array([hp.value_to_prob(v) for v in values]))
        return np.stack(columns, axis=1).astype(np.float64)


def _is_choice(hp: Any) -> bool:
    return isinstance(hp, hp_types.Choice)


def _continuous(hp: Any) -> bool:
    return isinstance(hp, hp_types.Float) and not hp.step
