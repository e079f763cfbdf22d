"""Layers that a preference over the tasks changes."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

_register = keras.saving.register_keras_serializable(package="mtl_keras")

CONDITIONABLE = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)
"""Types of the layers that `Conditioned` takes; not their subclasses."""


def is_conditionable(layer: Any) -> bool:
    """Returns whether `Conditioned` takes a layer."""
    return (
        type(layer) in CONDITIONABLE
        and getattr(layer, "data_format", "channels_last") == "channels_last"
    )


@_register
class Simplex(keras.layers.Layer):
    """Layer from preferences `[batch, T]`, non-negative, to those that sum to 1.

    Negative entries count as 0, and all zeros as the uniform preference, so that a
    request may leave the preference out where left-out numbers are zeros.
    """

    def call(self, inputs: Any) -> Any:
        """Returns the normalised preferences, `[batch, T]`."""
        positive = ops.maximum(inputs, 0.0)
        total = ops.sum(positive, axis=-1, keepdims=True)
        is_zero = ops.equal(total, 0.0)
        shares = positive / ops.where(is_zero, 1.0, total)
        return ops.where(is_zero, 1.0 / inputs.shape[-1], shares)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the input."""
        return input_shape


@_register
class Conditioned(keras.layers.Layer):
    """A `Dense` or convolution whose kernel and bias depend on coefficients c.

    σ(W x + b + Σ_j c_j (D_j x + d_j)): `layer` holds W and b; D_j and d_j start at 0
    and without effect. D_j is a kernel like W, or with `rank` B_j A_j, a kernel A_j
    of `rank` outputs followed by a matrix B_j. Coefficients are `[batch, m]`, or
    `[1, m]` for the whole batch: full changes then cost no more than the layer, with
    coefficients of their own for the samples m times as much.

    Args:
        layer: The layer with a linear activation.
        rank: Rank r of each change D_j of the kernel; None for a full one.
        activation: σ, in Keras's forms.
        activity_regularizer: Of the output; in Keras's forms.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        rank: int | None = None,
        activation: Any = None,
        activity_regularizer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.layer = layer
        self.rank = rank
        self.activation = keras.activations.get(activation)
        self.supports_masking = layer.supports_masking

    def build(self, inputs_shape: Any, coefficients_shape: Any) -> None:
        """Creates the layer's weights and their changes."""
        if not self.layer.built:
            self.layer.build(inputs_shape)
        self._size = self.layer.compute_output_shape(inputs_shape)[-1]
        self._count = coefficients_shape[-1]
        width = self._size if self.rank is None else self.rank
        self._kernels = self._like_layer(self._count * width)
        self._kernels.build(inputs_shape)
        options = {
            "use_bias": False,
            "kernel_initializer": "zeros",
            "dtype": self.dtype_policy,
        }
        self._upward = None
        if self.rank is not None:
            self._upward = keras.layers.Dense(self._size, name="upward", **options)
            self._upward.build((None, self._count * self.rank))
        self._biases = None
        if self.layer.use_bias:
            self._biases = keras.layers.Dense(self._size, name="biases", **options)
            self._biases.build(coefficients_shape)

    def _like_layer(self, size: int) -> keras.layers.Layer:
        """Returns a layer of the same geometry for the kernels of the changes."""
        config = self.layer.get_config()
        changes = {
            "name": "kernels",
            # Not serialized: of a serialized policy `from_config` takes the name alone.
            "dtype": self.layer.dtype_policy,
            "trainable": True,
            "use_bias": False,
            "kernel_constraint": None,
            # As Keras's LoRA starts.
            "kernel_initializer": "zeros" if self.rank is None else "he_uniform",
            "units" if "units" in config else "filters": size,
        }
        if "groups" in config:
            changes["groups"] = 1
        return type(self.layer).from_config({**config, **changes})

    def call(self, inputs: Any, coefficients: Any) -> Any:
        """Returns the layer's output, `[batch, …, size]`.

        Args:
            inputs: Input of the layer.
            coefficients: `[batch, m]` or `[1, m]`.
        """
        axes = len(inputs.shape)
        if self._makes_kernel and coefficients.shape[0] == 1:
            outputs = self._with_made_kernel(inputs, coefficients)
        else:
            outputs = self.layer(inputs) + self._changed(inputs, coefficients, axes)
        if self._biases is not None:
            outputs += _with_axes(self._biases(coefficients), axes)
        return self.activation(outputs)

    @property
    def _makes_kernel(self) -> bool:
        # `ops.conv` knows neither groups nor causal padding, and quantised kernels
        # are without their scales.
        config = self.layer.get_config()
        stock = config.get("padding") != "causal" and config.get("groups", 1) == 1
        return self.rank is None and stock and self.layer.quantization_mode is None

    def _with_made_kernel(self, inputs: Any, coefficients: Any) -> Any:
        """Returns σ's input but for the bias's change, at the price of the layer."""
        layer = self.layer
        shape = (*layer.kernel.shape[:-1], self._count, self._size)
        changes = ops.reshape(self._kernels.kernel, shape)
        kernel = layer.kernel + ops.einsum("j,...jk->...k", coefficients[0], changes)
        if isinstance(layer, keras.layers.Dense):
            outputs = ops.matmul(inputs, kernel)
        else:
            outputs = ops.conv(
                inputs,
                kernel,
                strides=layer.strides,
                padding=layer.padding,
                data_format=layer.data_format,
                dilation_rate=layer.dilation_rate,
            )
        return outputs + layer.bias if layer.use_bias else outputs

    def _changed(self, inputs: Any, coefficients: Any, axes: int) -> Any:
        """Returns Σ_j c_j D_j x, each sample with coefficients of its own."""
        changed = self._kernels(inputs)
        if self._upward is not None:
            repeated = ops.repeat(coefficients, self.rank, axis=-1)
            return self._upward(changed * _with_axes(repeated, axes))
        shape = (*ops.shape(changed)[:-1], self._count, self._size)
        coefficients = ops.expand_dims(_with_axes(coefficients, axes), -1)
        return ops.sum(ops.reshape(changed, shape) * coefficients, axis=-2)

    def compute_output_shape(self, inputs_shape: Any, coefficients_shape: Any) -> Any:
        """Returns the shape of the layer's output."""
        del coefficients_shape
        return self.layer.compute_output_shape(inputs_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "rank": self.rank,
            "activation": keras.activations.serialize(self.activation),
            "activity_regularizer": keras.regularizers.serialize(
                self.activity_regularizer
            ),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Conditioned:
        """Returns a layer made from `get_config`'s result."""
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})


def conditioned(layer: keras.layers.Layer, rank: int | None) -> Conditioned:
    """Returns a layer with a copy of the weights of another, conditioned.

    Args:
        layer: A built layer for which `is_conditionable` holds.
        rank: See `Conditioned`.
    """
    config = layer.get_config()
    activation = config.pop("activation")
    regularizer = config.pop("activity_regularizer", None)
    linear = type(layer).from_config(config)
    linear.build(layer.get_build_config()["input_shape"])
    linear.set_weights(layer.get_weights())
    return Conditioned(
        linear,
        rank,
        activation,
        regularizer,
        name=layer.name,
        dtype=layer.dtype_policy,
    )


def _with_axes(rows: Any, axes: int) -> Any:
    """Returns rows `[batch, k]` as `[batch, 1, …, 1, k]` of that many axes."""
    return ops.reshape(rows, (-1, *(1,) * (axes - 2), rows.shape[-1]))
