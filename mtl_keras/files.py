"""Files and folders that appear whole or not at all, and survive a loss of power."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from mtl_keras.encoding import encode
from mtl_keras.errors import InputError, first_line


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Context manager: yields a temporary file that replaces `path` at the end.

    The content is on the disk before the file has its name, and the name before this
    returns. Readers never see a part of it; when the block raises, `path` stays as
    it was.

    Args:
        path: The file to write; its folder exists.

    Yields:
        A file in the same folder and with the same suffix, to be written in full.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_toml(path: pathlib.Path, kind: str) -> dict[str, Any]:
    """Returns the tables of a TOML file.

    Args:
        path: The file.
        kind: Kind of the file, for messages: `"study file"`.

    Raises:
        InputError: If it is missing, cannot be read or is not TOML.
    """
    # Here, as `import mtl_keras` loads nothing that Keras does not.
    import tomllib

    try:
        return tomllib.loads(read_text(path).removeprefix("\ufeff"))
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"There is no {kind} {str(path)!r}.") from error
    except OSError as error:
        raise InputError(
            f"The {kind} {str(path)!r} cannot be read: {error.strerror}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a TOML file: {first_line(error)}") from error


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes plain values or dataclasses as JSON, the file as a whole or not at all."""
    text = json.dumps(encode(values), indent=2, ensure_ascii=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_csv(path: pathlib.Path, rows: Iterable[Iterable[Any]]) -> None:
    """Writes rows as CSV, the file as a whole or not at all; None is an empty cell."""
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows(rows)


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


def publish_folder(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Renames a finished folder to `target`, once all in it is on the disk.

    Args:
        folder: The folder, which nothing writes to any more.
        target: Its final name, on the same file system.

    Raises:
        OSError: If `target` exists and is no empty folder.
    """
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(pathlib.Path(root, name))
        _sync(pathlib.Path(root))
    folder.rename(target)
    _sync(target.parent)


def make_folder(folder: pathlib.Path) -> None:
    """Makes a folder and its parents, unless there, and syncs their names."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        _sync(path.parent)


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
                "Expected no symbolic link in a folder that is resumed. "
                f"Received: {path}. Remove it, or name another --out."
            )


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
