"""Backbone of dense layers."""

from __future__ import annotations

import keras


def mlp(width: int, depth: int) -> list[keras.layers.Layer]:
    """Stages of one dense layer each, on inputs laid out as one vector.

    Args:
        width: Units of every stage.
        depth: Number of stages.

    Returns:
        `depth` layers, from `[batch, ...]` to `[batch, width]`.
    """
    stages = []
    for index in range(depth):
        layers: list[keras.layers.Layer] = [
            keras.layers.Dense(
                width,
                activation="relu",
                kernel_initializer="he_normal",
                name="dense",
            )
        ]
        if index == 0:
            layers.insert(0, keras.layers.Flatten(name="flatten"))
        stages.append(keras.Sequential(layers, name=f"mlp_stage_{index}"))
    return stages
