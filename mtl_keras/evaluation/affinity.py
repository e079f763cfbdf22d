"""Inter-task affinity, and groups of tasks to train together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mtl_keras.errors import InputError
from mtl_keras.evaluation.delta import delta_m, has_relative_gain

# The best split is found by looking at all subsets of all subsets: 3^T steps.
MOST_TASKS = 12


def task_affinity(
    pairs: Mapping[tuple[str, str], Mapping[str, float]],
    baseline: Mapping[str, float],
    directions: Mapping[str, str],
) -> np.ndarray:
    """Returns the relative gain of each task from training with each other one.

    The pairwise gains of Standley et al., "Which Tasks Should Be Learned Together in
    Multi-task Learning?" (ICML 2020, arXiv:1905.07553), relative to the task alone.

    Args:
        pairs: `{(task, other): {task: value, other: value}}`, metrics of models that
            were trained on two tasks; each pair once, in either order.
        baseline: `{task: value}`, metrics of models trained on one task; its order is
            that of the result.
        directions: `{task: "max" or "min"}`.

    Returns:
        float64 `[T, T]` in percent: row i, column j is what task j gains from i.
        0 on the diagonal, NaN for pairs that were not trained and for tasks whose
        baseline has no relative gain (see `has_relative_gain`).

    Raises:
        InputError: For a task without a baseline, a direction or a value.

    Example:

    ```pycon
    >>> mtl_keras.evaluation.task_affinity(
    ...     {("a", "b"): {"a": 0.9, "b": 0.6}},
    ...     {"a": 0.8, "b": 0.8},
    ...     {"a": "max", "b": "max"},
    ... ).round(1)
    array([[  0. , -25. ],
           [ 12.5,   0. ]])
    ```
    """
    tasks = list(baseline)
    gains = np.full((len(tasks), len(tasks)), np.nan)
    np.fill_diagonal(gains, 0.0)
    for pair, values in pairs.items():
        if set(values) != set(pair) or not set(pair) <= set(tasks):
            raise InputError(
                f"Expected values of both tasks of the pair {pair}, and baselines of "
                f"both. Received values of {sorted(values)} and baselines of {tasks}."
            )
        for task, other in (pair, pair[::-1]):
            if has_relative_gain(baseline[task]):
                gains[tasks.index(other), tasks.index(task)] = delta_m(
                    {task: values[task]}, baseline, directions
                )
    return gains


class Grouping(NamedTuple):
    """A split of the tasks.

    Example:

    ```pycon
    >>> affinity = [[0.0, 5.0], [5.0, 0.0]]
    >>> grouping = mtl_keras.evaluation.suggest_groups(affinity, ["a", "b"])
    >>> grouping.groups
    [['a', 'b']]
    ```
    """

    groups: list[list[str]]
    """The tasks of each group, in their order."""
    score: float
    """Mean over all tasks of what a task gains from the others in its group."""


def suggest_groups(
    affinity: ArrayLike, tasks: Sequence[str], max_groups: int | None = None
) -> Grouping:
    """Splits tasks into groups to train together.

    Among all splits, the one with the most gain: a task gains the mean of the
    affinities of the others in its group towards it, and nothing alone. That is the
    search of Standley et al. (ICML 2020) and Fifty et al. (NeurIPS 2021,
    arXiv:2109.04617) over pairwise affinities. Departures: each task is in one group,
    while their networks may train a task only to help others; and the best split is
    found exactly. Means of pairs are a guess at what larger groups do: train the
    suggestion before you trust it.

    Args:
        affinity: `[T, T]`; row i, column j is what task j gains from i, above 0 where
            it helps. The diagonal is not read; NaN counts 0. Gradient cosines serve
            as well.
        tasks: T names.
        max_groups: Most groups, as each is a model to train and to serve; None for
            any number.

    Returns:
        The groups and their gain. Among equally good splits, one with fewer groups.

    Raises:
        InputError: If the shapes do not fit, for more than 12 tasks, or for
            `max_groups` below 1.

    Example:

    ```pycon
    >>> affinity = [[0.0, 5.0, -1.0], [5.0, 0.0, -1.0], [-1.0, -1.0, 0.0]]
    >>> mtl_keras.evaluation.suggest_groups(affinity, ["a", "b", "c"]).groups
    [['a', 'b'], ['c']]
    ```
    """
    table = np.nan_to_num(np.asarray(affinity, dtype=np.float64))
    count = len(tasks)
    if table.shape != (count, count) or not 1 <= count <= MOST_TASKS:
        raise InputError(
            f"Expected an affinity [T, T] of 1 to {MOST_TASKS} tasks. Received: shape "
            f"{table.shape} for {count} tasks."
        )
    most = count if max_groups is None else max_groups
    if most < 1:
        raise InputError(f"Expected max_groups of at least 1. Received: {max_groups}.")
    gains = [_gain(table, subset) for subset in range(1 << count)]
    # best[k][subset]: the most gain of splitting the subset into k groups, and the
    # group that holds its first task.
    best: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]
    everything = (1 << count) - 1
    for _ in range(min(most, count)):
        best_splits: dict[int, tuple[float, int]] = {}
        for subset in range(1, everything + 1):
            first = subset & -subset
            group = subset
            while group:
                rest = best[-1].get(subset ^ group)
                if group & first and rest is not None:
                    gain = gains[group] + rest[0]
                    if subset not in best_splits or gain > best_splits[subset][0]:
                        best_splits[subset] = (gain, group)
                group = (group - 1) & subset
        best.append(best_splits)
    # Rounding must not split tasks that are equally good together.
    chosen = 1
    for number in range(2, len(best)):
        if best[number][everything][0] > best[chosen][everything][0] + 1e-12:
            chosen = number
    gain = best[chosen][everything][0]
    groups, subset = [], everything
    for number in range(chosen, 0, -1):
        group = best[number][subset][1]
        groups.append([tasks[i] for i in range(count) if group >> i & 1])
        subset ^= group
    return Grouping(groups, gain / count)


def _gain(table: np.ndarray, subset: int) -> float:
    members = [i for i in range(len(table)) if subset >> i & 1]
    if len(members) < 2:
        return 0.0
    inside = table[np.ix_(members, members)]
    return float((inside.sum() - np.trace(inside)) / (len(members) - 1))
