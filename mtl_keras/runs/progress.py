"""Training progress: one line per epoch, and a bar where there is a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import keras
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
)

from mtl_keras.runs.results import by_task, main_metrics, metric_names


def duration(seconds: float) -> str:
    """Returns a duration as people read it: `8 s`, `1:35 min`, `2:05 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class EpochLines(keras.callbacks.Callback):
    """Prints one aligned line per epoch with every task's main metric.

    The metrics are those on validation where there is a validation split. The
    lines are plain text and read the same in a terminal and in a log file.

    Args:
        console: Where to print.
        application: The application, for the names of the main metrics.
        tasks: The tasks of the model.
        epochs: How many epochs there will be.
    """

    def __init__(
        self, console: Console, application: Any, tasks: Sequence[str], epochs: int
    ):
        super().__init__()
        self._console = console
        self._application = application
        self._tasks = list(tasks)
        self._epochs = epochs
        names = [application.tasks[task].objective for task in self._tasks]
        self._widths = [
            max(len(task), len(name), 6)
            for task, name in zip(self._tasks, names, strict=True)
        ]
        self._names = names
        self._metrics = metric_names(application, self._tasks)
        self._started = 0.0
        self._epoch_started = 0.0
        self._first: int | None = None

    def _row(self, first: str, loss: str, cells: Sequence[str], rest: str) -> None:
        columns = [
            cell.rjust(width) for cell, width in zip(cells, self._widths, strict=True)
        ]
        line = "  ".join([first.rjust(8), loss.rjust(9), *columns, rest])
        self._console.print(line.rstrip(), soft_wrap=True, markup=False)

    def on_train_begin(self, logs: Any = None) -> None:
        """Prints the header, once where a training takes several `fit`s."""
        if self._started:
            return
        self._started = time.monotonic()
        self._row("", "", self._tasks, "")
        self._row("epoch", "loss", self._names, "    time       left")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the time."""
        self._epoch_started = time.monotonic()
        if self._first is None:
            self._first = epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Prints the epoch's line."""
        logs = logs or {}
        prefix = "val_" if "val_loss" in logs else ""
        results = by_task(logs, self._metrics, prefix)
        main = main_metrics(results, self._application)
        now = time.monotonic()
        assert self._first is not None
        per_epoch = (now - self._started) / (epoch + 1 - self._first)
        left = per_epoch * (self._epochs - epoch - 1)
        self._row(
            f"{epoch + 1}/{self._epochs}",
            f"{logs.get(prefix + 'loss', float('nan')):.4f}",
            [f"{main[task]:.4f}" for task in self._tasks],
            f"{duration(now - self._epoch_started):>8}  {duration(left):>9}",
        )


class StepBar(keras.callbacks.Callback):
    """Shows a bar over all steps of a training, on a terminal.

    Use it as a context manager, so that an interrupted training wipes it away:

    ```python
    with StepBar(console, "training") as bar:
        model.fit(data, callbacks=bar.callbacks, verbose=0)
    ```

    Args:
        console: Where to draw. Without a terminal nothing is drawn, and
            `callbacks` is empty: a callback after each step is not free.
        text: Words before the bar.
        total: Steps in all; None for those that `fit` tells of.
        done: How many of them are done already.
    """

    def __init__(
        self, console: Console, text: str, total: int | None = None, done: int = 0
    ):
        super().__init__()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
            transient=True,
        )
        self._text = text
        self._total = total
        self._done = done
        self._bar: TaskID | None = None
        self.callbacks = [self] if console.is_terminal else []

    def __enter__(self) -> StepBar:
        return self

    def __exit__(self, *error: object) -> None:
        # Stopping what never started would print an empty line.
        if self._bar is not None:
            self._progress.stop()

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts drawing, once where a training takes several `fit`s."""
        if self._bar is not None:
            return
        total, per_epoch = self._total, self.params.get("steps")
        if total is None and per_epoch:
            total = per_epoch * self.params["epochs"]
        self._bar = self._progress.add_task(
            self._text, total=total, completed=self._done
        )
        self._progress.start()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._progress.advance(self._bar)
