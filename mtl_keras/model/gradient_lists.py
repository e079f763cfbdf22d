"""Arithmetic on lists of gradients, each a tensor, `tf.IndexedSlices` or None."""

from __future__ import annotations

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
    """Returns a gradient times a scalar."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(
            gradient.values * tf.cast(factor, gradient.values.dtype),
            gradient.indices,
            gradient.dense_shape,
        )
    return gradient * tf.cast(factor, gradient.dtype)


def masked(rows: list[list[Gradient]], kept: tf.Tensor) -> list[list[Gradient]]:
    """Returns task gradients, all zero where a task is not kept (bool `[T]`)."""
    return [
        [_where(keep, gradient) for gradient in row]
        for keep, row in zip(tf.unstack(kept), rows, strict=True)
    ]


def _where(keep: tf.Tensor, gradient: Gradient) -> Gradient:
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        values = tf.where(keep, gradient.values, tf.zeros_like(gradient.values))
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return tf.where(keep, gradient, tf.zeros_like(gradient))


def times(rows: list[list[Gradient]], factors: tf.Tensor) -> list[list[Gradient]]:
    """Returns task gradients times a factor for each task, `[T]`."""
    return [
        [scaled(gradient, factor) for gradient in row]
        for factor, row in zip(tf.unstack(factors), rows, strict=True)
    ]


def sum_rows(rows: list[list[Gradient]]) -> list[list[Gradient]]:
    """Returns the task gradients of the whole batch: summed over replicas."""
    if replicas() == 1:
        return rows
    context = tf.distribute.get_replica_context()
    flat = [gradient for row in rows for gradient in row if gradient is not None]
    reduced = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, flat))
    return [[None if g is None else next(reduced) for g in row] for row in rows]
