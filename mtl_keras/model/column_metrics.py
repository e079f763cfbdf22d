"""Metrics of an output that is a group of tasks, one number for each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtl_keras.errors import InputError
from mtl_keras.model.keras_compat import metric_function
from mtl_keras.model.labels import fitted
from mtl_keras.model.task_losses import element_values

# Least variance of labels, as a share of their mean square, that is not what rounding
# of float32 sums leaves of labels that are all the same.
_LEAST_VARIANCE = 1e-5


class ColumnMetric(keras.metrics.Metric):
    """A metric with a value for each column, whose result is their mean."""

    def by_column(self) -> tf.Tensor:
        """Returns the value of each column, float `[T]`; NaN where it has none."""
        raise NotImplementedError

    def result(self) -> tf.Tensor:
        """Returns the mean over the columns with a value, 0 without any."""
        values = self.by_column()
        defined = tf.math.is_finite(values)
        count = tf.reduce_sum(tf.cast(defined, values.dtype))
        total = tf.reduce_sum(tf.where(defined, values, 0.0))
        return tf.math.divide_no_nan(total, count)


class ColumnMean(ColumnMetric):
    """A mean over samples for each column, and its mean over columns with a label.

    Args:
        metric: A metric of Keras that is the mean of a function's values, or the
            square root of such a mean.
        num_columns: T.
    """

    def __init__(self, metric: keras.metrics.Metric, num_columns: int):
        super().__init__(name=metric.name, dtype=metric.dtype)
        self._direction = getattr(metric, "_direction", None)
        self._metric = metric
        self._is_root = isinstance(metric, keras.metrics.RootMeanSquaredError)
        if self._is_root:
            metric = keras.metrics.MeanSquaredError(dtype=metric.dtype)
        wrapped = metric_function(metric)
        assert wrapped is not None
        self._function, self._elementary = wrapped
        shape = (num_columns,)
        self._total = self.add_weight(shape=shape, initializer="zeros", name="total")
        self._count = self.add_weight(shape=shape, initializer="zeros", name="count")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch, labels and outputs `[batch, T]`, weights of one or two axes."""
        values = element_values(self._function, y_true, y_pred, 2, self._elementary)
        values = tf.cast(values, self.dtype)
        weight = tf.ones_like(values)
        if sample_weight is not None:
            weight *= tf.cast(fitted(sample_weight, 2), self.dtype)
        values = tf.where(weight > 0, values, 0.0)
        self._total.assign_add(tf.reduce_sum(values * weight, axis=0))
        self._count.assign_add(tf.reduce_sum(weight, axis=0))

    def by_column(self) -> tf.Tensor:
        """Returns the mean of each column, float `[T]`; NaN without a label."""
        count = tf.convert_to_tensor(self._count)
        mean = tf.where(count > 0, self._total / count, np.nan)
        return tf.sqrt(mean) if self._is_root else mean


