"""Experts: copies of a backbone stage that are computed together."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtl_keras.errors import check_integer
from mtl_keras.sharing.base import copy_stage, reseeded, stage_mask
from mtl_keras.sharing.bound import BoundStage

_register = keras.saving.register_keras_serializable(package="mtl_keras")

# Activations that treat every channel alike, so that experts can lie side by side.
_BY_CHANNEL = frozenset(
    (
        *("celu", "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu"),
        *("leaky_relu", "linear", "mish", "relu", "relu6", "selu", "sigmoid"),
        *("silu", "softplus", "softsign", "swish", "tanh"),
    )
)


@_register
class PerExpert(keras.initializers.Initializer):
    """Draws each expert's part of a wide kernel as if it stood alone.

    An initializer that saw the whole kernel would scale it to the wrong width.

    Args:
        initializer: The expert's initializer, or its configuration.
        num_experts: Number of equal parts of the last axis.
    """

    def __init__(self, initializer: Any, num_experts: int):
        self.initializer = keras.initializers.get(initializer)
        self.num_experts = num_experts

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Returns the kernel."""
        config = keras.initializers.serialize(self.initializer)
        part = (*shape[:-1], shape[-1] // self.num_experts)
        draws = [
            keras.initializers.get(reseeded(config, index))(part, dtype)
            for index in range(self.num_experts)
        ]
        return ops.concatenate(draws, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "initializer": keras.initializers.serialize(self.initializer),
            "num_experts": self.num_experts,
        }


@_register
class GroupedDense(keras.layers.Dense):
    """E dense layers, each on its own part of the channels: `[batch, E · d]`.

    One batched product in place of E small ones. The kernel is `[d, E · units]`,
    with the experts side by side, as a dense layer's.

    Args:
        units: Units of all experts together.
        num_experts: E.
        **kwargs: See `keras.layers.Dense`.
    """

    def __init__(self, units: int, num_experts: int, **kwargs):
        super().__init__(units, **kwargs)
        self.num_experts = num_experts

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the kernel and the bias."""
        width = input_shape[-1]
        assert width is not None
        super().build((*input_shape[:-1], width // self.num_experts))
        self.input_spec = None

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the outputs, the experts side by side."""
        del training
        count, units = self.num_experts, self.units // self.num_experts
        width = inputs.shape[-1] // count
        leading = ops.shape(inputs)[:-1]
        x = ops.transpose(ops.reshape(inputs, (-1, count, width)), (1, 0, 2))
        kernel = ops.reshape(self.kernel, (width, count, units))
        x = ops.matmul(x, ops.transpose(kernel, (1, 0, 2)))
        x = ops.reshape(ops.transpose(x, (1, 0, 2)), (*leading, self.units))
        if self.use_bias:
            x = ops.add(x, self.bias)
        return self.activation(x)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "num_experts": self.num_experts}


@_register
class Experts(keras.layers.Layer):
    """E copies of a stage over one input: `[batch, …]` to `[batch, …, E, d]`.

    Stages of dense layers, of one convolution, of pooling, batch normalisation,
    dropout and activations are computed side by side in the channels: one wide
    product instead of E small ones, with the weights `[…, E · d]` of all experts in
    one variable. Other stages are copied E times.

    Args:
        stage: A Keras layer whose output is `[batch, …, d]`, or its configuration.
        num_experts: E.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, stage: Any, num_experts: int, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(stage, keras.layers.Layer):
            stage = keras.saving.deserialize_keras_object(stage)
        self.num_experts = check_integer("num_experts", num_experts, low=1)
        self._stage = reseeded(keras.saving.serialize_keras_object(stage), 0)
        self.supports_masking = True
        self.wide = _side_by_side(stage, num_experts)
        self.copies = []
        if not self.wide:
            self.copies = [
                copy_stage(stage, f"expert_{index}", index)
                for index in range(num_experts)
            ]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the experts."""
        for layer in self.copies:
            layer.build(input_shape)
        for layer in self.wide:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, inputs: Any) -> Any:
        """Returns the experts' outputs."""
        if self.copies:
            return ops.stack([layer(inputs) for layer in self.copies], axis=-2)
        x = inputs
        for layer in self.wide:
            x = layer(x)
        width = x.shape[-1] // self.num_experts
        return ops.reshape(x, (*ops.shape(x)[:-1], self.num_experts, width))

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the mask of one expert's output."""
        del inputs
        if isinstance(mask, (list, tuple)):
            mask = mask[0]  # the features'
        for layer in self.wide or self.copies[:1]:
            mask = stage_mask(layer, mask)
        return mask

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the experts' outputs."""
        if self.copies:
            shape = self.copies[0].compute_output_shape(input_shape)
            return (*shape[:-1], self.num_experts, shape[-1])
        for layer in self.wide:
            input_shape = layer.compute_output_shape(input_shape)
        width = input_shape[-1]
        assert width is not None
        return (*input_shape[:-1], self.num_experts, width // self.num_experts)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "stage": self._stage,
            "num_experts": self.num_experts,
        }


