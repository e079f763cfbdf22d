"""Labels of a table, chunk by chunk: as they stand, and as a model is given them."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mtl_keras.data.tables.description import TaskStats
from mtl_keras.data.tables.names import layer_names
from mtl_keras.data.tables.reading import Chunk
from mtl_keras.data.tables.schema import (
    LOSSES,
    SPLITS,
    DataFile,
    TaskBy,
    TaskSettings,
)
from mtl_keras.data.tables.statistics import Numbers
from mtl_keras.data.tables.values import (
    class_name,
    class_order,
    class_pair,
    factorised,
    is_dated,
    numbers,
    texts,
)
from mtl_keras.errors import InputError

_MOST_CLASSES = 10_000


class TaskLabels(NamedTuple):
    """Labels of one task, as a model is given them.

    Attributes:
        labels: float32 of numbers and binary tasks, int32 of classes; `[rows]`, 0
            where there is none.
        present: Whether there is a label, bool `[rows]`.
    """

    labels: np.ndarray
    present: np.ndarray


def raw_labels(
    chunk: Chunk, column: str, settings: TaskSettings, dates: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels as they stand in a column, and where there is one.

    Args:
        chunk: The rows.
        column: The labels' column.
        settings: The task's settings in the data file.
        dates: Whether numbers are dates in text.

    Returns:
        float64 of numbers, names of classes as objects otherwise; and bool; `[rows]`.
    """
    if settings.kind == "number":
        values = numbers(chunk, column, dates)
        return values, ~np.isnan(values)
    values = texts(chunk, column)
    distinct, rows = factorised(values)
    named = np.array([class_name(str(text)) for text in distinct], object)[rows]
    return named, values != ""


