"""Vocabularies, learnt from training texts."""

from __future__ import annotations

import collections
import dataclasses

import keras
import numpy as np
import tensorflow as tf

from mtl_keras.applications.text.decoder import END_ID, SPECIAL, UNKNOWN, UNKNOWN_ID
from mtl_keras.applications.text.tokens import SEPARATOR, tokens

_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Tokens of some texts, and how often they occur.

    Attributes:
        words: Known tokens, the most frequent first.
        counts: How often each occurs.
        unknown: How often others occur.
        texts: Number of the texts.
    """

    words: list[str]
    counts: list[int]
    unknown: int
    texts: int


def learn(texts: tf.data.Dataset, size: int, lowercase: bool) -> Vocabulary:
    """Counts tokens, and keeps the most frequent ones.

    As `keras.layers.StringLookup.adapt` finds them, and several times faster.

    Args:
        texts: Strings, one by one.
        size: How many tokens at most.
        lowercase: Whether to bring texts to lower case first.
    """

    def count(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        unique, _, counts = tf.unique_with_counts(tokens(batch, lowercase).flat_values)
        return unique, counts, tf.size(batch)

    batches = texts.batch(_BATCH).map(count, num_parallel_calls=tf.data.AUTOTUNE)
    total: collections.Counter[bytes] = collections.Counter()
    number = 0
    for unique, counts, batch in batches.as_numpy_iterator():
        total.update(dict(zip(unique.tolist(), counts.tolist(), strict=True)))
        number += int(batch)
    # Equally frequent ones in an order of their own: that of the alphabet.
    order = sorted(total, key=lambda token: (-total[token], token))
    known = [total[token] for token in order[:size]]
    return Vocabulary(
        [token.decode("utf-8") for token in order[:size]],
        known,
        total.total() - sum(known),
        number,
    )


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


def log_shares(target: Vocabulary) -> np.ndarray:
    """Returns the logarithm of each target id's share of all tokens, float32.

    Every text ends in `[END]`; ids that never occur count as half a token.
    """
    counts = np.full(len(SPECIAL) + len(target.words), 0.5, "float32")
    counts[UNKNOWN_ID] += target.unknown
    counts[END_ID] += target.texts
    counts[len(SPECIAL) :] = target.counts
    return np.log(counts / counts.sum())
