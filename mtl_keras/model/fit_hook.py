"""The callbacks that every `fit` of a multi-task model runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from mtl_keras.balancing.pipeline import Pipeline
from mtl_keras.model.keras_compat import infer_monitor_modes
from mtl_keras.model.nonfinite import NonFiniteGuard


class FitHook(keras.callbacks.Callback):
    """Callback that keeps balancers and guard informed of the epochs of `fit`."""

    def __init__(self, pipeline: Pipeline, guard: NonFiniteGuard):
        super().__init__()
        self._pipeline = pipeline
        self._guard = guard

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Clears the record of a failed step, so that the model trains again."""
        del logs
        self._guard.forget()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts an epoch of the guard and the balancers."""
        del logs
        self._guard.epoch = epoch
        self._pipeline.on_epoch_begin()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks the epoch's last steps for failures, before its validation."""
        del logs
        self._guard.check()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Checks the epoch's last steps for failures, and warns of skips."""
        del epoch, logs
        self._guard.check()
        self._guard.warn_of_skips()
        self.model.check_balanced()
        self._guard.epoch = None


class MonitorModes(keras.callbacks.Callback):
    """Infers `mode` for callbacks that monitor the loss or a metric of one task.

    Goes before them, as they read it at the end of the first epoch, when the metrics
    are built.

    Args:
        callbacks: The callbacks of `fit`.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]):
        super().__init__()
        self._callbacks = list(callbacks)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the modes."""
        del epoch, logs
        infer_monitor_modes(self.model, self._callbacks, list(self.model.output))
