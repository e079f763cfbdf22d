"""Objectives of a search: one, or several with a trade-off between them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mtl_keras.errors import InputError, unknown_name
from mtl_keras.evaluation.delta import delta_m, has_relative_gain
from mtl_keras.runs.results import main_metrics, metric_names, score

if TYPE_CHECKING:
    from mtl_keras.applications import Application

MEAN = "mean"
DELTA_M = "delta_m"
_ERRORS = ("Error", "Crossentropy", "Divergence", "Hinge", "LogCosh", "Poisson")


@dataclasses.dataclass(frozen=True)
class Objective:
    """One objective of a study.

    Attributes:
        label: How the study names it: `"mean"`, `"delta_m"`, or `"<task>_<metric>"`.
        direction: `"max"` or `"min"`.
        task: The task whose metric it is; empty for those over all tasks.
        metric: Name of the metric.
    """

    label: str
    direction: str
    task: str = ""
    metric: str = ""

    @property
    def name(self) -> str:
        """Its name in KerasTuner, and in the results of a trial."""
        return f"val_{self.label}"

    def value(
        self,
        results: Mapping[str, Mapping[str, float]],
        application: Application,
        baselines: Mapping[str, float] | None,
    ) -> float:
        """Returns the objective of a trial's results, NaN where it has none."""
        if self.task:
            return results.get(self.task, {}).get(self.metric, math.nan)
        main = main_metrics(results, application)
        if self.label == MEAN:
            return score(main, application)
        assert baselines is not None
        main = {t: main[t] for t in main if has_relative_gain(baselines[t])}
        directions = {task: application.tasks[task].direction for task in main}
        return delta_m(main, baselines, directions)


def parse_objectives(
    value: str | Sequence[str], application: Application, tasks: Sequence[str]
) -> tuple[Objective, ...]:
    """Returns a study's objectives.

    Args:
        value: A name, or a list of names, of which each is `"mean"`, `"delta_m"`, a
            task (its main metric is meant) or `"<task>_<metric>"`.
        application: The application.
        tasks: The study's tasks.

    Raises:
        InputError: For a name that is neither, a repeated name, or a metric whose
            direction is not known.
    """
    names = [value] if isinstance(value, str) else list(value)
    objectives = tuple(_objective(name, application, tasks) for name in names)
    labels = [objective.label for objective in objectives]
    if not labels or len(set(labels)) < len(labels):
        raise InputError(
            f"Expected objective to list each objective once. Received: {value!r}."
        )
    return objectives


def _objective(name: str, application: Application, tasks: Sequence[str]) -> Objective:
    if name in (MEAN, DELTA_M):
        return Objective(name, "max")
    if name in tasks:
        task = application.tasks[name]
        return Objective(
            f"{name}_{task.objective}", task.direction, name, task.objective
        )
    metrics = metric_names(application, tasks)
    for task_name, own in metrics.items():
        for metric in [*own, "loss"]:
            if name == f"{task_name}_{metric}":
                direction = _direction(application, task_name, metric)
                return Objective(name, direction, task_name, metric)
    known = [MEAN, DELTA_M, *tasks]
    known += [f"{task}_{metric}" for task in metrics for metric in metrics[task]]
    raise unknown_name("objective", name, known)


def _direction(application: Application, task: str, metric: str) -> str:
    """Returns which way a metric is better, by its kind."""
    import keras_tuner

    if metric == "loss":
        return "min"
    if metric == application.tasks[task].objective:
        return application.tasks[task].direction
    (instance,) = (m for m in application.tasks[task].metrics() if m.name == metric)
    direction = keras_tuner.engine.metrics_tracking.infer_metric_direction(instance)
    # KerasTuner takes every metric of Keras that it does not list for an error.
    if direction == "min" and not any(w in type(instance).__name__ for w in _ERRORS):
        direction = None
    if direction is None:
        raise InputError(
            f"It is not known which way {metric!r} of task {task!r} is better. "
            f"Its main metric, {application.tasks[task].objective!r}, can be an "
            "objective."
        )
    return direction


def oriented(objective: Objective, value: float) -> float:
    """Returns a value so that higher is better."""
    return value if objective.direction == "max" else -value
