"""Mixtures of experts, weighted by sample."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from mtl_keras.ops import native


def mix_experts(
    weights: tf.Tensor, values: tf.Tensor, portable: bool = False
) -> tf.Tensor:
    """Returns Σ_e weights[b, e] · values[b, …, e, :].

    The compiled op takes float32; other dtypes go to TensorFlow's own ops. Both
    have gradients of any order.

    Args:
        weights: Tensor of shape `[batch, experts]`, any floating dtype.
        values: Outputs of the experts, `[batch, …, experts, width]`, in the same
            dtype.
        portable: Whether to use TensorFlow's own ops in any case. A graph that is
            saved to be served needs them, as the compiled library is not there.

    Returns:
        Tensor of shape `[batch, …, width]`.
    """
    library = None if portable else native.in_use()
    if library is not None and weights.dtype == values.dtype == tf.float32:
        return library.mtl_keras_mix_experts(weights, values)
    return tf.reduce_sum(_spread(weights, values) * values, axis=-2)


def _spread(weights: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Returns weights in the rank of the values: `[batch, 1, …, experts, 1]`."""
    inner = [1] * (len(values.shape) - 3)
    return tf.reshape(weights, (-1, *inner, values.shape[-2], 1))


@tf.RegisterGradient("MtlKeras>MixExperts")
def _gradient(op: Any, gradient: tf.Tensor) -> Any:
    library = native.library()
    assert library is not None  # the op is from there
    return library.mtl_keras_mix_experts_gradient(*op.inputs, gradient)


@tf.RegisterGradient("MtlKeras>MixExpertsGradient")
def _second_gradient(op: Any, of_weights: tf.Tensor, of_values: tf.Tensor) -> Any:
    weights, values, gradient = op.inputs
    spread = tf.expand_dims(gradient, -2)
    inner = list(range(1, len(values.shape) - 2))
    return (
        tf.reduce_sum(of_values * spread, axis=[*inner, -1]),
        _spread(of_weights, values) * spread,
        tf.reduce_sum(
            _spread(of_weights, values) * values + _spread(weights, values) * of_values,
            axis=-2,
        ),
    )
