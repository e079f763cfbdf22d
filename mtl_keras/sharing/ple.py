"""Shared and private experts: customized gate control, one level or several."""

from __future__ import annotations

from typing import Any

import keras

from mtl_keras.errors import InputError, check_integer
from mtl_keras.sharing.base import Sharing, in_turn
from mtl_keras.sharing.experts import experts_of
from mtl_keras.sharing.gates import (
    Gate,
    Mixture,
    can_gate,
    check_gate,
    expert_names,
)

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class PLE(Sharing):
    """Progressive layered extraction: shared and private experts in several levels.

    On each level a task's gate mixes its private experts with the shared ones, and
    below the last level a further gate mixes all experts of all tasks into the input
    of the next level's shared experts. A level's experts are copies of one stage;
    stages before the first level form a shared trunk.

    Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning
    (MTL) Model for Personalized Recommendations", RecSys 2020. Follows the paper,
    the shared gate included.

    Args:
        num_shared_experts: Shared experts of each level, at least 1.
        num_task_experts: Private experts of each task on each level; with 0 and one
            level it is `MMoE`.
        num_levels: How many of the last stages are levels; `None` for all whose input
            gates can read, which leaves stages that read tokens to the trunk.

    Example:

    ```pycon
    >>> inputs = keras.Input((8,))
    >>> stages = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu")]
    >>> sharing = mtl_keras.sharing.PLE(num_shared_experts=2, num_task_experts=1)
    >>> features = sharing(inputs, stages, ["a", "b"])
    >>> {task: tensor.shape for task, tensor in features.items()}
    {'a': (None, 8), 'b': (None, 8)}
    ```
    """

    method = "ple"
    search_space = {  # noqa: RUF012
        "num_shared_experts": {"min": 1, "max": 4},
        "num_task_experts": {"min": 1, "max": 4},
    }

    def __init__(
        self,
        num_shared_experts: int = 2,
        num_task_experts: int = 2,
        num_levels: int | None = None,
    ):
        self.num_shared_experts = check_integer(
            "num_shared_experts", num_shared_experts, low=1
        )
        self.num_task_experts = check_integer(
            "num_task_experts", num_task_experts, low=0
        )
        if num_levels is not None:
            check_integer("num_levels", num_levels, low=1)
        self.num_levels = num_levels

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect`."""
        levels = self.num_levels
        if levels is not None and levels > len(stages):
            raise InputError(
                f"Expected a backbone of at least {levels} stages, one for each level "
                f"of {self.method}. Received: {len(stages)} stages."
            )
        trunk = 0 if levels is None else len(stages) - levels
        shared = in_turn(stages[:trunk], inputs)
        while levels is None and trunk < len(stages) - 1:
            if can_gate(shared, stages[trunk]):
                break
            shared = stages[trunk](shared)
            trunk += 1
        check_gate(self.method, shared, stages[trunk])
        private = dict.fromkeys(tasks, shared)
        count = len(stages) - trunk
        for level, stage in enumerate(stages[trunk:]):
            last = level == count - 1
            suffix = "" if count == 1 else f"_{level}"
            shared, private = self._level(stage, shared, private, suffix, last)
        return private

    def _level(
        self,
        stage: keras.layers.Layer,
        shared: keras.KerasTensor,
        private: dict[str, keras.KerasTensor],
        suffix: str,
        last: bool,
    ) -> tuple[keras.KerasTensor, dict[str, keras.KerasTensor]]:
        """Returns the inputs of the next level's shared and private experts."""
        count = self.num_task_experts
        common = experts_of(
            stage, self.num_shared_experts, f"shared_experts{suffix}", shared
        )
        common_names = expert_names("shared", self.num_shared_experts)
        own = {
            task: [experts_of(stage, count, f"{task}_experts{suffix}", x)]
            for task, x in private.items()
            if count
        }

        def mix(
            owner: str, x: keras.KerasTensor, tasks: list[str]
        ) -> keras.KerasTensor:
            names = [n for task in tasks for n in expert_names(task, count)]
            gate = Gate([*names, *common_names], name=f"{owner}_gate{suffix}")
            groups = [g for task in tasks for g in own.get(task, [])]
            return Mixture(name=f"{owner}_mixture{suffix}")([gate(x), *groups, common])

        mixed = {task: mix(task, x, [task]) for task, x in private.items()}
        return (shared if last else mix("shared", shared, list(private))), mixed

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "num_shared_experts": self.num_shared_experts,
            "num_task_experts": self.num_task_experts,
            "num_levels": self.num_levels,
        }


@_register
class CGC(PLE):
    """Customized gate control: shared and private experts in one level.

    `PLE` with the last stage as its only level, from the same paper, RecSys 2020.

    Args:
        num_shared_experts: Shared experts, at least 1.
        num_task_experts: Private experts of each task.

    Example:

    ```pycon
    >>> inputs = keras.Input((8,))
    >>> stages = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu")]
    >>> sharing = mtl_keras.sharing.CGC(num_shared_experts=2, num_task_experts=1)
    >>> features = sharing(inputs, stages, ["a", "b"])
    >>> {task: tensor.shape for task, tensor in features.items()}
    {'a': (None, 8), 'b': (None, 8)}
    ```
    """

    method = "cgc"

    def __init__(self, num_shared_experts: int = 2, num_task_experts: int = 2):
        super().__init__(num_shared_experts, num_task_experts, num_levels=1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        del config["num_levels"]
        return config
