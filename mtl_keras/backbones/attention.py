"""Backbone of transformer encoder blocks."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from mtl_keras.backbones.recurrent import Rows

_HEAD_WIDTH = 16


@keras.saving.register_keras_serializable(package="mtl_keras")
class PositionalDense(layers.Layer):
    """Dense features of each step, plus a fixed positional encoding.

    `[batch, steps, d]` to `[batch, steps, units]`; sines and cosines of
    geometrically spaced frequencies, as in the paper.

    Args:
        units: Width of the output.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, units: int, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.supports_masking = True
        self.dense = layers.Dense(units, dtype=self.dtype_policy, name="dense")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the dense layer."""
        self.dense.build(input_shape)

    def call(self, inputs: Any) -> Any:
        """Returns features with positional encodings."""
        half = (self.units + 1) // 2
        steps = ops.cast(ops.arange(ops.shape(inputs)[1]), "float32")
        rates = ops.power(1e4, -ops.arange(half, dtype="float32") / half)
        angles = steps[:, None] * rates
        places = ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)
        return self.dense(inputs) + ops.cast(
            places[None, :, : self.units], self.compute_dtype
        )

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the output."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="mtl_keras")
class EncoderBlock(layers.Layer):
    """Self-attention, then two dense layers, each normalised first and added.

    `[batch, steps, width]` to the same shape; masked steps are not attended to.

    Args:
        width: Width of input and output.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.supports_masking = True
        policy = self.dtype_policy
        heads = max(1, width // _HEAD_WIDTH)
        self.attention = layers.MultiHeadAttention(
            heads, max(1, width // heads), dtype=policy, name="attention"
        )
        self.first_norm = layers.LayerNormalization(dtype=policy, name="first_norm")
        self.second_norm = layers.LayerNormalization(dtype=policy, name="second_norm")
        self.hidden = layers.Dense(4 * width, "gelu", dtype=policy, name="hidden")
        self.output_dense = layers.Dense(width, dtype=policy, name="output")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the parts."""
        self.first_norm.build(input_shape)
        self.second_norm.build(input_shape)
        self.attention.build(input_shape, input_shape)
        self.hidden.build(input_shape)
        self.output_dense.build((*input_shape[:-1], 4 * self.width))

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the block's output."""
        attended = None if mask is None else mask[:, None, :]
        x = self.first_norm(inputs)
        x = inputs + self.attention(x, x, attention_mask=attended)
        return x + self.output_dense(self.hidden(self.second_norm(x)))

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the input."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "width": self.width}


def transformer_encoder(width: int, depth: int) -> list[layers.Layer]:
    """Stages of one encoder block each, on sequences or on the rows of images.

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762.
    Differs from the paper in that layers are normalised before and not after
    attention (Xiong et al., ICML 2020, arXiv 2002.04745), which trains without a
    warm-up.

    Args:
        width: Width of every step; one attention head for each 16.
        depth: Number of stages.

    Returns:
        `depth` layers, from `[batch, steps, d]`, or images `[batch, height, width,
        channels]` with a step for each row, to `[batch, steps, width]`.
    """
    stages = []
    for index in range(depth):
        block: list[layers.Layer] = [EncoderBlock(width, name="block")]
        if index == 0:
            block = [Rows(name="rows"), PositionalDense(width, name="places"), *block]
        if index == depth - 1:
            block.append(layers.LayerNormalization(name="norm"))
        stages.append(keras.Sequential(block, name=f"transformer_stage_{index}"))
    return stages
