"""A table that is open: its reader, description and splits."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from mtl_keras.data.catalog import resolve_data_dir
from mtl_keras.data.tables.describing import describe, split_chunks
from mtl_keras.data.tables.description import Description
from mtl_keras.data.tables.labels import model_labels
from mtl_keras.data.tables.reading import FileReader, Reader, in_memory, resolve_files
from mtl_keras.data.tables.schema import SPLITS, DataFile
from mtl_keras.data.tables.splits import Splitter
from mtl_keras.data.tables.values import class_order
from mtl_keras.decoding import decode
from mtl_keras.encoding import encode
from mtl_keras.files import atomic_write, make_folder, read_json

STREAMED_BYTES = 2 << 30
KEPT_BYTES = 8 << 20  # of a table whose description is kept on disk
_VERSION = 1  # of identities
_KEPT = 2  # version of the descriptions on disk


class OpenTable:
    """A table, described; its rows are in memory or read again in every pass.

    Args:
        file: The data file.
        reader: Reads its table.
        description: `describe`'s result for this very table; None describes it.

    Attributes:
        file: The data file.
        reader: Reads the table.
        description: Inputs, tasks, splits.
        splitter: Assigns rows to splits.
        folder: The folder that paths in the table are relative to.
    """

    def __init__(
        self, file: DataFile, reader: Reader, description: Description | None = None
    ):
        self.file = file
        self.reader = reader
        self.folder = file.path.parent
        if description is None:
            self.description, self.splitter = describe(file, reader)
        else:
            self.description = description
            counts = dict(zip(reader.units, description.unit_rows, strict=True))
            self.splitter = Splitter(file, reader, counts, description.bounds)
        self._labelled: dict[tuple[str, tuple[str, ...]], int] = {}

    def count_labelled(self, split: str, tasks: tuple[str, ...]) -> int:
        """Returns the number of a split's rows that label one of the tasks."""
        if (split, tasks) not in self._labelled:
            total = 0
            for chunk, splits in split_chunks(
                self.file, self.reader, self.splitter, self.reader.units
            ):
                labelled = np.zeros(len(chunk), bool)
                for task in tasks:
                    stats = self.description.tasks[task]
                    labelled |= model_labels(self.file, chunk, stats).present
                total += int((labelled & (splits == SPLITS.index(split))).sum())
            self._labelled[split, tasks] = total
        return self._labelled[split, tasks]


def open_table(file: DataFile) -> OpenTable:
    """Opens the table of a data file, once a process while nothing changes.

    Raises:
        InputError: If the table cannot be read or described.
    """
    return _opened(_Key(_digest(file), file))


def identity(table: OpenTable) -> str:
    """Returns a hash of a data file's settings and of its files' names and sizes.

    And of positive classes that neither the data file nor their order by name says: a
    model that was trained when these were others has another identity.
    """
    paths = resolve_files(table.file)
    files = [(path.name, path.stat().st_size) for path in paths]
    by_word = {
        stats.title: stats.classes[1]
        for stats in table.description.tasks.values()
        if stats.kind == "binary"
        and table.file.settings_of(stats.title).positive is None
        and stats.classes[1] != max(stats.classes, key=class_order)
    }
    return _hash(_VERSION, table.file, files, *([by_word] if by_word else []))


def _digest(file: DataFile) -> str:
    """Returns a hash that changes whenever one of the files is written."""
    stats = [(path, path.stat()) for path in resolve_files(file)]
    files = [(str(p), s.st_size, s.st_mtime_ns) for p, s in stats]
    return _hash(_KEPT, file, files)


def _hash(version: int, file: DataFile, *more: Any) -> str:
    settings = encode(dataclasses.replace(file, path=pathlib.Path()))
    text = json.dumps([version, settings, *more], default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Key:
    digest: str
    file: DataFile = dataclasses.field(compare=False, hash=False)


@functools.lru_cache(maxsize=4)
def _opened(key: _Key) -> OpenTable:
    files = FileReader(key.file)
    streams = key.file.data.stream
    if streams is None:
        streams = files.bytes > STREAMED_BYTES
    reader: Reader = files if streams else in_memory(files, key.file.columns)
    if files.bytes < KEPT_BYTES:
        return OpenTable(key.file, reader)
    # The pass over the rows takes a while; other processes are to find its result.
    kept = resolve_data_dir() / "mtl_keras_tables" / f"{key.digest}.json"
    if kept.is_file():
        description = decode(Description, read_json(kept), str(kept))
        return OpenTable(key.file, reader, description)
    table = OpenTable(key.file, reader)
    # Where nothing can be written there, each process makes the pass.
    with contextlib.suppress(OSError):
        _keep(kept, table.description)
    return table


def _keep(path: pathlib.Path, description: Description) -> None:
    make_folder(path.parent)
    with atomic_write(path) as temporary:
        text = json.dumps(encode(description), ensure_ascii=False)
        temporary.write_text(text, encoding="utf-8")
