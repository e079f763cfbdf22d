"""Mixtures of experts."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtl_keras.errors import check_integer
from mtl_keras.sharing.base import Sharing, copy_stage

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class ExpertStack(keras.layers.Layer):
    """Stacks E expert outputs `[batch, …]` into `[batch, E, …]`."""

    def call(self, inputs: list[Any]) -> Any:
        """Returns the stack."""
        return ops.stack(inputs, axis=1)


@_register
class ExpertGate(keras.layers.Layer):
    """Mixes experts with weights that depend on the sample.

    softmax(W x) over the experts, with x averaged over its inner axes (positions,
    time steps) where it has any. Called on `[x, experts]`: `x` `[batch, …, d]`,
    experts `[batch, E, …]`; returns `[batch, …]`.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    def build(self, input_shape: list[tuple[int | None, ...]]) -> None:
        """Creates the gate's kernel `[d, E]`."""
        gate_shape, expert_shape = input_shape
        self.kernel = self.add_weight(
            shape=(gate_shape[-1], expert_shape[1]),
            initializer="glorot_uniform",
            name="kernel",
        )

    def call(self, inputs: list[Any]) -> Any:
        """Returns the mixture."""
        x, experts = inputs
        inner = list(range(1, len(x.shape) - 1))
        if inner:
            x = ops.mean(x, axis=inner)
        weights = ops.softmax(ops.matmul(ops.cast(x, self.compute_dtype), self.kernel))
        feature_axes = len(experts.shape) - 2
        weights = ops.reshape(weights, (-1, experts.shape[1], *([1] * feature_axes)))
        return ops.sum(weights * experts, axis=1)

    def compute_output_shape(
        self, input_shape: list[tuple[int | None, ...]]
    ) -> tuple[int | None, ...]:
        """Returns the shape of one expert's output."""
        expert_shape = input_shape[1]
        return (expert_shape[0], *expert_shape[2:])


@_register
class MMoE(Sharing):
    """Multi-gate mixture of experts: shared experts, one gate per task.

    All stages but the last form a shared trunk; the last is copied into the
    experts. Ma et al., "Modeling Task Relationships in Multi-task Learning with
    Multi-gate Mixture-of-Experts", KDD 2018. Differs from the paper in that the
    gates read the trunk's output, which is the model's input where there is one
    stage only, as in the paper.

    Args:
        num_experts: How many copies of the last stage.
    """

    method = "mmoe"

    def __init__(self, num_experts: int = 4):
        self.num_experts = check_integer("num_experts", num_experts, low=1)

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect`."""
        x = inputs
        for stage in stages[:-1]:
            x = stage(x)
        experts = [
            copy_stage(stages[-1], name=f"expert_{index}")(x)
            for index in range(self.num_experts)
        ]
        stacked = ExpertStack(name="experts")(experts)
        return {task: ExpertGate(name=f"{task}_gate")([x, stacked]) for task in tasks}

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"num_experts": self.num_experts}
