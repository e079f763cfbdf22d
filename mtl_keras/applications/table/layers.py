"""Layers, losses and metrics of tables: missing values, units, images from files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

_register = keras.saving.register_keras_serializable(package="mtl_keras")

# Standard deviations from the mean: a capital gain may lie hundreds away.
_CLIP = 5.0

# Of one task, or of each task of a group.
Units = float | Sequence[float]


def _tensor(units: Units) -> Any:
    return ops.convert_to_tensor(units, "float32")


@_register
class FilledNumbers(keras.layers.Layer):
    """Standardised numbers with 0 for NaN, and an indicator of what was missing.

    `[batch, N]` to `[batch, 2 N]`: numbers, cut to ±5, then 1 where a number was NaN.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    def call(self, inputs: Any) -> Any:
        """Returns numbers and indicators."""
        missing = ops.isnan(inputs)
        numbers = ops.where(missing, ops.zeros_like(inputs), inputs)
        numbers = ops.clip(numbers, -_CLIP, _CLIP)
        return ops.concatenate([numbers, ops.cast(missing, numbers.dtype)], axis=-1)

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the shape of the result."""
        return (*input_shape[:-1], 2 * input_shape[-1])


@_register
class NumberBins(keras.layers.Discretization):
    """`keras.layers.Discretization` with a bin of its own, the last one, for NaN.

    Args:
        bin_boundaries: As in `keras.layers.Discretization`.
        **kwargs: See `keras.layers.Discretization`.
    """

    def call(self, inputs: Any) -> Any:
        """Returns the number of each value's bin, from 0 to the boundaries' + 1."""
        bins = super().call(inputs)
        last = ops.full_like(bins, len(self.bin_boundaries) + 1)
        return ops.where(ops.isnan(inputs), last, bins)


@_register
class TokenVectors(keras.layers.Layer):
    """Embeds tokens `[batch, length]`; token 0, padding, is the zero vector.

    Args:
        count: Number of different tokens, 0 included.
        units: Size of a vector.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, count: int, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.count = count
        self.units = units
        self.table = keras.layers.Embedding(
            count, units, dtype=self.dtype_policy, name="table"
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the table."""
        self.table.build(input_shape)

    def call(self, inputs: Any) -> Any:
        """Returns `[batch, length, units]`."""
        vectors = self.table(inputs)
        return vectors * ops.cast(ops.not_equal(inputs, 0), vectors.dtype)[..., None]

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the vectors."""
        return (*input_shape, self.units)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "count": self.count, "units": self.units}


@_register
class PooledTokens(keras.layers.Layer):
    """Mean and maximum over tokens: `[batch, length, d]` to `[batch, 2 d]`.

    Tokens that are zero in all features are padding, and do not count.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    def call(self, inputs: Any) -> Any:
        """Returns mean and maximum; zeros of a text without tokens."""
        mask = ops.any(ops.not_equal(inputs, 0), axis=-1, keepdims=True)
        weight = ops.cast(mask, inputs.dtype)
        count = ops.maximum(ops.sum(weight, axis=1), 1)
        mean = ops.sum(inputs * weight, axis=1) / count
        # Padding is 0 here too; beside negative features it may be the maximum.
        return ops.concatenate([mean, ops.max(inputs * weight, axis=1)], axis=-1)

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the shape of the result."""
        return (input_shape[0], 2 * input_shape[-1])


@_register
class DecodedImages(keras.layers.Layer):
    """Decodes images out of the bytes of JPEG, PNG, GIF or BMP files, to one size.

    `[batch]` to `[batch, size, size, 3]`, 0 to 1; black where there are no bytes.

    Args:
        size: Height and width.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, size: int, **kwargs: Any):
        super().__init__(**{"autocast": False, "dtype": "float32", **kwargs})
        self.size = size
        self.supports_jit = False

    def call(self, inputs: Any) -> Any:
        """Returns the images."""
        return tf.map_fn(
            self._decoded,
            inputs,
            fn_output_signature=tf.TensorSpec((self.size, self.size, 3), tf.float32),
        )

    def _decoded(self, file: tf.Tensor) -> tf.Tensor:
        def decode() -> tf.Tensor:
            image = tf.io.decode_image(file, channels=3, expand_animations=False)
            image = tf.image.resize(image, (self.size, self.size), antialias=True)
            return tf.clip_by_value(image / 255.0, 0.0, 1.0)

        black = tf.zeros((self.size, self.size, 3))
        image = tf.cond(tf.equal(file, ""), lambda: black, decode)
        return tf.ensure_shape(image, (self.size, self.size, 3))

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the shape and type of the images."""
        return keras.KerasTensor((*inputs.shape, self.size, self.size, 3), "float32")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "size": self.size}


@_register
class NotEmpty(keras.layers.Layer):
    """Mask of texts or files that hold something: strings to bool, of one shape.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"autocast": False, **kwargs})
        self.supports_jit = False

    def call(self, inputs: Any) -> Any:
        """Returns where there is something."""
        return tf.not_equal(inputs, "")

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the shape and type of the result."""
        return keras.KerasTensor(inputs.shape, "bool")


@_register
class NotMissing(keras.layers.Layer):
    """Mask of present vectors: `[batch, d]` to bool `[batch]`, False for NaN.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    def call(self, inputs: Any) -> Any:
        """Returns where all values are numbers."""
        return ops.logical_not(ops.any(ops.isnan(inputs), axis=-1))

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the shape and type of the result."""
        return keras.KerasTensor(inputs.shape[:1], "bool")


