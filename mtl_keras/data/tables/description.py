"""Statistics of a table's inputs and tasks, learnt from its training rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mtl_keras.decoding import Decodable


@dataclasses.dataclass(frozen=True)
class FeatureStats(Decodable):
    """One input, as the training rows have it.

    Attributes:
        name: Name of the model's input.
        title: Name of the column.
        kind: One of `schema.FEATURE_KINDS`.
        missing: Training rows without a value.
        distinct: Number of distinct values, where they were counted.
        mean: Mean of a number; of a vector one for each value.
        variance: Variance, likewise.
        boundaries: Inner boundaries of a number's quantile bins.
        low: Lowest number.
        high: Highest number.
        vocabulary: Values of a category or tokens of texts, most frequent first.
        length: Tokens of a text that are read, or values of a vector.
        by: Of texts: `"word"` or `"character"`.
        size: Of images: height and width.
        dates: Whether a number is a date or time; text is read as one then.
    """

    name: str
    title: str
    kind: str
    missing: int = 0
    distinct: int | None = None
    mean: tuple[float, ...] = ()
    variance: tuple[float, ...] = ()
    boundaries: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    vocabulary: tuple[str, ...] = ()
    length: int | None = None
    by: str = "word"
    size: int = 64
    dates: bool = False


@dataclasses.dataclass(frozen=True)
class TaskStats(Decodable):
    """One task, as the table has it.

    Attributes:
        name: Name of the model's output.
        title: Name of the column, or the value that names the task.
        kind: One of `schema.TASK_KINDS`.
        loss: One of `schema.LOSSES[kind]`.
        labels: Number of labels in each split.
        classes: Names of the classes; of a binary task the positive one is the second.
        counts: Labels of each class, by split.
        mean: Mean of a number over the training labels.
        deviation: Standard deviation, likewise.
        low: Lowest label of all splits.
        high: Highest label of all splits.
        balanced: Whether training rows are weighed such that classes weigh the same.
        dates: Whether a number is a date or time; text is read as one then.
    """

    name: str
    title: str
    kind: str
    loss: str
    labels: Mapping[str, int]
    classes: tuple[str, ...] = ()
    counts: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    mean: float = 0.0
    deviation: float = 1.0
    low: float | None = None
    high: float | None = None
    balanced: bool = False
    dates: bool = False


@dataclasses.dataclass(frozen=True)
class Description(Decodable):
    """A table: its inputs, tasks and splits.

    Attributes:
        rows: Number of rows in each split.
        unlabelled: Rows in each split that label no task, which are not read.
        features: Inputs by the model's name.
        tasks: Tasks by the model's name.
        unit_rows: Number of rows of each unit of the reader.
        bounds: Bounds between the splits; see `Splitter`.
        warnings: Warnings, a line each.
    """

    rows: Mapping[str, int]
    unlabelled: Mapping[str, int]
    features: Mapping[str, FeatureStats]
    tasks: Mapping[str, TaskStats]
    unit_rows: tuple[int, ...]
    bounds: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
