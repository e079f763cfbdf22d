"""The loop of a study: ask the oracle for trials, run them, tell it their results."""

from __future__ import annotations

import functools
import math
import pathlib
import time
from typing import Any

from rich.console import Console

from mtl_keras.callbacks.task_progress import duration
from mtl_keras.decoding import Result, decode
from mtl_keras.encoding import encode
from mtl_keras.errors import InputError
from mtl_keras.evaluation import has_relative_gain
from mtl_keras.files import read_json, write_json
from mtl_keras.runs.config import TrainingConfig
from mtl_keras.runs.progress import say
from mtl_keras.runs.records import RECORD, read_record
from mtl_keras.runs.results import by_task, metric_names
from mtl_keras.runs.scheduler import Job, Scheduler
from mtl_keras.search import records, tensorboard
from mtl_keras.search.hypermodel import SUM, StudyHyperModel
from mtl_keras.search.keras_tuner_compat import STATE
from mtl_keras.search.objectives import DELTA_M, oriented
from mtl_keras.search.records import TrialRecord, main_values, short, shown_tasks
from mtl_keras.search.study import Study

BASELINES = "baselines.json"
_ALONE = "mtl_keras.search.trial:train_alone"
_TRIAL = "mtl_keras.search.trial:train_trial"
_PAUSE_SECONDS = 1.0


class Search:
    """Asks an oracle for trials, has them run, and tells it their results.

    The oracle may be a client of a chief's, for which this process has a `name`.
    """

    def __init__(
        self,
        study: Study,
        oracle: Any,
        out: pathlib.Path,
        scheduler: Scheduler,
        console: Console,
        name: str | None = None,
    ):
        self._study = study
        self._oracle = oracle
        self._out = out
        self._scheduler = scheduler
        self._console = console
        self._name = name
        self._model = StudyHyperModel(study)
        # {trial: its slot's name, itself, its settings}.
        self._trials: dict[str, tuple[str, Any, TrainingConfig]] = {}

    @functools.cached_property
    def _baselines(self) -> dict[str, float] | None:
        """The baselines; read when there is a trial, by when a chief has them."""
        if not needs_baselines(self._study):
            return None
        return read_baselines(self._study, self._out)

    def run(self) -> None:
        """Runs trials until the oracle has none left."""
        asking = True
        while True:
            while asking and self._scheduler.free:
                tuner_id = self._free_name()
                trial = self._oracle.create_trial(tuner_id)
                asking = trial.status != "STOPPED"
                if trial.status != "RUNNING":
                    break
                self._start(tuner_id, trial)
            if not self._trials and not asking:
                return
            if not self._trials:
                time.sleep(_PAUSE_SECONDS)
            for job in self._scheduler.wait(_PAUSE_SECONDS):
                self._end(job)

    def _free_name(self) -> str:
        if self._name is not None:
            return self._name
        taken = {tuner_id for tuner_id, *_ in self._trials.values()}
        names = (f"slot-{number}" for number in range(self._scheduler.slots))
        return next(name for name in names if name not in taken)

    def _start(self, tuner_id: str, trial: Any) -> None:
        """Reports a trial's settings, and submits it to the scheduler."""
        study, hp = self._study, trial.hyperparameters
        config = self._model.config(hp.copy())
        number = f"{int(trial.trial_id) + 1}/{study.settings.trials}"
        say(
            self._console,
            f"trial {trial.trial_id} ({number}): {_described(study, config)}",
        )
        start = hp.values.get("tuner/trial_id")
        self._trials[trial.trial_id] = (tuner_id, trial, config)
        self._scheduler.submit(
            Job(
                trial.trial_id,
                self._folder(trial.trial_id),
                _TRIAL,
                {
                    "study": encode(study.settings),
                    "hyperparameters": hp.get_config(),
                    "baselines": self._baselines,
                    "start": None if start is None else str(self._folder(start)),
                },
            )
        )

    def _folder(self, trial_id: str) -> pathlib.Path:
        return self._out.absolute() / STATE / f"trial_{trial_id}"

    def _end(self, job: Job) -> None:
        """Records a trial, reports its outcome, and tells the oracle."""
        _, trial, config = self._trials.pop(job.label)
        record, results = self._record(job, trial, config)
        # In this order: a trial that the oracle has noted as ended is not run
        # again, so its record has to be there by then.
        records.write_record(self._out, record)
        tensorboard.write_trial(self._out, record)
        self._oracle.update_trial(trial.trial_id, results)
        # Of an objective without a value KerasTuner makes a failed trial.
        trial.status = "COMPLETED"
        self._oracle.end_trial(trial)
        if record.completed:
            line = _outcome(self._study, record)
        else:
            line = f"failed, and is skipped: {' '.join(record.error.split())}"
        line = f"trial {trial.trial_id}: {line}; {duration(record.seconds)}"
        if self._name is None:
            todo = self._study.settings.trials - len(self._oracle.start_order)
            left = self._scheduler.seconds_left([("", 1.0)] * max(todo, 0))
            line += "" if left is None else f", about {duration(left)} left"
        say(self._console, line)

    def _record(
        self, job: Job, trial: Any, config: TrainingConfig
    ) -> tuple[TrialRecord, dict[str, float]]:
        """Returns the record of a trial, and the results that the oracle gets."""
        study, outcome = self._study, read_record(job.folder / RECORD)
        names = [objective.name for objective in study.objectives]
        results = dict.fromkeys([*names, SUM], math.nan)
        if outcome.completed:
            results |= decode(dict[str, Result], outcome.result)
        values = {o.label: results[o.name] for o in study.objectives}
        score = sum(oriented(o, values[o.label]) for o in study.objectives)
        error = outcome.error
        if not error and math.isnan(score):
            error = "The loss or a metric is not a number."
        names_of = metric_names(study.application, study.tasks)
        record = TrialRecord(
            status="FAILED" if error else "COMPLETED",
            seconds=outcome.seconds,
            error=error,
            traceback=outcome.traceback,
            made_with=outcome.made_with,
            trial=trial.trial_id,
            score=None if error else score,
            objectives=values,
            directions={o.label: o.direction for o in study.objectives},
            metrics=by_task(results, names_of, "val_") if outcome.completed else {},
            config=config,
            hyperparameters=dict(trial.hyperparameters.values),
        )
        return record, results