@_register
class AlwaysPresent(keras.layers.Layer):
    """Mask of all samples: `[batch, d]` to bool `[batch]`, True.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    def call(self, inputs: Any) -> Any:
        """Returns True for each sample."""
        return ops.ones(ops.shape(inputs)[:1], "bool")

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the shape and type of the result."""
        return keras.KerasTensor(inputs.shape[:1], "bool")


@_register
class InUnits(keras.layers.Layer):
    """Turns standardised numbers into those of the table: x · deviation + mean.

    Args:
        mean: Mean of the training labels; of a group of tasks one for each column.
        deviation: Their standard deviation, likewise.
        **kwargs: See `keras.layers.Layer`.
    """

    # Columns stay tasks of their own; see `columns` of `MultiTaskModel.compile`.
    entrywise = True

    def __init__(self, mean: Units, deviation: Units, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.mean = mean
        self.deviation = deviation

    def call(self, inputs: Any) -> Any:
        """Returns the numbers in their own units."""
        return inputs * _tensor(self.deviation) + _tensor(self.mean)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "mean": self.mean, "deviation": self.deviation}


@_register
class StandardisedError(keras.losses.Loss):
    """A loss of numbers in standard deviations, whatever their units are.

    Args:
        error: `"mse"`, `"mae"` or `"huber"` (quadratic up to one deviation).
        deviation: Standard deviation of the training labels; of a group of tasks one
            for each column.
        **kwargs: See `keras.losses.Loss`.
    """

    is_mean_over_elements = True

    def __init__(self, error: str, deviation: Units, **kwargs: Any):
        super().__init__(**kwargs)
        self.error = error
        self.deviation = deviation

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of each sample, `[batch]`."""
        y_pred = ops.convert_to_tensor(y_pred)
        y_true = ops.cast(y_true, y_pred.dtype)
        deviation = _tensor(self.deviation)
        if len(deviation.shape):
            # Columns are the second axis: each may have one of length 1 of its own.
            deviation = ops.reshape(deviation, (-1, *[1] * (len(y_pred.shape) - 2)))
        difference = (y_pred - y_true) / ops.cast(deviation, y_pred.dtype)
        function = {
            "mse": keras.losses.mean_squared_error,
            "mae": keras.losses.mean_absolute_error,
            "huber": keras.losses.huber,
        }[self.error]
        return function(ops.zeros_like(difference), difference)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = {"error": self.error, "deviation": self.deviation}
        return {**super().get_config(), **config}


@_register
class SparseFocalCrossentropy(keras.losses.Loss):
    """`keras.losses.CategoricalFocalCrossentropy` of class ids, without its alpha.

    Args:
        gamma: As in Keras's loss.
        **kwargs: See `keras.losses.Loss`.
    """

    def __init__(self, gamma: float = 2.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.gamma = gamma

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of each sample, `[batch]`."""
        ids = ops.cast(y_true, "int32")
        if len(ids.shape) == len(y_pred.shape):
            ids = ops.squeeze(ids, -1)
        return keras.losses.categorical_focal_crossentropy(
            ops.one_hot(ids, y_pred.shape[-1]), y_pred, alpha=1.0, gamma=self.gamma
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "gamma": self.gamma}


@_register
class R2(keras.metrics.R2Score):
    """`keras.metrics.R2Score`, computed on standardised numbers.

    The score is the same. Sums of squares of numbers that are large beside their
    differences would be of nothing but rounding errors.

    Args:
        mean: Mean of the training labels; of a group of tasks one for each column.
        deviation: Their standard deviation, likewise.
        **kwargs: See `keras.metrics.R2Score`.
    """

    def __init__(self, mean: Units, deviation: Units, **kwargs: Any):
        super().__init__(**kwargs)
        self.mean = mean
        self.deviation = deviation

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Takes a batch."""
        mean, deviation = _tensor(self.mean), _tensor(self.deviation)
        super().update_state(
            (ops.cast(y_true, "float32") - mean) / deviation,
            (ops.cast(y_pred, "float32") - mean) / deviation,
            sample_weight,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "mean": self.mean, "deviation": self.deviation}


@_register
class MacroF1(keras.metrics.Metric):
    """Mean of the classes' F1 scores, over classes that are labelled or predicted.

    Called on class ids `[batch]` or `[batch, 1]` and probabilities `[batch, classes]`.

    Args:
        classes: Number of classes.
        **kwargs: See `keras.metrics.Metric`.
    """

    def __init__(self, classes: int, name: str = "macro_f1", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.classes = classes
        # Rows: labelled and predicted, labelled, predicted.
        self.counts = self.add_variable((3, classes), "zeros", name="counts")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Takes a batch."""
        labelled = ops.one_hot(
            ops.cast(ops.reshape(y_true, (-1,)), "int32"), self.classes
        )
        predicted = ops.one_hot(ops.argmax(y_pred, axis=-1), self.classes)
        if sample_weight is not None:
            weight = ops.reshape(ops.cast(sample_weight, labelled.dtype), (-1, 1))
            labelled, predicted = labelled * weight, predicted * weight
        both = ops.minimum(labelled, predicted)
        parts: Sequence[Any] = (both, labelled, predicted)
        self.counts.assign_add(ops.stack([ops.sum(part, axis=0) for part in parts]))

    def result(self) -> Any:
        """Returns the mean of the classes' F1 scores."""
        both, labelled, predicted = ops.unstack(self.counts, 3, axis=0)
        occurs = ops.cast(labelled + predicted > 0, "float32")
        scores = 2 * both / ops.maximum(labelled + predicted, 1e-12)
        return ops.sum(scores * occurs) / ops.maximum(ops.sum(occurs), 1.0)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "classes": self.classes}
