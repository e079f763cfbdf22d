"""Metrics of spans of a text."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class _SpanMetric(keras.metrics.Mean):
    """A mean over samples of a score of spans."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: First and last position of the span, whole numbers, `[batch, 2]`.
            y_pred: Scores of first and last positions, `[batch, 2, positions]`.
            sample_weight: `[batch]`; 0 leaves out.
        """
        predicted = ops.argmax(y_pred, axis=-1)
        scores = self._scores(ops.cast(y_true, "int32"), ops.cast(predicted, "int32"))
        super().update_state(scores, sample_weight)

    def _scores(self, true: Any, predicted: Any) -> Any:
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="mtl_keras")
class SpanAccuracy(_SpanMetric):
    """Share of the spans of which both ends are right.

    Args:
        name: Name of the metric.
        dtype: dtype of the result.

    Example:

    ```pycon
    >>> metric = mtl_keras.evaluation.SpanAccuracy()
    >>> scores = np.array([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    >>> metric.update_state([[1, 2]], scores)
    >>> float(metric.result())
    1.0
    ```
    """

    def __init__(self, name: str = "span_accuracy", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)

    def _scores(self, true: Any, predicted: Any) -> Any:
        return ops.cast(ops.all(ops.equal(true, predicted), axis=-1), self.dtype)


@keras.saving.register_keras_serializable(package="mtl_keras")
class SpanF1(_SpanMetric):
    """F1 of the positions in the predicted span; the mean over samples.

    Args:
        name: Name of the metric.
        dtype: dtype of the result.

    Example:

    ```pycon
    >>> metric = mtl_keras.evaluation.SpanF1()
    >>> scores = np.array([[[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]])
    >>> metric.update_state([[1, 2]], scores)
    >>> round(float(metric.result()), 4)
    0.6667
    ```
    """

    def __init__(self, name: str = "span_f1", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)

    def _scores(self, true: Any, predicted: Any) -> Any:
        first = ops.maximum(true[:, 0], predicted[:, 0])
        last = ops.minimum(true[:, 1], predicted[:, 1])
        common = ops.maximum(last - first + 1, 0)
        # Empty where the predicted end lies before the start.
        sizes = [
            ops.maximum(span[:, 1] - span[:, 0] + 1, 0) for span in (true, predicted)
        ]
        total = ops.maximum(sizes[0] + sizes[1], 1)
        return ops.cast(2 * common, self.dtype) / ops.cast(total, self.dtype)
