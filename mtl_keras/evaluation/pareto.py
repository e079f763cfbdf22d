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
    """Volume that a set of results dominates, exactly, in any number of objectives.

    The measure of Zitzler and Thiele, "Multiobjective evolutionary algorithms:
    a comparative case study and the strength Pareto approach" (IEEE
    Transactions on Evolutionary Computation, 1999), by slicing one objective after
    the other (While et al., "A Faster Algorithm for Calculating Hypervolume", same
    journal, 2006). For N points on the front in T objectives it takes up to N^(T-1)
    steps: meant for the sizes of comparisons, in up to four or five objectives.

    Args:
        points: Array of shape `[N, T]`. Points with a NaN add nothing.
        reference: The worst point that counts, T numbers. Points that are not
            better than it in all objectives add nothing.
        directions: T strings, `"max"` or `"min"`.

    Returns:
        The volume, in the product of the objectives' units.

    Raises:
        ValueError: If shapes and directions do not fit together.
    """
    values = _to_maximise(points, directions)
    worst = _to_maximise([reference], directions)[0]
    return _volume(values[(values > worst).all(axis=1)] - worst)


def _volume(points: np.ndarray) -> float:
    """Returns the volume that points `[N, T]`, all above 0, dominate above 0."""
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    points = points[np.argsort(-points[:, -1], kind="stable")]
    if points.shape[1] == 2:
        # From the best last objective downwards, each point adds the strip by which
        # its first objective exceeds that of all points before it.
        reach = np.maximum.accumulate(points[:, 0])
        return float(np.sum(np.diff(reach, prepend=0.0) * points[:, 1]))
    volume = 0.0
    heights = np.append(points[:, -1], 0.0)
    for index in np.flatnonzero(np.diff(heights)):
        # In the slab from this height down to the next, all points so far count.
        above = points[: index + 1, :-1]
        front = above[pareto_front(above, ["max"] * above.shape[1])]
        volume += (heights[index] - heights[index + 1]) * _volume(front)
    return float(volume)
