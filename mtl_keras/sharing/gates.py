"""Gates: weights of the experts for a task, by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mtl_keras.errors import InputError
from mtl_keras.ops import mix_experts
from mtl_keras.sharing.bound import BoundStage

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class Gate(keras.layers.Layer):
    """Weights of E experts by sample, softmax(W x): `[batch, …, d]` to `[batch, E]`.

    x is averaged over its inner axes (positions, time steps) where it has any,
    without the masked ones.

    Args:
        experts: Names of the experts, for plots.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, experts: Sequence[str], **kwargs):
        super().__init__(**kwargs)
        self.experts = list(experts)
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the kernel `[d, E]`."""
        self.kernel = self.add_weight(
            shape=(input_shape[-1], len(self.experts)),
            initializer="glorot_uniform",
            name="kernel",
        )

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the weights, which sum to 1."""
        logits = ops.matmul(self.pooled(inputs, mask), self.kernel)
        wide = keras.backend.result_type(self.compute_dtype, "float32")
        # A softmax, in the form that TensorFlow computes fast over few experts.
        weights = ops.exp(ops.log_softmax(ops.cast(logits, wide)))
        return ops.cast(weights, self.compute_dtype)

    def pooled(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the mean over inner axes, `[batch, d]`."""
        x = ops.cast(inputs, self.compute_dtype)
        inner = list(range(1, len(x.shape) - 1))
        if not inner:
            return x
        if mask is None:
            return ops.mean(x, axis=inner)
        kept = ops.cast(mask, self.compute_dtype)
        kept = ops.reshape(kept, (*ops.shape(kept), *[1] * (len(x.shape) - mask.ndim)))
        count = ops.maximum(ops.sum(kept, axis=inner), 1)
        return ops.sum(x * kept, axis=inner) / count

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        """Returns None: the weights have no masked places."""
        del inputs, mask

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the weights."""
        return (input_shape[0], len(self.experts))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "experts": self.experts}


@_register
class Mixture(keras.layers.Layer):
    """Mixes experts by a gate's weights.

    Called on `[weights, experts, …]`: weights `[batch, E]`; one or more groups of
    experts `[batch, …, E_i, d]` with Σ E_i = E. Returns `[batch, …, d]`.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: list[Any], training: bool | None = None) -> Any:
        """Returns the mixture."""
        weights, *groups = inputs
        mixed, begin = [], 0
        for experts in groups:
            count = experts.shape[-2]
            part = weights[:, begin : begin + count] if len(groups) > 1 else weights
            mixed.append(mix_experts(part, experts, portable=not training))
            begin += count
        return sum(mixed[1:], mixed[0])

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the mask of the first group of experts."""
        return None if mask is None else mask[1]

    def compute_output_shape(
        self, input_shape: list[tuple[int | None, ...]]
    ) -> tuple[int | None, ...]:
        """Returns the shape of one expert's output."""
        shape = input_shape[1]
        return (*shape[:-2], shape[-1])


def can_gate(x: Any, stage: Any) -> bool:
    """Returns whether a gate can read a stage's input: floats of a known width.

    Tokens are no such features, whatever their dtype: an embedding takes their place.
    """
    if not isinstance(x, keras.KerasTensor):
        return False
    floats = keras.backend.is_float_dtype(x.dtype)
    return floats and x.shape[-1] is not None and not _embeds(stage)


def check_gate(method: str, x: Any, stage: Any) -> None:
    """Raises `InputError` unless a gate can read a stage's input."""
    if not can_gate(x, stage):
        received = f"inputs of the model, {sorted(x)}" if isinstance(x, dict) else ""
        received = received or f"{x.dtype} {tuple(x.shape)}"
        raise InputError(
            f"Expected floats of a known width, (batch, …, width), for the gates of "
            f"{method}, which read what the stage {stage.name!r} reads. Received: "
            f"{received}. Embed tokens in a stage before it."
        )


def _embeds(stage: Any) -> bool:
    if isinstance(stage, BoundStage):
        stage = stage.layer
    while isinstance(stage, keras.Model):
        stage = next(
            layer
            for layer in stage.layers
            if not isinstance(layer, keras.layers.InputLayer)
        )
    return isinstance(stage, keras.layers.Embedding)


def expert_names(owner: str, count: int) -> list[str]:
    """Returns names of experts for plots."""
    return [f"{owner} {index}" for index in range(count)]
