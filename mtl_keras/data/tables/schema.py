"""Data files: TOML descriptions of tables, decoded and checked."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from mtl_keras.decoding import Count, Decodable, decode
from mtl_keras.errors import InputError, unknown_name
from mtl_keras.files import read_toml

FEATURE_KINDS = ("number", "category", "text", "image", "vector")
TASK_KINDS = ("number", "binary", "multiclass")
LOSSES = {
    "number": ("mse", "mae", "huber"),
    "binary": ("crossentropy", "focal"),
    "multiclass": ("crossentropy", "focal"),
}
SPLITS = ("train", "validation", "test")

# A share of the rows, below 1.
Share = Annotated[float, Field(ge=0, lt=1)]
Names = StrictStr | tuple[StrictStr, ...]
Format = Literal["csv", "tsv", "parquet"]


@dataclasses.dataclass(frozen=True)
class Split(Decodable):
    """The split of the rows into training, validation and test.

    Attributes:
        by: `"random"`; one of `column`, `group` and `time` takes its place. Where a
            column tells tasks apart, each task has its share in every split.
        validation: Share of the rows for validation.
        test: Share of the rows for test.
        seed: Seed of the random split.
        column: Column that holds `train`, `validation` or `test`; where it never holds
            one of the latter two, a share of the training rows is drawn for it.
        group: Column whose equal values stay in one split, such as a user's id.
        time: Column by which the newest rows are for test, those before them for
            validation.
    """

    by: Literal["random", "column", "group", "time"] | None = None
    validation: Share = 0.1
    test: Share = 0.1
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] = 0
    column: StrictStr | None = None
    group: StrictStr | None = None
    time: StrictStr | None = None

    def __post_init__(self) -> None:
        named = [key for key in ("column", "group", "time") if getattr(self, key)]
        if len(named) > 1:
            raise InputError(f"Expected one of column, group, time. Received: {named}.")
        if self.by not in (None, *(named or ["random"])):
            raise InputError(
                f"Expected by = {(named or ['random'])[0]!r}. Received: {self.by!r}."
            )
        if self.validation + self.test >= 1:
            raise InputError(
                "Expected validation and test to leave rows for training. Received: "
                f"{self.validation} and {self.test}."
            )

    @property
    def reads(self) -> str | None:
        """Name of the column that the split depends on, if any."""
        return self.column or self.group or self.time


@dataclasses.dataclass(frozen=True)
class Files(Decodable):
    """The table's files where they tell the splits apart.

    Attributes:
        train: Paths or patterns of the training rows.
        validation: Those for validation; without them a share of the training rows.
        test: Those for test; without them a share of the training rows.
    """

    train: Names
    validation: Names | None = None
    test: Names | None = None


@dataclasses.dataclass(frozen=True)
class Data(Decodable):
    """The files of the table, the options of reading them, and their split.

    Attributes:
        files: Paths or glob patterns, relative to the data file; or those by split.
        format: `"csv"`, `"tsv"` or `"parquet"`; None goes by the file's name.
        delimiter: Character between cells; None means a comma, or a tab in TSV.
        encoding: Encoding of CSV and TSV files.
        header: Whether the first row holds names; else `column_1`, `column_2`, ….
        missing: Cells that count as empty, apart from `""`, `nan` and `null`.
        decimal: Mark of the fraction in numbers of CSV and TSV files.
        thousands: Mark between groups of three digits there, if any; `" "` stands for
            every kind of space.
        split: Which rows are for what.
        stream: Whether to read the files in every epoch instead of keeping the rows
            in memory; None decides by their size.
    """

    files: Names | Files
    format: Format | None = None
    delimiter: Annotated[StrictStr, Field(min_length=1, max_length=1)] | None = None
    encoding: StrictStr = "utf-8"
    header: StrictBool = True
    missing: tuple[StrictStr, ...] = ()
    decimal: Literal[".", ","] = "."
    thousands: Literal[".", ",", " ", "'", "’"] | None = None
    split: Split = dataclasses.field(default_factory=Split)
    stream: StrictBool | None = None

    def __post_init__(self) -> None:
        if self.decimal == self.thousands:
            raise InputError(
                "Expected decimal and thousands to differ. Received: "
                f"{self.decimal!r} for both."
            )


@dataclasses.dataclass(frozen=True)
class Feature(Decodable):
    """One input of the model.

    Attributes:
        kind: One of `FEATURE_KINDS`.
        by: Of texts: whether tokens are a `"word"` or a `"character"`.
        length: Of texts: tokens that are read; None means the training texts' 95th
            percentile.
        size: Of images: height and width that they are brought to.
        vocabulary: Of categories and texts: number of distinct values or tokens that
            are kept, the most frequent ones; the others share one.
    """

    kind: Literal["number", "category", "text", "image", "vector"]
    by: Literal["word", "character"] = "word"
    length: Count | None = None
    size: Annotated[StrictInt, Field(ge=8, le=1024)] = 64
    vocabulary: Annotated[StrictInt, Field(ge=1, le=10_000_000)] = 20_000


@dataclasses.dataclass(frozen=True)
class TaskSettings(Decodable):
    """One task, or all tasks of a table whose rows label one task each.

    Attributes:
        kind: One of `TASK_KINDS`.
        loss: One of `LOSSES[kind]`; None means the first.
        positive: Of binary tasks: the value whose probability is predicted; None
            means the yes of a yes and a no, such as `ja` beside `nein`, else the
            later one in order.
        class_weight: `"balanced"` weighs training rows such that each class weighs
            the same in all; None weighs all rows alike.
    """

    kind: Literal["number", "binary", "multiclass"]
    loss: Literal["mse", "mae", "huber", "crossentropy", "focal"] | None = None
    positive: StrictStr | StrictInt | float | None = None
    class_weight: Literal["balanced"] | None = None

    def __post_init__(self) -> None:
        if self.loss not in (None, *LOSSES[self.kind]):
            raise unknown_name(
                f"loss of a {self.kind} task", self.loss, LOSSES[self.kind]
            )
        if self.positive is not None and self.kind != "binary":
            raise InputError(
                "Expected `positive` for a binary task only. Received: "
                f"kind={self.kind!r}."
            )
        if self.class_weight is not None and self.kind == "number":
            raise InputError("Expected `class_weight` for a task with classes only.")


@dataclasses.dataclass(frozen=True)
class TaskBy:
    """Tasks told apart by a column: each row labels the one that it names.

    Attributes:
        column: Column that names the row's task.
        label: Column of the labels.
        settings: Settings of all these tasks.
    """

    column: str
    label: str
    settings: TaskSettings


@dataclasses.dataclass(frozen=True)
class ModelSettings(Decodable):
    """Settings of the model that joins the features.

    Attributes:
        fusion: Name in `mtl_keras.fusion`, for features of several modalities.
    """

    fusion: Literal["concat", "gated", "cross_attention"] = "concat"


@dataclasses.dataclass(frozen=True)
class DataFile:
    """A data file, decoded.

    Attributes:
        path: The file; its folder is what paths in it are relative to.
        data: Files and split.
        features: Features by column.
        tasks: Settings by column, or the column that tells tasks apart.
        model: How features are joined.
    """

    path: pathlib.Path
    data: Data
    features: Mapping[str, Feature]
    tasks: Mapping[str, TaskSettings] | TaskBy
    model: ModelSettings = ModelSettings()

    @property
    def labels(self) -> tuple[str, ...]:
        """Columns that hold labels."""
        return (
            (self.tasks.label,) if isinstance(self.tasks, TaskBy) else tuple(self.tasks)
        )

    def settings_of(self, title: str) -> TaskSettings:
        """Returns the settings of a task."""
        if isinstance(self.tasks, TaskBy):
            return self.tasks.settings
        return self.tasks[title]

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read, each once."""
        by = (self.tasks.column,) if isinstance(self.tasks, TaskBy) else ()
        reads = (self.data.split.reads,) if self.data.split.reads else ()
        return tuple(dict.fromkeys((*self.features, *self.labels, *by, *reads)))


