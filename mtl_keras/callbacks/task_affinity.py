"""Inter-task affinity, measured during training."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from mtl_keras.errors import InputError, check_number
from mtl_keras.files import atomic_write


class TaskAffinity(keras.callbacks.Callback):
    """Callback that measures inter-task affinity at the end of each epoch.

    The inter-task affinity of Fifty et al., "Efficiently Identifying Task Groupings
    for Multi-Task Learning" (NeurIPS 2021, arXiv:2109.04617): how much a step on
    task i alone, in the shared weights, lowers the loss of task j,

    ```
    Z[i, j] = 1 - L_j(θ_shared after a step on i, θ_j) / L_j(θ_shared, θ_j)
    ```

    and the cosines of the tasks' gradients in the shared weights. Training itself is
    left as it is, and so is what a step logs and takes; compare `monitor="conflicts"`
    of `compile`, which watches every step.

    Departures from the paper: it measures on given batches at the end of epochs, not
    on the training batches every few steps; in inference mode, so that dropout does
    not drown small differences; and the look-ahead is a step of plain gradient
    descent of a given length, the same for all tasks and epochs, not the optimizer's,
    whose length follows the scale of the loss and the learning rate.

    Costs T backward and T + 1 forward passes for each batch and epoch.

    Args:
        batches: What to measure on: batches `(x, y)` or `(x, y, sample_weight)`, as
            in `fit`. A few suffice.
        step_size: Length of the look-ahead, relative to the norm of the shared
            weights.
        path: JSON file to keep the measurements in, so that they outlast an
            interruption; a training that resumes (`initial_epoch`) adds to it.

    Attributes:
        history: One dict for each epoch: `"epoch"` from 0, and `"cosines"`,
            `"affinity"` and `"shared"` (samples of a batch with labels of both tasks),
            lists of T lists of T numbers in the order of the model's `tasks`; None for
            pairs that never met in a batch.

    Raises:
        InputError: For a step size out of range; at the start of training, for a
            model that is no MultiTaskModel, shares no weights, or has one task only.

    Example:

    ```python
    model.compile("adam", loss="mse")
    affinity = mtl_keras.callbacks.TaskAffinity([(x, y)])
    model.fit(x, y, callbacks=[affinity])
    affinity.history[-1]["affinity"][0][1]  # of a step on task a for task b
    ```
    """

    def __init__(
        self,
        batches: Iterable[Any],
        step_size: float = 1e-3,
        path: str | os.PathLike | None = None,
    ):
        super().__init__()
        self.batches = batches
        self.step_size = check_number("step_size", step_size, low=1e-9, high=1.0)
        self.path = None if path is None else pathlib.Path(path)
        self.history: list[dict[str, Any]] = []
        self._lookahead: Any = None
        self._begun = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks the model."""
        from mtl_keras.model.lookahead import Lookahead
        from mtl_keras.model.multi_task_model import MultiTaskModel

        del logs
        if not isinstance(self.model, MultiTaskModel):
            raise InputError(
                "Expected a MultiTaskModel for TaskAffinity. "
                f"Received: a {type(self.model).__name__}."
            )
        self._lookahead = Lookahead(self.model, self.step_size)
        self.history = []
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads the measurements of earlier epochs, when the training resumes."""
        del logs
        if not self._begun and epoch > 0:
            self._go_on(epoch)
        self._begun = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measures on all batches."""
        del logs
        measured = [self._lookahead(*_unpacked(batch)) for batch in self.batches]
        cosines, affinity, shared = (
            mean_where_finite(np.stack(values))
            for values in zip(*measured, strict=True)
        )
        self.history.append(
            {
                "epoch": epoch,
                "cosines": _as_lists(cosines),
                "affinity": _as_lists(affinity),
                "shared": _as_lists(shared),
            }
        )
        if self.path is not None:
            with atomic_write(self.path) as temporary:
                temporary.write_text(json.dumps(self.history), encoding="utf-8")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Reads the measurements of earlier epochs, when no epoch was left to train."""
        del logs
        if not self._begun:
            self._go_on(self.params["epochs"])

    def _go_on(self, epoch: int) -> None:
        if self.path is not None and self.path.is_file():
            self.history = self._read(self.path, epoch)

    def _read(self, path: pathlib.Path, epoch: int) -> list[dict[str, Any]]:
        """Reads the measurements of the epochs before `epoch`."""
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            history = [record for record in earlier if record["epoch"] < epoch]
            for table in ("affinity", "cosines") if history else ():
                # Raises unless they are tables of one size.
                mean_over_epochs(history, table)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(
                f"{str(path)!r} holds no measurements of TaskAffinity, so the training "
                "cannot resume with it. Name another file, or remove it."
            ) from error
        return history

    def mean(self, table: str) -> np.ndarray:
        """Returns the mean over the epochs, float64 `[T, T]`, NaN where unknown.

        Args:
            table: `"affinity"`, `"cosines"` or `"shared"`.
        """
        return mean_over_epochs(self.history, table)


def mean_over_epochs(history: Iterable[dict[str, Any]], table: str) -> np.ndarray:
    """Returns the mean of `TaskAffinity.history`, float64 `[T, T]`.

    Args:
        history: `TaskAffinity.history`, one dict for each epoch.
        table: `"affinity"`, `"cosines"` or `"shared"`.
    """
    tables = [np.array(record[table], dtype=np.float64) for record in history]
    if not tables:
        raise InputError("Expected at least one measured epoch. Received: none.")
    return mean_where_finite(np.stack(tables))


def _unpacked(batch: Any) -> tuple[Any, Any, Any]:
    return keras.utils.unpack_x_y_sample_weight(batch)


def mean_where_finite(values: np.ndarray) -> np.ndarray:
    """Returns the mean over the first axis, NaN where nothing is finite."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    total = np.where(finite, values, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _as_lists(table: np.ndarray) -> list[list[float | None]]:
    return [[float(v) if np.isfinite(v) else None for v in row] for row in table]
