"""Reading of tables: CSV, TSV and Parquet files, or one in memory, in chunks.

All cells of CSV and TSV files are read as text, so that what they mean is decided in
one place (`values`), where an error can name the file and the row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mtl_keras.data.tables.arrow import pa, pa_csv, pc, pq
from mtl_keras.data.tables.schema import Data, DataFile, Files, Format
from mtl_keras.errors import InputError, first_line, unknown_name

CHUNK_ROWS = 1 << 16
_BLOCK_BYTES = 1 << 24  # also the longest row that can be read
# The formats of tables by suffix, which one of a compressed file may follow.
_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_MISSING = ("", "nan", "NaN", "NAN", "null", "NULL", "Null")


@dataclasses.dataclass(frozen=True)
class Unit:
    """A part of a table that is read from its start: a file or a row group.

    Attributes:
        path: The file; None for a table in memory.
        split: The split that the file is of, where files tell.
        row_group: Number of the row group of a Parquet file.
        first: Number of rows of the file before the unit.
    """

    path: pathlib.Path | None
    split: str | None = None
    row_group: int | None = None
    first: int = 0


@dataclasses.dataclass(frozen=True)
class NumberMarks:
    """Marks in the numbers of a text file; see `schema.Data`.

    Attributes:
        decimal: Mark of the fraction.
        thousands: Mark between groups of three digits; None for none.
    """

    decimal: str = "."
    thousands: str | None = None

    def plain(self, array: pa.Array) -> pa.Array:
        """Returns text with its numbers as Arrow reads them: `1234.5`.

        Args:
            array: Strings; those that are no numbers may change.
        """
        if self.thousands is not None:
            mark = r"[\s\x{a0}\x{202f}]"
            if self.thousands != " ":
                mark = re.escape(self.thousands)
            fraction = re.escape(self.decimal)
            grouped = rf"^[+-]?\d{{1,3}}({mark}\d{{3}})+({fraction}\d*)?$"
            array = pc.if_else(
                pc.match_substring_regex(array, grouped),
                pc.replace_substring_regex(array, mark, ""),
                array,
            )
        if self.decimal == ",":
            # A point that is no mark of thousands makes the text no number.
            array = pc.replace_substring(array, ".", "_")
            array = pc.replace_substring(array, ",", ".")
        return array


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some rows of a table.

    Attributes:
        columns: Arrays by column, all of one length.
        places: `(first row, file, number of that row as people count)` of each file
            that the rows are from, in order.
        split: The split that the rows are of, where files tell.
        marks: Marks in numbers that are text.
    """

    columns: Mapping[str, pa.Array]
    places: Sequence[tuple[int, str, int]]
    split: str | None = None
    marks: NumberMarks = NumberMarks()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def place(self, row: int) -> str:
        """Returns where a row is, for messages: `houses.csv, row 7`."""
        first, file, number = max(place for place in self.places if place[0] <= row)
        return f"{file}, row {number + row - first}"


