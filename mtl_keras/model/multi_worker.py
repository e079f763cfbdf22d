"""Fixes of `fit` and `evaluate` of Keras 3.15 for MultiWorkerMirroredStrategy.

Two places of its TensorFlow trainer fail there. Before training, it reduces the first
batch over the replicas as if it were one tensor, only to learn the shapes. And after
each step it takes the mean of all results over their first axis, which scalars do not
have. Both are left out again as soon as Keras does without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class MultiWorkerModel(keras.Model):
    """A `keras.Model` that `MultiWorkerMirroredStrategy` can train over machines."""

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None):
        """Builds from the first local batch, which has the shapes of all."""
        if iterator is not None and _over_workers(self.distribute_strategy):
            for _, _, batches in iterator:
                data_batch = keras.tree.map_structure(
                    lambda value: self.distribute_strategy.experimental_local_results(
                        value
                    )[0],
                    next(batches),
                )
                break
            iterator = None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def _make_function(self, step_function: Callable[[Any], Any]) -> Any:
        """Makes Keras's function of steps, with a first axis on each step's results."""
        if not _over_workers(self.distribute_strategy):
            return super()._make_function(step_function)

        def with_axis(data: Any) -> Any:
            return keras.tree.map_structure(
                lambda value: tf.reshape(value, (1, *value.shape)), step_function(data)
            )

        return super()._make_function(with_axis)

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        """Returns an epoch's logs, the metrics among them over all replicas.

        A step logs each replica's own. Keras takes the metrics' results in their
        place only where a step logs nothing else.
        """
        return {**logs, **self.get_metrics_result()}


def _over_workers(strategy: tf.distribute.Strategy) -> bool:
    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and strategy.extended._in_multi_worker_mode()
    )
