"""The head that finds the span of a text which answers a question."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from mtl_keras.applications.text.tokens import QUESTION, TEXT, pieces

_register = keras.saving.register_keras_serializable(package="mtl_keras")
_MOST_TOKENS = 30
"""Length of the longest answer."""


@_register
class SpanProbabilities(keras.layers.Layer):
    """Probabilities of the first and last token of an answer.

    Called on `[features, kinds]`, `[batch, length, d]` and int32 `[batch, length]`;
    returns probabilities `[batch, 2, positions]`: first of the start, then of the
    (inclusive) end, over the text's tokens; zeros for a sample without a question.

    Every position of the text attends to the question's positions, and the question
    as a whole is their average, weighted by learned attention; a dense layer reads
    both with the position's own features. After Seo et al., "Bidirectional Attention
    Flow for Machine Comprehension", ICLR 2017, arXiv 1611.01603, with plain scaled
    dot products, and without the recurrent layers on top.

    Args:
        hidden: Units of the dense layer.
        positions: Tokens of the text.
        dropout: Share of the features left out in training.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(
        self, hidden: int, positions: int = 512, dropout: float = 0.0, **kwargs: Any
    ):
        super().__init__(**kwargs)
        # Padding is read from the kinds; the result has no mask.
        self.supports_masking = True
        self.hidden_units = hidden
        self.positions = positions
        self.dropout_rate = dropout
        policy = self.dtype_policy
        self.dropout = keras.layers.Dropout(dropout, dtype=policy, name="dropout")
        self.query = keras.layers.Dense(hidden, dtype=policy, name="query")
        self.importance = keras.layers.Dense(
            1, use_bias=False, dtype=policy, name="importance"
        )
        self.hidden = keras.layers.Dense(
            hidden,
            activation="relu",
            kernel_initializer="he_normal",
            dtype=policy,
            name="hidden",
        )
        self.scores = keras.layers.Dense(2, dtype=policy, name="scores")

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """Ends the mask: the result has no positions of the features."""

    def build(self, input_shape: list[tuple[int | None, ...]]) -> None:
        """Builds the parts."""
        batch, length, features = input_shape[0]
        assert features is not None
        self.query.build((batch, length, features))
        self.importance.build((batch, length, features))
        self.hidden.build((batch, length, 4 * features))
        self.scores.build((batch, length, self.hidden_units))

    def call(self, inputs: list[Any], training: bool = False) -> Any:
        """Returns the probabilities."""
        features, kinds = inputs
        # Batches of other data sets ask nothing: their samples cost nothing here.
        rows = tf.where(tf.reduce_any(tf.equal(kinds, QUESTION), axis=1))
        probabilities = self._probabilities(
            tf.gather_nd(features, rows), tf.gather_nd(kinds, rows), training
        )
        shape = tf.stack([tf.shape(kinds)[0], 2, self.positions])
        return tf.scatter_nd(tf.cast(rows, tf.int32), probabilities, shape)

    def _probabilities(self, features: Any, kinds: Any, training: bool) -> Any:
        features = self.dropout(features, training=training)
        asked = ops.equal(kinds, QUESTION)
        queries = self.query(features)
        scores = ops.matmul(queries, ops.transpose(queries, (0, 2, 1)))
        aligned = ops.matmul(
            _softmax(scores / self.hidden_units**0.5, asked[:, None, :]), features
        )
        importance = ops.transpose(self.importance(features), (0, 2, 1))
        question = ops.matmul(_softmax(importance, asked[:, None, :]), features)
        hidden = self.hidden(
            ops.concatenate(
                [features, aligned, features * aligned, features * question], axis=-1
            )
        )
        scores = self.scores(self.dropout(hidden, training=training))
        scores = ops.cast(ops.transpose(scores, (0, 2, 1)), "float32")
        return self._over_text(scores, kinds)

    def _over_text(self, scores: Any, kinds: Any) -> Any:
        """Returns probabilities over the tokens of each text, aligned to position 0."""
        is_text = kinds >= TEXT
        lengths = ops.sum(ops.cast(is_text, "int32"), axis=1)
        first = ops.sum(ops.cast((kinds > 0) & ~is_text, "int32"), axis=1)
        steps = ops.arange(self.positions, dtype="int32")
        places = ops.minimum(first[:, None] + steps, ops.shape(kinds)[1] - 1)
        moved = ops.take_along_axis(scores, places[:, None, :], axis=2)
        return _softmax(moved, (steps < lengths[:, None])[:, None, :])

    def compute_output_shape(
        self, input_shape: list[tuple[int | None, ...]]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the probabilities."""
        return input_shape[0][0], 2, self.positions

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "hidden": self.hidden_units,
            "positions": self.positions,
            "dropout": self.dropout_rate,
        }


@_register
class AnswerText(keras.layers.Layer):
    """The answer as the text has it, character by character.

    Called on `[text, probabilities]`, raw strings `[batch]` and what
    `SpanProbabilities` returns; returns strings `[batch]`: the most probable span of
    at most 30 tokens, or an empty one where nothing is asked.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_jit = False

    def call(self, inputs: list[Any]) -> Any:
        """Returns the answers."""
        text, probabilities = inputs
        start, end = best_span(probabilities)
        parts = pieces(text).to_tensor("")
        steps = tf.range(tf.shape(parts)[1])
        asked = tf.reduce_any(probabilities > 0, axis=[1, 2])[:, None]
        inside = (steps >= start[:, None]) & (steps <= end[:, None]) & asked
        return tf.strings.strip(
            tf.strings.reduce_join(tf.where(inside, parts, ""), axis=-1)
        )


def best_span(probabilities: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the most probable first and last token, int32 `[batch]` each."""
    start, end = tf.unstack(probabilities, axis=1)
    shifted = tf.pad(end, [[0, 0], [0, _MOST_TOKENS - 1]])
    positions = tf.shape(start)[1]
    # [batch, length - 1, start]: the probability of an end so many tokens later.
    ends = tf.stack(
        [shifted[:, more : more + positions] for more in range(_MOST_TOKENS)], axis=1
    )
    spans = tf.reshape(start[:, None, :] * ends, [tf.shape(start)[0], -1])
    best = tf.argmax(spans, axis=-1, output_type=tf.int32)
    first = best % positions
    return first, first + best // positions


def _softmax(scores: Any, mask: Any) -> Any:
    """Returns the softmax over unmasked places; zeros where all are masked."""
    lowest = ops.cast(-1e4, scores.dtype)
    weights = ops.softmax(ops.where(mask, scores, lowest), axis=-1)
    return weights * ops.cast(mask, scores.dtype)
