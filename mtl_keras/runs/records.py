"""Records of a scheduler's jobs, with the versions and device that made them."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from pydantic import StrictStr

from mtl_keras import __version__
from mtl_keras.decoding import Decodable, Finite, decode
from mtl_keras.errors import InputError
from mtl_keras.files import check_free, check_no_links, read_json

SETTINGS = "settings.json"
RECORD = "record.json"
# Incremented when the format of a folder of a run, study or comparison changes.
FORMAT = 4


@dataclasses.dataclass(frozen=True)
class Outcome(Decodable):
    """How it ended: `"COMPLETED"`, or `"FAILED"` with an error and traceback."""

    status: Literal["COMPLETED", "FAILED"]
    seconds: Finite
    error: StrictStr
    traceback: StrictStr
    made_with: Mapping[str, Any]

    @property
    def completed(self) -> bool:
        """Whether it did not fail."""
        return self.status == "COMPLETED"

    @property
    def reason(self) -> str:
        """The error as one line."""
        return " ".join(self.error.split())


@dataclasses.dataclass(frozen=True)
class Record(Outcome):
    """Record of a scheduler's job: its outcome, and its function's result or None."""

    result: Any


def failure(error: str, jobs: int) -> Record:
    """Returns the record of a job that failed outside of its function."""
    return Record("FAILED", 0.0, error, "", made_with(jobs), None)


def read_record(path: pathlib.Path, cls: type = Record) -> Any:
    """Reads the record of a job or, of another class, of a trial."""
    return decode(cls, read_values(path), str(path))


def read_values(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object whose `made_with` has this version's format."""
    values = read_json(path)
    stored = values.get("made_with")
    stored = stored if isinstance(stored, dict) else {}
    if stored.get("format") != FORMAT:
        version = stored.get("mtl_keras")
        raise InputError(
            f"{path} is in the format of another version of mtl_keras "
            f"({version if isinstance(version, str) else 'unknown'}; this is "
            f"{__version__}). Use that version, or name another folder with --out."
        )
    return values


def open_folder(out: pathlib.Path, file: str) -> dict[str, Any] | None:
    """Returns the settings of earlier work, in a file of a folder; None if it is free.

    Raises an InputError for a folder that is in use otherwise, or holds links.
    """
    if not (out / file).is_file():
        check_free(out)
        return None
    check_no_links(*out.rglob("*"))
    return read_values(out / file)


def check_same(
    out: pathlib.Path, kind: str, earlier: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Raises an InputError for a setting that was another one in earlier work."""
    for name, value in now.items():
        if earlier.get(name) != value:
            raise InputError(
                f"{str(out)!r} holds {kind} with another {name}: "
                f"{earlier.get(name)!r:.200} there, {value!r:.200} here. Give the same "
                "settings to resume it, name another folder with --out, or remove it."
            )


def made_with(jobs: int = 1) -> dict[str, Any]:
    """Returns the provenance of a result: format, versions, commit, device, jobs.

    `jobs` is how many trainings shared the machine, this one included.
    """
    return {"format": FORMAT, **versions(), "jobs": jobs}


@functools.lru_cache
def versions() -> dict[str, str | None]:
    """Returns versions, the commit where the code lies in a checkout, the device."""
    gpus = tf.config.list_physical_devices("GPU")
    device = (
        tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
        if gpus
        else platform.processor() or platform.machine()
    )
    return {
        "mtl_keras": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "device": device,
    }


@functools.lru_cache
def commit() -> str | None:
    """Returns the commit of the checkout that the code lies in, if it lies in one."""
    root = pathlib.Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
