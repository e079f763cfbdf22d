"""Training progress: a bar where there is a terminal, and logs of epochs."""

from __future__ import annotations

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

from mtl_keras.callbacks.task_progress import duration as duration


class EpochTensorBoard(keras.callbacks.TensorBoard):
    """TensorBoard logs of epochs alone.

    Keras's callback also hands every log of every step to a summary that is not
    written, and the process grows by some 5 kB a step.
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """See Keras; without the step's logs."""
        super().on_train_batch_end(batch)


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
