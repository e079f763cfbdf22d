"""Backbone of recurrent layers, which reads an image row by row."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="mtl_keras")
class Rows(keras.layers.Layer):
    """Turns images into sequences of their rows, from top to bottom.

    `[batch, height, width, channels]` becomes `[batch, height, width *
    channels]`.
    """

    def call(self, inputs: Any) -> Any:
        """Returns the sequences."""
        _, height, width, channels = inputs.shape
        return ops.reshape(inputs, (-1, height, width * channels))

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the sequences."""
        batch, height, width, channels = input_shape
        assert width is not None
        assert channels is not None
        return batch, height, width * channels


def rnn(width: int, depth: int) -> list[keras.layers.Layer]:
    """Stages of one bidirectional GRU each, which keep the sequence.

    Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for
    Statistical Machine Translation", EMNLP 2014.

    Args:
        width: Units in each direction, of every stage.
        depth: Number of stages.

    Returns:
        `depth` layers, from images `[batch, height, width, channels]` to
        `[batch, height, 2 * width]`, one vector for each row.
    """
    stages = []
    for index in range(depth):
        layers: list[keras.layers.Layer] = [
            keras.layers.Bidirectional(
                keras.layers.GRU(width, return_sequences=True), name="gru"
            )
        ]
        if index == 0:
            layers.insert(0, Rows(name="rows"))
        stages.append(keras.Sequential(layers, name=f"rnn_stage_{index}"))
    return stages
