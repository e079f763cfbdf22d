"""One cell: its training, its result and cost, checked when read again."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import StrictInt

from mtl_keras import runs, sharing
from mtl_keras.callbacks import DeltaCheckpoint, TaskAffinity
from mtl_keras.compare.comparison import COMBINATION, Cell
from mtl_keras.decoding import Count, Decodable, Result, decode
from mtl_keras.errors import InputError
from mtl_keras.model.columns import MANY_TASKS
from mtl_keras.runs import folder
from mtl_keras.runs.config import TrainingConfig
from mtl_keras.runs.progress import steps_done
from mtl_keras.runs.records import Record, read_record
from mtl_keras.runs.results import by_task, main_metrics, metric_names, score
from mtl_keras.runs.training import load_split


@dataclasses.dataclass(frozen=True)
class Measured(Decodable):
    """An epoch of `TaskAffinity.history`: matrices `[tasks, tasks]`."""

    epoch: StrictInt
    cosines: list[list[Result]]
    affinity: list[list[Result]]
    shared: list[list[Result]] | None = None


@dataclasses.dataclass(frozen=True)
class CellResult(Decodable):
    """Results of a cell's training; costs that are not known are NaN.

    Attributes:
        epoch: The chosen epoch, counted from 1.
        validation: `{task: main metric}` of that epoch on the validation split.
        validation_delta_m: Δm in percent on it; NaN of a cell that others are
            compared with.
        test: `{task: {metric: value}}` of that epoch on the test split.
        jobs: How many trainings shared the machine.
        history: `{name: value of each epoch}`, the logs of the training.
        affinity: Measurements of `TaskAffinity`, of combinations of few tasks.
    """

    epoch: Count
    validation: dict[str, Result]
    validation_delta_m: Result
    test: dict[str, dict[str, Result]]
    jobs: Count
    step_ms: Result
    step_cpu_ms: Result
    peak_memory_mb: Result
    peak_gpu_memory_mb: Result
    history: dict[str, list[Result]]
    affinity: list[Measured] | None


def measures_affinity(kind: str, tasks: tuple[str, ...]) -> bool:
    """Returns whether a training measures affinity, which takes T times as long."""
    return kind == COMBINATION and len(tasks) <= MANY_TASKS


def read_cell(path: pathlib.Path, cell: Cell) -> Record:
    """Reads the record of a cell, checked to be of it; its result is a `CellResult`."""
    record = read_record(path)
    if not record.completed:
        return record
    result = decode(CellResult, record.result, str(path))
    for key, is_right in _checks(cell, result).items():
        if not is_right:
            raise InputError(
                f"Expected {key!r} in {path} to be of {cell}: the comparison's folder "
                "is broken. Remove the file to train the cell again."
            )
    return dataclasses.replace(record, result=result)


def _checks(cell: Cell, result: CellResult) -> dict[str, bool]:
    """Returns whether each part of a result is one of this cell's training."""
    config = cell.config
    names = metric_names(config.get_application(), cell.tasks)
    trained = len(cell.tasks) - len(sharing.get(config.sharing).untrained(cell.tasks))
    lengths = {len(column) for column in result.history.values()}
    tables = [t for m in result.affinity or () for t in (m.cosines, m.affinity)]
    return {
        "epoch": result.epoch <= config.epochs,
        "validation": set(result.validation) == set(cell.tasks),
        "test": all(
            set(result.test.get(task, ())) >= set(own) for task, own in names.items()
        ),
        "history": len(lengths) == 1 and result.epoch <= max(lengths) <= config.epochs,
        "affinity": measures_affinity(cell.kind, cell.tasks)
        == (result.affinity is not None)
        and len(tables) in (0, *(2 * length for length in lengths))
        and all(
            len(table) == trained and all(len(row) == trained for row in table)
            for table in tables
        ),
    }


RUN = "run"
_BEST = "best.keras"
_AFFINITY = "affinity.json"

# Batches of training data that task affinity is measured on, after each epoch.
_PROBED = 2


