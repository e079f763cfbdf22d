"""Sluice networks."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtl_keras.errors import InputError, check_integer, check_number
from mtl_keras.sharing.base import Combination, Sharing, copy_stage, weighted_sum

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class SubspaceStitch(Combination):
    """One task's combination of the subspaces of all tasks' columns.

    Called on T tensors `[batch, …, d]`, each of S subspaces of d / S channels;
    returns one such tensor, whose every subspace is a linear combination of the
    T · S subspaces. Adds orthogonality · mean(C²), where C `[d/S, d/S]` holds the
    correlations over the batch between channels of its own column's subspaces.

    Args:
        tasks: The T tasks.
        task: The task whose combination it is.
        subspaces: S.
        own_weight: Weight of a subspace itself at the start; the others share the
            rest to 1.
        orthogonality: Factor of the loss.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(
        self,
        tasks: list[str],
        task: str,
        subspaces: int,
        own_weight: float,
        orthogonality: float,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.tasks = list(tasks)
        self.task = task
        self.subspaces = subspaces
        self.own_weight = own_weight
        self.orthogonality = orthogonality

    @property
    def sources(self) -> list[str]:
        """Names of the combined subspaces, for plots."""
        return [f"{task} {s}" for task in self.tasks for s in range(self.subspaces)]

    def build(self, input_shape: list[tuple[int | None, ...]]) -> None:
        """Creates α, `[S, T · S]`."""
        width = input_shape[0][-1]
        assert width is not None
        if width % self.subspaces:
            raise InputError(
                f"Expected a number of channels that {self.subspaces} subspaces "
                f"divide. Received: {width} channels at {self.name!r}."
            )
        first = self.tasks.index(self.task) * self.subspaces
        count = len(self.tasks) * self.subspaces
        rest = (1.0 - self.own_weight) / max(1, count - 1)
        start = [
            [self.own_weight if j == first + s else rest for j in range(count)]
            for s in range(self.subspaces)
        ]
        self.alpha = self.add_weight(
            shape=(self.subspaces, count),
            initializer=lambda shape, dtype: ops.cast(start, dtype),
            name="alpha",
        )

    def call(self, inputs: list[Any]) -> Any:
        """Returns the combination; adds the loss."""
        parts = [p for x in inputs for p in ops.split(x, self.subspaces, axis=-1)]
        first = self.tasks.index(self.task) * self.subspaces
        own = parts[first : first + self.subspaces]
        self.add_loss(self.orthogonality * _overlap(own))
        mixed = [weighted_sum(self.alpha[s], parts) for s in range(self.subspaces)]
        return ops.concatenate(mixed, axis=-1)

    def usage(self) -> Any:
        """Returns Σ_s |α_s| scaled to sum to 1, `[T · S]`."""
        size = ops.sum(ops.abs(ops.convert_to_tensor(self.alpha)), axis=0)
        return size / ops.sum(size)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "tasks": self.tasks,
            "task": self.task,
            "subspaces": self.subspaces,
            "own_weight": self.own_weight,
            "orthogonality": self.orthogonality,
        }


def _overlap(parts: list[Any]) -> Any:
    """Returns the mean squared correlation between channels of different parts."""
    unit = []
    for part in parts:
        flat = ops.cast(ops.reshape(part, (-1, part.shape[-1])), "float32")
        squares = ops.sum(ops.square(flat), axis=0, keepdims=True)
        unit.append(flat / ops.sqrt(squares + 1e-12))
    pairs = [
        ops.mean(ops.square(ops.matmul(ops.transpose(a), b)))
        for index, a in enumerate(unit)
        for b in unit[index + 1 :]
    ]
    return sum(pairs, ops.zeros((), "float32"))


@_register
class LayerMixture(Combination):
    """Σ_l β_l x_l over the outputs of one column's stages, with trained β.

    Called on L tensors of one shape; β starts at 1 / L each.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    def build(self, input_shape: list[tuple[int | None, ...]]) -> None:
        """Creates β, `[L]`."""
        count = len(input_shape)
        self.beta = self.add_weight(
            shape=(count,),
            initializer=keras.initializers.Constant(1.0 / count),
            name="beta",
        )

    def call(self, inputs: list[Any]) -> Any:
        """Returns the mixture."""
        return weighted_sum(self.beta, inputs)


@_register
class Sluice(Sharing):
    """Cross-stitch between subspaces, and a mixture of layers for each head.

    As `CrossStitchNetwork`, but each column's channels form subspaces that are
    combined one by one (α), a loss keeps a column's subspaces apart, and a head
    reads a mixture of its column's stages (β).

    Ruder et al., "Latent Multi-Task Architecture Learning", AAAI 2019, arXiv
    1705.08142. Differs from the paper in that orthogonality is asked of the
    subspaces' outputs and not of their weights, which stages of any layers need not
    have; and that a head mixes only those stages whose outputs are shaped as the
    last one's.

    Args:
        subspaces: Subspaces of each column; they must divide every stage's
            channels.
        own_weight: Weight of a subspace itself at the start, from 0 to 1.
        orthogonality: Factor of the loss on a column's subspaces.

    Example:

    ```pycon
    >>> inputs = keras.Input((8,))
    >>> stages = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu")]
    >>> sharing = mtl_keras.sharing.Sluice()
    >>> features = sharing(inputs, stages, ["a", "b"])
    >>> {task: tensor.shape for task, tensor in features.items()}
    {'a': (None, 8), 'b': (None, 8)}
    ```
    """

    method = "sluice"
    search_space = {  # noqa: RUF012
        "own_weight": [0.5, 0.7, 0.9],
        "orthogonality": {"min": 1e-3, "max": 1.0, "log": True},
    }

    def __init__(
        self,
        subspaces: int = 2,
        own_weight: float = 0.9,
        orthogonality: float = 0.1,
    ):
        self.subspaces = check_integer("subspaces", subspaces, low=1)
        self.own_weight = check_number("own_weight", own_weight, low=0.0, high=1.0)
        self.orthogonality = check_number("orthogonality", orthogonality, low=0.0)

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect`."""
        columns = dict.fromkeys(tasks, inputs)
        history: dict[str, list[keras.KerasTensor]] = {task: [] for task in tasks}
        for level, stage in enumerate(stages):
            outputs = [
                copy_stage(stage, f"{task}_{stage.name}", index)(x)
                for index, (task, x) in enumerate(columns.items())
            ]
            for task in tasks:
                columns[task] = SubspaceStitch(
                    tasks,
                    task,
                    self.subspaces,
                    self.own_weight,
                    self.orthogonality,
                    name=f"{task}_stitch_{level}",
                )(outputs)
                history[task].append(columns[task])
        return {
            task: LayerMixture(name=f"{task}_layers")(
                [x for x in outputs if x.shape == outputs[-1].shape]
            )
            for task, outputs in history.items()
        }

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "subspaces": self.subspaces,
            "own_weight": self.own_weight,
            "orthogonality": self.orthogonality,
        }
