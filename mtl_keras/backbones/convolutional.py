"""Backbone of convolutions."""

from __future__ import annotations

import keras


def cnn(width: int, depth: int) -> list[keras.layers.Layer]:
    """Stages of one convolution each.

    The first (5x5, every second place) and the second (3x3, then maximum
    pooling) halve height and width, and the second doubles the channels; later
    ones (3x3) keep the shape, so that even a deep backbone leaves enough places
    to tell where something is.

    Args:
        width: Channels of the first stage.
        depth: Number of stages.

    Returns:
        `depth` layers, from `[batch, height, width, channels]` to
        `[batch, height / 4, width / 4, 2 * width]` (for `depth >= 2`).
    """
    stages = []
    for index in range(depth):
        if index == 0:
            layers = [_convolution(width, 5, strides=2)]
        else:
            layers = [_convolution(2 * width, 3)]
        if index == 1:
            layers.append(keras.layers.MaxPooling2D(name="pooling"))
        stages.append(keras.Sequential(layers, name=f"cnn_stage_{index}"))
    return stages


def _convolution(
    channels: int, kernel_size: int, strides: int = 1
) -> keras.layers.Layer:
    return keras.layers.Conv2D(
        channels,
        kernel_size,
        strides=strides,
        padding="same",
        activation="relu",
        kernel_initializer="he_normal",
        name="convolution",
    )
