"""From raw strings to tokens and back, by stock TensorFlow operations alone."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

_register = keras.saving.register_keras_serializable(package="mtl_keras")

# A run of letters and digits, or one other character.
_TOKEN = r"[\p{L}\p{N}\p{M}]+|[^\s\p{L}\p{N}\p{M}]"
_END_OF_TOKEN = "\x1f"
_NO_TEXT = r"<br\s*/?>|[\p{C}\p{Z}]"

SEPARATOR = "[SEP]"
START, END = "[START]", "[END]"

PADDING, QUESTION, BOUNDARY, TEXT, MATCH = range(5)
"""Kinds of positions. `MATCH` is a token of the text that is in the question."""


def cleaned(text: tf.Tensor) -> tf.Tensor:
    """Returns strings normalised for tokenisation.

    HTML line breaks, control characters and white space of any kind are a space each,
    and bytes that are not UTF-8 are U+FFFD.

    Args:
        text: Strings of any shape.
    """
    text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8")
    return tf.strings.regex_replace(text, _NO_TEXT, " ")


def pieces(text: tf.Tensor) -> tf.RaggedTensor:
    """Returns the tokens of strings, each with the white space before it.

    Joined again, the pieces are the cleaned string, less white space at its end.

    Args:
        text: Strings, `[batch]`.

    Returns:
        Strings, `[batch, (tokens)]`.
    """
    return _cut(cleaned(text))


def _cut(text: tf.Tensor) -> tf.RaggedTensor:
    # The whole match, and not a group: finding groups takes RE2 seven times as long.
    marked = tf.strings.regex_replace(text, _TOKEN, r"\0" + _END_OF_TOKEN)
    # What follows the last token is white space.
    return tf.strings.split(marked, _END_OF_TOKEN)[:, :-1]


def tokens(text: tf.Tensor, lowercase: bool) -> tf.RaggedTensor:
    """Returns the tokens of strings `[batch]`, as strings `[batch, (tokens)]`."""
    text = cleaned(text)
    if lowercase:
        # After the cleaning: TensorFlow's `lower` cuts strings at a zero byte.
        text = tf.strings.lower(text, encoding="utf-8")
    parts = _cut(text)
    return parts.with_flat_values(tf.strings.strip(parts.flat_values))


def joined(words: tf.Tensor) -> tf.Tensor:
    """Returns tokens as text: no space before a comma, none around a hyphen.

    Args:
        words: Strings, `[batch, length]`, empty where there is no token.
    """
    text = tf.strings.strip(tf.strings.reduce_join(words, axis=-1, separator=" "))
    text = tf.strings.regex_replace(text, r" ([.,;:!?%)\]])", r"\1")
    text = tf.strings.regex_replace(text, r"([(\[]) ", r"\1")
    return tf.strings.regex_replace(text, r" ([-/'’]) ", r"\1")


@_register
class QuestionAndText(keras.layers.Layer):
    """Tokens of a question and a text as one sequence.

    Called on `[text, question]`, raw strings `[batch]`. A sample without a question
    (an empty string) is its text alone, one with a question is question, separator
    and text. Tokens are in lower case.

    Args:
        text_length: Tokens of a text to keep.
        question_length: Tokens of a question to keep.
        **kwargs: See `keras.layers.Layer`.

    Returns:
        Tokens, strings `[batch, length]`, and their kinds, int32 `[batch, length]`.
    """

    def __init__(
        self, text_length: int = 512, question_length: int = 48, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.text_length = text_length
        self.question_length = question_length
        self.supports_jit = False

    def call(self, inputs: list[Any]) -> tuple[Any, Any]:
        """Returns tokens and kinds."""
        text, question = inputs
        body = tokens(text, lowercase=True)[:, : self.text_length]
        asked = tokens(question, lowercase=True)[:, : self.question_length]
        has_question = tf.cast(asked.row_lengths() > 0, tf.int64)
        boundary = tf.RaggedTensor.from_row_lengths(
            tf.fill([tf.reduce_sum(has_question)], SEPARATOR), has_question
        )
        kinds = tf.concat(
            [
                _constant(asked, QUESTION),
                _constant(boundary, BOUNDARY),
                body.with_flat_values(TEXT + _matches(body, asked)),
            ],
            axis=1,
        )
        sequence = tf.concat([asked, boundary, body], axis=1)
        return _at_least_one(sequence.to_tensor("")), _at_least_one(kinds.to_tensor(0))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "text_length": self.text_length,
            "question_length": self.question_length,
        }


@_register
class TargetTokens(keras.layers.Layer):
    """Tokens of a translation, with `[END]` behind them.

    Called on raw strings `[batch]`; returns strings `[batch, length]`, `length` being
    1 or more. Case is kept.

    Args:
        length: Tokens to keep, `[END]` not counted.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, length: int = 60, **kwargs: Any):
        super().__init__(**kwargs)
        self.length = length
        self.supports_jit = False

    def call(self, inputs: Any) -> Any:
        """Returns the tokens."""
        words = tokens(inputs, lowercase=False)[:, : self.length]
        end = tf.fill(tf.stack([words.nrows(), 1]), END)
        return tf.concat([words, end], axis=1).to_tensor("")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "length": self.length}


def _constant(ragged: tf.RaggedTensor, kind: int) -> tf.RaggedTensor:
    return ragged.with_flat_values(tf.fill(tf.shape(ragged.flat_values), kind))


def _matches(body: tf.RaggedTensor, asked: tf.RaggedTensor) -> tf.Tensor:
    """Returns 1 for each flat token of the body that is in its question, else 0."""
    hashed = [
        ragged.with_flat_values(
            tf.strings.to_hash_bucket_fast(ragged.flat_values, 2**31)
        )
        for ragged in (body, asked)
    ]
    rows = body.value_rowids()
    # -1 is no hash: padding of the questions matches nothing.
    questions = tf.gather(hashed[1].to_tensor(-1), rows)
    equal = tf.equal(hashed[0].flat_values[:, None], questions)
    return tf.cast(tf.reduce_any(equal, axis=-1), tf.int32)


def _at_least_one(dense: tf.Tensor) -> tf.Tensor:
    """Returns `[batch, 1 or more]`: a batch of length 0 gets one padding position."""
    return tf.pad(
        dense,
        [[0, 0], [0, tf.maximum(1 - tf.shape(dense)[1], 0)]],
        constant_values="" if dense.dtype == tf.string else 0,
    )