def _described(study: Study, config: TrainingConfig) -> str:
    """Returns the searched settings of a trial in a few words."""
    settings = records.flat_settings(config, short)
    parts = [
        f"{name.replace('_', ' ')} {short(settings[name])}"
        for name in study.searched
        if name != "loss_weights"
    ]
    if "loss_weights" in study.searched:
        weights = config.loss_weights or {}
        parts.append("weights " + " ".join(f"{t} {w:.2f}" for t, w in weights.items()))
    return ", ".join(parts)


def _outcome(study: Study, record: TrialRecord) -> str:
    """Returns how a finished trial went in a few words."""
    main = zip(shown_tasks(study), main_values(study, record), strict=True)
    metrics = ", ".join(f"{task} {value:.4f}" for task, value in main)
    score = ", ".join(f"{n} {v:.4f}" for n, v in record.objectives.items())
    return f"{score}; {metrics}" if metrics else score


def needs_baselines(study: Study) -> bool:
    """Returns whether Δm is an objective."""
    return any(objective.label == DELTA_M for objective in study.objectives)


def read_baselines(study: Study, out: pathlib.Path) -> dict[str, float]:
    """Returns the baselines that the folder holds, by task."""
    path = out / BASELINES
    if not path.is_file():
        return {}
    baselines = decode(dict[str, Result], read_json(path), str(path))
    if not set(baselines) <= set(study.tasks):
        raise InputError(f"{path} does not hold the baselines of this study.")
    return baselines


def train_missing(
    study: Study, out: pathlib.Path, scheduler: Scheduler, console: Console
) -> None:
    """Trains the single-task baselines that the folder lacks, where Δm needs them.

    Raises:
        InputError: If one cannot be trained, or Δm would exclude every task.
    """
    if not needs_baselines(study):
        return
    baselines = read_baselines(study, out)
    waiting = [task for task in study.tasks if task not in baselines]
    with console.status(f"Training {', '.join(waiting)} alone, with a trial's budget"):
        while waiting or scheduler.running:
            while waiting and scheduler.free:
                task = waiting.pop(0)
                folder = out.absolute() / STATE / "alone" / task
                settings = {"study": encode(study.settings), "task": task}
                scheduler.submit(Job(task, folder, _ALONE, settings, kind="alone"))
            for job in scheduler.wait(_PAUSE_SECONDS):
                record = read_record(job.folder / RECORD)
                if not record.completed:
                    (job.folder / RECORD).unlink()
                    raise InputError(
                        f"The baseline of {job.label!r} cannot be trained: "
                        f"{' '.join(record.error.split())}"
                    )
                value = record.result
                baselines[job.label] = math.nan if value is None else value
                write_json(out / BASELINES, baselines)
    excluded = [task for task in study.tasks if not has_relative_gain(baselines[task])]
    if len(excluded) == len(study.tasks):
        raise InputError(
            "Expected a baseline other than 0 for at least one task: a relative gain "
            f"over 0 has no value. Received: {baselines}. Choose another objective."
        )
    if excluded:
        say(
            console,
            f"Δm excludes {', '.join(excluded)}: alone, with a trial's budget, the "
            "main metric is 0 or no number.",
        )
