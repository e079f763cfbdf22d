"""A user's own table as an application."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from mtl_keras import backbones as backbone_registry
from mtl_keras import errors
from mtl_keras.applications.base import (
    Application,
    Task,
    TrainingDefaults,
    check_split,
)
from mtl_keras.applications.table import encoders
from mtl_keras.applications.table.tasks import (
    groups_of,
    make_columns,
    make_group,
    make_head,
    make_task,
)
from mtl_keras.applications.table.titled import TitledModel, TitledPreferenceModel
from mtl_keras.data.tables.description import Description, TaskStats
from mtl_keras.data.tables.names import layer_names
from mtl_keras.data.tables.samples import Samples
from mtl_keras.data.tables.schema import DataFile
from mtl_keras.data.tables.sources import open_source
from mtl_keras.data.tables.summary import summarise
from mtl_keras.data.tables.table import OpenTable, identity, open_table
from mtl_keras.embeddings import LazyAdam
from mtl_keras.model import MultiTaskModel
from mtl_keras.model.columns import MANY_TASKS
from mtl_keras.sharing.base import Sharing

if TYPE_CHECKING:
    import tensorflow as tf

    from mtl_keras.pareto import PreferenceModel
    from mtl_keras.pareto.forms import Form

_HIDDEN = 32
_LARGE = 50_000


class Table(Application):
    """A table: its columns are features and tasks, as a data file says.

    The tasks are columns, or where a column tells them apart, its values. An empty
    cell in a task's column is a missing label: its sample weight is 0. Rows without
    any label of the chosen tasks are not read.

    Of more than 32 tasks those that are numbers, or yes and no, with one loss are the
    columns of one output `[batch, T]`: pass `columns=table.columns_of()` to `compile`.

    Args:
        source: A data file (TOML), which says the rest; or a CSV, TSV or Parquet
            file, a `pandas.DataFrame` or a `pyarrow.Table`.
        features: `{column: kind}`, or what a data file has in place of a kind; None
            takes all columns that are no task, of the kinds that they seem to be.
        tasks: `{column: kind}`, likewise; or `{"by": column, "label": column, "kind":
            kind}` where each row labels the task that a column names.
        split: What a data file has under `data.split`; None means 80, 10 and 10 % of
            the rows, at random.
        group_tasks: Whether many tasks of one kind are one output; else each has its
            own, whatever that costs.

    Raises:
        InputError: If the data file or the table is not as it should be, with file
            and row.

    Example:

    ```python
    table = mtl_keras.applications.Table(frame, tasks={"price": "number"})
    model = table.build(sharing="mmoe")
    ```
    """

    name = "table"

    def __init__(
        self,
        source: str | os.PathLike | Any,
        *,
        features: Mapping[str, Any] | None = None,
        tasks: Mapping[str, Any] | None = None,
        split: Mapping[str, Any] | None = None,
        group_tasks: bool = True,
    ):
        self._group_tasks = group_tasks
        self._file, self._table = open_source(source, features, tasks, split)
        self._is_memory = self._table is not None

    @property
    def file(self) -> DataFile:
        """The data file, decoded."""
        return self._file

    @property
    def table(self) -> OpenTable:
        """The table, opened and described when it is first needed."""
        if self._table is None:
            self._table = open_table(self._file)
        return self._table

    @functools.cached_property
    def default_data(self) -> str:  # type: ignore[override]
        """Name of the table in its present state."""
        if self._is_memory:
            return self._file.path.name
        return f"{self._file.path.stem}-{identity(self.table)[:8]}"

    @property
    def description(self) -> Description:
        """Inputs, tasks and splits, as the training rows have them."""
        return self.table.description

    @functools.cached_property
    def tasks(self) -> Mapping[str, Task]:  # type: ignore[override]
        """All tasks, by their columns, or by the values that tell them apart."""
        return {s.title: make_task(s) for s in self.description.tasks.values()}

    @property
    def backbones(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the backbones: dense stages, after texts were read by them."""
        kinds = {stats.kind for stats in self.description.features.values()}
        names = ["mlp"]
        if kinds & {"text", "image"}:
            names.append("cnn")
        return (*names, "rnn", "transformer") if "text" in kinds else tuple(names)

    @property
    def defaults(self) -> TrainingDefaults:  # type: ignore[override]
        """Settings that suit the table's size and kinds."""
        features = self.description.features.values()
        large = self.description.rows["train"] > _LARGE
        conv = any(s.kind == "image" or s.by == "character" for s in features)
        return TrainingDefaults(
            epochs=5 if large else 20,
            batch_size=1_024 if large else 128,
            learning_rate=2e-3,
            backbone="cnn" if conv and "cnn" in self.backbones else "mlp",
            sharing="hard",
            width=64,
            depth=2,
        )

    def summary(self) -> str:
        """Returns the table's rows, labels, classes and ranges, and what looks wrong.

        What looks wrong: constant columns, categories with another value in every
        row, a label among the features, classes that a split lacks.
        """
        return summarise(self.description)

    def for_data(self, data: str | None) -> Application:
        """See `Application.for_data`: the table itself, unless it has changed.

        Raises:
            InputError: If `data` names another state of the table.
        """
        if data not in (None, self.default_data):
            raise errors.InputError(
                f"Expected the data {data!r}. Received: {self.default_data!r}, as "
                f"{self._file.path} or the files that it names have changed since. "
                "Train anew."
            )
        return self

    def load(
        self,
        split: str,
        *,
        data: str | None = None,
        batch_size: int,
        tasks: Iterable[str] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        limit: int | None = None,
        data_dir: str | os.PathLike | None = None,
        epoch: tf.Variable | None = None,
    ) -> tf.data.Dataset:
        """See `Application.load`; with sample weights where labels are missing.

        Rows without a label of any chosen task are left out.
        """
        del data_dir
        check_split(split)
        self.for_data(data)
        stats = {stats.name: stats for stats in self._stats(tasks)}
        samples = Samples(self.table, split, stats, limit, self.columns_of(tasks))
        return samples.dataset(batch_size, shuffle, seed, epoch)

    def _stats(self, tasks: Iterable[str] | None) -> list[TaskStats]:
        chosen = self.select(tasks).values()
        return [self.description.tasks[task.name] for task in chosen]

    def outputs_of(self, tasks: Iterable[str] | None = None) -> dict[str, Task]:
        """See `Application.outputs_of`: of many tasks those of a kind have one."""
        groups = self._groups(tasks)
        grouped = {stats.name for group in groups.values() for stats in group}
        outputs = super().outputs_of(tasks)
        return {name: make_group(name, group) for name, group in groups.items()} | {
            name: task for name, task in outputs.items() if name not in grouped
        }

    def _groups(self, tasks: Iterable[str] | None) -> dict[str, list[TaskStats]]:
        """Returns the tasks by output, of outputs that are groups of them."""
        stats = self._stats(tasks)
        if not self._group_tasks or len(stats) <= MANY_TASKS:
            return {}
        groups = groups_of(stats)
        # No feature has such a name, as inputs and outputs are layers, and no task.
        taken = [*self.description.features, *self.description.tasks]
        names = layer_names(groups, taken)
        return {names[title]: group for title, group in groups.items()}

    def columns_of(
        self, tasks: Iterable[str] | None = None
    ) -> dict[str, tuple[str, ...]]:
        """See `Application.columns_of`: of many tasks those of a kind."""
        groups = self._groups(tasks)
        return {name: tuple(s.name for s in group) for name, group in groups.items()}

    def inputs(self) -> dict[str, keras.KerasTensor]:
        """See `Application.inputs`: one a column, with its raw values."""
        return encoders.make_inputs(self.description.features)

    def encode(
        self, inputs: Mapping[str, keras.KerasTensor], backbone: str, width: int
    ) -> keras.KerasTensor:
        """See `Application.encode`."""
        return encoders.encode(
            inputs,
            self.description.features,
            backbone=backbone,
            width=width,
            fuse=self._file.model.fusion,
        )

    def stages(self, backbone: str, width: int, depth: int) -> list[keras.layers.Layer]:
        """See `Application.stages`: dense ones, whatever reads the texts."""
        del backbone
        return backbone_registry.mlp(width, depth)

    def optimizer(self, learning_rate: Any) -> keras.optimizers.Optimizer:
        """See `Application.optimizer`: cost follows the batch, not the categories."""
        return LazyAdam(learning_rate)

    def head(self, task: Task, features: keras.KerasTensor) -> keras.KerasTensor:
        """See `Application.head`; of many tasks without a hidden layer each."""
        stats = self.description.tasks
        hidden = _HIDDEN if len(stats) <= MANY_TASKS else 0
        return make_head(stats[task.name], features, hidden)

    def connect(
        self,
        inputs: Mapping[str, keras.KerasTensor],
        stages: Sequence[keras.layers.Layer],
        share: Sharing,
        tasks: Mapping[str, Task],
        *,
        backbone: str,
        width: int,
    ) -> dict[str, keras.KerasTensor]:
        """See `Application.connect`: a group of tasks has one head.

        Raises:
            InputError: For a group and a way to share that connects outputs.
        """
        stats = [self.description.tasks[name] for name in tasks]
        titles = [s.title for s in stats]
        groups = self._groups(titles)
        if not groups:
            return super().connect(
                inputs, stages, share, tasks, backbone=backbone, width=width
            )
        self.check_sharing(share, titles)
        encoded = self.encode(inputs, backbone, width)
        features = share(encoded, stages=stages, tasks=list(tasks))
        return {
            name: make_columns(name, groups[name], features)
            if name in groups
            else self.head(tasks[name], features[name])
            for name in self.outputs_of(titles)
        }

    def assemble(
        self,
        inputs: Mapping[str, keras.KerasTensor],
        outputs: Mapping[str, keras.KerasTensor],
    ) -> MultiTaskModel:
        """See `Application.assemble`: logs name the tasks as the table does."""
        stats = [s for name, s in self.description.tasks.items() if name in outputs]
        titles = {s.name: s.title for s in stats if s.title != s.name}
        if not titles:
            return MultiTaskModel(inputs, outputs)
        return TitledModel(inputs, outputs, titles=titles)

    def condition(
        self, model: MultiTaskModel, form: Form, num_tasks: int
    ) -> PreferenceModel:
        """See `Application.condition`: with the titles of `assemble`."""
        conditioned = super().condition(model, form, num_tasks)
        if not isinstance(model, TitledModel):
            return conditioned
        return TitledPreferenceModel(
            conditioned.input, conditioned.output, model.name, titles=model.titles
        )

    def class_names(self) -> Mapping[str, Sequence[str]]:
        """See `Application.class_names`: the labels as the table has them."""
        return {
            name: stats.classes
            for name, stats in self.description.tasks.items()
            if stats.classes
        }

    def missing_values(self) -> Mapping[str, float]:
        """See `Served.missing_values`: numbers are missing, as in an empty cell."""
        features = self.description.features.items()
        return {n: math.nan for n, s in features if s.kind in ("number", "vector")}
