"""Metrics of detection."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="mtl_keras")
class BoxIoU(keras.metrics.Mean):
    """Mean intersection over union of predicted and true boxes, one to one.

    Boxes are `ymin, xmin, ymax, xmax` in any unit. A predicted box whose maximum
    lies before its minimum is empty, and has an IoU of 0.

    Args:
        name: Name of the metric.
        dtype: dtype of the result.

    Example:

    ```pycon
    >>> metric = mtl_keras.evaluation.BoxIoU()
    >>> metric.update_state([[[0.0, 0.0, 2.0, 2.0]]], [[[0.0, 0.0, 2.0, 1.0]]])
    >>> float(metric.result())
    0.5
    ```
    """

    def __init__(self, name: str = "iou", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: `[batch, boxes, 4]`.
            y_pred: The same shape.
            sample_weight: `[batch]` or `[batch, boxes]`; 0 leaves out.
        """
        iou = box_iou(y_true, y_pred)
        if sample_weight is not None:
            sample_weight = ops.convert_to_tensor(sample_weight, iou.dtype)
            if len(sample_weight.shape) < len(iou.shape):
                sample_weight = ops.expand_dims(sample_weight, -1)
            sample_weight = ops.broadcast_to(sample_weight, ops.shape(iou))
        super().update_state(iou, sample_weight=sample_weight)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"name": self.name, "dtype": self.dtype}


def box_iou(y_true: Any, y_pred: Any) -> Any:
    """Computes the intersection over union of boxes, pair by pair.

    Args:
        y_true: `[..., 4]`, `ymin, xmin, ymax, xmax`.
        y_pred: The same shape.

    Returns:
        `[...]`, from 0 to 1, in `y_pred`'s dtype.
    """
    y_pred = ops.convert_to_tensor(y_pred)
    y_true = ops.cast(y_true, y_pred.dtype)
    low = ops.maximum(y_true[..., :2], y_pred[..., :2])
    high = ops.minimum(y_true[..., 2:], y_pred[..., 2:])
    intersection = _area(high - low)
    union = (
        _area(y_true[..., 2:] - y_true[..., :2])
        + _area(y_pred[..., 2:] - y_pred[..., :2])
        - intersection
    )
    return ops.divide_no_nan(intersection, union)


def _area(sides: Any) -> Any:
    sides = ops.relu(sides)
    return sides[..., 0] * sides[..., 1]
