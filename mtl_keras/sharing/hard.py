"""Hard parameter sharing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from mtl_keras.errors import check_integer, unknown_name
from mtl_keras.sharing.base import Sharing, tower


@keras.saving.register_keras_serializable(package="mtl_keras")
class Hard(Sharing):
    """One backbone for all tasks; the heads are the tasks' own, and the last stages
    with `own_stages`.

    Caruana, "Multitask Learning", Machine Learning 28, 1997. Stages of their own suit
    tasks that need other features of the same input, as where something is and what it
    is: those of the last stages are the most specific to a task.

    Args:
        own_stages: How many of the last stages a task has a copy of: one number for
            all tasks, or `{task: number}`, 0 for tasks left out. Tasks that a model
            lacks count for nothing, so that one setting suits any choice of tasks; and
            the first stage is always shared, so that it suits any depth.

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

    def __init__(self, own_stages: int | Mapping[str, int] = 0):
        if isinstance(own_stages, Mapping):
            self.own_stages: int | dict[str, int] = {
                task: check_integer(f"own_stages[{task!r}]", number, low=0)
                for task, number in own_stages.items()
            }
        else:
            self.own_stages = check_integer("own_stages", own_stages, low=0)

    def check_named(self, tasks: Sequence[str]) -> None:
        """See `Sharing.check_named`."""
        if isinstance(self.own_stages, dict):
            for task in self.own_stages:
                if task not in tasks:
                    raise unknown_name("task in `own_stages`", task, tasks)

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect`."""
        common = {task: max(1, len(stages) - self._own(task)) for task in tasks}
        shared = [inputs]
        for stage in stages[: max(common.values())]:
            shared.append(stage(shared[-1]))
        return {
            task: tower(shared[common[task]], stages[common[task] :], task, index)
            for index, task in enumerate(tasks)
        }

    def _own(self, task: str) -> int:
        if isinstance(self.own_stages, dict):
            return self.own_stages.get(task, 0)
        return self.own_stages

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"own_stages": self.own_stages}
