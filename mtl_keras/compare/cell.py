"""Trains one cell: picks its epoch on validation, tests it, measures its cost."""

from __future__ import annotations

import math
import pathlib
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

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
from mtl_keras.runs.results import by_task, main_metrics, metric_names
from mtl_keras.runs.training import load_split

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
            has it), `baseline` (`{task: value}`, what the tasks reach on validation
            in the training to compare with, or None for 1; the epoch is chosen by
            these tasks) and `jobs` (how many
            trainings share the machine, this one included).

    Raises:
        InputError: If no epoch has a Δm on the validation split.
    """
    config = decode(TrainingConfig, settings["config"])
    application = config.get_application()
    baseline = settings["baseline"] or dict.fromkeys(config.tasks, 1.0)
    keys = validation_keys(application, config.tasks)
    keep = DeltaCheckpoint(
        path / _BEST,
        baseline,
        {task: keys[task] for task in baseline},
        {task: application.tasks[task].direction for task in baseline},
        restore_best_weights=True,
    )
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
    if keep.best is None or keep.best_epoch is None or not math.isfinite(keep.best):
        raise InputError(
            "The training has no epoch to choose: its metrics on the validation split "
            "are not numbers."
        )
    columns = folder.read_history(out / folder.HISTORY)
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
        peak_memory_mb=peak_memory_mb(),
        peak_gpu_memory_mb=peak_gpu_memory_mb(),
        history=history,
        affinity=None if affinity is None else decode(list[Measured], affinity.history),
    )


def validation_keys(application: Any, tasks: tuple[str, ...]) -> dict[str, str]:
    """Returns `{task: key}` of the tasks' main metrics in an epoch's logs.

    Keras leaves the task out of a model with one output.
    """
    prefixes = {task: f"val_{task}_" if len(tasks) > 1 else "val_" for task in tasks}
    return {
        task: prefix + application.tasks[task].objective
        for task, prefix in prefixes.items()
    }


class StepClock(keras.callbacks.Callback):
    """Times the training steps, validation left out.

    Medians over epochs of the mean of a step, in milliseconds, without the first
    epoch, in which the step is traced; NaN where there was no other epoch.

    Attributes:
        step_ms: By the clock on the wall.
        step_cpu_ms: Processor time of all cores together. On a machine that does
            other things as well it says more; of a GPU's work it says nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._epochs: list[tuple[float, float]] = []
        self._started = (0.0, 0.0)
        self._steps = 0
        self._measuring = False

    @property
    def step_ms(self) -> float:
        """See the class."""
        return self._median(0)

    @property
    def step_cpu_ms(self) -> float:
        """See the class."""
        return self._median(1)

    def _median(self, index: int) -> float:
        later = [times[index] for times in self._epochs[1:]]
        return 1000 * float(np.median(later)) if later else math.nan

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Starts the clocks."""
        self._started = (time.perf_counter(), time.process_time())
        self._steps = 0
        self._measuring = True

    def on_train_batch_end(
        self, batch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        """Counts; with `steps_per_execution` a call is several steps."""
        self._steps = batch + 1

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Stops the clocks before validation."""
        self._stop()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Stops the clocks where there is no validation."""
        self._stop()

    def _stop(self) -> None:
        if self._measuring and self._steps:
            wall, processor = self._started
            self._epochs.append(
                (
                    (time.perf_counter() - wall) / self._steps,
                    (time.process_time() - processor) / self._steps,
                )
            )
        self._measuring = False


def peak_memory_mb() -> float:
    """Returns the most memory that this process has held, in MB; NaN on Windows."""
    try:
        import resource
    except ImportError:
        return math.nan
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return most / (1e6 if sys.platform == "darwin" else 1e3)


def peak_gpu_memory_mb() -> float:
    """Returns the most memory held on the first GPU, in MB; NaN without one."""
    if not tf.config.list_logical_devices("GPU"):
        return math.nan
    return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6
