"""Early stopping, task by task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras

from mtl_keras.errors import InputError, check_integer, check_number, unknown_name


class TaskEarlyStopping(keras.callbacks.Callback):
    """Callback that excludes a task once its metric has stopped improving.

    Task-wise early stopping of Zhang, Luo, Loy and Tang, "Facial Landmark Detection
    by Deep Multi-task Learning" (ECCV 2014): a task that would overfit, or has
    nothing more to learn, is excluded, and the others train on without it.
    Their criterion compares medians of training and validation errors; this one is
    Keras's: no improvement by more than `min_delta` for `patience` epochs.

    A stopped task counts as absent from every batch: no loss, no gradient, no weight.
    It is still evaluated. Its `<task>_loss` in the training logs is NaN from then on,
    and `loss` leaves it out. Its head keeps its weights, but the features below move
    on with the other tasks: see `DeltaCheckpoint` to keep a good epoch of all. When
    all watched tasks have stopped, the training stops.

    Each stop traces the training step anew, which takes as long as at the start. The
    state is not saved: a training that resumes after an interruption starts with all
    tasks and counts anew.

    Args:
        metrics: `{task: key}` in the epoch's logs, for example
            `{"digit": "val_digit_accuracy"}`. Tasks left out are never stopped, and
            do not keep the training going.
        directions: `{task: "max" or "min"}`, which way the metric is better.
        patience: Epochs without improvement before a task stops.
        min_delta: How much better counts as an improvement, in the metric's unit.
        start_from_epoch: Epochs at the start that are not watched.
        verbose: 1 prints a line for each task that stops.

    Attributes:
        stopped_epochs: `{task: epoch}` of the stopped tasks, from 0.

    Raises:
        InputError: For a number out of range or tasks that differ between the
            arguments; at the start of training, for a model without these tasks; at
            the end of an epoch, for a key that the logs lack.

    Example:

    ```python
    model.compile("adam", loss="mse")
    stop = mtl_keras.callbacks.TaskEarlyStopping(
        metrics={"a": "val_a_loss", "b": "val_b_loss"},
        directions={"a": "min", "b": "min"},
        patience=3,
    )
    model.fit(x, y, validation_data=(x, y), epochs=2, callbacks=[stop])
    ```
    """

    def __init__(
        self,
        metrics: Mapping[str, str],
        directions: Mapping[str, str],
        patience: int = 3,
        min_delta: float = 0.0,
        start_from_epoch: int = 0,
        verbose: int = 0,
    ):
        super().__init__()
        if not metrics:
            raise InputError("Expected `metrics` to name a task. Received: none.")
        for task in metrics:
            if directions.get(task) not in ("max", "min"):
                raise InputError(
                    f"Expected a direction 'max' or 'min' for task {task!r}. "
                    f"Received: {directions.get(task)!r}."
                )
        self.metrics = dict(metrics)
        self.directions = dict(directions)
        self.patience = check_integer("patience", patience, low=1)
        self.min_delta = check_number("min_delta", min_delta, low=0.0)
        self.start_from_epoch = check_integer(
            "start_from_epoch", start_from_epoch, low=0
        )
        self.verbose = verbose
        self.stopped_epochs: dict[str, int] = {}
        self._best: dict[str, float] = {}
        self._waited: dict[str, int] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks the model, and starts with all tasks."""
        del logs
        if not hasattr(self.model, "stop_tasks"):
            raise InputError(
                "Expected a MultiTaskModel for TaskEarlyStopping. "
                f"Received: a {type(self.model).__name__}."
            )
        for task in self.metrics:
            if task not in self.model.tasks:
                raise unknown_name("task of the model", task, self.model.tasks)
        self.stopped_epochs = {}
        self._best = dict.fromkeys(self.metrics, -math.inf)
        self._waited = dict.fromkeys(self.metrics, 0)
        self.model.stop_tasks(())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops the tasks that have waited long enough."""
        if epoch < self.start_from_epoch:
            return
        stops = [
            task
            for task in self.metrics
            if task not in self.stopped_epochs and self._is_over(task, logs or {})
        ]
        if not stops:
            return
        for task in stops:
            self.stopped_epochs[task] = epoch
            if self.verbose:
                print(f"Epoch {epoch + 1}: task {task!r} stops")
        if len(self.stopped_epochs) == len(self.metrics):
            self.model.stop_training = True
        else:
            self.model.stop_tasks(self.stopped_epochs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Includes all tasks again, for a later training."""
        del logs
        self.model.stop_tasks(())

    def _is_over(self, task: str, logs: Mapping[str, Any]) -> bool:
        key = self.metrics[task]
        if key not in logs:
            raise InputError(
                f"Expected {key!r} among the epoch's logs for TaskEarlyStopping. "
                f"Received: {', '.join(sorted(logs))}."
            )
        sign = 1.0 if self.directions[task] == "max" else -1.0
        value = sign * float(logs[key])
        if value > self._best[task] + self.min_delta:
            self._best[task] = value
            self._waited[task] = 0
        else:
            self._waited[task] += 1
        return self._waited[task] >= self.patience
