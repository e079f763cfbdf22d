"""Hard parameter sharing."""

from __future__ import annotations

from typing import Any

import keras

from mtl_keras.errors import InputError, check_integer
from mtl_keras.sharing.base import Sharing, in_turn, task_towers


@keras.saving.register_keras_serializable(package="mtl_keras")
class Hard(Sharing):
    """One backbone for all tasks; the heads are the tasks' own, and the last stages
    with `own_stages`.

    Caruana, "Multitask Learning", Machine Learning 28, 1997. Stages of their own suit
    tasks that need other features of the same input, as where something is and what it
    is: those of the last stages are the most specific to a task.

    Args:
        own_stages: How many of the last stages each task has a copy of, fewer than the
            backbone has.

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
        common = len(stages) - self.own_stages
        if common < 1:
            raise InputError(
                f"Expected a backbone of more than own_stages={self.own_stages} "
                f"stages, so that tasks share one. Received: {len(stages)} stages."
            )
        features = in_turn(stages[:common], inputs)
        if not self.own_stages:
            return dict.fromkeys(tasks, features)
        return task_towers(features, stages[common:], tasks)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"own_stages": self.own_stages}
