"""The front of one model: its losses and metrics at many preferences."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from mtl_keras.errors import InputError, check_integer, unknown_name
from mtl_keras.evaluation import hypervolume
from mtl_keras.pareto.model import PreferenceModel


@dataclasses.dataclass(frozen=True)
class Front:
    """Results of one model at N preferences.

    Attributes:
        tasks: Names of the T tasks.
        preferences: float64 `[N, T]`; each sums to 1.
        results: What `evaluate` returns for each preference, `{name: number}`.

    Example:

    ```pycon
    >>> front = mtl_keras.pareto.Front(
    ...     ("a", "b"),
    ...     np.eye(2),
    ...     ({"a_loss": 0.1, "b_loss": 0.5}, {"a_loss": 0.5, "b_loss": 0.1}),
    ... )
    >>> round(front.hypervolume([1.0, 1.0]), 2)
    0.65
    ```
    """

    tasks: tuple[str, ...]
    preferences: np.ndarray
    results: tuple[dict[str, float], ...]

    def points(self, names: Sequence[str] | None = None) -> np.ndarray:
        """Returns results as points, float64 `[N, len(names)]`.

        Args:
            names: Names out of `results`; None for the tasks' losses.

        Raises:
            InputError: For a name that no result has.
        """
        names = [f"{task}_loss" for task in self.tasks] if names is None else names
        for name in names:
            if name not in self.results[0]:
                raise unknown_name("result", name, self.results[0])
        return np.array([[row[name] for name in names] for row in self.results])

    def hypervolume(
        self,
        reference: Sequence[float],
        names: Sequence[str] | None = None,
        directions: Sequence[str] | None = None,
    ) -> float:
        """Returns the volume that the points dominate.

        Args:
            reference: The worst point that counts, one number for each name; see
                `mtl_keras.evaluation.hypervolume`.
            names: See `points`.
            directions: `"min"` or `"max"` for each name; None for `"min"`.

        Raises:
            InputError: See `points`.
        """
        points = self.points(names)
        return float(
            hypervolume(points, reference, directions or ["min"] * points.shape[1])
        )


def front(
    model: PreferenceModel,
    dataset: tf.data.Dataset,
    points: int | ArrayLike = 11,
    **kwargs: Any,
) -> Front:
    """Evaluates a compiled model at many preferences.

    Args:
        model: The model.
        dataset: Batches as `evaluate` takes them, without a preference in the inputs.
        points: Preferences `[N, T]`, not negative and none all zero; or a number of
            at least 2, for all preferences whose entries are multiples of
            1 / (points - 1): `points` of them for two tasks.
        **kwargs: Passed on to `evaluate`.

    Raises:
        InputError: For preferences that do not fit the tasks.

    Example:

    ```python
    conditioned = mtl_keras.pareto.hypernetwork(model)
    conditioned.compile("adam", loss="mse")
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    front = mtl_keras.pareto.front(conditioned, dataset, points=5)
    print(front.hypervolume([10.0, 10.0]))
    ```
    """
    tasks = model.tasks
    preferences = rows_of(points, len(tasks))
    if preferences.ndim != 2 or preferences.shape[1] != len(tasks):
        raise InputError(
            f"Expected `points` of shape [N, {len(tasks)}], a number for each of "
            f"the tasks {tasks}. Received: shape {preferences.shape}."
        )
    results = []
    for preference in preferences:
        batches = dataset.map(_adding(model, preference.tolist()))
        row = model.evaluate(batches, return_dict=True, **{"verbose": 0, **kwargs})
        results.append({name: float(value) for name, value in row.items()})
    shares = preferences / preferences.sum(axis=1, keepdims=True)
    return Front(tuple(tasks), shares, tuple(results))


def _adding(
    model: PreferenceModel, preference: Sequence[float]
) -> Callable[..., tuple[Any, ...]]:
    """Returns a function that adds a preference to the inputs of a batch."""

    def add(x: Any, *labels: Any) -> tuple[Any, ...]:
        return (model.with_preference(x, preference), *labels)

    return add


def rows_of(points: int | ArrayLike, size: int) -> np.ndarray:
    """Returns the preferences that `points` of `front` stands for, not checked."""
    if isinstance(points, int):
        return lattice(size, check_integer("points", points, low=2) - 1)
    return np.asarray(points, "float64")


def middle_and_corners(size: int) -> np.ndarray:
    """Returns the uniform preference, then each task's own, `[1 + size, size]`."""
    return np.vstack([np.full(size, 1.0 / size), np.eye(size)])


def lattice(size: int, divisions: int) -> np.ndarray:
    """Returns the points of the simplex whose entries are multiples of 1 / divisions.

    Sorted with the first entry falling, `[N, size]`.
    """
    rows = []
    # Bars between the stars: their distances are the entries.
    for bars in itertools.combinations(range(divisions + size - 1), size - 1):
        edges = np.array([-1, *bars, divisions + size - 1])
        rows.append((np.diff(edges) - 1) / divisions)
    return np.array(rows[::-1])
