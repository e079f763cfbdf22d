"""Columns of tabular data sets: vocabularies and statistics to encode raw values.

A builder describes its columns on the training split alone and keeps that as the
data set's metadata, so that a model is built without a pass over the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        kind: `"category"` (text or whole numbers, looked up in `vocabulary`),
            `"hashed"` (whole numbers too many to list) or `"number"`.
        dtype: `"string"`, `"int64"` or `"float32"`.
        vocabulary: Values of a category, most frequent first.
        buckets: Number of hash buckets of a hashed column.
        mean: Mean of a number.
        variance: Variance of a number.
        boundaries: Inner boundaries of a number's quantile bins.
        length: Number of values where each sample has a sequence, newest last
            and padded at the front with the empty text or 0; else None.
        same_as: Name of the column whose vocabulary and embedding this one
            shares, if any.
    """

    kind: str
    dtype: str
    vocabulary: tuple[Any, ...] = ()
    buckets: int = 0
    mean: float = 0.0
    variance: float = 1.0
    boundaries: tuple[float, ...] = ()
    length: int | None = None
    same_as: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON has them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Column:
        """Returns the column that `to_dict` described."""
        values = dict(values)
        for name in ("vocabulary", "boundaries"):
            values[name] = tuple(values[name])
        return cls(**values)


def category(values: np.ndarray) -> Column:
    """Describes a column of categories.

    Args:
        values: `[rows]`, text or whole numbers, of the training split.
    """
    distinct, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    dtype = "int64" if np.issubdtype(distinct.dtype, np.integer) else "string"
    return Column("category", dtype, vocabulary=tuple(distinct[order].tolist()))


def number(values: np.ndarray, bins: int = 32) -> Column:
    """Describes a column of numbers.

    The most frequent value, for example the 0 of a capital gain, gets a bin of
    its own; the quantiles are those of the other values.

    Args:
        values: `[rows]`, of the training split.
        bins: Number of quantile bins at most.
    """
    values = np.asarray(values, np.float64)
    distinct, counts = np.unique(values, return_counts=True)
    mode = distinct[np.argmax(counts)]
    others = values[values != mode]
    edges = [mode, np.nextafter(np.float32(mode), np.float32(np.inf))]
    if others.size:
        edges += np.quantile(others, np.linspace(0, 1, bins + 1)[1:-1]).tolist()
    boundaries = np.unique(np.asarray(edges, np.float32))
    return Column(
        "number",
        "float32",
        mean=float(values.mean()),
        variance=float(max(values.var(), 1e-12)),
        boundaries=tuple(boundaries.tolist()),
    )


def to_metadata(columns: Mapping[str, Column], tasks: Sequence[str]) -> dict[str, Any]:
    """Returns columns and tasks as the metadata of a builder, a JSON dict."""
    return {
        "columns": {name: column.to_dict() for name, column in columns.items()},
        "tasks": list(tasks),
    }


def from_metadata(metadata: Mapping[str, Any]) -> dict[str, Column]:
    """Returns the columns of `to_metadata`'s result, by name."""
    return {
        name: Column.from_dict(values) for name, values in metadata["columns"].items()
    }
