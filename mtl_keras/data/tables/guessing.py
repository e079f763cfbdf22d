"""Kinds of columns, guessed from their first rows."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from typing import Any

import numpy as np

from mtl_keras.data.tables.arrow import pa
from mtl_keras.data.tables.reading import Chunk, NumberMarks
from mtl_keras.data.tables.values import (
    LARGEST,
    class_name,
    class_pair,
    factorised,
    is_dated,
    texts,
)

_IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
_WORDS = 4
_LONG = 20
_MOST_CLASSES = 1_000
_FEW_NUMBERS = 10
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff]")  # Chinese and Japanese


@dataclasses.dataclass(frozen=True)
class Guess:
    """Guessed kinds of a column.

    Attributes:
        column: Its name.
        feature: Its kind as a feature; None where it can be none.
        useless: Whether nothing can be learnt from it as a feature.
        task: Its kind as a task; None where it can be none.
        by: Of texts: `"word"` or `"character"`.
        missing: Share of empty cells.
        distinct: Number of distinct values.
        note: Description of the values, for a comment.
        positive: Of two values: the one whose probability a task predicts.
    """

    column: str
    feature: str | None
    task: str | None
    by: str = "word"
    missing: float = 0.0
    distinct: int = 0
    note: str = ""
    useless: bool = False
    positive: str | None = None


def guess(chunk: Chunk, column: str, folder: pathlib.Path) -> Guess:
    """Returns the guessed kinds of a column, from some rows.

    Args:
        chunk: The rows.
        column: Name of the column.
        folder: The folder that paths of images are relative to.
    """
    array = chunk.columns[column]
    missing = array.null_count / max(1, len(array))
    if pa.types.is_nested(array.type):
        is_list = pa.types.is_list(array.type) or pa.types.is_fixed_size_list(
            array.type
        )
        kind = "vector" if is_list or pa.types.is_large_list(array.type) else None
        return Guess(column, kind, None, missing=missing, note=str(array.type))
    values = texts(chunk, column)
    present = values[values != ""]
    missing = 1 - len(present) / max(1, len(values))
    distinct, _ = factorised(present)
    count = len(distinct)
    if count <= 1:
        note = f"{'always ' * (not missing)}{distinct[0]!r}" if count else "empty"
        return Guess(
            column,
            "category",
            None,
            missing=missing,
            distinct=count,
            note=note,
            # Beside one value, an empty cell is another.
            useless=not count or not missing,
        )
    common: dict[str, Any] = {"missing": missing, "distinct": count}
    numbers = _numbers(chunk.marks, distinct)
    if numbers is not None:
        return _number(column, numbers, len(present), common)
    if is_dated(pa.array(present[:1])) and all(
        is_dated(pa.array([v])) for v in distinct[:100]
    ):
        note = f"dates, {distinct[0]} to {distinct[-1]}, as days since 1970"
        return Guess(column, "number", "number", note=note, **common)
    return _text(column, present, distinct, folder, common)


def _numbers(marks: NumberMarks, distinct: np.ndarray) -> np.ndarray | None:
    try:
        values = marks.plain(pa.array(distinct)).cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    return values if (np.abs(values) < LARGEST).all() else None


def _number(
    column: str, values: np.ndarray, rows: int, common: dict[str, Any]
) -> Guess:
    whole = bool((values == np.floor(values)).all())
    note = f"{values.min():g} to {values.max():g}"
    if len(values) == 2:
        names = class_pair(class_name(str(v)) for v in values)
        common["positive"] = names[-1]
        return Guess(column, "number", "binary", note=" and ".join(names), **common)
    consecutive = whole and len(values) == rows == np.ptp(values) + 1
    if consecutive and rows > 2:
        note = f"{note}, another one in every row"
        return Guess(column, "number", None, note=note, useless=True, **common)
    few = whole and len(values) <= _FEW_NUMBERS
    kind = "multiclass" if few else "number"
    return Guess(column, "number", kind, note=note, **common)


def _text(
    column: str,
    present: np.ndarray,
    distinct: np.ndarray,
    folder: pathlib.Path,
    common: dict[str, Any],
) -> Guess:
    some = [str(value) for value in distinct[:100]]
    if all(value.lower().endswith(_IMAGES) for value in some) and any(
        os.path.isfile(folder / value) for value in some
    ):
        return Guess(column, "image", None, note=str(distinct[0]), **common)
    words = float(np.mean([len(v.split()) for v in distinct[:1_000]]))
    length = float(np.mean([len(v) for v in distinct[:1_000]]))
    share = len(distinct) / len(present)
    note = f"{len(distinct):,} values, such as {str(distinct[0])[:40]!r}"
    if share > 0.5 and len(distinct) > _FEW_NUMBERS:
        if words >= _WORDS:
            return Guess(column, "text", None, note=f"{words:.0f} words", **common)
        if length >= _LONG or _UNSPACED.search("".join(distinct[:100])):
            note = f"{length:.0f} characters"
            return Guess(column, "text", None, by="character", note=note, **common)
        if share > 0.9:
            note = f"another one in nearly every row, such as {str(distinct[0])[:40]!r}"
            return Guess(column, "category", None, note=note, useless=True, **common)
    if words >= 2 * _WORDS and share > 0.1:
        return Guess(column, "text", None, note=f"{words:.0f} words", **common)
    task = "binary" if len(distinct) == 2 else "multiclass"
    if len(distinct) > _MOST_CLASSES:
        return Guess(column, "category", None, note=note, **common)
    if len(distinct) <= 4:
        note = ", ".join(map(repr, distinct.tolist()))
    if task == "binary":
        common["positive"] = class_pair(distinct.tolist())[-1]
    return Guess(column, "category", task, note=note, **common)
