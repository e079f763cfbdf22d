"""Tasks as several applications define them."""

from __future__ import annotations

import keras

from mtl_keras.applications.base import Task


def multiclass_task(name: str) -> Task:
    """Returns a task of classes of which one holds, compared by accuracy."""
    return Task(
        name,
        kind="multiclass",
        loss=keras.losses.SparseCategoricalCrossentropy,
        metrics=lambda: [keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        objective="accuracy",
    )


def binary_task(name: str) -> Task:
    """Returns a task of yes or no, compared by accuracy, with its AUC."""
    return Task(
        name,
        kind="binary",
        loss=keras.losses.BinaryCrossentropy,
        metrics=lambda: [
            keras.metrics.BinaryAccuracy(name="accuracy"),
            keras.metrics.AUC(name="auc"),
        ],
        objective="accuracy",
    )
