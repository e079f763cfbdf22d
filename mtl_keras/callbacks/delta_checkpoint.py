"""Atomic checkpoint of the best epoch by Δm."""

from __future__ import annotations

import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import keras

from mtl_keras.errors import InputError
from mtl_keras.evaluation.delta import delta_m, has_relative_gain
from mtl_keras.files import atomic_write, make_folder

# An entry of the .keras archive beside Keras's own, which loading passes over. In
# the same file as the model, it cannot describe another model.
_ENTRY = "delta_m.json"


class DeltaCheckpoint(keras.callbacks.Callback):
    """Saves the model of the epoch with the best Δm against given baselines.

    Δm is the mean relative gain over single-task baselines, in percent; see
    `mtl_keras.evaluation.delta_m`. With baselines of 1 it ranks epochs by the mean
    of the metrics themselves. Tasks whose baseline is 0 or NaN are excluded, with a
    warning when the callback is made.

    The file is written beside `filepath`, synced and renamed into place: it holds a
    whole model at any time, the best one so far, whenever the process ends or the
    power is lost. A training
    that starts at epoch 0 starts anew, and its first epoch replaces what was there;
    one that resumes (`initial_epoch`, `keras.callbacks.BackupAndRestore`) replaces
    only what it betters. List it before a callback that saves the training's state,
    so that no epoch is skipped where the process ends between the two.

    Args:
        filepath: The file to write, which ends in `.keras`.
        baseline: `{task: value}`, metrics of single-task models.
        metrics: `{task: key}` in the epoch's logs, for example
            `{"digit": "val_digit_accuracy"}`.
        directions: `{task: "max" or "min"}`.
        restore_best_weights: Whether the model gets the weights of the best epoch
            when training ends.
        verbose: 1 prints a line for each improvement.

    Attributes:
        best: The best Δm in percent; None before the first epoch.
        best_epoch: Its epoch, from 0; None before the first epoch.

    Raises:
        InputError: For another ending of the file, tasks that differ between the
            arguments, or no task with a baseline other than 0; at the end of an
            epoch, for a key that the logs lack.

    Example:

    ```python
    model.compile("adam", loss="mse")
    keep = mtl_keras.callbacks.DeltaCheckpoint(
        "best.keras",
        baseline={"a": 0.31, "b": 0.28},  # of each task alone
        metrics={"a": "val_a_loss", "b": "val_b_loss"},
        directions={"a": "min", "b": "min"},
    )
    model.fit(x, y, validation_data=(x, y), callbacks=[keep])
    ```
    """

    def __init__(
        self,
        filepath: str | os.PathLike,
        baseline: Mapping[str, float],
        metrics: Mapping[str, str],
        directions: Mapping[str, str],
        restore_best_weights: bool = False,
        verbose: int = 0,
    ):
        super().__init__()
        self.filepath = pathlib.Path(filepath)
        if self.filepath.suffix != ".keras":
            raise InputError(
                "Expected `filepath` to end in .keras. "
                f"Received: {str(self.filepath)!r}."
            )
        # Checks tasks, baselines and directions before anything is trained, and warns
        # of excluded tasks.
        delta_m(dict.fromkeys(metrics, 1.0), baseline, directions)
        self.baseline = dict(baseline)
        self.metrics = dict(metrics)
        self.directions = dict(directions)
        self.restore_best_weights = restore_best_weights
        self.verbose = verbose
        self.best: float | None = None
        self.best_epoch: int | None = None
        self._begun = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forgets an earlier training."""
        del logs
        self.best = self.best_epoch = None
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads the best epoch so far, when the training resumes."""
        del logs
        if not self._begun and epoch > 0:
            self._read()
        self._begun = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves the model if it is the best so far."""
        logs = logs or {}
        missing = [key for key in self.metrics.values() if key not in logs]
        if missing:
            raise InputError(
                f"Expected {missing[0]!r} among the epoch's logs for DeltaCheckpoint. "
                f"Received: {', '.join(sorted(logs))}."
            )
        values = {task: float(logs[key]) for task, key in self.metrics.items()}
        delta = self._delta(values)
        # A NaN is never better; as the first one it must not stay the best.
        if self.best is None or delta > self.best or self.best != self.best:
            self._save(epoch, delta, values)
            self.best, self.best_epoch = delta, epoch
            if self.verbose:
                print(f"Epoch {epoch + 1}: Δm {delta:+.2f}%, saved {self.filepath}")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Restores the best weights, with `restore_best_weights`."""
        del logs
        if not self._begun:
            # A training that was resumed after its last epoch: nothing was left to do.
            self._read()
        if self.restore_best_weights and self.best_epoch is not None:
            self.model.load_weights(self.filepath)

    def _delta(self, values: dict[str, float]) -> float:
        """Returns what the best epoch has most of."""
        compared = {
            task: value
            for task, value in values.items()
            if has_relative_gain(self.baseline[task])
        }
        return delta_m(compared, self.baseline, self.directions)

    def _save(self, epoch: int, delta: float, values: dict[str, float]) -> None:
        make_folder(self.filepath.parent)
        with atomic_write(self.filepath) as temporary:
            self.model.save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive:
                entry = {"epoch": epoch, "delta_m": delta, "metrics": values}
                archive.writestr(_ENTRY, json.dumps(entry))

    def _read(self) -> None:
        if not self.filepath.is_file():
            return
        try:
            with zipfile.ZipFile(self.filepath) as archive:
                entry = json.loads(archive.read(_ENTRY))
            self.best, self.best_epoch = float(entry["delta_m"]), int(entry["epoch"])
        # Whatever the parsers raise at a file that was damaged, or is of others.
        except Exception as error:
            raise InputError(
                f"{str(self.filepath)!r} is no file of DeltaCheckpoint, so the "
                "training cannot resume with it. Name another file, or remove it."
            ) from error
