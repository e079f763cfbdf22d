"""Trains one cell: picks its epoch on validation, tests it, measures its cost."""

from __future__ import annotations

import math
import pathlib
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from mtl_keras import runs
from mtl_keras.callbacks import DeltaCheckpoint, TaskAffinity
from mtl_keras.compare.records import CellResult, Measured, measures_affinity
from mtl_keras.decoding import decode
from mtl_keras.errors import InputError
from mtl_keras.runs import folder
from mtl_keras.runs.config import TrainingConfig
from mtl_keras.runs.progress import steps_done
from mtl_keras.runs.results import by_task, main_metrics, metric_names, score
from mtl_keras.runs.training import load_split

if TYPE_CHECKING:
    from mtl_keras.applications import Application

RUN = "run"
_BEST = "best.keras"
_AFFINITY = "affinity.json"

# Batches of training data that task affinity is measured on, after each epoch.
_PROBED = 2


def train_cell(path: pathlib.Path, settings: Mapping[str, Any]) -> CellResult:
    """Trains a cell, or resumes it; a job of `Scheduler`.

    Args:
        path: The cell's folder.
        settings: `label` (for people), `kind`, `config` (a `TrainingConfig` as JSON
            has it), `baseline` (`{task: value}`, validation metrics of the training to
            compare with, or None for the mean of the metrics; the epoch is chosen by
            these tasks) and `jobs`
            (how many trainings share the machine, this one included).

    Raises:
        InputError: If no epoch has a Δm on the validation split.
    """
    config = decode(TrainingConfig, settings["config"])
    application = config.get_application()
    keep = _checkpoint(path / _BEST, config, settings["baseline"])
    clock = StepClock()
    callbacks: list[keras.callbacks.Callback] = [keep, clock]
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
    if keep.best is None or keep.best_epoch is None or not _is_sound(keep, columns):
        raise InputError(
            "The training has no epoch to choose: its metrics on the validation split "
            "are not numbers."
        )
    epochs = max(map(len, columns.values()))
    history = {
        key: [*values, *[math.nan] * (epochs - len(values))]
        for key, values in columns.items()
    }
    logs = {key: values[keep.best_epoch] for key, values in history.items()}
    validation = by_task(logs, metric_names(application, config.tasks), "val_")
    (path / _BEST).unlink(missing_ok=True)
    return CellResult(
        epoch=keep.best_epoch + 1,
        validation=main_metrics(validation, application),
        validation_delta_m=math.nan if settings["baseline"] is None else keep.best,
        test=metrics,
        jobs=settings["jobs"],
        step_ms=clock.step_ms,
        step_cpu_ms=clock.step_cpu_ms,
        peak_memory_mb=_peak_memory_mb(),
        peak_gpu_memory_mb=_peak_gpu_memory_mb(),
        history=history,
        affinity=None if affinity is None else decode(list[Measured], affinity.history),
    )


def _checkpoint(
    path: pathlib.Path, config: TrainingConfig, baseline: dict[str, float] | None
) -> DeltaCheckpoint:
    """Returns the callback that chooses a cell's epoch."""
    application = config.get_application()
    values = baseline or dict.fromkeys(config.tasks, 1.0)
    tasks = {task: application.tasks[task] for task in values}
    # Keras leaves the task out of a model with one output.
    one = len(config.tasks) == 1
    prefixes = {task: "val_" if one else f"val_{task}_" for task in tasks}
    arguments: dict[str, Any] = {
        "filepath": path,
        "baseline": values,
        "metrics": {n: prefixes[n] + task.objective for n, task in tasks.items()},
        "directions": {name: task.direction for name, task in tasks.items()},
        "restore_best_weights": True,
    }
    if baseline is None:
        return _MeanCheckpoint(application, **arguments)
    return DeltaCheckpoint(**arguments)


class _MeanCheckpoint(DeltaCheckpoint):
    """Checkpoint of the epoch with the best mean of the tasks' main metrics.

    As studies have it: without the tasks that have no value on the validation split.
    """

    def __init__(self, application: Application, **kwargs: Any):
        super().__init__(**kwargs)
        self._application = application

    def _delta(self, values: dict[str, float]) -> float:
        return score(values, self._application)


def _is_sound(keep: DeltaCheckpoint, history: Mapping[str, Sequence[float]]) -> bool:
    """Returns whether the chosen epoch has numbers.

    Without a task that has a value on the validation split, that is its training loss.
    """
    assert keep.best is not None
    assert keep.best_epoch is not None
    if isinstance(keep, _MeanCheckpoint) and math.isnan(keep.best):
        return math.isfinite(history["loss"][keep.best_epoch])
    return math.isfinite(keep.best)


class StepClock(keras.callbacks.Callback):
    """Callback that times the training steps, validation left out.

    Medians over epochs of the mean of a step, in milliseconds, without the first
    epoch, in which the step is traced; NaN where there was no other epoch.

    Attributes:
        step_ms: Wall time.
        step_cpu_ms: Processor time of all cores together: the better measure on a
            machine with other work; without the work of a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.step_ms = self.step_cpu_ms = math.nan
        self._epochs: list[np.ndarray] = []
        self._started: np.ndarray | None = None
        self._steps = 0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Starts the clocks."""
        self._started, self._steps = _clocks(), 0

    def on_train_batch_end(
        self, batch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        """Counts the steps."""
        self._steps = steps_done(self, batch)

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Stops the clocks before validation."""
        if self._started is not None and self._steps:
            self._epochs.append(1000 * (_clocks() - self._started) / self._steps)
        self._started = None

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Stops the clocks where there is no validation; sets the medians."""
        self.on_test_begin()
        if len(self._epochs) > 1:
            medians = np.median(self._epochs[1:], axis=0)
            self.step_ms, self.step_cpu_ms = map(float, medians)


def _clocks() -> np.ndarray:
    """Returns wall time and processor time, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def _peak_memory_mb() -> float:
    """Returns the most memory that this process has held, in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return most / (1e6 if sys.platform == "darwin" else 1e3)


def _peak_gpu_memory_mb() -> float:
    """Returns the most memory held on the first GPU, in MB; NaN without one."""
    if not tf.config.list_logical_devices("GPU"):
        return math.nan
    return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6
