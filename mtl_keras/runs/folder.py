"""Run folders: their files, checked when read.

A run folder holds `model.keras`, `config.json`, `history.csv`, `metrics.json`
and `logs/`. It appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping

import keras
import tensorflow as tf

from mtl_keras.decoding import Result, decode
from mtl_keras.errors import InputError, first_line, system_reason
from mtl_keras.files import read_json, read_text, write_csv
from mtl_keras.model.model_file import check_model_file
from mtl_keras.runs.config import TrainingConfig
from mtl_keras.runs.records import read_values

MODEL = "model.keras"
CONFIG = "config.json"
HISTORY = "history.csv"
METRICS = "metrics.json"
LOGS = "logs"


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, as read from its folder.

    Attributes:
        path: The folder.
        config: The settings that it was trained with.
        metrics: `{task: {metric: value}}` on the test split.
    """

    path: pathlib.Path
    config: TrainingConfig
    metrics: dict[str, dict[str, float]]

    def model(self) -> keras.Model:
        """Loads `model.keras` with Keras's safe mode on: no code comes with it.

        Raises:
            InputError: If the file is not one that Keras writes, holds code, or is
                of layers that nobody has registered.
        """
        # A model's file names registered classes, those of the applications too.
        from mtl_keras import applications

        applications.get(self.config.application)
        check_model_file(self.path / MODEL)
        try:
            return keras.models.load_model(self.path / MODEL, safe_mode=True)
        # Whatever layers raise at arguments that they were never meant to have.
        except Exception as error:
            raise InputError(
                f"{self.path / MODEL} cannot be loaded: {first_line(error)}"
            ) from error


def load_run(path: str | pathlib.Path | Run) -> Run:
    """Reads a run folder.

    Args:
        path: The folder that `train` has written; a run that was read is returned.

    Returns:
        The run; its model is loaded by `Run.model()`.

    Raises:
        InputError: If the folder, or one of its files, is missing or broken.
    """
    if isinstance(path, Run):
        return path
    path = pathlib.Path(path)
    if not path.is_dir():
        raise InputError(
            f"There is no run folder {str(path)!r}. `mtl-keras train APPLICATION "
            f"--out {path}` makes one."
        )
    for name in (CONFIG, METRICS, MODEL):
        if (path / name).is_symlink():
            raise InputError(
                f"Expected the files of a run to lie in {str(path)!r}. Received: a "
                f"symbolic link, {name}."
            )
        if not (path / name).is_file():
            raise InputError(f"{str(path)!r} is not a run folder: it has no {name}.")
    values = read_values(path / CONFIG)
    del values["made_with"]
    config = decode(TrainingConfig, values, str(path / CONFIG))
    values = read_json(path / METRICS)
    metrics = decode(dict[str, dict[str, Result]], values, str(path / METRICS))
    return Run(path, config, metrics)


def write_history(path: pathlib.Path, history: Mapping[str, list[float]]) -> None:
    """Writes the epochs' logs as CSV, one row per epoch counted from 1."""
    rows = enumerate(itertools.zip_longest(*history.values()), start=1)
    write_csv(path, [["epoch", *history], *([epoch, *row] for epoch, row in rows)])


def read_history(path: pathlib.Path) -> dict[str, list[float]]:
    """Reads `write_history`'s file: `{name: values by epoch}`."""
    try:
        rows = list(csv.DictReader(read_text(path).splitlines(), strict=True))
        return {
            name: [float(row[name]) for row in rows if row[name]]
            for name in (rows[0] if rows else ())
            if name != "epoch"
        }
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from error


@contextlib.contextmanager
def disk_errors(path: pathlib.Path) -> Iterator[None]:
    """Context manager: raises `InputError` for errors of writing to a folder."""
    try:
        yield
    except ConnectionError:
        # Of a pipe or a chief, not of the folder.
        raise
    except (OSError, tf.errors.OpError) as error:
        raise InputError(
            f"The folder {str(path)!r} cannot be written: {system_reason(error)}."
        ) from error
