"""A first data file for a table: kinds, tasks to choose from, and a split."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtl_keras.data.tables.arrow import pa
from mtl_keras.data.tables.guessing import Guess, guess
from mtl_keras.data.tables.reading import (
    Chunk,
    FileReader,
    MemoryReader,
    NumberMarks,
    resolve_files,
)
from mtl_keras.data.tables.schema import Data, DataFile, Files, Names
from mtl_keras.errors import InputError, unknown_name

_ROWS = 50_000
_MARKERS = ("?", "NA", "N/A", "n/a", "None", "-", "\\N")
_SPLIT_NAMES = {
    "test": re.compile(r"(^|[^a-z])test([^a-z]|$)"),
    "validation": re.compile(r"(^|[^a-z])(valid|validation|val|dev)([^a-z]|$)"),
}
# With a point before the fraction, and with a comma; the likelier ones first.
_MARKS = (
    tuple(NumberMarks(".", thousands) for thousands in (None, ",", " ", "'", "’")),
    tuple(NumberMarks(",", thousands) for thousands in (None, ".", " ", "'", "’")),
)
_MARKED = re.compile(r"[+-]?\d{1,3}(?:[., ']?\d{3})*(?:[.,]\d+)?")
_SPLIT_VALUES = {"train", "training", "validation", "valid", "val", "dev", "test"}


def propose(
    files: Sequence[str | os.PathLike],
    to: str | os.PathLike,
    *,
    tasks: Iterable[str] | None = None,
    task_by: str | None = None,
) -> str:
    """Returns the text of a data file for a table, with comments.

    Args:
        files: The table's files, or patterns.
        to: Where the data file will be; paths in it are relative to its folder.
        tasks: Columns that are tasks; None chooses some.
        task_by: Column that tells tasks apart; `tasks` then has one column, that of
            the labels.

    Raises:
        InputError: If the files cannot be read or a column is unknown.
    """
    folder = pathlib.Path(to).absolute().parent
    paths = [os.path.relpath(os.path.abspath(file), folder) for file in files]
    data, notes = reading_of(paths, folder)
    reader = _train_reader(data, folder)
    chunk = _first_rows(reader)
    guesses = {name: guess(chunk, name, folder) for name in reader.names}
    tasks = list(tasks or ())
    if not tasks and task_by is None:
        tasks = [
            n
            for n in _lacking(data, folder, reader.names)
            if guesses[n].task is not None
        ]
    chosen = _choose(guesses, tasks, task_by, paths)
    data, unlabelled = _with_labels(data, folder, chosen)
    notes += [
        f"{path} has no labels: `mtl-keras predict RUN {path}` answers it."
        for path in unlabelled
    ]
    FileReader(_as_file(data, folder)).check(reader.names)
    split = _split_column(chunk, guesses)
    return _write(data, notes, guesses, chosen, task_by, split, len(chunk))


def propose_features(
    reader: MemoryReader,
    leave_out: Iterable[str],
    split: Mapping[str, Any],
    folder: pathlib.Path,
) -> dict[str, Any]:
    """Returns kinds of all columns that can be features.

    Args:
        reader: The table.
        leave_out: Columns that are no features.
        split: Settings of the split, whose columns are no features either.
        folder: The folder that paths of images are relative to.
    """
    others = {*leave_out, *(split.get(key) for key in ("column", "group", "time"))}
    (unit,) = reader.units
    (chunk,) = reader.read(unit, reader.names)
    guesses = [
        guess(chunk, name, folder) for name in reader.names if name not in others
    ]
    return {g.column: _feature(g) for g in guesses if g.feature is not None}


def reading_of(paths: Sequence[str], folder: pathlib.Path) -> tuple[Data, list[str]]:
    """Returns how files are to be read, by a look at the first rows, and notes on it.

    Args:
        paths: The files.
        folder: The folder that they are relative to.
    """
    files: Any = paths[0] if len(paths) == 1 else tuple(paths)
    by_split = _by_split(paths)
    if by_split:
        files = Files(**by_split)
    data = Data(files=files)
    first = resolve_files(_as_file(data, folder))[0]
    is_parquet = _magic(first) == b"PAR1"
    data = (
        dataclasses.replace(data, format="parquet")
        if is_parquet
        else _text_reading(data, first)
    )
    rows = _first_rows(_train_reader(data, folder))
    if markers := _markers(rows):
        data = dataclasses.replace(data, missing=markers)
        rows = _first_rows(_train_reader(data, folder))
    delimiter = "" if is_parquet else FileReader.delimiter_of(data, first)
    marks = _number_marks(rows, delimiter)
    by_name: dict[str, Any] = dataclasses.asdict(marks)
    data = dataclasses.replace(data, **by_name)
    return data, (
        []
        if data.header
        else ["The first row looks like data: columns are numbered from 1."]
    )


def _text_reading(data: Data, path: pathlib.Path) -> Data:
    """Returns how a text file is to be read, by its first lines."""
    encoding = _encoding(path)
    head = _head(path, encoding)
    delimiter = _delimiter(head)
    header = _has_header(head, delimiter)
    data = dataclasses.replace(data, encoding=encoding, header=header)
    if delimiter == FileReader.delimiter_of(data, path):
        return data
    return dataclasses.replace(data, delimiter=delimiter)


def _as_file(data: Data, folder: pathlib.Path) -> DataFile:
    return DataFile(folder / "x.toml", data, {}, {})


def _train_reader(data: Data, folder: pathlib.Path) -> FileReader:
    """Returns a reader of the training files, which have all columns."""
    if isinstance(data.files, Files):
        data = dataclasses.replace(data, files=data.files.train)
    reader = FileReader(_as_file(data, folder))
    reader.check(reader.names)
    return reader


def _held_out(data: Data) -> dict[str, Names]:
    """Returns the files for validation and test, by split."""
    if not isinstance(data.files, Files):
        return {}
    named = dataclasses.asdict(data.files)
    return {k: v for k, v in named.items() if k != "train" and v is not None}


def _lacking(data: Data, folder: pathlib.Path, names: Sequence[str]) -> list[str]:
    """Returns columns of the training files that files held out do not have."""
    lacking = set()
    for files in _held_out(data).values():
        part = dataclasses.replace(data, files=files)
        lacking |= {*names} - {*FileReader(_as_file(part, folder)).names}
    return [name for name in names if name in lacking]


def _with_labels(
    data: Data, folder: pathlib.Path, labels: Sequence[str]
) -> tuple[Data, list[str]]:
    """Returns the data without files held out that have no labels, and these files."""
    kept: dict[str, Names] = {}
    unlabelled: list[str] = []
    for split, files in _held_out(data).items():
        part = dataclasses.replace(data, files=files)
        reader = FileReader(_as_file(part, folder))
        present = [name for name in labels if name in reader.names]
        chunks = (c for unit in reader.units for c in reader.read(unit, present))
        if present and any(
            array.null_count < len(array)
            for chunk in chunks
            for array in chunk.columns.values()
        ):
            kept[split] = files
        else:
            unlabelled += [files] if isinstance(files, str) else files
    if not unlabelled:
        return data, []
    assert isinstance(data.files, Files)
    train = data.files.train
    return (
        dataclasses.replace(data, files=Files(train, **kept) if kept else train),
        unlabelled,
    )


def _by_split(paths: Sequence[str]) -> dict[str, Any]:
    """Returns the files by split, where their names tell."""
    files: dict[str, list[str]] = {}
    for path in paths:
        name = os.path.basename(path).lower()
        split = next((s for s, p in _SPLIT_NAMES.items() if p.search(name)), "train")
        files.setdefault(split, []).append(path)
    if "train" not in files or len(files) < 2:
        return {}
    return {s: p[0] if len(p) == 1 else tuple(p) for s, p in files.items()}


def _open(path: pathlib.Path) -> pa.NativeFile:
    # Unpacks by the file's name, as reading does.
    return pa.input_stream(str(path), compression="detect")


def _magic(path: pathlib.Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)


def _encoding(path: pathlib.Path) -> str:
    """Returns the encoding of a text file, by its first megabyte."""
    with _open(path) as file:
        head = file.read(1 << 20)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    try:
        # A character may be cut at the end.
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return _not_unicode(head)
    return "utf-8"


def _not_unicode(head: bytes) -> str:
    """Returns Chinese or else Latin: bytes beyond ASCII are pairs in Chinese alone."""
    try:
        # A character may be cut at the end.
        head[: head.rfind(b"\n") + 1].decode("gb2312")
    except UnicodeDecodeError:
        return "latin1"
    return "gb18030"


def _head(path: pathlib.Path, encoding: str) -> list[str]:
    with _open(path) as file:
        text = file.read(1 << 18).decode(encoding, errors="replace")
    return text.lstrip("\ufeff").splitlines()[:50]


def _delimiter(lines: Sequence[str]) -> str:
    """Returns the character that cuts most lines into the same number of cells."""

    def score(delimiter: str) -> tuple[float, int]:
        rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter))
        counts = [len(row) for row in rows if row] or [1]
        most = max(set(counts), key=counts.count)
        return (counts.count(most) / len(counts) if most > 1 else 0.0), most

    return max(",\t;|", key=score)


def _has_header(lines: Sequence[str], delimiter: str) -> bool:
    """Returns whether the first row holds names: no number, and none twice."""
    rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter))
    if len(rows) < 2:
        return True
    first = [cell.strip() for cell in rows[0]]
    if any(_is_number(cell) for cell in first):
        return False
    numeric = any(
        all(_is_number(row[i].strip()) for row in rows[1:] if len(row) > i and row[i])
        for i in range(len(first))
    )
    # Without numbers below, the first row is data if its cells occur again.
    repeats = sum(
        any(len(row) > i and row[i].strip() == cell for row in rows[1:])
        for i, cell in enumerate(first)
    )
    return numeric or repeats < len(first) / 2


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return _MARKED.fullmatch(cell) is not None
    return True


def _first_rows(reader: FileReader) -> Chunk:
    chunk = next(
        (c for unit in reader.units for c in reader.read(unit, reader.names) if len(c)),
        None,
    )
    if chunk is None:
        path = reader.units[0].path
        raise InputError(
            f"{path}: Expected a table with rows. Received: a header alone."
        )
    columns = {name: array[:_ROWS] for name, array in chunk.columns.items()}
    return dataclasses.replace(chunk, columns=columns)


def _markers(chunk: Chunk) -> tuple[str, ...]:
    """Returns usual marks of missing cells that stand among numbers or other text."""
    markers = []
    for array in chunk.columns.values():
        if not pa.types.is_string(array.type):
            continue
        values = set(array.drop_null().unique().to_pylist())
        marks = values.intersection(_MARKERS)
        rest = values - marks
        for mark in marks:
            # Only "?" is no word of its own among texts.
            if mark == "?" or (rest and all(_is_number(value) for value in rest)):
                markers.append(mark)
    return tuple(dict.fromkeys(markers))


def _number_marks(chunk: Chunk, delimiter: str) -> NumberMarks:
    """Returns the marks by which most columns are numbers, plain ones if as many."""
    columns = [
        array.drop_null().unique()
        for array in chunk.columns.values()
        if pa.types.is_string(array.type) and array.null_count < len(array)
    ]

    def count(marks: NumberMarks) -> int:
        return sum(_are_numbers(marks, array) for array in columns)

    # Between commas, one within a cell is a mark of thousands; between semicolons it
    # is rather one of fractions.
    points, commas = _MARKS
    marks = {",": points, ";": (points[0], *commas, *points)}
    return max(marks.get(delimiter, (*points, *commas)), key=count)


def _are_numbers(marks: NumberMarks, array: pa.Array) -> bool:
    try:
        marks.plain(array).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _choose(
    guesses: Mapping[str, Guess],
    tasks: Iterable[str] | None,
    task_by: str | None,
    paths: Sequence[str],
) -> list[str]:
    """Returns the columns that are tasks, or the one of the labels."""
    named = list(tasks or ())
    for name in [*named, *([task_by] if task_by else [])]:
        if name not in guesses:
            raise unknown_name("column", name, guesses)
    for name in named:
        if guesses[name].task is None:
            raise InputError(
                f"Expected a task in the column {name!r}: a number or classes. "
                f"Received: {guesses[name].note}."
            )
    if task_by is not None and len(named) != 1:
        raise InputError(
            "Expected one column of labels, --tasks LABEL, with --task-by. Received: "
            f"{', '.join(named) or 'none'}."
        )
    if named:
        return named
    possible = [name for name, g in guesses.items() if g.task is not None]
    partly = [n for n in possible if guesses[n].task == "binary" and guesses[n].missing]
    # Several columns with yes or no in part of the rows are labels; else the last.
    chosen = partly if len(partly) > 1 else possible[-1:]
    if not chosen:
        raise InputError(
            f"{paths[0]}: Expected a column that can be a task: numbers or classes. "
            f"Received: {', '.join(map(repr, guesses))}."
        )
    return chosen


def _split_column(chunk: Chunk, guesses: Mapping[str, Guess]) -> str | None:
    for name, g in guesses.items():
        array = chunk.columns[name]
        if not pa.types.is_string(array.type) or not 2 <= g.distinct <= 3:
            continue
        values = {str(v).lower() for v in array.drop_null().unique().to_pylist()}
        if values <= _SPLIT_VALUES:
            return name
    return None


def _feature(g: Guess) -> Any:
    if g.feature == "text" and g.by == "character":
        return {"kind": "text", "by": "character"}
    return g.feature


def _write(
    data: Data,
    notes: Sequence[str],
    guesses: Mapping[str, Guess],
    tasks: Sequence[str],
    task_by: str | None,
    split: str | None,
    rows: int,
) -> str:
    lines = [
        "# A data file: which columns are features and which are tasks.",
        f"# Kinds are guessed from the first {rows:,} rows; change what is wrong.",
        "",
        "[data]",
        *(f"# {note}" for note in notes),
        *_data_lines(data, split),
        "",
        "[features]",
        "# number, category, text, image (a path) or vector (a list).",
    ]
    for name, g in guesses.items():
        if name in tasks or name == split:
            continue
        missing = f"; {100 * g.missing:.1f} % missing" if g.missing else ""
        if g.feature is None or g.useless or name == task_by:
            why = "tells the tasks apart" if name == task_by else g.note
            value = _value(_feature(g) or "category")
            lines.append(f"# {_key(name)} = {value}  # left out: {_comment(why)}")
        else:
            value = _value(_feature(g))
            lines.append(f"{_key(name)} = {value}  # {_comment(g.note)}{missing}")
    lines += ["", "[tasks]"]
    if task_by is not None:
        lines += [
            "# Each row labels the task that this column names.",
            f"by = {_value(task_by)}",
            f"label = {_value(tasks[0])}",
            f"kind = {_value(guesses[tasks[0]].task)}  # {_labels(guesses[tasks[0]])}",
        ]
    else:
        lines.append("# number, binary or multiclass.")
        lines += [
            f"{_key(name)} = {_value(guesses[name].task)}  # {_labels(guesses[name])}"
            for name in tasks
        ]
        others = [n for n, g in guesses.items() if g.task and n not in tasks]
        if others:
            lines.append("# These could be tasks too; a task is no feature:")
            lines += [f"# {_key(n)} = {_value(guesses[n].task)}" for n in others[:50]]
    return "\n".join(lines) + "\n"


def _data_lines(data: Data, split: str | None) -> list[str]:
    values: dict[str, Any] = {"files": data.files}
    if isinstance(data.files, Files):
        named = dataclasses.asdict(data.files)
        values["files"] = {k: v for k, v in named.items() if v is not None}
    for field in dataclasses.fields(Data)[1:-2]:
        value = getattr(data, field.name)
        if value != field.default:
            values[field.name] = value
    lines = [f"{key} = {_value(value)}" for key, value in values.items()]
    if split is not None:
        return [*lines, f"split = {{ column = {_value(split)} }}"]
    if isinstance(data.files, Files):
        shares = [
            f"{name} = 0.1"
            for name in ("validation", "test")
            if getattr(data.files, name) is None
        ]
        if not shares:
            return lines
        return [*lines, f"split = {{ {', '.join(shares)}, seed = 0 }}"]
    return [
        *lines,
        'split = { by = "random", validation = 0.1, test = 0.1, seed = 0 }',
        '# or split = { column = "split" }, { group = "user_id" } or { time = "date" }',
    ]


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    """Writes a value as TOML has it."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _labels(g: Guess) -> str:
    """Returns the comment of a task."""
    positive = "" if g.positive is None else f"; positive: {g.positive!r}"
    return _comment(f"{g.note}{positive}")


def _comment(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f]", " ", text)
