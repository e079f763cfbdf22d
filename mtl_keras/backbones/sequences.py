"""Backbones of sequences: positions that are zero in all features are padding.

Every stage maps `[batch, length, features]` to the same layout, with zeros where its
input has zeros, so that the padding outlasts whatever a way to share does between
two stages.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

_HEADS = 4
_register = keras.saving.register_keras_serializable(package="mtl_keras")


def sequence_rnn(width: int, depth: int) -> list[keras.layers.Layer]:
    """Stages of one bidirectional GRU each: see `SequenceGRU`.

    Args:
        width: Units in each direction.
        depth: Number of stages.

    Returns:
        `depth` layers, to `[batch, length, 2 * width]`.
    """
    return [
        SequenceGRU(width, name=f"sequence_rnn_stage_{index}") for index in range(depth)
    ]


def sequence_mlp(width: int, depth: int) -> list[keras.layers.Layer]:
    """Stages that read a bag of words: see `BagDense`.

    Args:
        width: Half of the units, as in `sequence_rnn`.
        depth: Number of stages.

    Returns:
        `depth` layers, to `[batch, length, 2 * width]`.
    """
    return [
        BagDense(2 * width, name=f"sequence_mlp_stage_{index}")
        for index in range(depth)
    ]


def transformer(width: int, depth: int) -> list[keras.layers.Layer]:
    """Stages of one transformer block each; the first adds positions.

    Args:
        width: Half of the features, as in `sequence_rnn`.
        depth: Number of stages.

    Returns:
        `depth` layers, to `[batch, length, 2 * width]`.
    """
    return [
        TransformerBlock(
            2 * width, positions=index == 0, name=f"transformer_stage_{index}"
        )
        for index in range(depth)
    ]


@_register
class SequenceGRU(keras.layers.Layer):
    """A bidirectional GRU that skips padding.

    Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for
    Statistical Machine Translation", EMNLP 2014, arXiv 1406.1078.

    Args:
        units: Units in each direction.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = units
        policy = self.dtype_policy
        self.gru = keras.layers.Bidirectional(
            keras.layers.GRU(units, return_sequences=True, dtype=policy),
            dtype=policy,
            name="gru",
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds both directions."""
        self.gru.build(input_shape)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Returns `[batch, length, 2 * units]`."""
        present = _present(inputs)
        mask = _up_to_the_last(ops.cast(present[..., 0], "int32"))
        return self.gru(inputs, mask=mask, training=training) * present

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the output."""
        return (*input_shape[:-1], 2 * self.units)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "units": self.units}


@_register
class BagDense(keras.layers.Layer):
    """A dense layer on each position and on the average of all: a bag of words.

    gelu(W x + U mean(x) + b). Order plays no role: permuted positions give permuted
    outputs. Zaheer et al., "Deep Sets", NeurIPS 2017, equation 4, with weights that
    are not tied; Iyyer et al., "Deep Unordered Composition Rivals Syntactic Methods
    for Text Classification", ACL 2015, for averages of embeddings.

    Args:
        units: Features of the output.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = units
        policy = self.dtype_policy
        self.own = keras.layers.Dense(units, dtype=policy, name="own")
        self.average = keras.layers.Dense(
            units, use_bias=False, dtype=policy, name="average"
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds both parts."""
        self.own.build(input_shape)
        self.average.build(input_shape)

    def call(self, inputs: Any) -> Any:
        """Returns `[batch, length, units]`."""
        present = _present(inputs)
        count = ops.maximum(ops.sum(present, axis=1, keepdims=True), 1)
        mean = ops.sum(inputs, axis=1, keepdims=True) / count
        return ops.gelu(self.own(inputs) + self.average(mean)) * present

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the output."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "units": self.units}


@_register
class TransformerBlock(keras.layers.Layer):
    """Self-attention and a feed-forward layer, each with a residual connection.

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762, with
    the normalisation before each part (Xiong et al., "On Layer Normalization in the
    Transformer Architecture", ICML 2020, arXiv 2002.04745), gelu for relu, and no
    dropout.

    Args:
        units: Features, a multiple of 4, the number of heads.
        positions: Whether to add sinusoids of the position.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, units: int, positions: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = units
        self.positions = positions
        layers, policy = keras.layers, self.dtype_policy
        self.entry = layers.Dense(units, dtype=policy, name="entry")
        self.first_norm = layers.LayerNormalization(dtype=policy, name="first_norm")
        self.attention = layers.MultiHeadAttention(
            _HEADS, max(1, units // _HEADS), dtype=policy, name="attention"
        )
        self.second_norm = layers.LayerNormalization(dtype=policy, name="second_norm")
        self.hidden = layers.Dense(
            4 * units, activation="gelu", dtype=policy, name="hidden"
        )
        self.exit = layers.Dense(units, dtype=policy, name="exit")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the parts."""
        inner = (*input_shape[:-1], self.units)
        self.entry.build(input_shape)
        self.first_norm.build(inner)
        self.attention.build(inner, inner)
        self.second_norm.build(inner)
        self.hidden.build(inner)
        self.exit.build((*input_shape[:-1], 4 * self.units))

    def call(self, inputs: Any) -> Any:
        """Returns `[batch, length, units]`."""
        present = _present(inputs)
        x = self.entry(inputs)
        if self.positions:
            x = x + ops.cast(_sinusoids(ops.shape(x)[1], self.units), x.dtype)
        normed = self.first_norm(x)
        seen = ops.cast(ops.transpose(present, (0, 2, 1)), "bool")
        x = x + self.attention(normed, normed, attention_mask=seen)
        x = x + self.exit(self.hidden(self.second_norm(x)))
        return x * present

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the output."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "units": self.units,
            "positions": self.positions,
        }


def _present(inputs: Any) -> Any:
    """Returns the padding mask `[batch, length, 1]`: 1 for positions, 0 for padding."""
    return ops.cast(
        ops.any(ops.not_equal(inputs, 0), axis=-1, keepdims=True), inputs.dtype
    )


def _up_to_the_last(present: Any) -> Any:
    """Returns a mask of the positions up to the last one that is no padding.

    cuDNN takes padding at the end alone, and none of a whole sequence.

    Args:
        present: int32 `[batch, length]`, 0 for padding.
    """
    positions = ops.arange(ops.shape(present)[1], dtype="int32")
    last = ops.max(positions * present, axis=1, keepdims=True)
    return positions <= last


def _sinusoids(length: Any, units: int) -> Any:
    rates = np.power(10_000.0, -np.arange(0, units, 2) / units).astype("float32")
    angles = ops.cast(ops.arange(length), "float32")[:, None] * rates
    return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)[:, :units]
