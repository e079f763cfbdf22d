"""Fusion: from the features of several modalities to one vector.

Each layer is called on `(features, present)`: M tensors `[batch, d]`, zeros where a
modality is absent, and M tensors bool `[batch]`. It returns `[batch, d]`, of finite
values also where all modalities are absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mtl_keras.errors import check_integer

_register = keras.saving.register_keras_serializable(package="mtl_keras")


class Fusion(keras.layers.Layer):
    """What every fusion is: a layer on features and presence.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    method = "fusion"
    """Name in the registry."""

    def compute_output_shape(
        self, features_shape: Sequence[Any], present_shape: Sequence[Any]
    ) -> tuple[int | None, ...]:
        """Returns the shape of one modality's features."""
        del present_shape
        return tuple(features_shape[0])


@_register
class Concat(Fusion):
    """ReLU(W [features; presence masks] + b).

    The masks tell an absent modality from one whose features are zero.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    method = "concat"

    def build(self, features_shape: Sequence[Any], present_shape: Sequence[Any]) -> None:
        """Creates the kernel."""
        del present_shape
        units = features_shape[0][-1]
        self.dense = keras.layers.Dense(
            units, "relu", kernel_initializer="he_normal", dtype=self.dtype_policy
        )
        self.dense.build((None, (units + 1) * len(features_shape)))

    def call(self, features: Sequence[Any], present: Sequence[Any]) -> Any:
        """Returns the fused features."""
        masks = ops.cast(ops.stack(present, axis=1), self.compute_dtype)
        return self.dense(ops.concatenate([*features, masks], axis=1))


@_register
class Gated(Fusion):
    """Gated Multimodal Units: Σ_m z_m ⊙ tanh(W_m x_m), with gates z that see all.

    Arevalo et al., "Gated Multimodal Units for Information Fusion", ICLR 2017
    workshop, arXiv:1702.01992; the form for more than two modalities, where each
    z_m is σ(V_m [x_1; …; x_M]). Departs from it in that absent modalities have
    gate 0, and that W_m and V_m have biases.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    method = "gated"

    def build(self, features_shape: Sequence[Any], present_shape: Sequence[Any]) -> None:
        """Creates the kernels."""
        del present_shape
        units, count = features_shape[0][-1], len(features_shape)
        self.hidden = keras.layers.EinsumDense(
            "bmd,mde->bme",
            output_shape=(count, units),
            bias_axes="me",
            activation="tanh",
            dtype=self.dtype_policy,
        )
        self.hidden.build((None, count, units))
        self.gates = keras.layers.Dense(
            count * units, "sigmoid", dtype=self.dtype_policy
        )
        self.gates.build((None, count * units))

    def call(self, features: Sequence[Any], present: Sequence[Any]) -> Any:
        """Returns the fused features."""
        stacked = ops.stack(features, axis=1)
        gates = self.gates(ops.concatenate(features, axis=1))
        gates = ops.reshape(gates, (-1, *stacked.shape[1:]))
        masks = ops.cast(ops.stack(present, axis=1), self.compute_dtype)
        return ops.sum(masks[..., None] * gates * self.hidden(stacked), axis=1)


@_register
class CrossAttention(Fusion):
    """A learnt query attends to the modalities that are present.

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762,
    with one learnt query, as in Jaegle et al., "Perceiver: General Perception with
    Iterative Attention", ICML 2021, arXiv:2103.03206, and an embedding of its own
    added to each modality. Absent modalities are masked out; without any present
    the result is 0.

    Args:
        num_heads: Number of attention heads; d is to be a multiple.
        **kwargs: See `keras.layers.Layer`.
    """

    method = "cross_attention"

    def __init__(self, num_heads: int = 4, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_heads = check_integer("num_heads", num_heads, low=1)

    def build(self, features_shape: Sequence[Any], present_shape: Sequence[Any]) -> None:
        """Creates the query, the modalities' embeddings and the attention."""
        del present_shape
        units, count = features_shape[0][-1], len(features_shape)
        self.query = self.add_weight(
            shape=(1, 1, units), initializer="glorot_uniform", name="query"
        )
        self.embeddings = self.add_weight(
            shape=(count, units), initializer="glorot_uniform", name="embeddings"
        )
        self.attention = keras.layers.MultiHeadAttention(
            self.num_heads, max(1, units // self.num_heads), dtype=self.dtype_policy
        )
        self.attention.build((None, 1, units), (None, count, units))

    def call(self, features: Sequence[Any], present: Sequence[Any]) -> Any:
        """Returns the fused features."""
        masks = ops.stack(present, axis=1)
        stacked = ops.stack(features, axis=1) + self.embeddings
        query = ops.tile(self.query, (ops.shape(stacked)[0], 1, 1))
        fused = self.attention(query, stacked, attention_mask=masks[:, None])[:, 0]
        any_present = ops.any(masks, axis=1, keepdims=True)
        return ops.where(any_present, fused, ops.zeros_like(fused))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "num_heads": self.num_heads}
