"""Tasks, losses, metrics and heads of the kinds that a table's columns have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np

from mtl_keras.applications.base import Task
from mtl_keras.applications.table.layers import (
    R2,
    InUnits,
    MacroF1,
    SparseFocalCrossentropy,
    StandardisedError,
    Units,
)
from mtl_keras.data.tables.description import TaskStats

_DROPOUT = 0.1
_THRESHOLDS = 1_000


def make_task(stats: TaskStats) -> Task:
    """Returns the task that a column, or a value of the tasks' column, is."""
    if stats.kind == "number":
        return _number(stats.name, stats.loss, stats.mean, stats.deviation)
    return (
        _binary(stats.name, stats.loss)
        if stats.kind == "binary"
        else _multiclass(stats)
    )


def groups_of(tasks: Iterable[TaskStats]) -> dict[str, list[TaskStats]]:
    """Returns tasks by the group that they are a column of, each two or more.

    A group is of numbers or of yes and no, with one loss. All tasks in one group are
    `"tasks"`, several groups bear their kinds.
    """
    tasks = list(tasks)
    alike: dict[tuple[str, str], list[TaskStats]] = {}
    for stats in tasks:
        if stats.kind != "multiclass":
            alike.setdefault((stats.kind, stats.loss), []).append(stats)
    alike = {key: group for key, group in alike.items() if len(group) > 1}
    kinds = [kind for kind, _ in alike]
    groups = {}
    for (kind, loss), group in alike.items():
        name = f"{kind}_tasks" if kinds.count(kind) == 1 else f"{kind}_{loss}_tasks"
        groups["tasks" if len(group) == len(tasks) else name] = group
    return groups


def make_group(name: str, tasks: Sequence[TaskStats]) -> Task:
    """Returns the group that tasks of one kind and loss are, columns of one output.

    Args:
        name: Name of the output.
        tasks: The tasks, as `groups_of` returns them.
    """
    kind, loss = tasks[0].kind, tasks[0].loss
    if kind == "binary":
        return _binary(name, loss)
    return _number(name, loss, [s.mean for s in tasks], [s.deviation for s in tasks])


def _number(name: str, loss: str, mean: Units, deviation: Units) -> Task:
    return Task(
        name,
        kind="number",
        loss=lambda: StandardisedError(loss, deviation),
        metrics=lambda: [
            keras.metrics.MeanAbsoluteError(name="mae"),
            keras.metrics.RootMeanSquaredError(name="rmse"),
            R2(mean, deviation, name="r2"),
        ],
        objective="rmse",
        direction="min",
        unit=float(np.mean(deviation)),
    )


def _binary(name: str, loss: str) -> Task:
    losses = {
        "crossentropy": keras.losses.BinaryCrossentropy,
        "focal": keras.losses.BinaryFocalCrossentropy,
    }
    return Task(
        name,
        kind="binary",
        loss=losses[loss],
        metrics=lambda: [
            keras.metrics.AUC(num_thresholds=_THRESHOLDS, name="auc"),
            keras.metrics.BinaryAccuracy(name="accuracy"),
            keras.metrics.BinaryCrossentropy(name="log_loss"),
            keras.metrics.AUC(
                num_thresholds=_THRESHOLDS, curve="PR", name="average_precision"
            ),
        ],
        objective="auc",
    )


def _multiclass(stats: TaskStats) -> Task:
    losses = {
        "crossentropy": keras.losses.SparseCategoricalCrossentropy,
        "focal": SparseFocalCrossentropy,
    }
    return Task(
        stats.name,
        kind="multiclass",
        loss=losses[stats.loss],
        metrics=lambda: [
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
            MacroF1(len(stats.classes), name="macro_f1"),
        ],
        objective="accuracy",
    )


def make_head(
    stats: TaskStats, features: keras.KerasTensor, hidden: int
) -> keras.KerasTensor:
    """Returns a task's output, in a layer that bears the task's name.

    `[batch, 1]`, a number in the table's units or the probability of the positive
    class; or `[batch, classes]`, probabilities.

    Args:
        stats: The task.
        features: What the way to share gave for it.
        hidden: Units of a hidden layer; 0 for none.
    """
    x, name = features, stats.name
    if len(x.shape) > 2:
        x = keras.layers.Flatten(name=f"{name}_flatten")(x)
    if hidden:
        x = keras.layers.Dropout(_DROPOUT, name=f"{name}_dropout")(x)
        x = keras.layers.Dense(
            hidden,
            activation="relu",
            kernel_initializer="he_normal",
            name=f"{name}_hidden",
        )(x)
    # float32 under mixed precision too: losses take logarithms of this.
    if stats.kind == "number":
        x = keras.layers.Dense(1, dtype="float32", name=f"{name}_standardised")(x)
        return InUnits(stats.mean, stats.deviation, name=name)(x)
    binary = stats.kind == "binary"
    return keras.layers.Dense(
        1 if binary else len(stats.classes),
        activation="sigmoid" if binary else "softmax",
        dtype="float32",
        name=name,
    )(x)


def make_columns(
    name: str, tasks: Sequence[TaskStats], features: Mapping[str, keras.KerasTensor]
) -> keras.KerasTensor:
    """Returns the output of a group of tasks, `[batch, T]`, in a layer of its name.

    Args:
        name: Name of the output.
        tasks: The tasks, as `groups_of` returns them.
        features: What the way to share gave for each, by name.
    """
    is_number = tasks[0].kind == "number"
    inner = f"{name}...standardised" if is_number else name
    # float32 under mixed precision too: losses take logarithms of this.
    options = {"activation": None if is_number else "sigmoid", "dtype": "float32"}
    first, *others = (features[stats.name] for stats in tasks)
    if all(x is first for x in others):
        x = keras.layers.Dense(len(tasks), name=inner, **options)(first)
    else:
        heads = [
            keras.layers.Dense(1, name=f"{stats.name}_standardised", **options)
            for stats in tasks
        ]
        columns = [
            head(features[stats.name]) for head, stats in zip(heads, tasks, strict=True)
        ]
        x = keras.layers.Concatenate(dtype="float32", name=inner)(columns)
    if not is_number:
        return x
    means, deviations = [s.mean for s in tasks], [s.deviation for s in tasks]
    return InUnits(means, deviations, name=name)(x)