def read_data_file(path: str | os.PathLike) -> DataFile:
    """Reads a data file.

    Args:
        path: A TOML file with the tables `data`, `features` and `tasks`.

    Raises:
        InputError: If it cannot be read or says something wrong, in one line with
            the key's path.
    """
    path = pathlib.Path(path).expanduser().absolute()
    return make_data_file(read_toml(path, "data file"), path)


def make_data_file(values: Mapping[str, Any], path: pathlib.Path) -> DataFile:
    """Decodes what TOML, or Python, has for a data file.

    Args:
        values: The tables by name.
        path: Where the file is, or would be.

    Raises:
        InputError: If something is wrong, in one line with the key's path.
    """
    known = [field.name for field in dataclasses.fields(DataFile)][1:]
    for key in values:
        if key not in known:
            raise _at(path, unknown_name("table", key, known))
    for key in known[:-1]:
        if not isinstance(values.get(key), Mapping) or not values[key]:
            raise InputError(
                f"{path}: Expected a table [{key}] with at least one key. Received: "
                f"{values.get(key)!r:.100}."
            )
    file = DataFile(
        path,
        decode(Data, dict(values["data"]), f"{path}: data"),
        {
            name: _decoded(Feature, value, f"{path}: features.{name}")
            for name, value in values["features"].items()
        },
        _tasks(values["tasks"], path),
        decode(ModelSettings, dict(values.get("model", {})), f"{path}: model"),
    )
    _check_columns(file)
    return file


def _tasks(
    values: Mapping[str, Any], path: pathlib.Path
) -> Mapping[str, TaskSettings] | TaskBy:
    # A column may be called `by`: its value is then a kind, not a column.
    if isinstance(values.get("by"), str) and values["by"] not in TASK_KINDS:
        others = dict(values)
        by, label = others.pop("by"), others.pop("label", None)
        if not isinstance(label, str):
            raise InputError(
                f"{path}: Expected tasks.label, the column of the labels, beside "
                f"tasks.by. Received: {label!r:.100}."
            )
        return TaskBy(by, label, decode(TaskSettings, others, f"{path}: tasks"))
    return {
        name: _decoded(TaskSettings, value, f"{path}: tasks.{name}")
        for name, value in values.items()
    }


def _decoded(cls: Any, value: Any, where: str) -> Any:
    """Decodes a table, or a kind alone."""
    if isinstance(value, str):
        kinds = FEATURE_KINDS if cls is Feature else TASK_KINDS
        if value not in kinds:
            error = unknown_name("kind", value, kinds)
            raise InputError(f"{where}: {error}")
        value = {"kind": value}
    return decode(cls, value, where)


def _check_columns(file: DataFile) -> None:
    by = (file.tasks.column,) if isinstance(file.tasks, TaskBy) else ()
    for name in file.labels:
        if name in file.features:
            raise InputError(
                f"{file.path}: Expected a column as a feature or as a task. Received "
                f"both: {name!r}."
            )
        if name in (*by, file.data.split.reads):
            raise InputError(
                f"{file.path}: Expected the labels in a column of their own. Received: "
                f"{name!r}."
            )
    if isinstance(file.data.files, Files) and file.data.split.reads:
        raise InputError(
            f"{file.path}: Expected a split by files or by a column. Received both: "
            f"files.train and {file.data.split.reads!r}."
        )


def _at(path: pathlib.Path, error: InputError) -> InputError:
    return InputError(f"{path}: {error}")
