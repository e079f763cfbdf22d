"""Presence masks of modalities, and layers that run on present samples alone."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import tensorflow as tf
from keras import ops

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class HasContent(keras.layers.Layer):
    """Mask of the samples with any non-zero entry.

    `[batch, …]` becomes bool `[batch]`. Absence is content: an all-zero image,
    digital silence, a text without tokens. No flag has to travel beside the values,
    and none can contradict them.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, **kwargs: Any):
        # Values are compared as they are, integers too.
        super().__init__(autocast=False, **kwargs)

    def call(self, inputs: Any) -> Any:
        """Returns the mask, bool `[batch]`."""
        axes = list(range(1, len(inputs.shape)))
        return ops.any(ops.not_equal(inputs, ops.zeros_like(inputs)), axis=axes)

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the output's shape and type."""
        return keras.KerasTensor(inputs.shape[:1], dtype="bool")


@_register
class Absent(keras.layers.Layer):
    """Placeholder of a modality that is always absent: zeros, and False.

    Called on features `[batch, d]`, whose values it does not read; returns
    features `[batch, d]` and bool `[batch]`. Takes the arguments of
    `keras.layers.Layer`.
    """

    def call(self, inputs: Any) -> tuple[Any, Any]:
        """Returns features and presence."""
        return ops.zeros_like(inputs), ops.zeros_like(inputs[:, 0], dtype="bool")

    def compute_output_spec(
        self, inputs: keras.KerasTensor
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Returns the outputs' shapes and types."""
        return (
            keras.KerasTensor(inputs.shape, dtype=self.compute_dtype),
            keras.KerasTensor(inputs.shape[:1], dtype="bool"),
        )


@_register
class WherePresent(keras.layers.Layer):
    """Runs a layer on the samples that are present; the others' outputs are 0.

    Cost follows the number of samples present, and nothing runs where there are
    none. Running statistics, as of `BatchNormalization`, are of present samples
    alone, and stay as they are where there are none.

    XLA, whose shapes cannot depend on values, has no use for this layer: Keras leaves
    it off for a model that holds one.

    Args:
        layer: From `[batch, …]` to one tensor `[batch, …]` of known inner shape.
            Its `add_loss` and activity losses are not collected.
        **kwargs: See `keras.layers.Layer`.

    Example:

    ```python
    present = HasContent()(image)
    features = WherePresent(encoder)(image, present)
    ```
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        # The layers inside cast; here values and variables pass as they are.
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.supports_jit = False
        self._takes_training = "training" in inspect.signature(layer.call).parameters

    def build(
        self, inputs_shape: tuple[int | None, ...], present_shape: tuple[int | None]
    ) -> None:
        """Builds the layer inside."""
        del present_shape
        if not self.layer.built:
            self.layer.build(inputs_shape)

    def call(self, inputs: Any, present: Any, training: bool = False) -> Any:
        """Returns the outputs.

        Args:
            inputs: `[batch, …]`.
            present: bool `[batch]`.
            training: As in Keras.
        """
        # State goes in and out as values and is written at the end: a branch cannot
        # assign a variable that replicas aggregate.
        state = [v.value for v in self.layer.non_trainable_variables]
        indices = tf.where(present)
        inner = self.compute_output_shape(inputs.shape, ())[1:]
        rows = tf.gather_nd(inputs, indices)

        def run() -> tuple[Any, list[Any]]:
            return self._run(rows, state, training)

        def skip() -> tuple[Any, list[Any]]:
            # Not the values themselves, which eagerly are not copies.
            nothing = tf.zeros((0, *inner), self.compute_dtype)
            return nothing, list(map(tf.identity, state))

        outputs, new_state = tf.cond(tf.reduce_any(present), run, skip)
        if training:
            for variable, value in zip(
                self.layer.non_trainable_variables, new_state, strict=True
            ):
                variable.assign(value)
        shape = tf.concat([tf.shape(present, out_type="int64"), inner], 0)
        outputs = tf.scatter_nd(indices, outputs, shape)
        return tf.ensure_shape(outputs, (None, *inner))

    def _run(
        self, rows: Any, state: list[Any], training: bool
    ) -> tuple[Any, list[Any]]:
        outputs, new_state = self.layer.stateless_call(
            [v.value for v in self.layer.trainable_variables],
            state,
            rows,
            **({"training": training} if self._takes_training else {}),
        )
        return tf.cast(outputs, self.compute_dtype), new_state

    def compute_output_shape(
        self, inputs_shape: tuple[int | None, ...], present_shape: Any
    ) -> tuple[int | None, ...]:
        """Returns the shape of the layer's output."""
        del present_shape
        return self.layer.compute_output_shape(inputs_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        config["layer"] = keras.saving.serialize_keras_object(self.layer)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WherePresent:
        """Returns a layer made from `get_config`'s result."""
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})