class ColumnAUC(ColumnMetric, keras.metrics.AUC):
    """The area under each column's ROC or PR curve, and its mean over columns.

    Columns without samples of both classes are left out of the mean.

    Args:
        metric: A Keras AUC, whose thresholds, curve and logits it takes over.
        num_columns: T.
    """

    def __init__(self, metric: keras.metrics.AUC, num_columns: int):
        config = metric.get_config()
        default = (config["curve"], config["summation_method"], metric.multi_label)
        if default not in (
            ("ROC", "interpolation", False),
            ("PR", "interpolation", False),
        ):
            raise InputError(
                "Expected an AUC of the ROC or PR curve, interpolated and without "
                "multi_label, for a group of tasks. Received: "
                f"curve={default[0]!r}, summation_method={default[1]!r}, "
                f"multi_label={default[2]}."
            )
        super().__init__(
            num_thresholds=config["num_thresholds"],
            curve=config["curve"],
            name=metric.name,
            dtype=metric.dtype,
            multi_label=True,
            num_labels=num_columns,
            from_logits=config["from_logits"],
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch, labels and outputs `[batch, T]`, weights of one or two axes."""
        if sample_weight is not None:
            weight = tf.cast(fitted(sample_weight, 2), self.dtype)
            sample_weight = tf.broadcast_to(weight, tf.shape(y_pred))
        super().update_state(y_true, y_pred, sample_weight=sample_weight)

    def by_column(self) -> tf.Tensor:
        """Returns the area of each column, float `[T]`; NaN without both classes."""
        hits, misses, alarms, rejections = (
            tf.convert_to_tensor(variable)
            for variable in (
                self.true_positives,
                self.false_negatives,
                self.false_positives,
                self.true_negatives,
            )
        )
        recall = hits / (hits + misses)
        fallout = alarms / (alarms + rejections)
        if self.get_config()["curve"] == "ROC":
            heights = (recall[:-1] + recall[1:]) / 2.0
            return tf.reduce_sum((fallout[:-1] - fallout[1:]) * heights, axis=0)
        # Between two thresholds hits grow with all that is called positive by a
        # straight line, a + b · called, as Davis and Goadrich have it; precision,
        # b + a / called, is integrated over recall.
        called = hits + alarms
        more, fewer = called[:-1], called[1:]
        slope = tf.math.divide_no_nan(hits[:-1] - hits[1:], more - fewer)
        start = hits[1:] - slope * fewer
        both = (more > 0) & (fewer > 0)
        ratio = tf.where(both, tf.math.divide_no_nan(more, fewer), 1.0)
        areas = slope * (hits[:-1] - hits[1:] + start * tf.math.log(ratio))
        area = tf.reduce_sum(areas, axis=0) / (hits + misses)[0]
        return tf.where((alarms + rejections)[0] > 0, area, np.nan)


class ColumnR2(ColumnMetric):
    """The R² of each column, and its mean over columns whose labels differ.

    Args:
        metric: A `keras.metrics.R2Score`, without adjustment.
        num_columns: T.
    """

    def __init__(self, metric: keras.metrics.R2Score, num_columns: int):
        del num_columns
        super().__init__(name=metric.name, dtype=metric.dtype)
        self._direction = getattr(metric, "_direction", None)
        config = {**metric.get_config(), "class_aggregation": None}
        self._by_column = type(metric).from_config(config)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch, labels and outputs `[batch, T]`, weights of one or two axes."""
        if sample_weight is not None:
            weight = tf.cast(fitted(sample_weight, 2), self.dtype)
            sample_weight = tf.broadcast_to(weight, tf.shape(y_pred))
        self._by_column.update_state(y_true, y_pred, sample_weight)

    def by_column(self) -> tf.Tensor:
        """Returns the score of each column, float `[T]`; NaN where labels are alike."""
        score = tf.convert_to_tensor(self._by_column.result())
        return tf.where(r2_is_defined(self._by_column), score, np.nan)


def r2_is_defined(metric: keras.metrics.R2Score) -> tf.Tensor:
    """Returns for which outputs labels differ, so that R² has a value, bool `[T]`."""
    squares, total = (
        tf.convert_to_tensor(variable) for variable in (metric.squared_sum, metric.sum)
    )
    count = tf.convert_to_tensor(metric.count)
    variation = squares - tf.math.divide_no_nan(total**2, count)
    return variation > _LEAST_VARIANCE * squares


def with_column_metrics(
    metrics: Any, outputs: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> Any:
    """Returns metrics of `compile` with those of groups of tasks by column.

    Args:
        metrics: `metrics` or `weighted_metrics`, as Keras takes them.
        outputs: Names of all outputs, sorted.
        groups: Names of the columns of each group.

    Raises:
        InputError: For a metric that has no value for each column.
    """
    if metrics is None:
        return None
    if not isinstance(metrics, Mapping):
        listed = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]
        of_all = len(listed) != len(outputs) or not any(
            isinstance(one, (list, tuple)) for one in listed
        )
        by_output = [listed] * len(outputs) if of_all else listed
        metrics = dict(zip(outputs, by_output, strict=True))
    return {
        output: [
            _by_column(output, one, len(groups[output])) for one in _listed(values)
        ]
        if output in groups
        else values
        for output, values in metrics.items()
    }


def _listed(metrics: Any) -> list[Any]:
    if metrics is None:
        return []
    return list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]


def _by_column(output: str, identifier: Any, num_columns: int) -> keras.metrics.Metric:
    metric = identifier
    if str(identifier).lower() in ("accuracy", "acc"):
        metric = keras.metrics.BinaryAccuracy()
    elif not isinstance(identifier, keras.metrics.Metric):
        metric = keras.metrics.get(identifier)
    if isinstance(identifier, str):
        # Without the number that Keras appends to the names of further ones.
        metric.name = identifier
    if callable(metric) and not isinstance(metric, keras.metrics.Metric):
        name = getattr(metric, "__name__", None)
        metric = keras.metrics.MeanMetricWrapper(metric, name=name)
    if isinstance(metric, ColumnMetric):
        return metric
    if isinstance(metric, keras.metrics.AUC):
        return ColumnAUC(metric, num_columns)
    if isinstance(metric, keras.metrics.R2Score):
        return ColumnR2(metric, num_columns)
    is_root = isinstance(metric, keras.metrics.RootMeanSquaredError)
    if is_root or metric_function(metric) is not None:
        return ColumnMean(metric, num_columns)
    raise InputError(
        f"Expected metrics of {output!r}, a group of tasks, that are means over "
        f"samples, their square roots, AUC or R². Received: {type(metric).__name__}."
    )
