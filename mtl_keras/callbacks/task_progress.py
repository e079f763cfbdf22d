"""A table of a training's progress: a row an epoch, a column a task."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from mtl_keras.errors import InputError
from mtl_keras.model.keras_compat import ResolvedMetrics, resolved_metrics

_NARROWEST = 6
_FIXED = 40  # characters of the columns that are not of a task


def duration(seconds: float) -> str:
    """Returns a duration as people read it: `8 s`, `1:35 min`, `2:05 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class TaskProgress(keras.callbacks.Callback):
    """Shows a table with a row for each epoch and a column for each task.

    In place of Keras's one line with every number of every task: pass `verbose=0` to
    `fit`. A column has one metric of its task, on validation where there is a
    validation. In a terminal or a log file each epoch adds one aligned line of plain
    text; in a notebook the table grows in place. As many tasks are shown as the width
    takes; `History` has all numbers.

    Args:
        metrics: `{task: metric}`, by the names in the logs without the task's, for
            example `{"digit": "accuracy"}`; other tasks are left out, and what an
            epoch's logs lack is shown as `-`. None for the first metric of each task
            that `compile` was given, or its loss.
        epochs: Number of epochs of the whole training; None for that of `fit`.
        console: Where to print, a `rich.console.Console`; None for standard output.

    Raises:
        InputError: At the start of training, for another model without `metrics`.

    Example:

    ```python
    model.compile("adam", loss="mse", metrics={"a": ["mae"]})
    progress = mtl_keras.callbacks.TaskProgress()
    model.fit(x, y, epochs=3, verbose=0, callbacks=[progress])
    ```
    """

    def __init__(
        self,
        metrics: Mapping[str, str] | None = None,
        epochs: int | None = None,
        console: Console | None = None,
    ):
        super().__init__()
        width = None if sys.stdout.isatty() else 140
        self.metrics = None if metrics is None else dict(metrics)
        self.epochs = epochs
        self._console = console or Console(width=width, highlight=False)
        self._names: dict[str, str] = {}
        self._widths: list[int] = []
        self._started = 0.0
        self._epoch_started = 0.0
        self._first: int | None = None
        self._table: Table | None = None
        self._display: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock, once where a training takes several `fit`s."""
        if self.metrics is None and not hasattr(self.model, "tasks"):
            raise InputError(
                "Expected a MultiTaskModel for TaskProgress without `metrics`. "
                f"Received: a {type(self.model).__name__}."
            )
        self._started = self._started or time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock of the epoch."""
        self._epoch_started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the epoch's row."""
        logs = logs or {}
        prefix = "val_" if "val_loss" in logs else ""
        if self._first is None:
            self._first = epoch
            self._begin()
        epochs = self.epochs or self.params["epochs"]
        now = time.monotonic()
        per_epoch = (now - self._started) / (epoch + 1 - self._first)
        self._add(
            [
                f"{epoch + 1}/{epochs}",
                f"{logs.get(prefix + 'loss', math.nan):.4f}",
                *(self._value(logs, prefix, task) for task in self._names),
                duration(now - self._epoch_started),
                duration(per_epoch * (epochs - epoch - 1)),
            ]
        )

    def _begin(self) -> None:
        """Decides on the columns, and prints their titles."""
        names = self.metrics or _first_metrics(self.model)
        # Chinese characters, and others like them, take two cells each.
        widths = [max(*map(cell_len, item), _NARROWEST) for item in names.items()]
        left = self._console.width - _FIXED
        shown = 0
        while shown < len(widths) and (left := left - widths[shown] - 2) >= 0:
            shown += 1
        self._names = dict(list(names.items())[:shown])
        self._widths = [8, 9, *widths[:shown], 8, 9]
        if self._console.is_jupyter:
            self._table = Table(box=None, header_style="bold")
            for title, name in zip(
                ["epoch", "loss", *self._names, "time", "left"],
                ["", "", *self._names.values(), "", ""],
                strict=True,
            ):
                self._table.add_column(f"{title}\n{name}", justify="right")
        else:
            self._line(["", "", *self._names, "", ""])
            self._line(["epoch", "loss", *self._names.values(), "time", "left"])
        if shown < len(names):
            self._console.print(
                f"{len(names) - shown} more tasks do not fit; the history has them.",
                soft_wrap=True,
            )

    def _value(self, logs: Mapping[str, Any], prefix: str, task: str) -> str:
        name = self._names[task]
        # Keras leaves the task out where the model has one output.
        for key in (f"{prefix}{task}_{name}", f"{prefix}{name}"):
            if key in logs:
                return f"{float(logs[key]):.4f}"
        return "-"

    def _add(self, cells: Sequence[str]) -> None:
        if self._table is None:
            self._line(cells)
            return
        self._table.add_row(*cells)
        if self._display is None:
            # There is one wherever the console is a notebook's.
            from IPython.display import display

            self._display = display(self._table, display_id=True)
        else:
            self._display.update(self._table)

    def _line(self, cells: Sequence[str]) -> None:
        columns = [
            " " * (width - cell_len(cell)) + cell
            for cell, width in zip(cells, self._widths, strict=True)
        ]
        self._console.print("  ".join(columns).rstrip(), soft_wrap=True, markup=False)


def _first_metrics(model: keras.Model) -> dict[str, str]:
    """Returns the first metric of each task that `compile` was given, or `"loss"`.

    Tasks have the names that the logs have. Tasks that are columns of one output are
    one, as logs have their means alone.
    """
    outputs = dict(model.output)
    resolved = resolved_metrics(model, outputs, outputs)
    titles = getattr(model, "titles", {})
    names = {}
    group_of = {c: output for output, own in model.columns.items() for c in own}
    for output in dict.fromkeys(group_of.get(task, task) for task in model.tasks):
        own = resolved.get(output, ResolvedMetrics([], []))
        metrics = [*own.unweighted, *own.weighted]
        names[titles.get(output, output)] = metrics[0].name if metrics else "loss"
    return names
