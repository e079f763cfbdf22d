"""Studies: the definition of a search and its objectives, read from TOML."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, StrictInt, StrictStr

from mtl_keras.decoding import Count, Decodable, decode
from mtl_keras.errors import InputError, unknown_name
from mtl_keras.evaluation.delta import delta_m, has_relative_gain
from mtl_keras.files import read_toml
from mtl_keras.runs.config import RunConfig, TrainingConfig
from mtl_keras.runs.results import main_metrics, metric_names, score
from mtl_keras.search.space import Space, parse_space

if TYPE_CHECKING:
    from mtl_keras.applications import Application

MEAN = "mean"
DELTA_M = "delta_m"
_ERRORS = ("Error", "Crossentropy", "Divergence", "Hinge", "LogCosh", "Poisson")


@dataclasses.dataclass(frozen=True)
class Objective:
    """One objective of a study.

    `label` is its name in the study: `"mean"`, `"delta_m"`, both without a task, or
    `"<task>_<metric>"`; `direction` is `"max"` or `"min"`.
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
    """Returns a study's objectives, of names as `StudySettings.objective` has them.

    Raises an InputError for one that is unknown or repeated, or whose direction is.
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
    known = {
        f"{task}_{metric}": (task, metric)
        for task, own in metric_names(application, tasks).items()
        for metric in (*own, "loss")
    } | {task: (task, application.tasks[task].objective) for task in tasks}
    if name not in known:
        raise unknown_name("objective", name, [MEAN, DELTA_M, *known])
    task, metric = known[name]
    direction = _direction(application, task, metric)
    return Objective(f"{task}_{metric}", direction, task, metric)


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


ORACLES = ("bayesian", "grid", "hyperband", "pareto", "random")


@dataclasses.dataclass(frozen=True)
class StudySettings(Decodable):
    """A search, as a study file describes it.

    Attributes:
        application: Name of the application.
        trials: How many trials to run at most.
        epochs: Epochs of one trial (`hyperband`: of its longest trials).
        space: The searched and fixed settings, as in a study file; what is left out
            takes the application's default.
        data: Name of the data set; None means the application's default.
        tasks: The tasks; None means all of them.
        seed: Seed of the oracle, and of every trial.
        oracle: `"random"`, `"bayesian"`, `"hyperband"`, `"grid"`, or `"pareto"` for
            several objectives.
        limit: Training samples of a trial; None means all.
        objective: One or, for `"pareto"`, several of `"mean"` (over the tasks' main
            metrics), `"delta_m"` (over single-task baselines of the same budget), a
            task's name (its main metric) and `"<task>_<metric>"`.
        patience: Epochs without a better objective after which a trial stops; None
            means never.
    """

    application: StrictStr
    trials: Count
    epochs: Count
    space: Mapping[str, Any]
    data: StrictStr | None = None
    tasks: tuple[StrictStr, ...] | None = None
    seed: StrictInt = 0
    oracle: StrictStr = "bayesian"
    limit: Count | None = None
    objective: Annotated[
        tuple[StrictStr, ...],
        BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    ] = ("mean",)
    patience: Count | None = None

    def validate(self) -> Study:
        """Checks every setting, and every value that a trial could draw.

        Raises:
            InputError: If anything in the study would fail in a trial.
        """
        if self.oracle not in ORACLES:
            raise unknown_name("oracle", self.oracle, ORACLES)
        base = RunConfig(
            application=self.application,
            data=self.data,
            tasks=self.tasks,
            epochs=self.epochs,
            seed=self.seed,
            limit=self.limit,
            # Some ways to balance, the application's perhaps, leave nothing to weigh.
            balancing="equal" if "loss_weights" in self.space else None,
        )
        validated = base.validate()
        space = parse_space(self.space, validated.tasks)
        objectives = parse_objectives(
            self.objective, validated.get_application(), validated.tasks
        )
        self._check_objectives(len(objectives) > 1)
        for name, dimension in space.items():
            for value in dimension.examples():
                dataclasses.replace(base, **{name: value}).validate()
        study = Study(self, validated, space, objectives)
        if not study.searched:
            raise InputError(
                "Expected [space] to leave something to search: a list of values, a "
                "range { min = ..., max = ... }, or loss_weights = { max_ratio = ... }."
            )
        return study

    def _check_objectives(self, several: bool) -> None:
        if several != (self.oracle == "pareto"):
            raise InputError(
                'Expected oracle = "pareto" with several objectives, and another one '
                f"with a single objective. Received: oracle = {self.oracle!r} and "
                f"objective = {', '.join(self.objective)}."
            )
        if several and self.patience is not None:
            raise InputError(
                "Expected no patience with several objectives, of which one may still "
                f"improve. Received: patience = {self.patience}."
            )


@dataclasses.dataclass(frozen=True)
class Study:
    """A search, checked; `load_study` and `StudySettings.validate` make it.

    Attributes:
        settings: The settings that it was made from.
        base: Settings that all trials share; those that are searched have their
            defaults here.
        space: The fixed and searched settings, by name.
        objectives: One objective, or several.
    """

    settings: StudySettings
    base: TrainingConfig
    space: Space
    objectives: tuple[Objective, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that a trial trains."""
        return self.base.tasks

    @property
    def searched(self) -> list[str]:
        """The names of the settings that differ between trials."""
        return [name for name, d in self.space.items() if d.searched]

    @property
    def epochs(self) -> str:
        """The number of epochs of a trial as text, such as `3 epochs`."""
        epochs = self.settings.epochs
        return f"{epochs} epoch{'s' if epochs > 1 else ''}"

    @functools.cached_property
    def application(self) -> Application:
        """The application, as it is for the study's data."""
        return self.base.get_application()


def load_study(path: str | pathlib.Path) -> Study:
    """Reads and checks a study file.

    Args:
        path: A TOML file; `tuning/vision.toml` explains the keys.

    Raises:
        InputError: If the file cannot be read, or a key, type, name or range is
            wrong. The message starts with the file's name.
    """
    from mtl_keras import applications

    path = pathlib.Path(path)
    table = read_toml(path, "study file")
    for key in ("application", "data"):
        if isinstance(table.get(key), str):
            # The file is named by whoever starts the study, and with it its code.
            name = applications.canonical(table[key], path.parent)
            table[key] = applications.allow(name)
    try:
        return decode(StudySettings, table).validate()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
