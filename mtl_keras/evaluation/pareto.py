"""Pareto fronts and the hypervolume they dominate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def _to_maximise(points: ArrayLike, directions: Sequence[str]) -> np.ndarray:
    """Returns the points as `[N, T]` float64 with every column to be maximised."""
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0:
        array = array.reshape(0, len(directions))
    if array.ndim != 2 or array.shape[1] != len(directions):
        raise ValueError(
            "Expected points of shape [N, T] with one direction per column. "
            f"Received: shape {array.shape} and {len(directions)} directions."
        )
    unknown = [d for d in directions if d not in ("max", "min")]
    if unknown:
        raise ValueError(
            f"Expected directions to be 'max' or 'min'. Received: {unknown[0]!r}."
        )
    return array * np.array([1.0 if d == "max" else -1.0 for d in directions])


def pareto_front(points: ArrayLike, directions: Sequence[str]) -> list[int]:
    """Finds the points that no other point dominates.

    A point dominates another when it is at least as good in every objective
    and better in one. Equal points do not dominate each other, so all of them
    are kept. Points with a NaN are never on the front.

    Args:
        points: Array of shape `[N, T]`: N results in T objectives.
        directions: T strings, `"max"` or `"min"`.

    Returns:
        The indices of the front, in the order of `points`.

    Raises:
        ValueError: If shapes and directions do not fit together.
    """
    values = _to_maximise(points, directions)
    candidates = np.flatnonzero(~np.isnan(values).any(axis=1))
    rest = values[candidates]
    front = []
    for index, point in zip(candidates, rest, strict=True):
        as_good = (rest >= point).all(axis=1)
        better = (rest > point).any(axis=1)
        if not (as_good & better).any():
            front.append(int(index))
    return front


def hypervolume(
    points: ArrayLike, reference: Sequence[float], directions: Sequence[str]
) -> float:
    """Area that a set of results in two objectives dominates.

    The measure of Zitzler and Thiele, "Multiobjective evolutionary algorithms:
    a comparative case study and the strength Pareto approach" (IEEE
    Transactions on Evolutionary Computation, 1999), computed exactly by one
    sweep over the sorted front.

    Args:
        points: Array of shape `[N, 2]`.
        reference: The worst point that counts, two numbers. Points that are not
            better than it in both objectives add nothing.
        directions: Two strings, `"max"` or `"min"`.

    Returns:
        The area, in the product of the two objectives' units.

    Raises:
        ValueError: If there are not exactly two objectives.
    """
    if len(directions) != 2:
        raise ValueError(f"Expected 2 objectives. Received: {len(directions)}.")
    values = _to_maximise(points, directions)
    worst = _to_maximise([reference], directions)[0]
    values = values[(values > worst).all(axis=1)]
    area, height = 0.0, worst[1]
    # From the best first objective downwards, each point adds the strip by
    # which it rises above all points before it.
    for first, second in values[np.argsort(-values[:, 0], kind="stable")]:
        if second > height:
            area += (first - worst[0]) * (second - height)
            height = second
    return float(area)
