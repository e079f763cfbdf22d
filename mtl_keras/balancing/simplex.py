"""Projection onto the probability simplex."""

from __future__ import annotations

import tensorflow as tf


def project_to_simplex(values: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Returns the nearest point of the simplex, `[T]`; absent tasks get 0.

    By sorting: Duchi et al., "Efficient Projections onto the ℓ1-Ball", ICML 2008.

    Args:
        values: Float `[T]`.
        present: bool `[T]`. With none present the result is all zeros.
    """
    low = tf.reduce_min(values) - 2.0 * (
        1.0 + tf.reduce_max(values) - tf.reduce_min(values)
    )
    # Far below all others, where the projection sets them to zero by itself.
    values = tf.where(present, values, low)
    ordered = tf.sort(values, direction="DESCENDING")
    ranks = tf.range(1, values.shape[0] + 1, dtype=values.dtype)
    excess = (tf.cumsum(ordered) - 1.0) / ranks
    support = tf.reduce_sum(tf.cast(ordered > excess, "int32"))
    threshold = tf.gather(excess, tf.maximum(support - 1, 0))
    return tf.where(present, tf.maximum(values - threshold, 0.0), 0.0)
