"""Metrics that leave absent labels out."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mtl_keras.model.keras_compat import ResolvedMetrics
from mtl_keras.model.labels import Labels, with_trailing_axes

# Stock metrics that count elements, and so want a weight for each element of a
# label with more than one value, where the others want one for each sample.
_COUNTS_ELEMENTS = (
    keras.metrics.AUC,
    keras.metrics.FalseNegatives,
    keras.metrics.FalsePositives,
    keras.metrics.IoU,
    keras.metrics.Precision,
    keras.metrics.Recall,
    keras.metrics.TrueNegatives,
    keras.metrics.TruePositives,
)


def update_metrics(
    metrics: dict[str, ResolvedMetrics], labels: Labels, y_pred: dict[str, Any]
) -> None:
    """Updates `metrics` on labelled samples and `weighted_metrics` as Keras does.

    Args:
        metrics: `keras_compat.resolved_metrics`' result.
        labels: The batch's labels.
        y_pred: The model's outputs.
    """
    for task, resolved in metrics.items():
        y = labels.y[task]
        labelled = labels.labelled[task]
        for metric in resolved.unweighted:
            if labelled is None:
                metric.update_state(y, y_pred[task])
            else:
                mask = _mask_for(metric, labelled, y)
                metric.update_state(y, y_pred[task], sample_weight=mask)
        for metric in resolved.weighted:
            metric.update_state(y, y_pred[task], sample_weight=labels.weights[task])


def _mask_for(
    metric: keras.metrics.Metric, labelled: tf.Tensor, y: tf.Tensor
) -> tf.Tensor:
    mask = tf.cast(labelled, "float32")
    extra = len(y.shape) - 1
    if extra < 1 or not isinstance(metric, _COUNTS_ELEMENTS):
        return mask
    return tf.broadcast_to(with_trailing_axes(mask, extra), tf.shape(y))
