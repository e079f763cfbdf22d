"""Progress of trainings: lines, a bar where there is a terminal, logs of epochs."""

from __future__ import annotations

from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


def say(console: Console, line: str) -> None:
    """Prints a line as it is, however long."""
    console.print(line, soft_wrap=True, markup=False)


def progress_bar(console: Console, *columns: TextColumn) -> Progress:
    """Returns a bar that wipes itself away, with further columns behind it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class EpochTensorBoard(keras.callbacks.TensorBoard):
    """TensorBoard logs of epochs alone.

    Keras's keeps some 5 kB of every step's, in a summary that is not written.
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """See Keras; without the step's logs."""
        super().on_train_batch_end(batch)


def steps_done(callback: keras.callbacks.Callback, batch: int) -> int:
    """Returns the steps of an epoch that are done, at the end of a call.

    `batch` is the last step of a whole call, also where fewer were left.
    """
    params: dict[str, Any] = callback.params
    return min(batch + 1, params["steps"])


class StepBar(keras.callbacks.Callback):
    """Callback that shows a bar over all steps of a training, on a terminal.

    A context manager, so that an interrupted training wipes it away. `callbacks` is
    empty without a terminal: a callback after each step is not free.
    """

    def __init__(self, console: Console, total: int, done: int):
        super().__init__()
        self._progress = progress_bar(console)
        self._bar = self._progress.add_task("training", total=total, completed=done)
        self._shown = 0
        self.callbacks = [self] if console.is_terminal else []

    def __enter__(self) -> StepBar:
        if self.callbacks:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.callbacks:
            self._progress.stop()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Counts the epoch's steps from 0."""
        self._shown = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Moves the bar."""
        done = steps_done(self, batch)
        self._progress.advance(self._bar, done - self._shown)
        self._shown = done
