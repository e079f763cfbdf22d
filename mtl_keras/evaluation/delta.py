"""Multi-task performance against single-task baselines."""

from __future__ import annotations

from collections.abc import Mapping

from mtl_keras.errors import InputError, unknown_name


def delta_m(
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    directions: Mapping[str, str],
) -> float:
    """Average relative gain over single-task baselines, in percent.

    Δm of Maninis, Radosavovic and Kokkinos, "Attentive Single-Tasking of
    Multiple Tasks" (CVPR 2019):

    ```
    Δm = 100 / T · Σ_t s_t · (M_t - B_t) / B_t
    ```

    with `s_t = 1` where higher is better and `-1` where lower is better.
    Positive means that the multi-task model is better on average.

    Args:
        metrics: One main metric per task, of the multi-task model.
        baseline: The same metric of a model trained on that task alone.
        directions: `"max"` or `"min"` per task.

    Returns:
        Percent.

    Raises:
        InputError: If the tasks differ, a direction is neither `"max"` nor
            `"min"`, or a baseline is 0 (the relative gain has no value then).
    """
    if not metrics:
        raise InputError("Expected at least one task. Received: no metrics.")
    total = 0.0
    for task, value in metrics.items():
        if task not in baseline:
            raise unknown_name("task among the baselines", task, baseline)
        if directions.get(task) not in ("max", "min"):
            raise InputError(
                f"Expected a direction 'max' or 'min' for task {task!r}. "
                f"Received: {directions.get(task)!r}."
            )
        if baseline[task] == 0:
            raise InputError(
                f"Expected a baseline other than 0 for task {task!r}: a relative "
                "gain over 0 has no value."
            )
        sign = 1.0 if directions[task] == "max" else -1.0
        total += sign * (value - baseline[task]) / baseline[task]
    return 100.0 * total / len(metrics)
