"""Label leakage: features that are the label under another name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mtl_keras.data.tables import labels as table_labels
from mtl_keras.data.tables.reading import Chunk
from mtl_keras.data.tables.schema import DataFile, TaskBy
from mtl_keras.data.tables.values import factorised, is_dated, numbers, texts

_ROWS = 20_000
_ENOUGH = 20
_SAME = 0.9999


class Sample:
    """The first training rows of a table, to look for labels among the features.

    Args:
        file: The data file.
    """

    def __init__(self, file: DataFile):
        self._file = file
        self._rows = 0
        self._features: dict[str, list[np.ndarray]] = {}
        self._labels: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def add(self, chunk: Chunk, train: np.ndarray) -> None:
        """Adds the chunk's training rows until there are enough."""
        kept = np.flatnonzero(train)[: _ROWS - self._rows]
        self._rows += len(kept)
        if not len(kept):
            return
        for title, feature in self._file.features.items():
            if feature.kind == "number":
                dates = bool(is_dated(chunk.columns[title]))
                values = numbers(chunk, title, dates)
            elif feature.kind == "category":
                values = texts(chunk, title)
            else:
                continue
            self._features.setdefault(title, []).append(values[kept])
        for tally in table_labels.tallies(self._file):
            dates = bool(is_dated(chunk.columns[tally.column]))
            values, present = table_labels.raw_labels(
                chunk, tally.column, tally.settings, dates
            )
            part = values[kept], present[kept]
            self._labels.setdefault(tally.column, []).append(part)

    def warnings(self) -> Iterator[str]:
        """Yields a line for each feature that leaks a label."""
        features = {title: np.concatenate(v) for title, v in self._features.items()}
        for column, parts in self._labels.items():
            label = np.concatenate([values for values, _ in parts])
            present = np.concatenate([present for _, present in parts])
            if present.sum() < _ENOUGH:
                continue
            for title, values in features.items():
                if _tells(values[present], label[present]):
                    task = "label" if isinstance(self._file.tasks, TaskBy) else "task"
                    yield (
                        f"{title!r} tells the {task} {column!r}: it may be the label "
                        "under another name."
                    )


def _tells(values: np.ndarray, label: np.ndarray) -> bool:
    """Returns whether values of a feature and labels determine each other."""
    if values.dtype.kind == "f" and label.dtype.kind == "f":
        known = ~np.isnan(values)
        values, label = values[known], label[known]
        if len(values) < _ENOUGH or not values.std() or not label.std():
            return False
        return abs(np.corrcoef(values, label)[0, 1]) > _SAME
    if values.dtype.kind == "f" and np.isnan(values).any():
        return False
    distinct, rows = (
        np.unique(values, return_inverse=True)
        if values.dtype.kind == "f"
        else factorised(values)
    )
    classes, of_label = np.unique(label.astype(str), return_inverse=True)
    if len(distinct) != len(classes) or len(classes) < 2:
        return False
    return len(np.unique(rows * len(classes) + of_label)) == len(classes)
