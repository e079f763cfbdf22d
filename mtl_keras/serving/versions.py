"""Numbered versions in a folder, each of which appears complete or not at all."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable

import tensorflow as tf

from mtl_keras.errors import InputError, system_reason
from mtl_keras.files import make_folder, publish_folder

_PARTIAL = ".partial-"
_ABANDONED_SECONDS = 24 * 3600


def versions(path: str | pathlib.Path) -> list[int]:
    """Returns the version numbers under an export folder, in order.

    Example:

    ```pycon
    >>> len(mtl_keras.serving.versions(version.parent))
    1
    ```
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return []
    return sorted(
        int(entry.name)
        for entry in path.iterdir()
        if entry.is_dir() and entry.name.isdecimal()
    )


def latest_version(path: str | pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of the highest version, or None.

    Example:

    ```pycon
    >>> mtl_keras.serving.latest_version(version.parent) == version
    True
    ```
    """
    numbers = versions(path)
    return pathlib.Path(path) / str(numbers[-1]) if numbers else None


def write_version(
    path: pathlib.Path, write: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """Writes the next version beside the others, then renames it into place.

    Several processes may do so at the same time; each gets a number of its own. What
    one leaves behind that is killed has a name that no server looks at, and is
    removed by an export a day later.

    Args:
        path: The folder of versions; made if it is not there.
        write: Fills the folder that it is given.

    Returns:
        The folder of the version.

    Raises:
        InputError: If `path` cannot be made or written to, in one line.
    """
    try:
        make_folder(path)
        work = pathlib.Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=path))
    except OSError as error:
        raise InputError(
            f"The export folder {str(path)!r} cannot be written: {error.strerror}."
        ) from error
    try:
        _remove_abandoned(path)
        model = work / "model"
        write(model)
        return _rename_to_next(model, path)
    except (OSError, tf.errors.OpError) as error:
        raise InputError(
            f"The export to {str(path)!r} failed, and no version was added: "
            f"{system_reason(error)}."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _rename_to_next(model: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    number = max(versions(path), default=0) + 1
    while True:
        target = path / str(number)
        try:
            # Fails where another export has taken the number in the meantime.
            publish_folder(model, target)
        except OSError:
            if not target.exists():
                raise
            number += 1
        else:
            return target


def _remove_abandoned(path: pathlib.Path) -> None:
    for entry in path.glob(f"{_PARTIAL}*"):
        # Another export may remove it first.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
