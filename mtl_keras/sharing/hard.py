"""Hard parameter sharing."""

from __future__ import annotations

from typing import Any

import keras

from mtl_keras.errors import check_integer
from mtl_keras.sharing.base import Sharing, in_turn, task_towers


@keras.saving.register_keras_serializable(package="mtl_keras")
class Hard(Sharing):
    """One backbone for all tasks; the heads are the tasks' own, and the last stages
    with `own_stages`.

    Caruana, "Multitask Learning", Machine Learning 28, 1997. Stages of their own suit
    tasks that need other features of the same input, as where something is and what it
    is: those of the last stages are the most specific to a task.

    Args:
        own_stages: How many of the last stages each task has a copy of. The first
            stage is shared in any case, so that a number suits backbones of any depth.

    Example:

    ```pycon
    >>> inputs = keras.Input((8,))
    >>> stages = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu")]
    >>> sharing = mtl_keras.sharing.Hard()
    >>> features = sharing(inputs, stages, ["a", "b"])
    >>> {task: tensor.shape for task, tensor in features.items()}
    {'a': (None, 8), 'b': (None, 8)}
    ```
    """

    method = "hard"

    def __init__(self, own_stages: int = 0):
        self.own_stages = check_integer("own_stages", own_stages, low=0)

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect`."""
        common = max(1, len(stages) - self.own_stages)
        features = in_turn(stages[:common], inputs)
        return task_towers(features, stages[common:], tasks)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"own_stages": self.own_stages}
