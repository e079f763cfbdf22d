"""Backbones with recurrent layers, which read an image row by row."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from mtl_keras.backbones.convolutional import cnn
from mtl_keras.errors import unknown_name

_CELLS = {"gru": layers.GRU, "lstm": layers.LSTM}


@keras.saving.register_keras_serializable(package="mtl_keras")
class Rows(layers.Layer):
    """Reshapes images to sequences of their rows, from top to bottom.

    `[batch, height, width, channels]` becomes `[batch, height, width *
    channels]`; sequences `[batch, steps, d]` stay as they are, with their mask.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """Returns the sequences."""
        if len(inputs.shape) == 3:
            return inputs
        _, height, width, channels = inputs.shape
        return ops.reshape(inputs, (-1, height, width * channels))

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the sequences."""
        if len(input_shape) == 3:
            return tuple(input_shape)
        batch, height, width, channels = input_shape
        assert width is not None
        assert channels is not None
        return batch, height, width * channels


def rnn(
    width: int, depth: int, *, cell: str = "gru", bidirectional: bool = True
) -> list[layers.Layer]:
    """Stages of one recurrent layer each, which keep the sequence and its mask.

    Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for
    Statistical Machine Translation", EMNLP 2014 (GRU); Hochreiter and Schmidhuber,
    "Long Short-Term Memory", Neural Computation 9, 1997.

    Args:
        width: Units in each direction, of every stage.
        depth: Number of stages.
        cell: `"gru"` or `"lstm"`.
        bidirectional: Whether each layer reads the sequence both ways.

    Returns:
        `depth` layers, from sequences `[batch, steps, d]`, or images `[batch,
        height, width, channels]` with a step for each row, to `[batch, steps, 2 *
        width]` (one way: `width`).

    Raises:
        InputError: For an unknown cell.
    """
    if cell not in _CELLS:
        raise unknown_name("recurrent cell", cell, _CELLS)
    stages = []
    for index in range(depth):
        layer: layers.Layer = _CELLS[cell](width, return_sequences=True, name=cell)
        if bidirectional:
            layer = layers.Bidirectional(layer, name=cell)
        block = [Rows(name="rows"), layer] if index == 0 else [layer]
        stages.append(keras.Sequential(block, name=f"rnn_stage_{index}"))
    return stages


def cnn_rnn(width: int, depth: int) -> list[layers.Layer]:
    """Stages of convolutions, and a bidirectional GRU over the rows at the end.

    Shi, Bai and Yao, "An End-to-End Trainable Neural Network for Image-based
    Sequence Recognition", TPAMI 2017, arXiv 1507.05717.

    Args:
        width: Channels of the first convolution and units in each direction.
        depth: Number of stages; the last is the recurrent one.

    Returns:
        `depth` layers, from `[batch, height, width, channels]` to `[batch, rows, 2 *
        width]`, with rows as the convolutions leave them (see `cnn`).
    """
    recurrent = layers.Bidirectional(
        layers.GRU(width, return_sequences=True), name="gru"
    )
    last = keras.Sequential([Rows(name="rows"), recurrent], name="cnn_rnn_stage_last")
    return [*cnn(width, depth - 1), last]
