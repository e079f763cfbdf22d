"""Mixture of exactly k experts for each task, chosen by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mtl_keras.errors import InputError, check_integer, check_number
from mtl_keras.sharing.gates import Gate, expert_names
from mtl_keras.sharing.mmoe import MMoE

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class DSelectKGate(Gate):
    """Weights of E experts of which at most k are not 0.

    Each of k selectors writes an expert's number in ⌈log₂ E⌉ bits, every bit the
    smooth step of a trained number: 0 below −γ/2, 1 above γ/2, a cubic in between.
    A selector is a distribution over the experts, one-hot once its bits are 0 or 1.
    The weights are the selectors, mixed by a softmax. They are the same for all
    samples.

    Args:
        experts: Names of the experts.
        k: Number of selectors.
        gamma: Width γ of the smooth step's rise.
        entropy: Factor of the loss that drives bits to 0 or 1 and selectors apart.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(
        self, experts: Sequence[str], k: int, gamma: float, entropy: float, **kwargs
    ):
        super().__init__(experts, **kwargs)
        self.k = k
        self.gamma = gamma
        self.entropy = entropy
        self.num_bits = max(1, math.ceil(math.log2(len(self.experts))))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the selectors' bits `[k, bits]` and their weights `[k]`."""
        del input_shape
        self.bits = self.add_weight(
            shape=(self.k, self.num_bits),
            initializer=keras.initializers.RandomUniform(
                -self.gamma / 100, self.gamma / 100
            ),
            dtype="float32",
            autocast=False,
            name="bits",
        )
        self.logits = self.add_weight(
            shape=(self.k,),
            initializer="zeros",
            dtype="float32",
            autocast=False,
            name="logits",
        )

    def selectors(self) -> Any:
        """Returns the distributions of the selectors, float32 `[k, 2 ** bits]`."""
        z = ops.clip(ops.convert_to_tensor(self.bits) / self.gamma, -0.5, 0.5)
        step = 0.5 + 1.5 * z - 2.0 * z * z * z
        chosen = ops.ones((self.k, 1), "float32")
        for bit in range(self.num_bits):
            on = step[:, bit : bit + 1]
            chosen = ops.concatenate([chosen * (1.0 - on), chosen * on], axis=1)
        return chosen

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the weights; adds the loss."""
        del mask
        codes = self.selectors()
        chosen = codes[:, : len(self.experts)]
        reached = ops.sum(chosen, axis=1)
        entropies = -ops.sum(codes * ops.log(ops.maximum(codes, 1e-12)), axis=1)
        # Of this size it outweighs, near uniform selectors, what draws two of them
        # the same way.
        overlap = ops.sum(ops.square(ops.sum(codes, axis=0)))
        overlap -= ops.sum(ops.square(codes))
        overlap *= 0.5 * codes.shape[1]
        # 1 / reached: a code that stands for no expert.
        penalties = entropies + 1.0 / ops.maximum(reached, 1e-3) - 1.0
        self.add_loss(self.entropy * (ops.sum(penalties) + overlap))
        mixing = ops.softmax(ops.convert_to_tensor(self.logits))
        weights = ops.sum(mixing[:, None] * chosen, axis=0, keepdims=True)
        weights = ops.cast(weights, self.compute_dtype)
        rows = ops.shape(inputs)[0]
        return ops.broadcast_to(weights, (rows, len(self.experts)))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "k": self.k,
            "gamma": self.gamma,
            "entropy": self.entropy,
        }


@_register
class DSelectK(MMoE):
    """Shared experts of which each task keeps k, chosen while training.

    `MMoE` with sparse gates that are continuously differentiable.

    Hazimeh et al., "DSelect-k: Differentiable Selection in the Mixture of Experts
    with Applications to Multi-Task Learning", NeurIPS 2021, arXiv 2106.03760: its
    static gate. Differs from the paper in one term of the regularisation, the
    overlap (codes / 2) · Σ_{a≠b} ⟨r_a, r_b⟩ of the selectors r: the paper allows two
    selectors to choose the same expert and so ends with at most k; ours end with k.

    Args:
        num_experts: How many copies of the last stage.
        k: Experts that each task keeps.
        gamma: Width of the smooth step: the smaller, the sooner a bit is decided.
        entropy: Factor of the regularisation, which `add_loss` adds.

    Raises:
        InputError: When `k` exceeds `num_experts`, or a number is out of range.

    Example:

    ```pycon
    >>> inputs = keras.Input((8,))
    >>> stages = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu")]
    >>> sharing = mtl_keras.sharing.DSelectK(num_experts=4, k=2)
    >>> features = sharing(inputs, stages, ["a", "b"])
    >>> {task: tensor.shape for task, tensor in features.items()}
    {'a': (None, 8), 'b': (None, 8)}
    ```
    """

    method = "dselect_k"
    search_space = {  # noqa: RUF012
        "num_experts": {"min": 3, "max": 8},
        "k": [1, 2, 3],
        "entropy": {"min": 1e-3, "max": 1.0, "log": True},
    }
    gates_read_features = False

    def __init__(
        self,
        num_experts: int = 4,
        k: int = 2,
        gamma: float = 1.0,
        entropy: float = 0.1,
    ):
        super().__init__(num_experts)
        self.k = check_integer("k", k, low=1)
        self.gamma = check_number("gamma", gamma, low=1e-6)
        self.entropy = check_number("entropy", entropy, low=0.0)
        if k > num_experts:
            raise InputError(
                f"Expected `k` to be at most num_experts={num_experts}. Received: k={k}"
            )

    def gate(self, name: str) -> Gate:
        """Returns a new gate over the experts."""
        names = expert_names("expert", self.num_experts)
        return DSelectKGate(names, self.k, self.gamma, self.entropy, name=name)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "k": self.k,
            "gamma": self.gamma,
            "entropy": self.entropy,
        }
