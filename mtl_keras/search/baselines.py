"""The tasks of a study trained alone, with a trial's budget, for Δm."""

from __future__ import annotations

import math
import pathlib

from rich.console import Console

from mtl_keras.decoding import Result, decode
from mtl_keras.encoding import encode
from mtl_keras.errors import InputError
from mtl_keras.evaluation import has_relative_gain
from mtl_keras.files import read_json, write_json
from mtl_keras.runs.records import RECORD, read_record
from mtl_keras.runs.scheduler import Job, Scheduler
from mtl_keras.search.keras_tuner_compat import STATE
from mtl_keras.search.objectives import DELTA_M
from mtl_keras.search.study import Study

BASELINES = "baselines.json"
_ALONE = "mtl_keras.search.trial:train_alone"
_ALONE_FOLDER = "alone"
_PAUSE_SECONDS = 1.0


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
                folder = out.absolute() / STATE / _ALONE_FOLDER / task
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
        console.print(
            f"Δm excludes {', '.join(excluded)}: alone, with a trial's budget, the "
            "main metric is 0 or no number.",
            soft_wrap=True,
            markup=False,
        )
