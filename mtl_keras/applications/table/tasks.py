"""Tasks, losses, metrics and heads of the kinds that a table's columns have."""

from __future__ import annotations

import keras

from mtl_keras.applications.base import Task
from mtl_keras.applications.table.layers import (
    R2,
    InUnits,
    MacroF1,
    SparseFocalCrossentropy,
    StandardisedError,
)
from mtl_keras.data.tables.description import TaskStats

_DROPOUT = 0.1
_THRESHOLDS = 1_000


def make_task(stats: TaskStats) -> Task:
    """Returns the task that a column, or a value of the tasks' column, is."""
    make = {"number": _number, "binary": _binary, "multiclass": _multiclass}
    return make[stats.kind](stats)


def _number(stats: TaskStats) -> Task:
    return Task(
        stats.name,
        kind="number",
        loss=lambda: StandardisedError(stats.loss, stats.deviation),
        metrics=lambda: [
            keras.metrics.MeanAbsoluteError(name="mae"),
            keras.metrics.RootMeanSquaredError(name="rmse"),
            R2(stats.mean, stats.deviation, name="r2"),
        ],
        objective="rmse",
        direction="min",
    )


def _binary(stats: TaskStats) -> Task:
    losses = {
        "crossentropy": keras.losses.BinaryCrossentropy,
        "focal": keras.losses.BinaryFocalCrossentropy,
    }
    return Task(
        stats.name,
        kind="binary",
        loss=losses[stats.loss],
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
