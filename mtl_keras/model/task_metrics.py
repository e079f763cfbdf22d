"""Metrics without absent labels, and their logged results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtl_keras.errors import InputError
from mtl_keras.model.arguments import naming_output
from mtl_keras.model.column_metrics import ColumnMetric, r2_is_defined
from mtl_keras.model.keras_compat import (
    ResolvedMetrics,
    mask_of,
    metric_function,
    with_mask,
)
from mtl_keras.model.labels import Labels, fitted, gathered, or_the_first
from mtl_keras.model.task_losses import axes, check_axes, element_values

# Metrics of Keras that count elements, each with a weight of its own.
_OF_ELEMENTS = (
    keras.metrics.AUC,
    keras.metrics.FalseNegatives,
    keras.metrics.FalsePositives,
    keras.metrics.Precision,
    keras.metrics.PrecisionAtRecall,
    keras.metrics.R2Score,
    keras.metrics.Recall,
    keras.metrics.RecallAtPrecision,
    keras.metrics.SensitivityAtSpecificity,
    keras.metrics.SpecificityAtSensitivity,
    keras.metrics.TrueNegatives,
    keras.metrics.TruePositives,
)


class LabelledBatches(keras.metrics.Metric):
    """Counts, by output, the batches with a label.

    Args:
        outputs: Names of all outputs.
    """

    def __init__(self, outputs: Sequence[str], name: str = "labelled_batches"):
        super().__init__(name=name, dtype="float32")
        self.outputs = tuple(outputs)
        shape = (len(self.outputs),)
        self._count = self.add_weight(shape=shape, initializer="zeros", name="count")

    def update_state(self, labelled: dict[str, tf.Tensor | None]) -> None:
        """Adds a batch: bool by output; None where all is labelled."""
        flags = [
            tf.constant(True) if labelled[output] is None else labelled[output]
            for output in self.outputs
        ]
        some = tf.stack([tf.reduce_any(flag) for flag in flags])
        self._count.assign_add(tf.cast(some, "float32"))

    def result(self) -> dict[str, tf.Tensor]:
        """Returns the counts by output, float32 scalars."""
        counts = tf.unstack(tf.convert_to_tensor(self._count))
        return dict(zip(self.outputs, counts, strict=True))


def update_metrics(
    metrics: dict[str, ResolvedMetrics], labels: Labels, y_pred: dict[str, Any]
) -> None:
    """Updates `metrics` on labelled elements, and `weighted_metrics` as Keras does.

    Without sample weights both are Keras's. With them, Keras's own metrics get them
    (`metrics`: 1 for labelled elements) in the form that each wants; a metric of one
    number for a batch, and in `metrics` one that is not Keras's, sees the labelled
    samples or elements alone.

    Args:
        metrics: `keras_compat.resolved_metrics`' result.
        labels: The batch's labels.
        y_pred: The model's outputs.
    """
    outputs = sorted(y_pred)
    for task, resolved in metrics.items():
        y, output, labelled = labels.y[task], y_pred[task], labels.labelled[task]
        with naming_output(outputs.index(task), outputs):
            if labelled is None:
                for metric in (*resolved.unweighted, *resolved.weighted):
                    metric.update_state(y, output)
                continue
            for metric in resolved.unweighted:
                ones = tf.cast(labelled, metric.dtype)
                if not _update_weighted(task, metric, y, output, labelled, ones):
                    _update_on_labelled(metric, y, output, labelled)
            weight = labels.weights[task]
            for metric in resolved.weighted:
                if not _update_weighted(task, metric, y, output, labelled, weight):
                    metric.update_state(y, output, sample_weight=weight)


def where_computed(
    results: dict[str, Any],
    means: Sequence[keras.metrics.Mean],
    outputs: dict[str, str],
    batches: LabelledBatches,
) -> dict[str, Any]:
    """Returns the logged results, NaN in place of 0 where no batch had a label.

    Args:
        results: The results of all metrics by name.
        means: The metrics that log losses.
        outputs: The output of each metric of `compile` by name.
        batches: How many batches had a label.
    """
    counts = {mean.name: mean.count for mean in means}
    by_output = batches.result()
    counts |= {name: by_output[output] for name, output in outputs.items()}
    return {
        name: _nan_without(counts[name], result) if name in counts else result
        for name, result in results.items()
    }


def with_logs(results: dict[str, Any], logs: dict[str, Any]) -> dict[str, Any]:
    """Returns the results of metrics with further logs of a step.

    Raises:
        InputError: For a metric that has the name of one of these.
    """
    for name in logs:
        if name in results:
            raise InputError(
                f"Expected metrics of other names than {sorted(logs)}, which the "
                f"balancing logs. Received a metric that is logged as {name!r}; give "
                "it another name."
            )
    return {**results, **logs}


def has_value(metric: keras.metrics.Metric) -> bool:
    """Returns whether a metric has a value on the labels that it has seen.

    The area under a curve has none without both classes, where Keras gives 0 (or 1),
    and R² none for labels that are all the same, where it gives 0 or what rounding
    makes of 0 / 0.
    """
    if isinstance(metric, keras.metrics.AUC):
        hits, misses, alarms, rejections = (
            np.asarray(variable)
            for variable in (
                metric.true_positives,
                metric.false_negatives,
                metric.false_positives,
                metric.true_negatives,
            )
        )
        return bool((hits + misses).any() and (alarms + rejections).any())
    # Its sums are made with the first labels.
    if isinstance(metric, keras.metrics.R2Score) and hasattr(metric, "squared_sum"):
        return bool(r2_is_defined(metric).numpy().any())
    return True


def _nan_without(count: Any, result: Any) -> Any:
    """Returns a metric's result, NaN where the count is 0 and the result of floats.

    Results may be Python's numbers, and dicts of several.
    """

    def replaced(value: Any) -> Any:
        value = tf.convert_to_tensor(value)
        if not value.dtype.is_floating:
            return value
        return tf.where(tf.convert_to_tensor(count) > 0, value, np.nan)

    return keras.tree.map_structure(replaced, result)


def _update_weighted(
    task: str,
    metric: keras.metrics.Metric,
    y: tf.Tensor,
    y_pred: Any,
    labelled: tf.Tensor,
    weight: tf.Tensor,
) -> bool:
    """Updates a metric of Keras by weights; returns False for another metric."""
    weight = fitted(weight, 1)
    wrapped = metric_function(metric)
    if isinstance(metric, ColumnMetric):
        metric.update_state(y, y_pred, sample_weight=weight)
    elif wrapped is not None:
        _update_mean(task, metric, wrapped, y, y_pred, fitted(labelled, 1), weight)
    elif isinstance(metric, _OF_ELEMENTS):
        weight = fitted(weight, _common_rank(y, y_pred))
        metric.update_state(y, y_pred, sample_weight=weight)
    elif isinstance(metric, keras.metrics.IoU):
        # It takes as many weights as labels.
        shape = tf.shape(y) if metric.sparse_y_true else tf.shape(y)[:-1]
        rank = len(y.shape) - (not metric.sparse_y_true)
        weight = tf.broadcast_to(fitted(weight, rank), shape)
        metric.update_state(y, y_pred, sample_weight=weight)
    elif isinstance(metric, keras.metrics.FBetaScore):
        if axes(weight) > 1:
            raise InputError(
                f"Expected sample weights of {task!r} with one axis, as its metric "
                f"{metric.name!r} has one weight for a sample. Received sample weights "
                f"of shape {tuple(weight.shape)}."
            )
        metric.update_state(y, y_pred, sample_weight=weight)
    else:
        return False
    return True


def _update_mean(
    task: str,
    metric: keras.metrics.Metric,
    wrapped: tuple[Callable[[Any, Any], Any], Any],
    y: tf.Tensor,
    y_pred: Any,
    labelled: tf.Tensor,
    weight: tf.Tensor,
) -> None:
    """Updates a mean of a function's values, as `MeanMetricWrapper` does."""
    function, elementary = wrapped
    mask = mask_of(y_pred)
    rank = max(axes(weight), axes(mask))
    over_batch = _covers_batch(function, y_pred)
    if not over_batch:
        values = element_values(function, y, y_pred, rank, elementary)
        over_batch = len(values.shape) == 0
    if over_batch:
        # The labelled samples alone, and once where there is none.
        entries = or_the_first(labelled)
        value = function(tf.boolean_mask(y, entries), gathered(entries, y_pred))
        value = tf.reduce_mean(value)
        value = tf.where(tf.reduce_any(labelled), value, tf.zeros_like(value))
        total = tf.reduce_sum(tf.cast(weight, value.dtype))
        keras.metrics.Mean.update_state(metric, value, sample_weight=total)
        return
    check_axes(f"metric {metric.name!r}", task, values, weight, mask)
    own_mask = mask_of(values)
    of_values = fitted(labelled, len(values.shape))
    values = tf.where(of_values, values, tf.zeros_like(values))
    if mask is not None:
        mask = tf.cast(fitted(mask, rank), metric.dtype)
        weight = tf.cast(fitted(weight, rank), metric.dtype) * mask
    keras.metrics.Mean.update_state(
        metric, with_mask(values, own_mask), sample_weight=weight
    )


def _covers_batch(function: Any, y_pred: Any) -> bool:
    """Returns whether a metric's function combines samples, by its `axis`."""
    axis = getattr(function, "keywords", {}).get("axis")
    axes_of_function = axis if isinstance(axis, (list, tuple)) else [axis]
    return any(one in (0, -len(y_pred.shape)) for one in axes_of_function)


def _update_on_labelled(
    metric: keras.metrics.Metric, y: tf.Tensor, y_pred: Any, labelled: tf.Tensor
) -> None:
    """Updates a metric on labelled elements alone; not at all without any."""
    labelled = fitted(labelled, 1)

    def update() -> tf.Tensor:
        metric.update_state(tf.boolean_mask(y, labelled), gathered(labelled, y_pred))
        return tf.constant(True)

    tf.cond(tf.reduce_any(labelled), update, lambda: tf.constant(False))


def _common_rank(y: tf.Tensor, y_pred: Any) -> int:
    """Returns the rank to which Keras brings labels and outputs."""
    lower, higher = sorted((len(y.shape), len(y_pred.shape)))
    return higher if lower in (1, higher) else lower
