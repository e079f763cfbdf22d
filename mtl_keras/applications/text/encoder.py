"""Embedding of tokens before the stages, and pooling before the heads."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtl_keras.applications.text.tokens import MATCH

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class TokenEmbedding(keras.layers.Layer):
    """The sum of a token's vector and its kind's vector; zeros at padding.

    Called on `[ids, kinds]`, int `[batch, length]`; returns `[batch, length, units]`.

    Args:
        vocabulary_size: Number of ids.
        units: Features.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, vocabulary_size: int, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.units = units
        policy = self.dtype_policy
        self.tokens = keras.layers.Embedding(
            vocabulary_size, units, dtype=policy, name="tokens"
        )
        self.kinds = keras.layers.Embedding(
            MATCH + 1, units, dtype=policy, name="kinds"
        )

    def build(self, input_shape: list[tuple[int | None, ...]]) -> None:
        """Builds both tables."""
        self.tokens.build(input_shape[0])
        self.kinds.build(input_shape[1])

    def call(self, inputs: list[Any]) -> Any:
        """Returns the vectors."""
        ids, kinds = inputs
        vectors = self.tokens(ids) + self.kinds(kinds)
        return vectors * ops.cast(kinds > 0, vectors.dtype)[..., None]

    def compute_output_shape(
        self, input_shape: list[tuple[int | None, ...]]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the vectors."""
        return (*input_shape[0], self.units)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "units": self.units,
        }


@_register
class MeanAndMaximum(keras.layers.Layer):
    """The mean and the maximum over positions without padding.

    Called on `[features, kinds]`, `[batch, length, d]` and `[batch, length]`; returns
    `[batch, 2 d]`.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """Ends the mask: the result has no positions."""

    def call(self, inputs: list[Any]) -> Any:
        """Returns mean and maximum, concatenated, `[batch, 2 d]`."""
        features, kinds = inputs
        mask = (kinds > 0)[..., None]
        weights = ops.cast(mask, features.dtype)
        count = ops.maximum(ops.sum(weights, axis=1), 1)
        mean = ops.sum(features * weights, axis=1) / count
        lowest = ops.cast(-1e4, features.dtype)
        maximum = ops.max(ops.where(mask, features, lowest), axis=1)
        return ops.concatenate([mean, maximum], axis=-1)

    def compute_output_shape(
        self, input_shape: list[tuple[int | None, ...]]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the result."""
        batch, _, features = input_shape[0]
        assert features is not None
        return batch, 2 * features
