"""Checks a `.keras` file before any of it is taken apart.

Keras's safe mode refuses code. This refuses, in one line each, what a file could do
without any: name paths outside, refer to other files, or claim to be so large that
reading it takes all memory.
"""

from __future__ import annotations

import json
import pathlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import h5py

from mtl_keras.errors import InputError

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_NEEDED = ("metadata.json", _CONFIG, _WEIGHTS)
_LARGEST_JSON = 2**26
# Keras would answer these too, but with whole configs.
_CODE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "__lambda__")


def check_model_file(path: pathlib.Path) -> None:
    """Raises an InputError, in one line, unless a file is what Keras writes.

    Args:
        path: A `.keras` file.
    """
    if path.is_symlink() or not path.is_file():
        raise InputError(f"Expected {path} to be a file, and no link to one.")
    try:
        with zipfile.ZipFile(path) as file:
            _check(path, file)
    except (
        EOFError,
        NotImplementedError,
        OSError,
        OverflowError,
        RecursionError,
        RuntimeError,
        ValueError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _refused(path, f"a broken file ({reason})") from error


def _check(path: pathlib.Path, file: zipfile.ZipFile) -> None:
    members = {member.filename: member for member in file.infolist()}
    if len(members) != len(file.infolist()):
        raise _refused(path, "two members of the same name")
    for name, member in members.items():
        parts = pathlib.PurePosixPath(name).parts
        is_known = name in _NEEDED or (parts and parts[0] == "assets")
        if not is_known or ".." in parts or "\\" in name or "\0" in name:
            raise _refused(path, f"a member named {name!r}")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _refused(path, f"a symbolic link, {name!r}")
        if member.compress_type != zipfile.ZIP_STORED:
            # Keras compresses nothing, and members without compression cannot burst.
            raise _refused(path, f"a compressed member, {name!r}")
    for name in _NEEDED:
        if name not in members:
            raise _refused(path, f"no member {name!r}")
    if sum(m.file_size for m in members.values()) > path.stat().st_size:
        raise _refused(path, "members larger than the file")
    if members[_CONFIG].file_size > _LARGEST_JSON:
        raise _refused(path, f"a config of {members[_CONFIG].file_size} bytes")
    # All checksums, before any member is taken apart.
    wrong = file.testzip()
    if wrong is not None:
        raise _refused(path, f"a damaged member, {wrong!r}")
    for value in _values(json.loads(file.read(_CONFIG))):
        if value.get("class_name") in _CODE:
            raise _refused(path, f"code to run, in a {value['class_name']!r}")
    with file.open(_WEIGHTS) as weights, h5py.File(weights, "r") as arrays:
        _check_arrays(path, arrays, members[_WEIGHTS].file_size)


def _values(config: Any) -> Iterator[dict[str, Any]]:
    """Yields all objects within a config."""
    rest = [config]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            yield value
            rest += value.values()
        elif isinstance(value, list):
            rest += value


def _check_arrays(path: pathlib.Path, arrays: h5py.File, size: int) -> None:
    """Checks that an HDF5 file holds no more than its own bytes."""
    total, groups, seen = 0, [arrays], 0
    while groups:
        group = groups.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _refused(path, f"a link to other weights, {name!r}")
            item = group[name]
            seen += 1
            if seen > size:
                raise _refused(path, "weights that contain themselves")
            if isinstance(item, h5py.Group):
                groups.append(item)
                continue
            if item.external or item.is_virtual:
                raise _refused(path, f"weights in another file, {name!r}")
            total += item.nbytes
            if total > size:
                raise _refused(path, f"weights larger than the file, {name!r}")


def _refused(path: pathlib.Path, reason: str) -> InputError:
    return InputError(
        f"{path} cannot be loaded: expected a Keras model, found {reason}."
    )