def experts_of(stage: Any, num_experts: int, name: str, x: Any) -> keras.KerasTensor:
    """Returns the outputs of E copies of a stage, `[batch, …, E, d]`.

    Args:
        stage: A Keras layer, or a `BoundStage`.
        num_experts: E.
        name: Name of the `Experts` layer.
        x: The stage's input.
    """
    if isinstance(stage, BoundStage):
        stage, x = stage.layer, stage.arguments(x)
    return Experts(stage, num_experts, name=name)(x)


def _side_by_side(
    stage: keras.layers.Layer, num_experts: int
) -> list[keras.layers.Layer]:
    """Returns the stage's layers widened to E experts; none where that is not so."""
    layers = stage.layers if isinstance(stage, keras.Sequential) else [stage]
    wide: list[keras.layers.Layer] = []
    split = False  # whether the channels are the experts' own by now
    for layer in layers:
        widened = _widened(layer, num_experts, split)
        if widened is None:
            return []
        wide.append(widened)
        split = split or type(layer) in (keras.layers.Dense, keras.layers.Conv2D)
    return wide if split else []


def _widened(
    layer: keras.layers.Layer, num_experts: int, split: bool
) -> keras.layers.Layer | None:
    """Returns E copies of one layer side by side, or None where that is not so.

    Args:
        layer: A layer of the stage.
        num_experts: E.
        split: Whether its input has channels of each expert; else it is common.
    """
    config = layer.get_config()
    kind = type(layer)
    last = ("channels_last", None)
    if kind is keras.layers.Flatten:
        return None if split else copy_stage(layer, layer.name)
    if config.get("data_format", None) not in last or config.get("axis", -1) != -1:
        return None
    if not split and kind in (
        keras.layers.BatchNormalization,
        keras.layers.Dropout,
    ):
        return None  # each expert draws and counts on its own
    if kind in (
        keras.layers.BatchNormalization,
        keras.layers.Dropout,
        keras.layers.MaxPooling2D,
        keras.layers.AveragePooling2D,
        keras.layers.GlobalAveragePooling2D,
        keras.layers.ReLU,
    ):
        return copy_stage(layer, layer.name)
    if kind is keras.layers.Activation and config["activation"] in _BY_CHANNEL:
        return copy_stage(layer, layer.name)
    size = {keras.layers.Dense: "units", keras.layers.Conv2D: "filters"}.get(kind)
    if (
        size is None
        or (split and kind is keras.layers.Conv2D)
        or config["activation"] not in _BY_CHANNEL
        or config["kernel_constraint"] is not None
        or config.get("groups", 1) != 1
        or getattr(layer, "quantization_mode", None)
        or config.get("lora_rank")
    ):
        return None
    for key in ("kernel_initializer", "bias_initializer"):
        config[key] = PerExpert(config[key], num_experts)
    config[size] *= num_experts
    if split:
        return GroupedDense(num_experts=num_experts, **config)
    return kind.from_config(config)
