"""The mean rank of methods over tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from mtl_keras.errors import InputError


def average_rank(
    results: Mapping[str, Mapping[str, float]], directions: Mapping[str, str]
) -> dict[str, float]:
    """Ranks methods on each task, and averages over the tasks.

    The mean rank (MR) that multi-task papers report beside Δm, for example Navon et
    al., "Multi-Task Learning as a Bargaining Game" (ICML 2022, arXiv:2202.01017). It
    has no unit and knows no sizes: it tells how often a method wins, not by how much.
    Equal values share the mean of their ranks, as in Demšar, "Statistical Comparisons
    of Classifiers over Multiple Data Sets" (JMLR 2006). NaN ranks last.

    Args:
        results: `{method: {task: value}}`, with the same tasks for every method.
        directions: `{task: "max" or "min"}`.

    Returns:
        `{method: rank}` from 1, which is best, to the number of methods.

    Raises:
        InputError: If there is no method or no task, the tasks differ between
            methods, or a direction is neither `"max"` nor `"min"`.

    Example:

    ```pycon
    >>> results = {"equal": {"a": 0.8, "b": 0.3}, "nash": {"a": 0.9, "b": 0.4}}
    >>> mtl_keras.evaluation.average_rank(results, {"a": "max", "b": "min"})
    {'equal': 1.5, 'nash': 1.5}
    ```
    """
    tasks = list(next(iter(results.values()), {}))
    if not tasks:
        raise InputError("Expected results of at least one method on one task.")
    for method, values in results.items():
        if set(values) != set(tasks):
            raise InputError(
                f"Expected the same tasks for every method: {', '.join(tasks)}. "
                f"Received for {method!r}: {', '.join(values) or 'none'}."
            )
    total = np.zeros(len(results))
    for task in tasks:
        if directions.get(task) not in ("max", "min"):
            raise InputError(
                f"Expected a direction 'max' or 'min' for task {task!r}. "
                f"Received: {directions.get(task)!r}."
            )
        sign = -1.0 if directions[task] == "max" else 1.0
        column = np.array([sign * values[task] for values in results.values()])
        column[np.isnan(column)] = math.inf
        # Those that tie share the mean of their ranks.
        better = (column < column[:, None]).sum(axis=1)
        equal = (column == column[:, None]).sum(axis=1)
        total += better + (equal + 1) / 2
    means = total / len(tasks)
    return {method: float(rank) for method, rank in zip(results, means, strict=True)}
