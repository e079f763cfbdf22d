"""Gradient conflicts between tasks, as images in TensorBoard."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtl_keras import optional
from mtl_keras.balancing.conflicts import CONFIDENT
from mtl_keras.errors import InputError

# Charts of the tab of custom scalars, by the pattern of their tags.
_CHARTS = {
    "task weights": "^task_weight$",
    "share of conflicting pairs": "^epoch_conflicts$",
    "training losses": "^task_loss$",
    "validation losses": "^task_val_loss$",
}


class ConflictImages(keras.callbacks.Callback):
    """Writes the tasks' gradient cosines as an image, and their weights as scalars.

    At the end of each epoch, into `<log_dir>/balancing`: the image
    `gradient_cosines`, a heat map of the epoch's mean cosine of every pair of task
    gradients, with a question mark after one below 0 that is not surely a conflict
    (`gradient_conflicts`: a confidence below 0.95). Into
    `<log_dir>/balancing/<task>`, so that TensorBoard draws the tasks in one chart, each
    with a colour of its own: the scalars `task_weight`, `task_loss` and, with
    validation, `task_val_loss`. The tab *Custom Scalars* has these charts side by side,
    with the share of conflicts that `keras.callbacks.TensorBoard` writes. Needs a
    `MultiTaskModel` compiled with `monitor="conflicts"`.

    Args:
        log_dir: The folder that TensorBoard watches.

    Raises:
        InputError: At the start of training, for a model without the monitor.
        MissingExtraError: At the start of training, without Matplotlib.

    Example:

    ```python
    model.compile("adam", loss="mse", balancing="pcgrad", monitor="conflicts")
    model.fit(x, y, callbacks=[mtl_keras.callbacks.ConflictImages("logs")])
    ```
    """

    def __init__(self, log_dir: str | os.PathLike):
        super().__init__()
        self.log_dir = os.path.join(os.fspath(log_dir), "balancing")
        self._writer: Any = None
        self._by_task: dict[str, Any] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks the model and opens the log."""
        del logs
        if not hasattr(self.model, "gradient_cosines"):
            raise InputError(
                "Expected a MultiTaskModel for ConflictImages. "
                f"Received: a {type(self.model).__name__}."
            )
        self.model.gradient_cosines()  # raises without the monitor
        _figure()  # raises without Matplotlib
        self._writer = tf.summary.create_file_writer(self.log_dir)
        self._by_task = {
            task: tf.summary.create_file_writer(os.path.join(self.log_dir, task))
            for task in self.model.tasks
        }
        with self._writer.as_default(step=0):
            tf.summary.experimental.write_raw_pb(_dashboard().SerializeToString())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the image and the scalars."""
        confidence = self.model.gradient_conflicts()["confidence"]
        cosines = self.model.gradient_cosines()
        picture = heat_map(cosines, self.model.tasks, confidence)
        with self._writer.as_default(step=epoch):
            tf.summary.image("gradient_cosines", picture[None])
        self._writer.flush()
        logs = logs or {}
        for task, writer in self._by_task.items():
            values = {
                "task_weight": logs.get(f"{task}_weight"),
                "task_loss": logs.get(f"{task}_loss"),
                "task_val_loss": logs.get(f"val_{task}_loss"),
            }
            with writer.as_default(step=epoch):
                for name, value in values.items():
                    if value is not None:
                        tf.summary.scalar(name, value)
            writer.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the logs."""
        del logs
        for writer in (self._writer, *self._by_task.values()):
            writer.close()


def _dashboard() -> Any:
    """Returns the layout of the tab of custom scalars, as TensorBoard reads it."""
    # Loads what only a training with a log needs.
    from tensorboard.plugins.custom_scalar import layout_pb2, summary

    chart = layout_pb2.Chart
    content = layout_pb2.MultilineChartContent
    layout = layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title="Balancing",
                chart=[
                    chart(title=title, multiline=content(tag=[tag]))
                    for title, tag in _CHARTS.items()
                ],
            )
        ]
    )
    return summary.pb(layout)


def _figure(**options: Any) -> Any:
    """Returns an empty figure of Matplotlib, which is loaded on first use."""
    # A figure made without pyplot needs no display and leaves no global state.
    with optional.extra("plots", "matplotlib", "ConflictImages"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure


def heat_map(
    cosines: np.ndarray, tasks: Sequence[str], confidence: np.ndarray | None = None
) -> np.ndarray:
    """Draws pairwise cosines as a labelled heat map.

    Args:
        cosines: `[T, T]`, from −1 to 1.
        tasks: T names.
        confidence: `[T, T]`, how sure it is that a cosine is negative; a question mark
            follows the negative ones where it is below `CONFIDENT`.

    Returns:
        uint8 `[height, width, 4]`.
    """
    count = len(tasks)
    side = 1.8 + 0.5 * count  # small, as TensorBoard shrinks it with its text
    figure = _figure(figsize=(side + 0.8, side), dpi=90, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu")
    axis.set_xticks(range(count), tasks, rotation=45, ha="right")
    axis.set_yticks(range(count), tasks)
    for row in range(count):
        for column in range(count):
            value = float(cosines[row, column])
            sure = confidence is None or confidence[row, column] >= CONFIDENT
            axis.text(
                column,
                row,
                f"{value:.2f}{'' if sure or value >= 0 else '?'}",
                ha="center",
                va="center",
                color="white" if abs(value) > 0.6 else "black",
                fontsize=10,
            )
    figure.colorbar(image, label="cosine of the task gradients")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba")
    width, height = figure.canvas.get_width_height()
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)
