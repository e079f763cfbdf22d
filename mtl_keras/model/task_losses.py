"""Task losses that average over labelled samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from mtl_keras.model.keras_compat import ResolvedLoss
from mtl_keras.model.labels import (
    Labels,
    batch_size,
    replicas,
    sum_over_replicas,
    with_trailing_axes,
)

# Reductions that divide by the number of samples, absent ones included. "sum" and
# "mean_with_sample_weight" leave absent samples out by themselves.
_MEANS_OVER_BATCH = ("sum_over_batch_size", "mean")


class TaskLosses(NamedTuple):
    """The losses of one batch, in the order of the tasks."""

    values: list[tf.Tensor]
    """Scalars: this replica's share, times the static `loss_weights`."""
    present: tf.Tensor
    """bool `[T]`: has the task a label in the batch, on any replica?"""

    def total_over_replicas(self) -> tf.Tensor:
        """Returns the losses of the whole batch, float32 `[T]`, without gradient."""
        values = tf.stack([tf.cast(value, "float32") for value in self.values])
        return sum_over_replicas(tf.stop_gradient(values))


def task_losses(
    losses: dict[str, ResolvedLoss],
    labels: Labels,
    y_pred: dict[str, Any],
    track: bool = True,
    skip_nonfinite: bool = False,
) -> TaskLosses:
    """Computes each task's loss over its labelled samples, and tracks it.

    Keras's value times batch size / labelled samples: the average over labelled
    samples, and Keras's own value where every label is there. The counts are
    summed over replicas.

    Args:
        losses: `keras_compat.resolved_losses`' result.
        labels: The batch's labels.
        y_pred: The model's outputs.
        track: Whether to update the metrics that log the losses.
        skip_nonfinite: Whether these metrics leave out losses that are not finite.
    """
    size = tf.cast(batch_size(y_pred), "float32")
    counts = {task: _count(labels.labelled[task], size) for task in losses}
    factors, present = _over_replicas(labels, counts, size)
    values = []
    for task, resolved in losses.items():
        weight = _fitting_weight(
            resolved.loss, labels.y[task], y_pred[task], labels.weights[task]
        )
        value = resolved.loss(labels.y[task], y_pred[task], weight)
        value = tf.cast(value, "float32")
        averages = resolved.loss.reduction in _MEANS_OVER_BATCH
        if track and resolved.tracker is not None:
            unscaled = value * float(replicas())
            if labels.labelled[task] is None:
                # As Keras does it: its static batch size, which may be unknown.
                count = y_pred[task].shape[0]
            else:
                count = counts[task]
                if averages:
                    unscaled *= tf.math.divide_no_nan(size, count)
            if skip_nonfinite:
                finite = tf.math.is_finite(unscaled)
                unscaled = tf.where(finite, unscaled, 0.0)
                # Without a count a batch counts as one.
                count = tf.cast(1.0 if count is None else count, "float32")
                count = tf.where(finite, count, 0.0)
            resolved.tracker.update_state(unscaled, sample_weight=count)
        if averages and task in factors:
            value *= factors[task]
        if resolved.weight is not None:
            value *= resolved.weight
        values.append(value)
    return TaskLosses(values, present)


def track_total(
    tracker: keras.metrics.Metric,
    losses: TaskLosses,
    added: list[tf.Tensor],
    size: tf.Tensor,
    taking_part: tf.Tensor | None,
) -> None:
    """Updates the metric that logs the whole loss.

    Args:
        tracker: The metric.
        losses: `task_losses`' result.
        added: Regularisation and `add_loss` losses.
        size: Samples in the batch.
        taking_part: None, or bool `[T]`: the losses of the other tasks, and a batch
            in which none is left, do not count.
    """
    values = losses.values
    if taking_part is not None:
        parts = tf.unstack(taking_part)
        values = [
            tf.where(takes_part, value, 0.0)
            for takes_part, value in zip(parts, values, strict=True)
        ]
    total = tf.add_n([*values, *added]) * float(replicas())
    if taking_part is not None:
        counts = tf.reduce_any(taking_part) | ~tf.reduce_any(losses.present)
        counts &= tf.math.is_finite(total)
        total = tf.where(counts, total, 0.0)
        size = tf.where(counts, size, 0)
    tracker.update_state(total, sample_weight=size)


def _fitting_weight(
    loss: keras.losses.Loss, y: Any, y_pred: Any, weight: tf.Tensor | None
) -> tf.Tensor | None:
    """Lets one weight per sample serve a loss with several values per sample.

    Keras multiplies the loss values `[batch, …]` by the weights as they are, which
    for `[batch]` against, say, `[batch, height, width]` is an error.
    """
    if weight is None or len(weight.shape) != 1 or len(y_pred.shape) < 3:
        return weight
    # Only the rank is read; a graph drops the values.
    return with_trailing_axes(weight, len(loss.call(y, y_pred).shape) - 1)


def _count(labelled: tf.Tensor | None, size: tf.Tensor) -> tf.Tensor:
    if labelled is None:
        return size
    return tf.reduce_sum(tf.cast(labelled, "float32"))


def _over_replicas(
    labels: Labels, counts: dict[str, tf.Tensor], size: tf.Tensor
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Returns batch size / labelled samples by task, and which tasks are present."""
    if all(labels.labelled[task] is None for task in counts):
        return {}, tf.ones((len(counts),), "bool")
    *totals, size = tf.unstack(sum_over_replicas(tf.stack([*counts.values(), size])))
    factors = {
        task: tf.math.divide_no_nan(size, total)
        for task, total in zip(counts, totals, strict=True)
        if labels.labelled[task] is not None
    }
    return factors, tf.stack(totals) > 0
