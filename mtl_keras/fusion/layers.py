"""Fusion: from the features of several modalities to one vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mtl_keras.errors import check_integer

_register = keras.saving.register_keras_serializable(package="mtl_keras")


class Fusion(keras.layers.Layer):
    """Base class of fusions: a layer on features and presence masks.

    Called on `(features, present)`: M tensors `[batch, d]` and M tensors bool
    `[batch]`. Returns `[batch, units]`, which does not depend on the features of an
    absent modality, and is finite where all are absent.

    Args:
        units: Size of the result.
        **kwargs: See `keras.layers.Layer`.
    """

    method = "fusion"
    """Name in the registry."""

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = check_integer("units", units, low=1)

    def call(self, features: Sequence[Any], present: Sequence[Any]) -> Any:
        """Returns the fused features."""
        stacked, masks = ops.stack(features, axis=1), ops.stack(present, axis=1)
        stacked = ops.where(masks[..., None], stacked, ops.zeros_like(stacked))
        return self.fuse(stacked, masks)

    def fuse(self, features: Any, present: Any) -> Any:
        """Returns the fused features, `[batch, units]`; each method implements it.

        Args:
            features: `[batch, M, d]`, zeros where absent.
            present: bool `[batch, M]`.
        """
        raise NotImplementedError

    def compute_output_shape(
        self, features_shape: Sequence[Any], present_shape: Sequence[Any]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the result."""
        del present_shape
        return (features_shape[0][0], self.units)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "units": self.units}


@_register
class Concat(Fusion):
    """ReLU(W [features; presence masks] + b).

    The masks tell an absent modality from one whose features are zero.

    Args:
        units: Size of the result.
        **kwargs: See `keras.layers.Layer`.
    """

    method = "concat"

    def build(
        self, features_shape: Sequence[Any], present_shape: Sequence[Any]
    ) -> None:
        """Creates the kernel."""
        del present_shape
        size, count = features_shape[0][-1], len(features_shape)
        self.dense = keras.layers.Dense(
            self.units, "relu", kernel_initializer="he_normal", dtype=self.dtype_policy
        )
        self.dense.build((None, count * (size + 1)))

    def fuse(self, features: Any, present: Any) -> Any:
        """See `Fusion.fuse`."""
        _, count, size = features.shape
        flat = ops.reshape(features, (-1, count * size))
        return self.dense(ops.concatenate([flat, ops.cast(present, flat.dtype)], 1))


@_register
class Gated(Fusion):
    """Gated Multimodal Units: Σ_m z_m ⊙ tanh(W_m x_m), with gates z that see all.

    Arevalo et al., "Gated Multimodal Units for Information Fusion", ICLR 2017
    workshop, arXiv:1702.01992; the form for any number of modalities, where each
    z_m is σ(V_m [x_1; …; x_M]). Departs from it in that absent modalities have
    gate 0, and that W_m and V_m have biases.

    Args:
        units: Size of the result.
        **kwargs: See `keras.layers.Layer`.
    """

    method = "gated"

    def build(
        self, features_shape: Sequence[Any], present_shape: Sequence[Any]
    ) -> None:
        """Creates the kernels."""
        del present_shape
        size, count = features_shape[0][-1], len(features_shape)
        self.hidden = keras.layers.EinsumDense(
            "bmd,mde->bme",
            output_shape=(count, self.units),
            bias_axes="me",
            activation="tanh",
            dtype=self.dtype_policy,
        )
        self.gates = keras.layers.EinsumDense(
            "bmd,mdne->bne",
            output_shape=(count, self.units),
            bias_axes="ne",
            activation="sigmoid",
            dtype=self.dtype_policy,
        )
        self.hidden.build((None, count, size))
        self.gates.build((None, count, size))

    def fuse(self, features: Any, present: Any) -> Any:
        """See `Fusion.fuse`."""
        gated = self.gates(features) * self.hidden(features)
        return ops.sum(gated * ops.cast(present[..., None], gated.dtype), axis=1)


@_register
class CrossAttention(Fusion):
    """A learnt query attends to the modalities that are present.

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762,
    with one learnt query, as in Jaegle et al., "Perceiver: General Perception with
    Iterative Attention", ICML 2021, arXiv:2103.03206, and an embedding of its own
    added to each modality. Without any modality present the result is 0.

    Args:
        units: Size of the result.
        num_heads: Number of attention heads, of units / num_heads features each,
            rounded down.
        **kwargs: See `keras.layers.Layer`.
    """

    method = "cross_attention"

    def __init__(self, units: int, num_heads: int = 4, **kwargs: Any):
        super().__init__(units, **kwargs)
        self.num_heads = check_integer("num_heads", num_heads, low=1)

    def build(
        self, features_shape: Sequence[Any], present_shape: Sequence[Any]
    ) -> None:
        """Creates the query, the modalities' embeddings and the attention."""
        del present_shape
        size, count = features_shape[0][-1], len(features_shape)
        self.query = self.add_weight(
            shape=(1, 1, size), initializer="glorot_uniform", name="query"
        )
        self.embeddings = self.add_weight(
            shape=(count, size), initializer="glorot_uniform", name="embeddings"
        )
        self.attention = keras.layers.MultiHeadAttention(
            self.num_heads,
            max(1, self.units // self.num_heads),
            output_shape=self.units,
            dtype=self.dtype_policy,
        )
        self.attention.build((None, 1, size), (None, count, size))

    def fuse(self, features: Any, present: Any) -> Any:
        """See `Fusion.fuse`."""
        query = ops.tile(self.query, (ops.shape(features)[0], 1, 1))
        fused = self.attention(
            query, features + self.embeddings, attention_mask=present[:, None]
        )[:, 0]
        any_present = ops.any(present, axis=1, keepdims=True)
        return ops.where(any_present, fused, ops.zeros_like(fused))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "num_heads": self.num_heads}
