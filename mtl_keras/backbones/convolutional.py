"""Backbone of convolutions."""

from __future__ import annotations

import keras

_HALVINGS = 2


def cnn(width: int, depth: int) -> list[keras.layers.Layer]:
    """Stages of one 3x3 convolution each.

    The first two stages halve height and width, and the second doubles the
    channels; later ones keep the shape, so that even a deep backbone leaves
    enough places to tell where something is.

    Args:
        width: Channels of the first stage.
        depth: Number of stages.

    Returns:
        `depth` layers, from `[batch, height, width, channels]` to
        `[batch, height / 4, width / 4, 2 * width]` (for `depth >= 2`).
    """
    stages = []
    for index in range(depth):
        layers: list[keras.layers.Layer] = [
            keras.layers.Conv2D(
                width if index == 0 else 2 * width,
                3,
                padding="same",
                activation="relu",
                kernel_initializer="he_normal",
                name="convolution",
            )
        ]
        if index < _HALVINGS:
            layers.append(keras.layers.MaxPooling2D(name="pooling"))
        stages.append(keras.Sequential(layers, name=f"cnn_stage_{index}"))
    return stages
