"""Checkpoints of a training: one file each, written whole and checked when read."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import struct
import time
import zipfile
import zlib
from typing import Any

import keras
import numpy as np

from mtl_keras.errors import InputError, first_line
from mtl_keras.files import atomic_write
from mtl_keras.model import MultiTaskModel
from mtl_keras.runs.progress import steps_done

_KEPT = 2
_PROGRESS = "progress"
# What zipfile and NumPy raise at bytes of any kind.
_BROKEN = (
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclasses.dataclass
class Progress:
    """Finished epochs of a training, and finished `step`s of the epoch after these.

    `history` is `{name: [value of each finished epoch]}`, `seconds` the wall time.
    """

    epoch: int
    step: int
    steps_per_epoch: int
    seconds: float = 0.0
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def add_epoch(self, logs: dict[str, float]) -> None:
        """Counts a finished epoch and keeps its logs."""
        self.epoch, self.step = self.epoch + 1, 0
        for name, value in logs.items():
            self.history.setdefault(name, []).append(float(value))


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read from its file; for `values` see `MultiTaskModel.state`."""

    path: pathlib.Path
    progress: Progress
    values: dict[str, np.ndarray]

    def restore(self, model: MultiTaskModel) -> None:
        """Sets a compiled model's state; InputError if it is another model's."""
        variables = model.state(epoch_means=self.progress.step > 0)
        shapes = {key: tuple(v.shape) for key, v in variables.items()}
        if shapes != {key: v.shape for key, v in self.values.items()}:
            raise InputError(
                f"{self.path} is the state of another model, as of another version of "
                "the program. Remove its folder to train anew."
            )
        for key, variable in variables.items():
            variable.assign(self.values[key])


def save(folder: pathlib.Path, model: MultiTaskModel, progress: Progress) -> None:
    """Writes a checkpoint, and removes all but it and the one before.

    A zip file of NumPy arrays, each with a checksum; nothing in it is code.
    """
    variables = model.state(epoch_means=progress.step > 0)
    values = {key: np.asarray(variable.numpy()) for key, variable in variables.items()}
    values[_PROGRESS] = np.frombuffer(
        json.dumps(dataclasses.asdict(progress)).encode(), "uint8"
    )
    target = folder / f"epoch-{progress.epoch:06d}-step-{progress.step:09d}.npz"
    try:
        with atomic_write(target) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **values)
    except OSError as error:
        raise InputError(
            f"The checkpoint {target} cannot be written: {error.strerror}."
        ) from error
    for old in _files(folder)[_KEPT:]:
        old.unlink(missing_ok=True)


def newest(folder: pathlib.Path) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest whole checkpoint, and a line about each newer broken one."""
    broken: list[str] = []
    for path in _files(folder):
        try:
            return _read(path), broken
        except _BROKEN as error:
            broken.append(f"The checkpoint {path} is broken ({first_line(error)}).")
    return None, broken


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the checkpoints, newest first."""
    return sorted(folder.glob("epoch-*-step-*.npz"), reverse=True)


def _read(path: pathlib.Path) -> Checkpoint:
    # First all checksums: an incomplete file is not decoded at all.
    with zipfile.ZipFile(path) as file:
        wrong = file.testzip()
    if wrong is not None:
        raise ValueError(f"{wrong} does not fit its checksum")
    with np.load(path, allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    progress: dict[str, Any] = json.loads(values.pop(_PROGRESS).tobytes())
    return Checkpoint(path, Progress(**progress), values)


class Restore(keras.callbacks.Callback):
    """Callback that restores a checkpoint once nothing else changes the state.

    After a whole epoch that is before the next one begins, as the balancing may
    close an epoch then; within an epoch it is right before the first step.
    """

    def __init__(self, checkpoint: Checkpoint):
        super().__init__()
        self._checkpoint: Checkpoint | None = checkpoint

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores after a whole epoch."""
        if self._checkpoint is not None and self._checkpoint.progress.step == 0:
            self.on_train_batch_begin(0)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Restores within an epoch."""
        if self._checkpoint is not None:
            self._checkpoint.restore(self.model)
            self._checkpoint = None


class Save(keras.callbacks.Callback):
    """Callback that saves a checkpoint after every epoch, and within every few steps.

    It has to be the last callback: the others have then changed their state.
    """

    def __init__(self, folder: pathlib.Path, progress: Progress, every: int | None):
        super().__init__()
        self._folder = folder
        self._progress = progress
        self._every = every
        self._since = 0.0
        self._before = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts the clock."""
        self._since = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keeps how many steps of the epoch were done before this training."""
        self._before = self._progress.step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts the steps; the last one of an epoch is left to `on_epoch_end`."""
        progress, earlier = self._progress, self._progress.step
        progress.step = self._before + steps_done(self, batch)
        if not self._every or progress.step == progress.steps_per_epoch:
            return
        if progress.step // self._every > earlier // self._every:
            self._save()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds the epoch's logs to the progress, and saves a checkpoint."""
        self._progress.add_epoch(logs or {})
        self._save()

    def _save(self) -> None:
        now = time.monotonic()
        self._progress.seconds += now - self._since
        self._since = now
        save(self._folder, self.model, self._progress)