def train_cell(path: pathlib.Path, settings: Mapping[str, Any]) -> CellResult:
    """Trains a cell, or resumes it; a job of `Scheduler`.

    `settings["baseline"]` is `{task: metric}` on validation of the trainings to compare
    with, by which the epoch is chosen; None chooses it by the metrics themselves.
    """
    config = decode(TrainingConfig, settings["config"])
    application = config.get_application()
    keep = _BestEpoch(path / _BEST, config, settings["baseline"])
    clock, memory = _StepClock(), GpuMemory()
    callbacks: list[keras.callbacks.Callback] = [keep, clock, memory]
    affinity = None
    if measures_affinity(settings["kind"], config.tasks):
        batches = list(load_split(config, "train").take(_PROBED))
        affinity = TaskAffinity(batches, path=path / _AFFINITY)
        callbacks.append(affinity)
    out = path / RUN
    if out.exists():
        # Its process ended between the run and the record, which the callbacks know.
        shutil.rmtree(out)
    metrics = runs.train(config, out, callbacks=callbacks).metrics
    columns = folder.read_history(out / folder.HISTORY)
    chosen, delta_m = keep.chosen(columns)
    epochs = max(map(len, columns.values()))
    history = {
        key: [*values, *[math.nan] * (epochs - len(values))]
        for key, values in columns.items()
    }
    logs = {key: values[chosen] for key, values in history.items()}
    validation = by_task(logs, metric_names(application, config.tasks), "val_")
    (path / _BEST).unlink(missing_ok=True)
    return CellResult(
        epoch=chosen + 1,
        validation=main_metrics(validation, application),
        validation_delta_m=delta_m,
        test=metrics,
        jobs=settings["jobs"],
        step_ms=clock.step_ms,
        step_cpu_ms=clock.step_cpu_ms,
        peak_memory_mb=_peak_memory_mb(),
        peak_gpu_memory_mb=memory.peak_mb(),
        history=history,
        affinity=None if affinity is None else decode(list[Measured], affinity.history),
    )


class _BestEpoch(DeltaCheckpoint):
    """Checkpoint of the epoch with the best Δm over a baseline, `{task: metric}`.

    None for the best mean of the tasks' main metrics, as studies have it: without the
    tasks that have no value on the validation split.
    """

    def __init__(
        self,
        path: pathlib.Path,
        config: TrainingConfig,
        baseline: Mapping[str, float] | None,
    ):
        application = config.get_application()
        values = baseline or dict.fromkeys(config.tasks, 1.0)
        tasks = {task: application.tasks[task] for task in values}
        # Keras leaves the task out of a model with one output.
        prefix = "val_" if len(config.tasks) == 1 else "val_{}_"
        super().__init__(
            path,
            values,
            {n: prefix.format(n) + task.objective for n, task in tasks.items()},
            {name: task.direction for name, task in tasks.items()},
            restore_best_weights=True,
        )
        self._scoring = application if baseline is None else None

    def _delta(self, values: dict[str, float]) -> float:
        if self._scoring is None:
            return super()._delta(values)
        return score(values, self._scoring)

    def chosen(self, history: Mapping[str, Sequence[float]]) -> tuple[int, float]:
        """Returns the epoch and its Δm, NaN without a baseline.

        InputError if it has no numbers: where no task has a value on the validation
        split, if its training loss is none.
        """
        epoch, best = self.best_epoch, self.best
        if epoch is not None and best is not None:
            value, delta_m = best, best
            if self._scoring is not None:
                value = history["loss"][epoch] if math.isnan(best) else best
                delta_m = math.nan
            if math.isfinite(value):
                return epoch, delta_m
        raise InputError(
            "The training has no epoch to choose: its metrics on the validation split "
            "are not numbers."
        )


class _StepClock(keras.callbacks.Callback):
    """Callback that times the training steps, validation left out.

    Medians over epochs of the mean of a step, in milliseconds, without the first
    epoch, in which the step is traced; NaN where there was no other epoch. The
    processor time of all cores together is the better measure on a machine with other
    work.
    """

    def __init__(self) -> None:
        super().__init__()
        self.step_ms = self.step_cpu_ms = math.nan
        self._epochs: list[np.ndarray] = []
        self._started: np.ndarray | None = None
        self._steps = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._started, self._steps = _clocks(), 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._steps = steps_done(self, batch)

    def on_test_begin(self, logs: Any = None) -> None:
        if self._started is not None and self._steps:
            self._epochs.append(1000 * (_clocks() - self._started) / self._steps)
        self._started = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        # Where there is no validation.
        self.on_test_begin()
        if len(self._epochs) > 1:
            medians = np.median(self._epochs[1:], axis=0)
            self.step_ms, self.step_cpu_ms = map(float, medians)


class GpuMemory(keras.callbacks.Callback):
    """Callback that measures the most memory held on the first GPU.

    Without the first epoch where there is another one: in it XLA and cuDNN try
    algorithms, some of which take more than the one that they choose.
    """

    def __init__(self) -> None:
        super().__init__()
        self._epochs = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Forgets the first epoch when the second begins."""
        self._epochs += 1
        if self._epochs == 2 and tf.config.list_logical_devices("GPU"):
            tf.config.experimental.reset_memory_stats("GPU:0")

    def peak_mb(self) -> float:
        """Returns the most memory held so far, in MB; NaN without a GPU."""
        if not tf.config.list_logical_devices("GPU"):
            return math.nan
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6


def _clocks() -> np.ndarray:
    """Returns wall time and processor time, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def _peak_memory_mb() -> float:
    """Returns the most memory that this process has held, in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return most / (1e6 if sys.platform == "darwin" else 1e3)
