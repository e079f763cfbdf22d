"""Mean losses by epoch, for methods that compare epochs."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf


class EpochMeans:
    """The tasks' mean losses over the batches of each epoch that had labels.

    A task without any label in an epoch keeps its older means.

    Args:
        add_variable: `Balancer.add_variable`.
        num_tasks: T.

    Attributes:
        last: float32 `[T]`, means of the last closed epoch; 1 before.
        before_last: float32 `[T]`, means of the epoch before; 1 before.
        epochs: float32 `[T]`, closed epochs in which the task was seen.
    """

    def __init__(self, add_variable: Callable[..., keras.Variable], num_tasks: int):
        shape = (num_tasks,)
        self._sum = add_variable("loss_sum", shape, 0.0)
        self._batches = add_variable("batches", shape, 0.0)
        self.last = add_variable("last_epoch_loss", shape, 1.0)
        self.before_last = add_variable("before_last_epoch_loss", shape, 1.0)
        self.epochs = add_variable("epochs", shape, 0.0)

    def add(self, losses: tf.Tensor, present: tf.Tensor) -> None:
        """Adds a batch to the present epoch.

        Args:
            losses: float32 `[T]`.
            present: bool `[T]`.
        """
        counts = present & tf.math.is_finite(losses)
        self._sum.assign_add(tf.where(counts, losses, 0.0))
        self._batches.assign_add(tf.cast(counts, "float32"))

    def close_epoch(self) -> None:
        """Ends the present epoch for the tasks that it has seen."""
        seen = self._batches > 0
        mean = tf.math.divide_no_nan(
            tf.convert_to_tensor(self._sum), tf.convert_to_tensor(self._batches)
        )
        self.before_last.assign(tf.where(seen, self.last, self.before_last))
        self.last.assign(tf.where(seen, mean, self.last))
        self.epochs.assign_add(tf.cast(seen, "float32"))
        self._sum.assign(tf.zeros_like(self._sum))
        self._batches.assign(tf.zeros_like(self._batches))
