"""Multi-task performance against single-task baselines."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

from mtl_keras.errors import InputError, unknown_name

_SMALLEST_BASELINE = 1e-7
"""Sums of float32 values near 1 are exact to that: a smaller baseline may be 0."""


def has_relative_gain(baseline: float | None) -> bool:
    """Returns whether gains over this baseline have a value, a bool.

    Not over 0, over what is 0 up to the round-off of float32 metrics (less than
    1e-7), over NaN or infinity, and over a missing one.

    Example:

    ```pycon
    >>> mtl_keras.evaluation.has_relative_gain(0.0)
    False
    ```
    """
    return (
        baseline is not None
        and math.isfinite(baseline)
        and abs(baseline) >= _SMALLEST_BASELINE
    )


def delta_m(
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    directions: Mapping[str, str],
) -> float:
    """Average relative gain over single-task baselines, in percent.

    Δm of Maninis, Radosavovic and Kokkinos, "Attentive Single-Tasking of
    Multiple Tasks" (CVPR 2019):

    ```
    Δm = 100 / T · Σ_t s_t · (M_t - B_t) / |B_t|
    ```

    with `s_t = 1` where higher is better and `-1` where lower is better.
    Positive means that the multi-task model is better on average. Departures: the
    paper divides by `B_t`, which has the wrong sign for a metric below 0, such as an
    R² or a log-likelihood; and a task whose baseline is 0 (less than 1e-7, the
    round-off of float32 metrics), NaN or infinite has no relative gain: it is
    excluded from the mean with a warning, T being the tasks that are left.

    Args:
        metrics: One main metric per task, of the multi-task model.
        baseline: The same metric of a model trained on that task alone.
        directions: `"max"` or `"min"` per task.

    Returns:
        Percent; NaN if the metric of a task that is not excluded is NaN.

    Raises:
        InputError: If there are no tasks, a task has no baseline, a direction is
            neither `"max"` nor `"min"`, or all tasks are excluded.

    Example:

    ```pycon
    >>> baseline = {"price": -1.0, "rent": 0.5}  # R²
    >>> metrics = {"price": -0.5, "rent": 0.6}  # better by 50 % and by 20 %
    >>> directions = {"price": "max", "rent": "max"}
    >>> round(mtl_keras.evaluation.delta_m(metrics, baseline, directions), 4)
    35.0
    ```
    """
    if not metrics:
        raise InputError("Expected at least one task. Received: no metrics.")
    gains, excluded = [], []
    for task, value in metrics.items():
        if task not in baseline:
            raise unknown_name("task among the baselines", task, baseline)
        if directions.get(task) not in ("max", "min"):
            raise InputError(
                f"Expected a direction 'max' or 'min' for task {task!r}. "
                f"Received: {directions.get(task)!r}."
            )
        if not has_relative_gain(baseline[task]):
            excluded.append(f"{task} ({baseline[task]})")
            continue
        sign = 1.0 if directions[task] == "max" else -1.0
        gains.append(sign * (value - baseline[task]) / abs(baseline[task]))
    if not gains:
        raise InputError(
            "Expected a baseline other than 0 for at least one task: a relative gain "
            f"over 0 has no value. Received: {', '.join(excluded)}."
        )
    if excluded:
        warnings.warn(
            "Δm excludes tasks whose baseline is 0 or no number, as a relative gain "
            f"over it has no value: {', '.join(excluded)}.",
            stacklevel=2,
        )
    return 100.0 * sum(gains) / len(gains)
