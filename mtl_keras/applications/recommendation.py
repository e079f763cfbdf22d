"""Tables of users and items: rating, liking, clicking, converting and more."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import keras

from mtl_keras import backbones, errors
from mtl_keras import data as data_registry
from mtl_keras.applications import features, heads
from mtl_keras.applications.base import (
    BoundApplication,
    Task,
    TrainingDefaults,
    check_split,
)
from mtl_keras.data import catalog, census_income
from mtl_keras.data.columns import Column, from_metadata
from mtl_keras.data.passes import shuffled
from mtl_keras.embeddings import LazyAdam
from mtl_keras.evaluation.calibration import CalibrationError

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

_HIDDEN = 32
_DROPOUT = 0.2

# The history encoder that stands for each backbone; both feed dense stages.
_ENCODERS = {"mlp": "attention", "rnn": "gru"}


def _binary(name: str) -> Task:
    return Task(
        name,
        kind="binary",
        loss=keras.losses.BinaryCrossentropy,
        metrics=lambda: [
            keras.metrics.AUC(num_thresholds=1_000, name="auc"),
            keras.metrics.BinaryCrossentropy(name="log_loss"),
            CalibrationError(name="calibration_error"),
        ],
        objective="auc",
    )


def _number(name: str) -> Task:
    return Task(
        name,
        kind="number",
        loss=keras.losses.MeanSquaredError,
        metrics=lambda: [keras.metrics.RootMeanSquaredError(name="rmse")],
        objective="rmse",
        direction="min",
    )


@dataclasses.dataclass(frozen=True)
class _DataSet:
    """Tasks, labels and defaults of one data set.

    Attributes:
        tasks: Its tasks.
        labels: From the table to `{task: label}`.
        defaults: Settings that suit it.
        present: From the table to `{task: 1 where there is a label}`, for the tasks
            that lack some.
        left_out: Columns that the model of a task must not read, by task.
        starts: About the mean of the labels, by task, of those that are numbers.
    """

    tasks: tuple[Task, ...]
    labels: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    defaults: TrainingDefaults
    present: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] = (
        lambda table: {}
    )
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    starts: Mapping[str, float] = dataclasses.field(default_factory=dict)


def _behaviour_labels(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import numpy as np

    return {
        "click": table["click"],
        "conversion": table["conversion"],
        "click_and_conversion": table["conversion"],
        "watch_time": np.log1p(table["watch_time"]),
    }


_BEHAVIOUR = _DataSet(
    tasks=(
        _binary("click"),
        _binary("conversion"),
        _binary("click_and_conversion"),
        _number("watch_time"),
    ),
    labels=_behaviour_labels,
    starts={"watch_time": 2.7},
    present=lambda table: dict.fromkeys(("conversion", "watch_time"), table["click"]),
    defaults=TrainingDefaults(
        epochs=8,
        batch_size=128,
        learning_rate=2e-3,
        backbone="mlp",
        sharing="hard",
        width=64,
        depth=2,
    ),
)

_MOVIELENS = _DataSet(
    tasks=(_number("rating"), _binary("liked")),
    starts={"rating": 3.5},
    labels=lambda table: {task: table[task] for task in ("rating", "liked")},
    defaults=TrainingDefaults(
        epochs=2,
        batch_size=512,
        learning_rate=5e-4,
        backbone="mlp",
        sharing="mmoe",
        width=32,
        depth=2,
    ),
)

_CENSUS = _DataSet(
    tasks=tuple(_binary(name) for name in census_income.TASKS),
    labels=lambda table: {task: table[task] for task in census_income.TASKS},
    left_out=census_income.TASK_COLUMNS,
    defaults=TrainingDefaults(
        epochs=4,
        batch_size=1_024,
        learning_rate=2e-3,
        backbone="mlp",
        sharing="mmoe",
        width=64,
        depth=2,
    ),
)

_DATA_SETS = {
    **{
        f"behaviour/{config.name}": _BEHAVIOUR
        for config in data_registry.Behaviour.BUILDER_CONFIGS
    },
    "movielens_history": _MOVIELENS,
    "census_income": _CENSUS,
}


@functools.lru_cache(maxsize=3)
def _read(name: str, split: str, data_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a split once a process: a search loads it in every trial."""
    return data_registry.read_table(name, split, data_dir=data_dir)


