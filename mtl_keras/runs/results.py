"""Keras's flat logs as `{task: {metric: value}}`, and back to one score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def metric_names(application: Any, tasks: Sequence[str]) -> dict[str, list[str]]:
    """Returns `{task: [metric, ...]}` for the tasks of an application."""
    return {
        name: [metric.name for metric in task.metrics()]
        for name, task in application.select(tasks).items()
    }


def by_task(
    logs: Mapping[str, float], names: Mapping[str, Sequence[str]], prefix: str = ""
) -> dict[str, dict[str, float]]:
    """Sorts Keras's logs by task.

    Args:
        logs: Results of `evaluate(return_dict=True)`, or an epoch's logs. Keys
            are `<task>_<metric>`; Keras leaves the task out of models with one
            output.
        names: `{task: [metric, ...]}`, as `metric_names` gives it.
        prefix: `"val_"` for the validation part of an epoch's logs.

    Returns:
        `{task: {metric: value}}` with each task's metrics, then its `"loss"`.
    """
    results: dict[str, dict[str, float]] = {}
    for task, metrics in names.items():
        values = results.setdefault(task, {})
        for name in [*metrics, "loss"]:
            key = f"{prefix}{task}_{name}"
            if key not in logs and len(names) == 1:
                key = f"{prefix}{name}"
            if key in logs:
                values[name] = float(logs[key])
    return results


def main_metrics(
    results: Mapping[str, Mapping[str, float]], application: Any
) -> dict[str, float]:
    """Returns each task's main metric, NaN where it is missing."""
    return {
        task: values.get(application.tasks[task].objective, math.nan)
        for task, values in results.items()
    }


def score(main: Mapping[str, float], application: Any) -> float:
    """Returns the mean over tasks of the main metrics, higher being better.

    Args:
        main: `{task: value}`. A metric that is to be minimised counts negative.
        application: The application that knows each metric's direction.
    """
    oriented = [
        value if application.tasks[task].direction == "max" else -value
        for task, value in main.items()
    ]
    return sum(oriented) / len(oriented)
