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

    Example:

    ```pycon
    >>> points = [[0.9, 0.5], [0.5, 0.9], [0.4, 0.4]]
    >>> mtl_keras.evaluation.pareto_front(points, ["max", "max"])
    [0, 1]
    ```
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
    """Volume that a set of results dominates: an area in two objectives.

    The measure of Zitzler and Thiele, "Multiobjective evolutionary algorithms:
    a comparative case study and the strength Pareto approach" (IEEE
    Transactions on Evolutionary Computation, 1999), computed exactly by slicing
    one objective after the other. The time grows as `N^(T-1)`: results in more
    than about five objectives take long.

    Args:
        points: Array of shape `[N, T]`.
        reference: The worst point that counts, T numbers. Points that are not
            better than it in all objectives add nothing.
        directions: T strings, `"max"` or `"min"`.

    Returns:
        The volume, in the product of the objectives' units.

    Raises:
        ValueError: If shapes and directions do not fit together.

    Example:

    ```pycon
    >>> points = [[0.9, 0.5], [0.5, 0.9]]
    >>> float(mtl_keras.evaluation.hypervolume(points, [0.0, 0.0], ["max", "max"]))
    0.65
    ```
    """
    values = _to_maximise(points, directions)
    above = values - _to_maximise([reference], directions)[0]
    return _volume(above[(above > 0).all(axis=1)])


def _volume(heights: np.ndarray) -> float:
    """Returns the volume of the union of boxes `[N, T]` from 0."""
    if not len(heights):
        return 0.0
    if heights.shape[1] == 1:
        return float(heights.max())
    heights = heights[pareto_front(heights, ["max"] * heights.shape[1])]
    # From the best last objective downwards: between one point's and the next
    # one's the slice is that of all points so far in the other objectives.
    heights = heights[np.argsort(-heights[:, -1], kind="stable")]
    ends = np.append(heights[1:, -1], 0.0)
    return sum(
        _volume(heights[: i + 1, :-1]) * (heights[i, -1] - end)
        for i, end in enumerate(ends)
        if heights[i, -1] > end
    )