class Tally:
    """Counts the labels of one column, for all tasks that have their labels there.

    Args:
        column: The labels' column.
        settings: The tasks' settings in the data file.
        path: The data file, for messages.
    """

    def __init__(self, column: str, settings: TaskSettings, path: pathlib.Path):
        self.column = column
        self.path = path
        self.settings = settings
        self.dates: bool | None = None
        self.numbers = Numbers()
        self.low, self.high = np.inf, -np.inf
        self.classes: set[str] = set()
        self.counts: dict[str, list[collections.Counter[str]]] = {}
        self.labels: dict[str, list[int]] = {}

    def add(
        self, chunk: Chunk, splits: np.ndarray, owner: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Adds the labels of a chunk.

        Args:
            chunk: The rows.
            splits: The split of each row.
            owner: Title of each row's task; None where the column is one task.

        Returns:
            Labels and their presence, as `raw_labels` returns them.
        """
        if self.dates is None and self.settings.kind == "number":
            self.dates = is_dated(chunk.columns[self.column])
        values, present = raw_labels(
            chunk, self.column, self.settings, bool(self.dates)
        )
        if self.settings.kind == "number":
            self.numbers.add(values[(splits == 0) & present])
            if present.any():
                self.low = min(self.low, values[present].min())
                self.high = max(self.high, values[present].max())
        else:
            self._check_classes(chunk, values, present)
        for title in [self.column] if owner is None else np.unique(owner):
            if title == "":
                continue
            own = present if owner is None else present & (owner == title)
            counts = self.labels.setdefault(str(title), [0, 0, 0])
            tally = self.counts.setdefault(
                str(title), [collections.Counter() for _ in SPLITS]
            )
            for split in range(len(SPLITS)):
                rows = own & (splits == split)
                counts[split] += int(rows.sum())
                if self.settings.kind != "number":
                    tally[split].update(values[rows].tolist())
        return values, present

    def _check_classes(
        self, chunk: Chunk, values: np.ndarray, present: np.ndarray
    ) -> None:
        most = 2 if self.settings.kind == "binary" else _MOST_CLASSES
        new = set(values[present].tolist()) - self.classes
        if len(self.classes | new) > most:
            ordered = list(dict.fromkeys(v for v in values[present] if v in new))
            extra = ordered[most - len(self.classes)]
            # Not by NumPy, for which text ends before the NULs at its end.
            row = next(int(i) for i in np.flatnonzero(present) if values[i] == extra)
            names = [*sorted(self.classes), *ordered][:most]
            others = f", with {' and '.join(map(repr, names))} before it"
            raise InputError(
                f"{chunk.place(row)}: Expected at most {most:,} classes in the column "
                f"{self.column!r}. Received: {extra!r}{others if most == 2 else ''}."
            )
        self.classes |= new

    def results(self, titles: Mapping[str, str]) -> dict[str, TaskStats]:
        """Returns the tasks by name.

        Args:
            titles: Names of outputs by the tasks' titles.

        Raises:
            InputError: If there is nothing to learn: no label, one class, one number.
        """
        classes = self._classes()
        results = {}
        for title, name in titles.items():
            labels = self.labels.get(title, [0, 0, 0])
            if not labels[0]:
                raise InputError(
                    f"{self.path}: Expected labels of the task {title!r} in the "
                    "training rows. Received: empty cells only."
                )
            results[name] = TaskStats(
                name,
                title,
                self.settings.kind,
                self.settings.loss or LOSSES[self.settings.kind][0],
                dict(zip(SPLITS, labels, strict=True)),
                **self._distribution(title, classes),
                balanced=self.settings.class_weight == "balanced",
                dates=bool(self.dates),
            )
        return results

    def _classes(self) -> tuple[str, ...]:
        if self.settings.kind == "number":
            return ()
        binary = self.settings.kind == "binary"
        classes = (
            list(class_pair(self.classes))
            if binary
            else sorted(self.classes, key=class_order)
        )
        if len(classes) == 1:
            raise InputError(
                f"{self.path}: Expected at least two classes in the column "
                f"{self.column!r}. Received: {classes[0]!r} in every row with a label."
            )
        if self.settings.positive is not None:
            positive = class_name(str(self.settings.positive))
            if positive not in classes:
                raise InputError(
                    f"{self.path}: Expected `positive` of {self.column!r} to be one "
                    f"of {classes}. Received: {positive!r}."
                )
            classes.sort(key=lambda name: name == positive)
        return tuple(classes)

    def _distribution(self, title: str, classes: tuple[str, ...]) -> dict:
        if self.settings.kind != "number":
            return {
                "classes": classes,
                "counts": {
                    split: tuple(counter[name] for name in classes)
                    for split, counter in zip(SPLITS, self.counts[title], strict=True)
                },
            }
        deviation = float(np.sqrt(self.numbers.variance))
        return {
            "mean": self.numbers.mean,
            # A constant label has no deviation to be standardised by.
            "deviation": deviation if deviation > 0 else 1.0,
            "low": float(self.low),
            "high": float(self.high),
        }


def tallies(file: DataFile) -> list[Tally]:
    """Returns a new tally for each column of labels."""
    if isinstance(file.tasks, TaskBy):
        return [Tally(file.tasks.label, file.tasks.settings, file.path)]
    return [
        Tally(column, settings, file.path) for column, settings in file.tasks.items()
    ]


def owners(file: DataFile, chunk: Chunk) -> np.ndarray | None:
    """Returns the title of the task that each row labels; None where all label all."""
    if not isinstance(file.tasks, TaskBy):
        return None
    return texts(chunk, file.tasks.column).astype(str).astype(object)


def task_names(file: DataFile, counted: list[Tally]) -> dict[str, str]:
    """Returns the name of each task's output by the task's title."""
    if not isinstance(file.tasks, TaskBy):
        return layer_names(file.tasks)
    return layer_names(sorted(counted[0].labels, key=class_order))


def model_labels(file: DataFile, chunk: Chunk, task: TaskStats) -> TaskLabels:
    """Returns the labels of a chunk as a model is given them.

    Args:
        file: The data file.
        chunk: The rows.
        task: The task; one of those that a column tells apart stands for all.
    """
    column = file.tasks.label if isinstance(file.tasks, TaskBy) else task.title
    settings = file.settings_of(task.title)
    values, present = raw_labels(chunk, column, settings, task.dates)
    if task.kind == "number":
        values = values.astype(np.float32)
    else:
        values = _codes(chunk, column, values, present, task)
    return TaskLabels(np.where(present, values, np.zeros_like(values)), present)


def _codes(
    chunk: Chunk, column: str, values: np.ndarray, present: np.ndarray, task: TaskStats
) -> np.ndarray:
    """Returns the number of each label's class."""
    index = {name: code for code, name in enumerate(task.classes)}
    distinct, rows = factorised(values)
    for code, value in enumerate(distinct):
        row = np.flatnonzero((rows == code) & present)
        if row.size and value not in index:
            raise InputError(
                f"{chunk.place(int(row[0]))}: Expected one of the classes "
                f"{list(task.classes)} in the column {column!r}. Received: {value!r}."
            )
    codes = np.array([index.get(value, 0) for value in distinct])[rows]
    return codes.astype(np.float32 if task.kind == "binary" else np.int32)
