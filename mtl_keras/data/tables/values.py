"""From the cells of a table to the values that a model reads."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from mtl_keras.data.tables.arrow import pa, pc
from mtl_keras.data.tables.reading import Chunk
from mtl_keras.errors import InputError

LARGEST = float(np.finfo(np.float32).max)
_SECONDS_PER_DAY = 86_400
# First bytes of JPEG, PNG, GIF and BMP files.
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM")
# Words for yes with those for no that go with them, by which the class is known whose
# probability a binary task predicts. Letter case does not matter.
_ANSWERS = {
    "yes": ("no",),
    "y": ("n",),
    "true": ("false",),
    "t": ("f",),
    "on": ("off",),
    "positive": ("negative",),
    "pos": ("neg",),
    "+": ("-",),
    "ja": ("nein", "nee", "nej", "nei"),
    "j": ("n",),
    "wahr": ("falsch",),
    "oui": ("non",),
    "o": ("n",),
    "vrai": ("faux",),
    "si": ("no",),
    "sí": ("no",),
    "sì": ("no",),
    "s": ("n",),
    "sim": ("não", "nao"),
    "да": ("нет",),
    "tak": ("nie",),
    "ano": ("ne",),
    "evet": ("hayır", "hayir"),
    "是": ("否", "不是"),
    "有": ("无", "無", "没有"),
    "真": ("假",),
    "阳性": ("阴性",),
    "陽性": ("陰性",),
    "はい": ("いいえ",),
    "예": ("아니요", "아니오"),
}
# A zone follows a time: `10:30:00Z`, `10:30:00+02:00`.
_ZONED = r":\d.*(Z|[+-]\d{2}(:?\d{2})?)$"


def numbers(chunk: Chunk, column: str, dates: bool = False) -> np.ndarray:
    """Returns a column as float64 `[rows]`, NaN where a cell is empty.

    Args:
        chunk: The rows.
        column: Name of the column.
        dates: Whether text is a date or time, as `is_dated` says; these count as days
            since 1970.

    Raises:
        InputError: For text that is no number, an infinity, or a number that float32
            cannot hold, with the row.
    """
    array = chunk.columns[column]
    if pa.types.is_string(array.type):
        array = _parsed(chunk, column, array, dates)
    if pa.types.is_temporal(array.type):
        array = _days(chunk, column, array)
    try:
        values = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(
            f"{chunk.place(0)}: Expected numbers in the column {column!r}. Received: "
            f"{array.type}."
        ) from error
    wrong = np.flatnonzero(np.abs(values) > LARGEST)
    if wrong.size:
        raise _wrong(chunk, column, int(wrong[0]), "numbers below 3.4e38")
    return values.astype(np.float64)


def is_dated(array: pa.Array) -> bool | None:
    """Returns whether a column's first value is a date or time; None without one."""
    if not pa.types.is_string(array.type):
        return pa.types.is_temporal(array.type)
    present = array.drop_null()
    if not len(present):
        return None
    try:
        present[:1].cast(pa.float64())
        return False
    except pa.ArrowInvalid:
        return _as_time(present[:1]) is not None


