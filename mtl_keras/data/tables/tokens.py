"""Tokens of texts, by Keras's own layer."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

_BATCH = 1024
_LONGEST = 512


def tokens_layer(
    by: str,
    length: int | None = None,
    vocabulary: Sequence[str] | None = None,
    **kwargs,
) -> keras.layers.TextVectorization:
    """Returns the layer from texts `[batch]` to ids of tokens `[batch, length]`.

    Words are in lower case and without punctuation; characters are as they stand.
    0 is padding, 1 an unknown token.

    Args:
        by: `"word"` or `"character"`.
        length: Tokens that are read; None for all.
        vocabulary: The tokens that are known; None before `adapt`.
        **kwargs: See `keras.layers.TextVectorization`.
    """
    return keras.layers.TextVectorization(
        standardize="lower_and_strip_punctuation" if by == "word" else None,
        split="whitespace" if by == "word" else "character",
        output_sequence_length=length,
        vocabulary=None if vocabulary is None else list(vocabulary),
        **kwargs,
    )


def learn_tokens(
    texts: Sequence[str], by: str, size: int
) -> tuple[tuple[str, ...], int]:
    """Returns the most frequent tokens, and how many the longer texts have.

    Args:
        texts: The training texts.
        by: `"word"` or `"character"`.
        size: Number of tokens at most.

    Returns:
        The tokens, most frequent first, and the 95th percentile of the texts'
        lengths, at most 512.
    """
    layer = tokens_layer(by, max_tokens=size + 2)
    layer.adapt(tf.data.Dataset.from_tensor_slices(list(texts) or [""]).batch(_BATCH))
    vocabulary = [str(token) for token in layer.get_vocabulary()[2:]]
    lengths = [len(text.split()) if by == "word" else len(text) for text in texts]
    longer = int(np.quantile(lengths, 0.95)) if lengths else 1
    return tuple(vocabulary), min(max(longer, 1), _LONGEST)
