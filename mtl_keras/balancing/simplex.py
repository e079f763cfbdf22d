"""Points of the probability simplex over the tasks in a batch."""

from __future__ import annotations

import tensorflow as tf


def project_to_simplex(values: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Returns the nearest point of the simplex, `[T]`; absent tasks get 0.

    By sorting: Duchi et al., "Efficient Projections onto the ℓ1-Ball", ICML 2008.

    Args:
        values: Float `[T]`.
        present: bool `[T]`. With none present the result is all zeros.
    """
    # The projection does not change when all values are shifted; a largest value of
    # zero keeps the 1 below from being rounded away.
    values -= tf.reduce_max(tf.where(present, values, values.dtype.min))
    # Out of reach: what lies 1 or more below the largest is projected to zero.
    values = tf.where(present, values, -2.0)
    ordered = tf.sort(values, direction="DESCENDING")
    ranks = tf.range(1, values.shape[0] + 1, dtype=values.dtype)
    excess = (tf.cumsum(ordered) - 1.0) / ranks
    support = tf.reduce_sum(tf.cast(ordered > excess, "int32"))
    threshold = tf.gather(excess, tf.maximum(support - 1, 0))
    return tf.where(present, tf.maximum(values - threshold, 0.0), 0.0)


def over_present(shares: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Returns the shares of the present tasks, divided by their sum, `[T]`.

    Args:
        shares: Non-negative float `[T]`. Equal where the present ones are all zero.
        present: bool `[T]`. With none present the result is all zeros.
    """
    equal = tf.cast(present, shares.dtype)
    kept = equal * shares
    kept = tf.where(tf.reduce_sum(kept) > 0, kept, equal)
    return tf.math.divide_no_nan(kept, tf.reduce_sum(kept))