def texts(chunk: Chunk, column: str) -> np.ndarray:
    """Returns a column as str `[rows]` of objects, "" where a cell is empty.

    Whole numbers are written without a fraction, dates as ISO 8601 has them.

    Raises:
        InputError: For lists and other values that have no text, or bytes that are
            not UTF-8.
    """
    array = chunk.columns[column]
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
        array = _without_fraction(array)
    if not pa.types.is_string(array.type):
        try:
            array = array.cast(pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InputError(
                f"{chunk.place(0)}: Expected text in the column {column!r}. Received: "
                f"{array.type}."
            ) from error
    return array.fill_null("").to_numpy(zero_copy_only=False)


def image_paths(chunk: Chunk, column: str, folder: pathlib.Path) -> np.ndarray:
    """Returns a column of paths as str `[rows]` of objects, "" where a cell is empty.

    Args:
        chunk: The rows.
        column: Name of the column.
        folder: The folder that the paths are relative to.

    Raises:
        InputError: For a path that is no file, or not one of such an image, with the
            row.
    """
    paths = texts(chunk, column)
    for row, path in enumerate(paths):
        fault = _image_fault(folder / path) if path else None
        if fault is not None:
            raise InputError(
                f"{chunk.place(row)}: Expected the path of an image in the column "
                f"{column!r}. Received: {path!r}, which {fault}."
            )
    return np.array([str(folder / path) if path else "" for path in paths], object)


def _image_fault(path: pathlib.Path) -> str | None:
    """Returns why a file cannot be read as an image, by its first bytes."""
    if not os.path.isfile(path):
        return f"is no file in {path.parent}"
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if head.startswith(_IMAGES) else "is no JPEG, PNG, GIF or BMP file"


def factorised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns distinct texts in order, str of objects, and each value's index there.

    As `np.unique` does it, without an array of strings as wide as the longest text.

    Args:
        values: str `[n]`.
    """
    encoded = pa.array(values, pa.string()).dictionary_encode()
    distinct = encoded.dictionary.to_numpy(zero_copy_only=False)
    order = np.argsort(distinct)
    index = np.empty(len(order), np.int64)
    index[order] = np.arange(len(order))
    return distinct[order], index[encoded.indices.to_numpy(zero_copy_only=False)]


def vectors(chunk: Chunk, column: str, length: int | None) -> np.ndarray:
    """Returns a column of lists as float32 `[rows, length]`, NaN where it is empty.

    Args:
        chunk: The rows.
        column: Name of the column.
        length: Number of values of each row; None takes it from the first row.

    Raises:
        InputError: If the column has no lists of numbers, or they differ in length.
    """
    array = chunk.columns[column]
    kind = array.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_list and not pa.types.is_fixed_size_list(kind):
        raise InputError(
            f"{chunk.place(0)}: Expected lists of numbers in the column {column!r}, as "
            f"Parquet has them. Received: {kind}."
        )
    lengths = pc.list_value_length(array)
    present = array.drop_null()
    if length is None:
        length = pc.list_value_length(present)[0].as_py() if len(present) else 0
    other = np.flatnonzero(lengths.fill_null(length).to_numpy() != length)
    if other.size:
        row = int(other[0])
        raise InputError(
            f"{chunk.place(row)}: Expected {length} values in the column {column!r}. "
            f"Received: {lengths[row].as_py()}."
        )
    result = np.full((len(array), length), np.nan, np.float32)
    values = present.flatten().cast(pa.float32(), safe=False)
    rows = array.is_valid().to_numpy(zero_copy_only=False)
    result[rows] = values.to_numpy(zero_copy_only=False).reshape(-1, length)
    bad = np.flatnonzero(np.isinf(result).any(axis=1))
    if bad.size:
        raise _wrong(chunk, column, int(bad[0]), "finite numbers")
    return result


def class_name(text: str) -> str:
    """Returns the name of a class: numbers are written alike, `1.0` as `1`."""
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number) or "_" in text:
        return text
    return str(int(number)) if number.is_integer() else repr(number)


def class_order(name: str) -> tuple[int, float, str]:
    """Sorting key of classes: numbers first, by value, then text."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


def class_pair(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the classes of a binary task in order, the positive one last.

    That is the yes of a yes and a no (`_ANSWERS`), else the later one by name.

    Args:
        names: The classes, at most two.
    """
    ordered = sorted(names, key=class_order)
    words = [name.strip().casefold() for name in ordered]
    if len(ordered) == 2 and words[1] in _ANSWERS.get(words[0], ()):
        ordered.reverse()
    return tuple(ordered)


def _parsed(chunk: Chunk, column: str, array: pa.Array, dates: bool) -> pa.Array:
    if dates:
        parsed = _as_time(array)
        if parsed is None:
            row = next(
                r for r in range(len(array)) if _as_time(array[r : r + 1]) is None
            )
            raise _wrong(chunk, column, row, "dates")
        return parsed
    array = chunk.marks.plain(array)
    try:
        return array.cast(pa.float64())
    except pa.ArrowInvalid as error:
        row = next(r for r in range(len(array)) if not _is_number(array[r : r + 1]))
        raise _wrong(chunk, column, row, "numbers") from error


def _is_number(array: pa.Array) -> bool:
    try:
        array.cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _as_time(array: pa.Array) -> pa.Array | None:
    """Returns ISO dates and times, of UTC where they name a zone; None for others."""
    zoned = pc.match_substring_regex(array, _ZONED)
    nothing = pa.scalar(None, pa.string())
    try:
        local = pc.if_else(zoned, nothing, array).cast(pa.timestamp("us"))
        utc = pc.if_else(zoned, array, nothing).cast(pa.timestamp("us", "UTC"))
    except pa.ArrowInvalid:
        return None
    return pc.coalesce(local, utc.cast(pa.timestamp("us")))


def _days(chunk: Chunk, column: str, array: pa.Array) -> pa.Array:
    if pa.types.is_time(array.type) or pa.types.is_duration(array.type):
        raise InputError(
            f"{chunk.place(0)}: Expected numbers or dates in the column {column!r}. "
            f"Received: {array.type}."
        )
    micros = array.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    return pc.divide(micros.cast(pa.float64(), safe=False), _SECONDS_PER_DAY * 1e6)


def _without_fraction(array: pa.Array) -> pa.Array:
    """Returns whole numbers as integers: pandas has floats where one is missing."""
    whole = pc.all(pc.equal(array, pc.floor(array)), skip_nulls=True).as_py()
    small = pc.all(pc.less(pc.abs(array), 2.0**53), skip_nulls=True).as_py()
    return array.cast(pa.int64()) if whole and small else array


def _wrong(chunk: Chunk, column: str, row: int, expected: str) -> InputError:
    received = chunk.columns[column][row].as_py()
    return InputError(
        f"{chunk.place(row)}: Expected {expected} in the column {column!r}. Received: "
        f"{received!r:.100}."
    )
