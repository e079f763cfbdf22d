"""Ranking metrics within lists, for example those of each user."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtl_keras import optional
from mtl_keras.errors import InputError, check_integer


def group_auc(y_true: Any, y_score: Any, groups: Any) -> float:
    """Returns the AUC within groups, averaged over them by their size.

    Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018
    (arXiv:1706.06978), section 5.3: unlike the AUC it gains nothing by telling
    active users from others. Groups whose labels are all the same have no AUC, and
    are left out.

    Args:
        y_true: 0 or 1, `[rows]`.
        y_score: Scores, higher meaning likelier, `[rows]`.
        groups: Which group a row belongs to, `[rows]`, any values.

    Returns:
        From 0 to 1; NaN if no group has an AUC.

    Raises:
        InputError: If lengths differ.

    Example:

    ```pycon
    >>> mtl_keras.evaluation.group_auc([0, 1, 1, 0], [0.1, 0.9, 0.2, 0.8], [1, 1, 2, 2])
    0.5
    ```
    """
    with optional.extra("evaluation", "scikit-learn", "The AUC within groups"):
        from sklearn.metrics import roc_auc_score

    total, rows = 0.0, 0
    for true, score in _lists(y_true, y_score, groups):
        if true.min() < true.max():
            total += len(true) * float(roc_auc_score(true, score))
            rows += len(true)
    return total / rows if rows else float("nan")


def ndcg(y_true: Any, y_score: Any, groups: Any, k: int = 10) -> float:
    """Returns the normalised discounted cumulative gain of lists, averaged.

    Järvelin and Kekäläinen, "Cumulated Gain-Based Evaluation of IR Techniques", ACM
    TOIS 20(4), 2002: Σ gain / log2(1 + rank) over the k best scored rows of a list,
    over that of the best order. Gains are the labels themselves. Rows of the same
    score share their places. Lists of one row, and those without a gain, say
    nothing and are left out.

    Args:
        y_true: Gains, at least 0, `[rows]`: 0 or 1, or stars.
        y_score: Scores, higher meaning better, `[rows]`.
        groups: Which list a row belongs to, `[rows]`, any values.
        k: Places that count.

    Returns:
        From 0 to 1; NaN if no list is left.

    Raises:
        InputError: If lengths differ.

    Example:

    ```pycon
    >>> mtl_keras.evaluation.ndcg([3, 0], [0.9, 0.1], [1, 1])
    1.0
    ```
    """
    with optional.extra("evaluation", "scikit-learn", "NDCG"):
        from sklearn.metrics import ndcg_score

    check_integer("k", k, low=1)
    values = [
        float(ndcg_score(true[None], score[None], k=k))
        for true, score in _lists(y_true, y_score, groups)
        if len(true) > 1 and true.max() > 0
    ]
    return float(np.mean(values)) if values else float("nan")


def by_slice(
    metrics: Mapping[str, Callable[..., float]],
    values: Any,
    edges: Sequence[float],
    *arrays: Any,
) -> dict[str, dict[str, float]]:
    """Returns metrics on slices of the rows, for example by users' activity.

    Args:
        metrics: `{name: function of the arrays' rows}`.
        values: Values to slice the rows by, `[rows]`.
        edges: Ascending boundaries; a slice starts at its lower one.
        *arrays: Arguments of the functions, each `[rows, ...]`.

    Returns:
        `{slice: {"rows": number, name: value}}`, without slices that are empty.
        Slices are named `"< 5"`, `"5 to < 20"`, `">= 20"`.

    Raises:
        InputError: If the edges do not ascend.

    Example:

    ```pycon
    >>> from sklearn.metrics import accuracy_score
    >>> mtl_keras.evaluation.by_slice(
    ...     {"accuracy": accuracy_score}, [1, 5, 9], [0, 4], [0, 1, 1], [0, 1, 0]
    ... )
    {'0 to < 4': {'rows': 1, 'accuracy': 1.0}, '>= 4': {'rows': 2, 'accuracy': 0.5}}
    ```
    """
    if list(edges) != sorted(set(edges)):
        raise InputError(f"Expected `edges` to ascend. Received: {list(edges)}.")
    values = np.ravel(values)
    names = [f"< {edges[0]:g}"]
    names += [f"{low:g} to < {high:g}" for low, high in itertools.pairwise(edges)]
    names.append(f">= {edges[-1]:g}")
    index = np.searchsorted(np.asarray(edges), values, "right")
    slices = {}
    for number, name in enumerate(names):
        rows = index == number
        if rows.any():
            parts = [np.asarray(array)[rows] for array in arrays]
            slices[name] = {
                "rows": int(rows.sum()),
                **{key: float(metric(*parts)) for key, metric in metrics.items()},
            }
    return slices


def _lists(
    y_true: Any, y_score: Any, groups: Any
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the labels and scores of each group."""
    true, score, groups = (np.ravel(values) for values in (y_true, y_score, groups))
    if not len(true) == len(score) == len(groups):
        raise InputError(
            "Expected as many labels as scores and groups. "
            f"Received: {len(true)}, {len(score)} and {len(groups)}."
        )
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.r_[True, groups[order][1:] != groups[order][:-1]])
    for rows in np.split(order, starts[1:]):
        if len(rows):
            yield true[rows], score[rows]
