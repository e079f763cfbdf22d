"""Cross-stitch networks."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtl_keras.errors import check_number
from mtl_keras.sharing.base import Combination, Sharing, copy_stage, weighted_sum

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class CrossStitch(Combination):
    """One task's linear combination Σ_j α_j x_j of the outputs of all columns.

    Called on T tensors `[batch, …, d]`; returns one such tensor.

    Args:
        tasks: The T tasks.
        task: The task whose combination it is.
        own_weight: Its own α at the start; the others share the rest to 1.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, tasks: list[str], task: str, own_weight: float, **kwargs):
        super().__init__(**kwargs)
        self.tasks = list(tasks)
        self.task = task
        self.own_weight = own_weight

    @property
    def sources(self) -> list[str]:
        """Names of the combined columns, for plots."""
        return self.tasks

    def build(self, input_shape: list[tuple[int | None, ...]]) -> None:
        """Creates α, `[T]`."""
        del input_shape
        others = max(1, len(self.tasks) - 1)
        start = [(1.0 - self.own_weight) / others] * len(self.tasks)
        start[self.tasks.index(self.task)] = self.own_weight
        self.alpha = self.add_weight(
            shape=(len(start),),
            initializer=lambda shape, dtype: ops.cast(start, dtype),
            name="alpha",
        )

    def call(self, inputs: list[Any]) -> Any:
        """Returns the combination."""
        return weighted_sum(self.alpha, inputs)

    def usage(self) -> Any:
        """Returns |α| scaled to sum to 1, `[T]`: how much each column counts."""
        size = ops.abs(ops.convert_to_tensor(self.alpha))
        return size / ops.sum(size)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "tasks": self.tasks,
            "task": self.task,
            "own_weight": self.own_weight,
        }


@_register
class CrossStitchNetwork(Sharing):
    """A column of stages for each task; after each stage, columns are combined.

    A task's next stage (after the last one: its head) reads Σ_j α_j x_j over the
    columns, with trained α, one number for each pair of tasks and stage.
    With own_weight=1 training starts from independent columns.

    Misra et al., "Cross-Stitch Networks for Multi-task Learning", CVPR 2016, arXiv
    1604.03539. Differs from the paper in that a stage's α is one number and not one
    for each channel, and that columns are trained from the start together.

    Args:
        own_weight: α of a task's own column at the start, from 0 to 1; the others
            share the rest to 1.

    Example:

    ```pycon
    >>> inputs = keras.Input((8,))
    >>> stages = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu")]
    >>> sharing = mtl_keras.sharing.CrossStitchNetwork()
    >>> features = sharing(inputs, stages, ["a", "b"])
    >>> {task: tensor.shape for task, tensor in features.items()}
    {'a': (None, 8), 'b': (None, 8)}
    ```
    """

    method = "cross_stitch"
    search_space = {"own_weight": [0.5, 0.7, 0.9, 1.0]}  # noqa: RUF012

    def __init__(self, own_weight: float = 0.9):
        self.own_weight = check_number("own_weight", own_weight, low=0.0, high=1.0)

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect`."""
        columns = dict.fromkeys(tasks, inputs)
        for level, stage in enumerate(stages):
            outputs = [
                copy_stage(stage, f"{task}_{stage.name}", index)(x)
                for index, (task, x) in enumerate(columns.items())
            ]
            columns = {
                task: CrossStitch(
                    tasks, task, self.own_weight, name=f"{task}_stitch_{level}"
                )(outputs)
                for task in tasks
            }
        return columns

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"own_weight": self.own_weight}