class FileReader:
    """Reads the files that a data file names.

    Args:
        file: The decoded data file.

    Attributes:
        units: The parts of the table, in order.
        names: Names of the columns, in the first file's order.
        marks: Marks in numbers that are text.

    Raises:
        InputError: If there is no such file, or the files differ in their columns or
            lack one that the data file names.
    """

    def __init__(self, file: DataFile):
        self._data = file.data
        self.marks = NumberMarks(file.data.decimal, file.data.thousands)
        self._paths = _resolve(file)
        self._headers: dict[pathlib.Path, list[str]] = {}
        self.names = self.header(self._paths[0][0])
        self.check(file.columns)
        self.units = [
            unit for path, split in self._paths for unit in self._units(path, split)
        ]

    @property
    def bytes(self) -> int:
        """About how much memory the table would take."""
        packed = {".gz": 6, ".bz2": 8, ".zst": 6, ".xz": 8, ".parquet": 4}
        return sum(
            path.stat().st_size * packed.get(path.suffix.lower(), 1)
            for path, _ in self._paths
        )

    def check(self, columns: Iterable[str]) -> None:
        """Raises an InputError unless all files have these columns, each once."""
        for path, _ in self._paths:
            _check_names(str(path), self.header(path), columns)

    def read(self, unit: Unit, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yields the rows of a unit in chunks, in order.

        Raises:
            InputError: If the file is damaged, with the row.
        """
        assert unit.path is not None
        row = unit.first
        for batch in self._batches(unit, columns):
            arrays = {name: self._cells(_plain(batch.column(name))) for name in columns}
            number = row + (1 if self._is_parquet(unit.path) else 1 + self._data.header)
            places = [(0, unit.path.name, number)]
            yield Chunk(arrays, places, unit.split, self.marks)
            row += len(batch)

    def count(self, unit: Unit) -> int:
        """Returns the number of rows of a unit."""
        assert unit.path is not None
        if unit.row_group is None:
            return sum(len(chunk) for chunk in self.read(unit, self.names[:1]))
        with pq.ParquetFile(unit.path) as file:
            return file.metadata.row_group(unit.row_group).num_rows

    def header(self, path: pathlib.Path) -> list[str]:
        """Returns the names of a file's columns."""
        if path not in self._headers:
            with _readable(path):
                self._headers[path] = self._read_header(path)
        return self._headers[path]

    def _read_header(self, path: pathlib.Path) -> list[str]:
        if self._is_parquet(path):
            return pq.read_schema(path).names
        with self._open_csv(path) as reader:
            names = reader.schema.names
        if not self._data.header:
            return [f"column_{index + 1}" for index in range(len(names))]
        return names

    def _units(self, path: pathlib.Path, split: str | None) -> Iterator[Unit]:
        if not self._is_parquet(path):
            yield Unit(path, split)
            return
        first = 0
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield Unit(path, split, group, first)
                first += file.metadata.row_group(group).num_rows

    def _batches(self, unit: Unit, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        assert unit.path is not None
        with _readable(unit.path):
            if unit.row_group is not None:
                with pq.ParquetFile(unit.path) as file:
                    yield from file.iter_batches(
                        CHUNK_ROWS, row_groups=[unit.row_group], columns=list(columns)
                    )
                return
            names = self.header(unit.path)
            wanted = [names.index(name) for name in columns]
            with self._open_csv(unit.path, len(names), wanted) as reader:
                for batch in reader:
                    yield batch.rename_columns(list(columns))

    def _cells(self, array: pa.Array) -> pa.Array:
        """Returns text without white space around it, and null where it is missing."""
        if not pa.types.is_string(array.type):
            return array
        array = pc.utf8_trim_whitespace(array)
        missing = pc.is_in(array, pa.array([*_MISSING, *self._data.missing]))
        return pc.if_else(missing, pa.scalar(None, pa.string()), array)

    def _open_csv(
        self, path: pathlib.Path, count: int | None = None, wanted: Sequence[int] = ()
    ) -> pa_csv.CSVStreamingReader:
        """Opens a CSV file: for its names, or for text of the columns that are wanted.

        Args:
            path: The file.
            count: Number of columns; None before their names are known.
            wanted: Positions of the columns to read.
        """
        # Positions stand for names, which may be there twice.
        keys = None if count is None else [f"{index}" for index in range(count)]
        return pa_csv.open_csv(
            path,
            read_options=pa_csv.ReadOptions(
                # With threads, errors would not tell the row.
                use_threads=False,
                block_size=_BLOCK_BYTES,
                encoding=self._data.encoding,
                column_names=keys,
                skip_rows=int(self._data.header) if keys else 0,
                autogenerate_column_names=keys is None and not self._data.header,
            ),
            parse_options=pa_csv.ParseOptions(
                delimiter=self.delimiter_of(self._data, path), newlines_in_values=True
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types={key: pa.string() for key in keys or ()},
                include_columns=[f"{index}" for index in wanted] or None,
                strings_can_be_null=False,
            ),
        )

    def _is_parquet(self, path: pathlib.Path) -> bool:
        return (self._data.format or format_of(path)) == "parquet"

    @staticmethod
    def delimiter_of(data: Data, path: pathlib.Path) -> str:
        """Returns the character between cells of a CSV or TSV file.

        Args:
            data: How the table is read.
            path: The file.
        """
        if data.delimiter is not None:
            return data.delimiter
        return "\t" if (data.format or format_of(path)) == "tsv" else ","


def suffix_of(path: pathlib.Path) -> str | None:
    """Returns the suffix that tells a table's format, such as `.csv` of `x.csv.gz`."""
    suffixes = [suffix.lower() for suffix in reversed(path.suffixes)]
    return next((suffix for suffix in suffixes if suffix in _FORMATS), None)


def format_of(path: pathlib.Path) -> Format | None:
    """Returns `"csv"`, `"tsv"` or `"parquet"` by a file's name; else None."""
    return _FORMATS.get(suffix_of(path) or "")


class MemoryReader:
    """Reader of a table in memory, with the interface of `FileReader`.

    Args:
        chunks: The rows.
        names: Names of all columns.

    Attributes:
        units: One for the rows of each split that files tell, or one alone.
        names: Names of the columns.
    """

    def __init__(self, chunks: Iterable[Chunk], names: Sequence[str]):
        self.names = list(names)
        parts: dict[str | None, list[Chunk]] = {}
        for chunk in chunks:
            parts.setdefault(chunk.split, []).append(chunk)
        self._parts = {split: _joined(part) for split, part in parts.items()}
        self.units = [Unit(None, split) for split in self._parts]

    def check(self, columns: Iterable[str]) -> None:
        """Raises an InputError unless the table has these columns, each once."""
        _check_names("data frame", self.names, columns)

    def read(self, unit: Unit, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yields the rows of a unit, in one chunk."""
        chunk = self._parts[unit.split]
        arrays = {name: chunk.columns[name] for name in columns}
        yield dataclasses.replace(chunk, columns=arrays)

    def count(self, unit: Unit) -> int:
        """Returns the number of rows of a unit."""
        return len(self._parts[unit.split])


Reader = FileReader | MemoryReader


def in_memory(reader: FileReader, columns: Sequence[str]) -> MemoryReader:
    """Reads the columns of all files.

    Raises:
        InputError: If a file is damaged, or there is no row.
    """
    chunks = (chunk for unit in reader.units for chunk in reader.read(unit, columns))
    return MemoryReader(chunks, reader.names)


def of_frame(frame: Any) -> MemoryReader:
    """Returns a reader of a `pandas.DataFrame` or a `pyarrow.Table`.

    Raises:
        InputError: If a column mixes types, or a name is there twice.
    """
    if not isinstance(frame, pa.Table):
        names = [str(name) for name in frame.columns]
        if len(set(names)) < len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise InputError(f"Expected each column once. Received twice: {twice!r}.")
        frame = frame.set_axis(names, axis=1)
        try:
            frame = pa.Table.from_pandas(frame, preserve_index=False)
        except (pa.ArrowException, TypeError) as error:
            raise InputError(
                f"The data frame mixes types: {' '.join(map(str, error.args))}."
            ) from error
    columns = {
        name: _plain(frame.column(name).combine_chunks()) for name in frame.column_names
    }
    chunk = Chunk(columns, [(0, "data frame", 0)])
    return MemoryReader([chunk], list(columns))


def _check_names(where: str, names: Sequence[str], columns: Iterable[str]) -> None:
    for name in columns:
        if names.count(name) > 1:
            raise InputError(
                f"{where}: Expected each column once. Received {name!r} "
                f"{names.count(name)} times."
            )
        if name not in names:
            raise InputError(f"{where}: {unknown_name('column', name, names)}")


def _joined(chunks: Sequence[Chunk]) -> Chunk:
    first = 0
    places: list[tuple[int, str, int]] = []
    for chunk in chunks:
        # Chunks of one file count on.
        (_, file, number), *others = chunk.places
        assert not others
        if not places or places[-1][1] != file:
            places.append((first, file, number))
        first += len(chunk)
    columns = {
        name: pa.concat_arrays([chunk.columns[name] for chunk in chunks])
        for name in chunks[0].columns
    }
    return dataclasses.replace(chunks[0], columns=columns, places=places)


def resolve_files(file: DataFile) -> list[pathlib.Path]:
    """Returns the files of a table, in order.

    Raises:
        InputError: If there is none of a name or pattern.
    """
    return [path for path, _ in _resolve(file)]


def _resolve(file: DataFile) -> list[tuple[pathlib.Path, str | None]]:
    """Returns the files with the split that each is of, sorted by name."""
    files = file.data.files
    by_split: dict[str | None, Any] = {None: files}
    if isinstance(files, Files):
        by_split = {k: v for k, v in dataclasses.asdict(files).items() if v is not None}
    resolved: list[tuple[pathlib.Path, str | None]] = []
    for split, patterns in by_split.items():
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            resolved += [(path, split) for path in _matching(pattern, file.path.parent)]
    return resolved


def _matching(pattern: str, folder: pathlib.Path) -> list[pathlib.Path]:
    whole = os.path.join(folder, os.path.expanduser(pattern))
    paths = (
        [whole] if os.path.exists(whole) else sorted(glob.glob(whole, recursive=True))
    )
    files = [pathlib.Path(path) for path in paths if os.path.isfile(path)]
    if not files:
        raise InputError(f"There is no file {pattern!r} in {folder}.")
    return files


def _plain(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Returns an array without dictionaries and chunks."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_large_string(array.type) or array.type == pa.string_view():
        array = array.cast(pa.string())
    return array


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    """Context manager: raises `InputError`, with the row, for errors of pyarrow."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError, LookupError, EOFError) as error:
        raise InputError(_explained(path, error)) from error


def _explained(path: pathlib.Path, error: Exception) -> str:
    message = first_line(error)
    row = re.search(r"Row #(\d+): (?:Expected (\d+) columns, got (\d+))?", message)
    where = f"{path}, row {row[1]}" if row else f"{path}"
    if "Empty CSV file" in message:
        return f"{path}: Expected a table with a header and rows. Received: no rows."
    if row and row[2]:
        return (
            f"{where}: Expected {row[2]} cells, as in the first row. "
            f"Received: {row[3]}."
        )
    if "invalid UTF8" in message or isinstance(error, UnicodeError):
        return (
            f"{where}: Expected text in the encoding of the data file. Received: other "
            'bytes. Name theirs under [data], for example encoding = "latin1".'
        )
    if isinstance(error, LookupError):
        return f"{path}: Expected the name of an encoding. Received: {message}."
    return f"{where} cannot be read: {message[:200]}"
