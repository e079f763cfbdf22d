"""Run folders: their files, checked when read.

A run folder holds `model.keras`, `config.json`, `history.csv`, `metrics.json`
and `logs/`. It appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import os
import pathlib
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from mtl_keras.errors import InputError, system_reason
from mtl_keras.files import atomic_write
from mtl_keras.runs.config import RunConfig, check_count, is_number
from mtl_keras.runs.model_file import check_model_file

if TYPE_CHECKING:
    import keras

MODEL = "model.keras"
CONFIG = "config.json"
HISTORY = "history.csv"
METRICS = "metrics.json"
LOGS = "logs"
PATIENCE = "patience"  # a key of CONFIG


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, as read from its folder.

    Attributes:
        path: The folder.
        config: The settings that it was trained with.
        metrics: `{task: {metric: value}}` on the test split.
        patience: See `runs.train`; None for none.
    """

    path: pathlib.Path
    config: RunConfig
    metrics: dict[str, dict[str, float]]
    patience: int | None = None

    def model(self) -> keras.Model:
        """Loads `model.keras` with Keras's safe mode on: no code comes with it.

        Raises:
            InputError: If the file is not one that Keras writes, holds code, or is
                of layers that nobody has registered.
        """
        # Also for their registered classes, by which the file names them.
        import keras

        from mtl_keras import applications, balancing, model, sharing  # noqa: F401

        applications.get(self.config.application)
        check_model_file(self.path / MODEL)
        try:
            return keras.models.load_model(self.path / MODEL, safe_mode=True)
        # Whatever layers raise at arguments that they were never meant to have.
        except Exception as error:
            raise InputError(
                f"{self.path / MODEL} cannot be loaded: {first_line(error)}"
            ) from error


def load_run(path: str | pathlib.Path) -> Run:
    """Reads a run folder.

    Args:
        path: The folder that `train` has written.

    Returns:
        The run; its model is loaded by `Run.model()`.

    Raises:
        InputError: If the folder, or one of its files, is missing or broken.
    """
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
    values = read_json(path / CONFIG)
    values.pop("versions", None)
    patience = values.pop(PATIENCE, None)
    try:
        config = RunConfig.from_dict(values)
        if patience is not None:
            check_count(PATIENCE, patience)
    except InputError as error:
        raise InputError(f"{path / CONFIG}: {error}") from error
    return Run(path, config, _read_metrics(path / METRICS), patience)


def _read_metrics(path: pathlib.Path) -> dict[str, dict[str, float]]:
    metrics = read_json(path)
    for values in metrics.values():
        if not isinstance(values, dict) or not all(
            value is None or is_number(value) for value in values.values()
        ):
            raise InputError(
                f"Expected {path} to hold numbers by task and metric. "
                f"Received: {str(values)[:100]!r}."
            )
    return metrics


def read_text(path: pathlib.Path) -> str:
    """Reads a text file, and nothing that has no end or makes one wait for it.

    Raises:
        InputError: If there is a folder, a pipe or a device instead.
        OSError: If it cannot be read.
        ValueError: If it is not UTF-8.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InputError(
                f"Expected {path} to be a file. Received: a pipe or device."
            )
        return file.read().decode("utf-8")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; InputError when the file does not hold one."""
    try:
        values = json.loads(read_text(path))
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise InputError(
            f"Expected {path} to hold a JSON object. Received: {type(values).__name__}."
        )
    return values


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes JSON, the file as a whole or not at all."""
    text = json.dumps(without_nan(values), indent=2, ensure_ascii=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def without_nan(values: Any) -> Any:
    """Replaces NaN and infinity, which JSON lacks, by None."""
    if isinstance(values, Mapping):
        return {key: without_nan(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [without_nan(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return values


def is_json_number(value: Any) -> bool:
    """Whether this is a finite number, or null, which stands for the others."""
    return value is None or (is_number(value) and abs(value) < sys.float_info.max)


def is_table(value: Any, is_right: Callable[[Any], bool]) -> bool:
    """Whether this is a JSON object whose values all are right."""
    return isinstance(value, dict) and all(map(is_right, value.values()))


def write_history(path: pathlib.Path, history: Mapping[str, list[float]]) -> None:
    """Writes the epochs' logs as CSV, one row per epoch counted from 1."""
    epochs = max((len(values) for values in history.values()), default=0)
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["epoch", *history])
        for epoch in range(epochs):
            row = [v[epoch] if epoch < len(v) else "" for v in history.values()]
            writer.writerow([epoch + 1, *row])


def read_history(path: pathlib.Path) -> dict[str, list[float]]:
    """Reads `write_history`'s file: `{name: values by epoch}`.

    Raises:
        InputError: If the file is missing or broken.
    """
    try:
        rows = list(csv.DictReader(read_text(path).splitlines(), strict=True))
        return {
            name: [float(row[name]) for row in rows if row[name]]
            for name in (rows[0] if rows else ())
            if name != "epoch"
        }
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from error


def check_free(out: str | pathlib.Path) -> None:
    """Raises an InputError unless `out` can be made here and now.

    An empty folder counts as free. Nothing is written.
    """
    out = pathlib.Path(out)
    if out.is_dir() and any(out.iterdir()):
        raise InputError(
            f"The output folder {str(out)!r} is in use already. "
            "Name another one, or remove it first."
        )
    if os.path.lexists(out) and not out.is_dir():
        raise InputError(f"The output {str(out)!r} exists and is not a folder.")
    parent = out.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(
            f"The output folder {str(out)!r} cannot be made: "
            f"{str(parent)!r} is not a folder."
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"The output folder {str(out)!r} cannot be made: "
            f"{str(parent)!r} is not writable."
        )


def check_no_links(*paths: pathlib.Path) -> None:
    """Raises an InputError if writing to the paths could change a file elsewhere."""
    for path in paths:
        if path.is_symlink():
            raise InputError(
                "Expected no symbolic link in a folder that is gone on with. "
                f"Received: {path}. Remove it, or name another --out."
            )


@contextlib.contextmanager
def disk_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns what the system says while a folder is written into an InputError."""
    try:
        yield
    except ConnectionError:
        # Of a pipe or a chief, not of the folder.
        raise
    except (OSError, tf.errors.OpError) as error:
        raise InputError(
            f"The folder {str(path)!r} cannot be written: {system_reason(error)}."
        ) from error


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type's name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
