"""Arithmetic on lists of gradients, each a tensor, `tf.IndexedSlices` or None."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mtl_keras.model.labels import replicas

Gradient = Any  # tf.Tensor | tf.IndexedSlices | None


def by_id(
    variables: Sequence[keras.Variable], gradients: Sequence[Gradient]
) -> dict[int, Gradient]:
    """Returns gradients by the id of their variable."""
    return {id(v): g for v, g in zip(variables, gradients, strict=True)}


def add(first: Gradient, second: Gradient) -> Gradient:
    """Returns the sum of two gradients of one variable; None counts as zero."""
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, tf.IndexedSlices) and isinstance(second, tf.IndexedSlices):
        return tf.IndexedSlices(
            tf.concat([first.values, second.values], 0),
            tf.concat([first.indices, second.indices], 0),
            first.dense_shape,
        )
    return tf.convert_to_tensor(first) + tf.convert_to_tensor(second)


def scaled(gradient: Gradient, factor: Any) -> Gradient:
    """Returns a gradient times a scalar, or a vector over its last axis."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(
            gradient.values * tf.cast(factor, gradient.values.dtype),
            gradient.indices,
            gradient.dense_shape,
        )
    return gradient * tf.cast(factor, gradient.dtype)


def masked(
    rows: list[list[Gradient]], kept: Sequence[tf.Tensor]
) -> list[list[Gradient]]:
    """Returns gradients, all zero where not kept.

    Args:
        rows: By task, or by output.
        kept: As many bool scalars, or vectors over the last axis of the gradients.
    """
    return [
        [_where(keep, gradient) for gradient in row]
        for keep, row in zip(kept, rows, strict=True)
    ]


def _where(keep: tf.Tensor, gradient: Gradient) -> Gradient:
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        values = tf.where(keep, gradient.values, tf.zeros_like(gradient.values))
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return tf.where(keep, gradient, tf.zeros_like(gradient))


def times(
    rows: list[list[Gradient]], factors: Sequence[tf.Tensor]
) -> list[list[Gradient]]:
    """Returns gradients times their factors.

    Args:
        rows: By task, or by output.
        factors: As many scalars, or vectors over the last axis of the gradients.
    """
    return [
        [scaled(gradient, factor) for gradient in row]
        for factor, row in zip(factors, rows, strict=True)
    ]


def sum_of(rows: list[list[Gradient]]) -> list[Gradient]:
    """Returns the sum of rows of gradients; None counts as zero."""
    return [functools.reduce(add, column) for column in zip(*rows, strict=True)]


def inner_product(first: list[Gradient], second: list[Gradient]) -> tf.Tensor:
    """Returns ⟨first, second⟩ with the second held, float32 scalar.

    Args:
        first: Tensors, or None for zero.
        second: As many, in the same shapes.
    """
    products = [tf.zeros(())]
    for one, other in zip(first, second, strict=True):
        if one is not None and other is not None:
            held = tf.cast(tf.stop_gradient(other), "float32")
            products.append(tf.reduce_sum(tf.cast(one, "float32") * held))
    return tf.add_n(products)


def sum_rows(rows: list[list[Gradient]]) -> list[list[Gradient]]:
    """Returns the task gradients of the whole batch: summed over replicas."""
    if replicas() == 1:
        return rows
    return [_sum_row(row) for row in rows]


def _sum_row(row: list[Gradient]) -> list[Gradient]:
    """Returns one task's gradients, summed over replicas.

    In a call of its own: devices sum one task's gradients while they compute those of
    the next, where one call for all of them would wait for the last.
    """
    context = tf.distribute.get_replica_context()
    flat = [gradient for gradient in row if gradient is not None]
    reduced = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, flat) if flat else ())
    return [None if gradient is None else next(reduced) for gradient in row]


def unit_upstream(
    gradients: list[Gradient], totals: list[Gradient], norm: tf.Tensor
) -> list[tf.Tensor]:
    """Returns totals / norm, as gradients of the entries that each gradient holds.

    Args:
        gradients: By variable, this replica's, none of them None.
        totals: The same summed over replicas.
        norm: Scalar; where it is 0 the result is 0.
    """
    factor = tf.cast(tf.math.divide_no_nan(tf.ones_like(norm), norm), "float32")
    upstream = []
    for gradient, total in zip(gradients, totals, strict=True):
        if not isinstance(gradient, tf.IndexedSlices):
            rows = tf.convert_to_tensor(total)
        elif replicas() == 1:
            rows = _sums_of_same_ids(gradient)
        else:
            rows = tf.gather(tf.convert_to_tensor(total), gradient.indices)
        upstream.append(rows * tf.cast(factor, rows.dtype))
    return upstream


def _sums_of_same_ids(slices: tf.IndexedSlices) -> tf.Tensor:
    """Returns for each of the slices' rows the sum of all rows of the same id.

    The cost follows the number of rows, not the size of the table.
    """
    order = tf.argsort(slices.indices, stable=True)
    ids = tf.gather(slices.indices, order)
    segments = tf.cumsum(tf.cast(tf.not_equal(ids[1:], ids[:-1]), "int32"))
    segments = tf.concat([tf.zeros(tf.minimum(tf.shape(ids), 1), "int32"), segments], 0)
    sums = tf.math.unsorted_segment_sum(
        tf.gather(slices.values, order), segments, tf.size(ids)
    )
    return tf.gather(sums, tf.gather(segments, tf.argsort(order)))
