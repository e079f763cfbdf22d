"""Mixtures of shared experts: one gate for each task, or one for all."""

from __future__ import annotations

from typing import Any

import keras

from mtl_keras.errors import check_integer
from mtl_keras.sharing.base import Sharing, in_turn
from mtl_keras.sharing.experts import experts_of
from mtl_keras.sharing.gates import Gate, Mixture, check_gate, expert_names

_register = keras.saving.register_keras_serializable(package="mtl_keras")


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

    Example:

    ```pycon
    >>> inputs = keras.Input((8,))
    >>> stages = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu")]
    >>> sharing = mtl_keras.sharing.MMoE(num_experts=4)
    >>> features = sharing(inputs, stages, ["a", "b"])
    >>> {task: tensor.shape for task, tensor in features.items()}
    {'a': (None, 8), 'b': (None, 8)}
    ```
    """

    method = "mmoe"
    search_space = {"num_experts": {"min": 2, "max": 8}}  # noqa: RUF012
    gates_read_features = True

    def __init__(self, num_experts: int = 4):
        self.num_experts = check_integer("num_experts", num_experts, low=1)

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect`."""
        x, experts = self.experts(inputs, stages)
        return {
            task: Mixture(name=f"{task}_mixture")(
                [self.gate(f"{task}_gate")(x), experts]
            )
            for task in tasks
        }

    def experts(
        self, inputs: keras.KerasTensor, stages: list[keras.layers.Layer]
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Returns the input of gates and experts, and the experts' outputs.

        Args:
            inputs: Input of the first stage.
            stages: The backbone's stages, of which the last is copied.

        Raises:
            InputError: Where gates cannot read it.
        """
        *trunk, last = stages
        x = in_turn(trunk, inputs)
        if self.gates_read_features:
            check_gate(self.method, x, last)
        return x, experts_of(last, self.num_experts, "experts", x)

    def gate(self, name: str) -> Gate:
        """Returns a new gate over the experts."""
        return Gate(expert_names("expert", self.num_experts), name=name)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"num_experts": self.num_experts}


@_register
class OMoE(MMoE):
    """One-gate mixture of experts: shared experts, one gate for all tasks.

    As `MMoE` with all gates the same, so that tasks have the same features; the
    comparison of the MMoE paper. Jacobs et al., "Adaptive Mixtures of Local
    Experts", Neural Computation 3, 1991; Ma et al., KDD 2018.

    Args:
        num_experts: How many copies of the last stage.

    Example:

    ```pycon
    >>> inputs = keras.Input((8,))
    >>> stages = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu")]
    >>> sharing = mtl_keras.sharing.OMoE(num_experts=4)
    >>> features = sharing(inputs, stages, ["a", "b"])
    >>> {task: tensor.shape for task, tensor in features.items()}
    {'a': (None, 8), 'b': (None, 8)}
    ```
    """

    method = "omoe"

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect`."""
        x, experts = self.experts(inputs, stages)
        mixture = Mixture(name="mixture")([self.gate("gate")(x), experts])
        return dict.fromkeys(tasks, mixture)
