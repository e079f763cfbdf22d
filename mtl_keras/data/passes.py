"""Data sets whose order is a function of a seed and of the epoch's number."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def by_epoch(
    one_epoch: Callable[[tf.Tensor], tf.data.Dataset],
    count: int,
    epoch: tf.Variable | None = None,
    first_epoch: int = 0,
) -> tf.data.Dataset:
    """Returns a data set that gives an epoch of its own each time it is iterated.

    Args:
        one_epoch: From the number of an epoch, int64, to its elements.
        count: Number of elements in an epoch.
        epoch: Number of the epoch to give, an int64 scalar that is read when the
            first element is asked for. Keras and distribution strategies make more
            iterators than there are epochs, so a training that can be resumed sets
            it. `None` counts the iterations.
        first_epoch: Number of the first one where they are counted.
    """
    if epoch is None:
        counter = tf.Variable(first_epoch, dtype=tf.int64, trainable=False)
        numbers = tf.data.Dataset.range(1).map(lambda _: counter.assign_add(1) - 1)
    else:
        numbers = tf.data.Dataset.range(1).map(lambda _: epoch.read_value())
    return numbers.flat_map(one_epoch).apply(
        tf.data.experimental.assert_cardinality(count)
    )


def shuffled(
    dataset: tf.data.Dataset, count: int, seed: int, epoch: tf.Variable | None = None
) -> tf.data.Dataset:
    """Returns the elements in a new order each time they are iterated.

    Args:
        dataset: Elements that fit into memory.
        count: How many they are.
        seed: Seed of all orders, which depend on nothing else but the epoch.
        epoch: See `by_epoch`.
    """

    def one_epoch(number: tf.Tensor) -> tf.data.Dataset:
        # The seed of this function's graph: without it, TensorFlow's global seed
        # would take part.
        tf.compat.v1.set_random_seed(seed + 1)
        return dataset.shuffle(
            max(1, count), seed=number, reshuffle_each_iteration=False
        )

    return by_epoch(one_epoch, count, epoch)
