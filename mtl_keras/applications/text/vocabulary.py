"""Vocabularies, learnt from training texts."""

from __future__ import annotations

import collections

import keras
import tensorflow as tf

from mtl_keras.applications.text.decoder import SPECIAL, UNKNOWN
from mtl_keras.applications.text.tokens import SEPARATOR, tokens

_BATCH = 1024


def learn(texts: tf.data.Dataset, size: int, lowercase: bool) -> list[str]:
    """Returns the most frequent tokens, the most frequent first.

    As `keras.layers.StringLookup.adapt` finds them, and several times faster.

    Args:
        texts: Strings, one by one.
        size: How many tokens at most.
        lowercase: Whether to bring texts to lower case first.
    """

    def count(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found, _, counts = tf.unique_with_counts(tokens(batch, lowercase).flat_values)
        return found, counts

    batches = texts.batch(_BATCH).map(count, num_parallel_calls=tf.data.AUTOTUNE)
    total: collections.Counter[bytes] = collections.Counter()
    for found, counts in batches.as_numpy_iterator():
        total.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
    # Equally frequent ones in an order of their own: that of the alphabet.
    order = sorted(total, key=lambda token: (-total[token], token))
    return [token.decode("utf-8") for token in order[:size]]


def source_lookup(words: list[str], buckets: int) -> keras.layers.Layer:
    """Returns the layer from source tokens to ids.

    Unknown tokens share some ids by their hash, so that a rare name is still
    recognised where it occurs again.

    Args:
        words: The known tokens.
        buckets: Number of ids for all others.
    """
    return keras.layers.StringLookup(
        vocabulary=[SEPARATOR, *words],
        mask_token="",
        num_oov_indices=buckets,
        name="token_ids",
    )


def target_lookup(words: list[str]) -> keras.layers.Layer:
    """Returns the layer from target tokens to ids; see `decoder.SPECIAL`."""
    return keras.layers.StringLookup(
        vocabulary=[*SPECIAL[2:], *words],
        mask_token="",
        oov_token=UNKNOWN,
        name="target_ids",
    )
