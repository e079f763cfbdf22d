"""Files and folders that appear whole or not at all, and survive a loss of power."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator


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


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
