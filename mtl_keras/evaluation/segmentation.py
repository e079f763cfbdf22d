"""Metrics of segmentation."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable(package="mtl_keras")
class MaskIoU(keras.metrics.MeanIoU):
    """Mean over classes of the intersection over union of their pixels.

    The value is that of `keras.metrics.MeanIoU` with `sparse_y_pred=False`. It is
    computed without the scatter there, which takes longer than the rest of a
    small model's evaluation, and takes one weight per image.

    Args:
        num_classes: Number of classes.
        name: Name of the metric.
        dtype: dtype of the result.

    Example:

    ```pycon
    >>> metric = mtl_keras.evaluation.MaskIoU(num_classes=2)
    >>> scores = keras.utils.to_categorical([[[0, 1], [1, 1]]], 2)
    >>> metric.update_state(np.array([[[0, 0], [1, 1]]]), scores)
    >>> round(float(metric.result()), 4)
    0.5833
    ```
    """

    def __init__(self, num_classes: int, name: str = "mean_iou", dtype: Any = None):
        super().__init__(num_classes, name=name, dtype=dtype, sparse_y_pred=False)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: Classes, whole numbers, `[batch, height, width]`.
            y_pred: Scores, `[batch, height, width, num_classes]`.
            sample_weight: `[batch]` or `[batch, height, width]`; 0 leaves out.
        """
        true = self._one_hot(y_true)
        # Keras's argmax first looks for negative zeros, and is three times slower.
        predicted = self._one_hot(tf.argmax(y_pred, axis=-1))
        if sample_weight is not None:
            sample_weight = ops.convert_to_tensor(sample_weight, true.dtype)
            while len(sample_weight.shape) < len(true.shape):
                sample_weight = ops.expand_dims(sample_weight, -1)
            true = true * sample_weight
        flat = (-1, self.num_classes)
        confusion = ops.matmul(
            ops.transpose(ops.reshape(true, flat)), ops.reshape(predicted, flat)
        )
        self.total_cm.assign_add(ops.cast(confusion, self.total_cm.dtype))

    def _one_hot(self, labels: Any) -> Any:
        labels = ops.expand_dims(ops.cast(labels, "int32"), -1)
        return ops.cast(ops.equal(labels, ops.arange(self.num_classes)), "float32")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "num_classes": self.num_classes,
            "name": self.name,
            "dtype": self.dtype,
        }
