"""Heads: from a backbone's features to one task's output.

A head reads features of any backbone: places `[batch, rows, columns, d]`, a
sequence `[batch, rows, d]`, or one vector `[batch, d]`.
"""

from __future__ import annotations

import keras
from keras import layers


def classes(
    features: keras.KerasTensor, *, name: str, count: int, hidden: int, dropout: float
) -> keras.KerasTensor:
    """Returns probabilities of classes, `[batch, count]`, which sum to 1."""
    x = _vector(features, name, hidden, dropout)
    return _output(count, "softmax", name)(x)


def probability(
    features: keras.KerasTensor, *, name: str, hidden: int, dropout: float
) -> keras.KerasTensor:
    """Returns the probability of the positive class, `[batch, 1]`."""
    x = _vector(features, name, hidden, dropout)
    return _output(1, "sigmoid", name)(x)


def number(
    features: keras.KerasTensor, *, name: str, hidden: int, dropout: float
) -> keras.KerasTensor:
    """Returns a number, `[batch, 1]`."""
    x = _vector(features, name, hidden, dropout)
    return _output(1, "linear", name)(x)


def boxes(
    features: keras.KerasTensor, *, name: str, count: int, hidden: int, dropout: float
) -> keras.KerasTensor:
    """Returns boxes with coordinates from 0 to 1, `[batch, count, 4]`."""
    x = _vector(features, name, hidden, dropout)
    x = _output(count * 4, "sigmoid", f"{name}_coordinates")(x)
    return layers.Reshape((count, 4), dtype="float32", name=name)(x)


def segmentation(
    features: keras.KerasTensor,
    *,
    name: str,
    size: tuple[int, int],
    count: int,
    hidden: int,
) -> keras.KerasTensor:
    """Returns probabilities of classes per pixel, `[batch, *size, count]`.

    Each place of the features, once mixed with its direct neighbours, predicts
    the block of pixels that it covers (Shi
    et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient
    Sub-Pixel Convolutional Neural Network", CVPR 2016): for places of a grid a
    square, for a step of a sequence its rows, for one vector everything.

    Args:
        features: A backbone's features.
        name: The task's name.
        size: Height and width of the mask; whole multiples of the features'.
        count: Number of classes.
        hidden: Channels between features and blocks.
    """
    height, width = size
    rows, columns = (*features.shape[1:-1], 1, 1)[:2]
    block_height, block_width = height // rows, width // columns
    block = layers.Dense(
        block_height * block_width * count, dtype="float32", name=f"{name}_block"
    )
    axes = "xy"[: len(features.shape) - 2]
    x = features
    if axes:
        convolution = {"x": layers.Conv1D, "xy": layers.Conv2D}[axes]
        x = convolution(
            hidden,
            3,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
            name=f"{name}_neighbours",
        )(x)
    # A bias for each place: shared weights alone could not tell left from right.
    x = layers.EinsumDense(
        f"b{axes}d,de->b{axes}e",
        output_shape=(*x.shape[1:-1], hidden),
        bias_axes=f"{axes}e",
        activation="relu",
        kernel_initializer="he_normal",
        name=f"{name}_hidden",
    )(x)
    x = block(x)
    # [rows, columns, block rows, block columns] -> pixels in their places.
    x = layers.Reshape(
        (rows, columns, block_height, block_width, count),
        dtype="float32",
        name=f"{name}_unfold",
    )(x)
    x = layers.Permute((1, 3, 2, 4, 5), dtype="float32", name=f"{name}_order")(x)
    x = layers.Reshape((height, width, count), dtype="float32", name=f"{name}_pixels")(
        x
    )
    return layers.Softmax(dtype="float32", name=name)(x)


def _vector(
    features: keras.KerasTensor, name: str, hidden: int, dropout: float
) -> keras.KerasTensor:
    x = features
    if len(x.shape) > 2:
        x = layers.Flatten(name=f"{name}_flatten")(x)
    if dropout:
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    return layers.Dense(
        hidden,
        activation="relu",
        kernel_initializer="he_normal",
        name=f"{name}_hidden",
    )(x)


def _output(units: int, activation: str, name: str) -> keras.layers.Layer:
    # float32 under mixed precision too: losses take logarithms of this.
    return layers.Dense(units, activation=activation, dtype="float32", name=name)