class Recommendation(BoundApplication):
    """Predictions about users, items and people, from raw columns.

    The tasks are those of the data set:

    - `behaviour/...`: `click`; `conversion`, given a click, labelled on clicked
      impressions alone; `click_and_conversion`, for every impression; `watch_time`,
      of clicks, as log(1 + seconds).
    - `movielens_history`: `rating` in stars, and `liked`, 4 stars or more.
    - `census_income`: `income`, `never_married`, `college`. The column that a task's
      label is made from is no input of a model that has this task.

    The backbone is one of dense stages; its name tells how a user's history is
    encoded: `"mlp"` by attention from the item in question, `"rnn"` by a GRU.

    Args:
        data: Name of the data set; `None` for `behaviour/small`.
        data_dir: Folder of prepared data; `None` for the default one.

    Raises:
        InputError: The application knows no data set of this name.
    """

    name = "recommendation"
    default_data = "behaviour/small"
    backbones = tuple(_ENCODERS)

    def __init__(
        self, data: str | None = None, data_dir: str | os.PathLike | None = None
    ):
        super().__init__(data, data_dir)
        self.data = catalog.full_name(self.data)
        if self.data not in _DATA_SETS:
            raise errors.unknown_name(
                "data set of 'recommendation'", self.data, _DATA_SETS
            )
        self._data_set = _DATA_SETS[self.data]
        self.tasks = {task.name: task for task in self._data_set.tasks}
        self.defaults = self._data_set.defaults

    def columns(self, tasks: Iterable[str] | None = None) -> dict[str, Column]:
        """Returns the input columns of a model of these tasks, by name.

        Args:
            tasks: Names of tasks; `None` for all.

        Raises:
            InputError: The data set cannot be had, or a name is unknown.
        """
        left_out = [self._data_set.left_out.get(task) for task in self.select(tasks)]
        return {
            name: column
            for name, column in self._described().items()
            if name not in left_out
        }

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
        """See `Application.load`; with sample weights where labels are absent."""
        import tensorflow as tf

        check_split(split)
        if data is not None or data_dir is not None:
            bound = type(self)(data or self.data, data_dir or self.data_dir)
            return bound.load(
                split,
                batch_size=batch_size,
                tasks=tasks,
                shuffle=shuffle,
                seed=seed,
                limit=limit,
                epoch=epoch,
            )
        chosen = list(self.select(tasks))
        folder = catalog.resolve_data_dir(self.data_dir)
        table = _read(self.data, split, folder)
        labels = self._data_set.labels(table)
        parts: list[dict[str, Any]] = [
            {name: table[name] for name in self.columns(chosen)},
            {task: labels[task].astype("float32")[:, None] for task in chosen},
        ]
        present = self._data_set.present(table)
        if any(task in present for task in chosen):
            everywhere = table[next(iter(table))].shape[:1]
            parts.append(
                {
                    task: tf.cast(present.get(task, tf.ones(everywhere)), "float32")
                    for task in chosen
                }
            )
        samples = keras.tree.map_structure(
            lambda values: tf.constant(values[:limit]), tuple(parts)
        )
        count = len(next(iter(samples[1].values())))
        order = tf.data.Dataset.range(count)
        if shuffle:
            order = shuffled(order, count, seed, epoch)
        # Rows are gathered a batch at a time: a table of 40 columns passed on row by
        # row would take longer than the training.
        return (
            order.batch(batch_size)
            .map(
                lambda rows: keras.tree.map_structure(
                    lambda values: tf.gather(values, rows), samples
                ),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            .prefetch(tf.data.AUTOTUNE)
        )

    def inputs(self) -> dict[str, keras.KerasTensor]:
        """See `Application.inputs`: those of a model of all tasks."""
        return self.inputs_of(self.tasks)

    def inputs_of(self, tasks: Iterable[str]) -> dict[str, keras.KerasTensor]:
        """See `Application.inputs_of`: `[batch]` or `[batch, length]` a column."""
        return features.inputs(self.columns(tasks))

    def encode(
        self, inputs: Mapping[str, keras.KerasTensor], backbone: str, width: int
    ) -> keras.KerasTensor:
        """See `Application.encode`."""
        described = self._described()
        return features.encode(
            inputs,
            {name: described[name] for name in inputs},
            _ENCODERS[backbone],
            width,
        )

    def stages(self, backbone: str, width: int, depth: int) -> list[keras.layers.Layer]:
        """See `Application.stages`: dense ones, whatever encodes the history."""
        del backbone
        return backbones.mlp(width, depth)

    def optimizer(self, learning_rate: Any) -> keras.optimizers.Optimizer:
        """See `Application.optimizer`: cost follows the batch, not the tables."""
        return LazyAdam(learning_rate)

    def head(self, task: Task, features: keras.KerasTensor) -> keras.KerasTensor:
        """See `Application.head`."""
        common: dict[str, Any] = {
            "name": task.name,
            "hidden": _HIDDEN,
            "dropout": _DROPOUT,
        }
        if task.kind == "binary":
            return heads.probability(features, **common)
        return heads.number(features, start=self._data_set.starts[task.name], **common)

    def _described(self) -> dict[str, Column]:
        data_registry.prepare(self.data, data_dir=self.data_dir)
        metadata = catalog.builder(self.data, self.data_dir).info.metadata
        return from_metadata(metadata)
