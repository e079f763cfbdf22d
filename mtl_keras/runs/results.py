"""Keras's flat logs as `{task: {metric: value}}`, and back to one score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def metric_names(application: Any, tasks: Sequence[str]) -> dict[str, list[str]]:
    """Returns `{task: [metric, ...]}` for the tasks of an application."""
    columns = application.columns_of(tasks)
    names: dict[str, list[str]] = {}
    for output, task in application.outputs_of(tasks).items():
        # Once for a group of tasks: metrics take long to make.
        own = [metric.name for metric in task.metrics()]
        names |= dict.fromkeys(columns.get(output, (output,)), own)
    return {
        title: names[task.name] for title, task in application.select(tasks).items()
    }


def task_logs(model: Any, application: Any, prefix: str = "") -> dict[str, float]:
    """Returns metrics by task that Keras does not log, or not as they are.

    `{"<prefix><task>_<metric>": value}` of a compiled model, just evaluated: the
    metrics of tasks that are columns of an output, as Keras logs them of tasks with
    outputs of their own; and NaN for metrics that have no value on the labels, such as
    the area under a curve of samples of one class.
    """
    titles = {task.name: title for title, task in application.tasks.items()}
    # Keras leaves the task out of the logs of models with one output.
    own = dict.fromkeys(model.output, "")
    if len(own) > 1:
        own = {output: f"{titles.get(output, output)}_" for output in own}
    undefined = {
        f"{prefix}{own[output]}{metric}": math.nan
        for output, metrics in model.metrics_without_value().items()
        for metric in metrics
        if output not in model.columns
    }
    if not model.columns:
        return undefined
    return undefined | {
        f"{prefix}{titles[name]}_{metric}": float(value)
        for output, results in model.column_results().items()
        for metric, values in results.items()
        if metric != "weight"
        for name, value in zip(model.columns[output], values, strict=True)
    }


def by_task(
    logs: Mapping[str, float], names: Mapping[str, Sequence[str]], prefix: str = ""
) -> dict[str, dict[str, float]]:
    """Returns Keras's logs as `{task: {metric: value}}`, each task's `"loss"` last.

    `names` is `{task: [metric, ...]}`, as `metric_names` returns it.
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


def flat(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns validation metrics by task as `{"val_<task>_<metric>": value}`."""
    return {
        f"val_{task}_{name}": value
        for task, values in results.items()
        for name, value in values.items()
    }


def defined_mean(values: Sequence[float]) -> float:
    """Returns the mean of the values that are numbers, NaN without any."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


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

    A metric that is to be minimised counts negative, and one of a target with a unit
    is divided by the target's deviation. Tasks without a value (NaN), as the data has
    no label of theirs or one class alone, are left out; without any value the mean is
    NaN.
    """
    tasks = application.tasks
    return defined_mean(
        [
            (1 if tasks[task].direction == "max" else -1) * value / tasks[task].unit
            for task, value in main.items()
        ]
    )
