"""Rows that belong to the same id."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from mtl_keras.ops import native


class Segments(NamedTuple):
    """The distinct ids among `N`.

    Outside XLA there are as many segments `S` as distinct ids. XLA knows static shapes
    alone: there `S` is `N`, and the ids of the segments that are left over are those of
    the first one.

    Attributes:
        ids: `[S]`, the id of each segment.
        order: int32 `[N]`, the rows by segment; None as they are.
        segment: int32 `[N]`, the segment of each row in that order.
        size: `S`.
        source: int32 `[S]`, the segment itself; of those left over, the first; None
            where none is.
    """

    ids: tf.Tensor
    order: tf.Tensor | None
    segment: tf.Tensor
    size: tf.Tensor
    source: tf.Tensor | None

    def ordered(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns `[N, ...]` rows in the order of `segment`."""
        return rows if self.order is None else tf.gather(rows, self.order)

    def sums(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns the sums of `[N, ...]` rows by segment, `[S, ...]`."""
        total = self.sums_once(rows)
        return total if self.source is None else tf.gather(total, self.source)

    def sums_once(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns `sums`, but 0 for segments that are left over."""
        return tf.math.unsorted_segment_sum(self.ordered(rows), self.segment, self.size)


def segments(ids: tf.Tensor) -> Segments:
    """Returns the distinct values of an integer tensor, `[N]`."""
    if not native.in_xla():
        distinct, segment = tf.unique(ids)
        return Segments(distinct, None, segment, tf.size(distinct), None)
    # XLA makes a loop over all ids of `tf.unique`, and shapes that are not static.
    order = tf.argsort(ids, stable=True)
    ordered = tf.gather(ids, order)
    is_first = tf.concat([[True], ordered[1:] != ordered[:-1]], axis=0)
    segment = tf.cumsum(tf.cast(is_first, tf.int32)) - 1
    size = tf.size(ids)
    positions = tf.range(size)
    source = tf.where(positions <= segment[-1], positions, 0)
    first = tf.sort(tf.where(is_first, positions, size))
    distinct = tf.gather(ordered, tf.gather(first, source))
    return Segments(distinct, order, segment, size, source)
