"""Calibration of predicted probabilities."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from mtl_keras.errors import check_integer


@keras.saving.register_keras_serializable(package="mtl_keras")
class CalibrationError(keras.metrics.Metric):
    """Expected calibration error of binary probabilities.

    Predictions are sorted into bins of equal width; the error is the mean over
    samples of the distance, within their bin, between mean prediction and mean
    label: Σ_b |Σ_{i in b} w_i (y_i - p_i)| / Σ_i w_i. Guo et al., "On Calibration
    of Modern Neural Networks", ICML 2017 (arXiv:1706.04599), for the probability
    of the positive class.

    Labels may be true probabilities where these are known.

    Args:
        bins: Number of bins.
        name: Name of the metric.
        dtype: dtype of the result.

    Example:

    ```pycon
    >>> metric = mtl_keras.evaluation.CalibrationError(bins=2)
    >>> metric.update_state([0.0, 0.0, 1.0, 1.0], [0.25, 0.25, 0.75, 0.75])
    >>> float(metric.result())
    0.25
    ```
    """

    def __init__(
        self, bins: int = 15, name: str = "calibration_error", dtype: Any = None
    ):
        super().__init__(name=name, dtype=dtype)
        self.bins = check_integer("bins", bins, low=1)
        self._surplus = self.add_weight(
            shape=(bins,), initializer="zeros", name="surplus"
        )
        self._weight = self.add_weight(shape=(), initializer="zeros", name="weight")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: 0 or 1, `[batch]` or `[batch, 1]`.
            y_pred: Probabilities, of as many entries.
            sample_weight: `[batch]`; 0 leaves out.
        """
        predicted = ops.reshape(ops.cast(y_pred, self.dtype), (-1,))
        true = ops.reshape(ops.cast(y_true, self.dtype), (-1,))
        weight = ops.ones_like(predicted)
        if sample_weight is not None:
            weight = ops.reshape(ops.cast(sample_weight, self.dtype), (-1,))
        index = ops.cast(ops.floor(predicted * self.bins), "int32")
        index = ops.clip(index, 0, self.bins - 1)
        surplus = ops.segment_sum((true - predicted) * weight, index, self.bins)
        self._surplus.assign_add(surplus)
        self._weight.assign_add(ops.sum(weight))

    def result(self) -> Any:
        """Returns the error, from 0 to 1; 0 without samples."""
        return ops.divide_no_nan(ops.sum(ops.abs(self._surplus)), self._weight)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"bins": self.bins, "name": self.name, "dtype": self.dtype}


def calibration_error(y_true: Any, y_pred: Any, bins: int = 15) -> float:
    """Returns the expected calibration error; see `CalibrationError`.

    Args:
        y_true: Labels 0 or 1, or true probabilities; any shape.
        y_pred: Probabilities, of as many entries.
        bins: Number of bins.

    Example:

    ```pycon
    >>> probabilities = [0.25, 0.25, 0.75, 0.75]
    >>> mtl_keras.evaluation.calibration_error([0, 0, 1, 1], probabilities, bins=2)
    0.25
    ```
    """
    metric = CalibrationError(bins, dtype="float64")
    metric.update_state(np.ravel(y_true), np.ravel(y_pred))
    return float(metric.result())
