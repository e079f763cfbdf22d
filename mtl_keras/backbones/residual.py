"""Backbone of residual blocks."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers


@keras.saving.register_keras_serializable(package="mtl_keras")
class ResidualBlock(layers.Layer):
    """relu(x + BN(conv(relu(BN(conv(x))))), with convolutions of 3x3.

    From `[batch, height, width, c]` to `[batch, height / strides, width / strides,
    channels]`; where the shapes differ, the shortcut is a convolution of 1x1.

    Args:
        channels: Channels of the output.
        strides: Step of the first convolution.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, channels: int, strides: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.strides = strides
        policy = self.dtype_policy
        self.main = keras.Sequential(
            [
                convolution(channels, 3, strides, dtype=policy),
                layers.BatchNormalization(dtype=policy),
                layers.ReLU(dtype=policy),
                convolution(channels, 3, dtype=policy),
                layers.BatchNormalization(dtype=policy),
            ],
            name="main",
        )
        self.shortcut: keras.Sequential | None = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the main path and the shortcut."""
        policy = self.dtype_policy
        if self.strides != 1 or input_shape[-1] != self.channels:
            self.shortcut = keras.Sequential(
                [
                    convolution(self.channels, 1, self.strides, dtype=policy),
                    layers.BatchNormalization(dtype=policy),
                ],
                name="shortcut",
            )
            self.shortcut.build(input_shape)
        self.main.build(input_shape)

    def call(self, inputs: Any) -> Any:
        """Returns the block's output."""
        x = inputs if self.shortcut is None else self.shortcut(inputs)
        return keras.ops.relu(x + self.main(inputs))

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the output."""
        return self.main.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "channels": self.channels,
            "strides": self.strides,
        }


def resnet(width: int, depth: int) -> list[layers.Layer]:
    """Stages of two residual blocks each, as ResNet-18 has them.

    The first stage begins with a convolution of 3x3, for images of a few dozen
    pixels; every later one halves height and width and doubles the channels. Four
    stages of width 64 are ResNet-18 without its head and with this other beginning.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv
    1512.03385.

    Args:
        width: Channels of the first stage.
        depth: Number of stages.

    Returns:
        `depth` layers, from `[batch, height, width, channels]` to places of
        `width · 2^(depth - 1)` channels.
    """
    stages = []
    for index in range(depth):
        channels = width * 2**index
        blocks: list[layers.Layer] = [
            ResidualBlock(channels, strides=1 if index == 0 else 2, name="block_0"),
            ResidualBlock(channels, name="block_1"),
        ]
        if index == 0:
            blocks = [
                convolution(width, 3, name="convolution"),
                layers.BatchNormalization(name="norm"),
                layers.ReLU(name="relu"),
                *blocks,
            ]
        stages.append(keras.Sequential(blocks, name=f"resnet_stage_{index}"))
    return stages


def convolution(channels: int, size: int, strides: int = 1, **kwargs) -> layers.Layer:
    """Returns a convolution without bias, as a normalisation follows."""
    return layers.Conv2D(
        channels,
        size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        **kwargs,
    )
