"""Learning to branch."""

from __future__ import annotations

from typing import Any, TypeVar

import keras
from keras import ops

from mtl_keras.errors import check_integer, check_number
from mtl_keras.sharing.base import Combination, Sharing, copy_stage, weighted_sum

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class BranchChoice(Combination):
    """A choice among B tensors of one shape.

    In training it is their sum, weighted by a sample of the Gumbel-softmax
    distribution of B trained logits, whose temperature falls from step to step by
    a constant factor; afterwards it is the tensor with the highest logit alone.

    Args:
        sources: Names of the B tensors, for plots.
        temperature: Temperature of the first step.
        final_temperature: Temperature from step `annealing_steps` on.
        annealing_steps: Number of training steps.
        seed: Seed of the samples; `None` draws one.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(
        self,
        sources: list[str],
        temperature: float,
        final_temperature: float,
        annealing_steps: int,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.sources = list(sources)
        self.temperature = temperature
        self.final_temperature = final_temperature
        self.annealing_steps = annealing_steps
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: list[tuple[int | None, ...]]) -> None:
        """Creates the logits `[B]` and the count of steps."""
        del input_shape
        self.logits = self.add_weight(
            shape=(len(self.sources),),
            initializer="zeros",
            dtype="float32",
            autocast=False,
            name="logits",
        )
        self.step = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="step",
        )

    @property
    def chosen(self) -> int:
        """Index of the tensor with the highest logit."""
        return int(ops.argmax(ops.convert_to_tensor(self.logits)))

    def call(self, inputs: list[Any], training: bool | None = None) -> Any:
        """Returns the sampled mixture in training, else the choice."""
        logits = ops.convert_to_tensor(self.logits)
        if not training:
            return ops.take(ops.stack(inputs), ops.argmax(logits), axis=0)
        done = ops.minimum(self.step / self.annealing_steps, 1.0)
        factor = self.final_temperature / self.temperature
        temperature = self.temperature * ops.power(factor, done)
        self.step.assign_add(1.0)
        uniform = keras.random.uniform(
            logits.shape, 1e-6, 1.0 - 1e-6, dtype="float32", seed=self.seed_generator
        )
        weights = ops.softmax((logits - ops.log(-ops.log(uniform))) / temperature)
        weights = ops.cast(weights, self.compute_dtype)
        return weighted_sum(weights, inputs)

    def serving_call(self, inputs: list[Any], training: bool | None = None) -> Any:
        """Returns the chosen tensor itself: the others are not served."""
        del training
        return inputs[self.chosen]

    def usage(self) -> Any:
        """Returns the probability of each choice, `[B]`."""
        return ops.softmax(ops.convert_to_tensor(self.logits))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "sources": self.sources,
            "temperature": self.temperature,
            "final_temperature": self.final_temperature,
            "annealing_steps": self.annealing_steps,
            "seed": self.seed,
        }


@_register
class Branching(Sharing):
    """Learns a tree: which copy of a stage follows which, and which serves a task.

    Each stage has several copies. Every copy chooses its parent among the copies of
    the stage before, and every task one of the last stage's copies; choices and
    weights are trained together. `hard_branches` cuts the model down to the tree,
    for export.

    Guo, Lee and Ulbricht, "Learning to Branch for Multi-Task Learning", ICML 2020,
    arXiv 2006.01895. Differs from the paper in that choices and weights are trained
    on the same batches by the same optimizer, and that the tree is kept as it is
    rather than trained anew.

    Args:
        num_branches: Copies of each stage; `None` for one per task.
        temperature: Temperature of the Gumbel-softmax in the first step.
        final_temperature: Temperature after the annealing.
        annealing_steps: Training steps over which the temperature falls.

    Example:

    ```pycon
    >>> inputs = keras.Input((8,))
    >>> stages = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu")]
    >>> sharing = mtl_keras.sharing.Branching(num_branches=2)
    >>> features = sharing(inputs, stages, ["a", "b"])
    >>> {task: tensor.shape for task, tensor in features.items()}
    {'a': (None, 8), 'b': (None, 8)}
    ```
    """

    method = "branching"
    search_space = {  # noqa: RUF012
        "num_branches": {"min": 2, "max": 4},
        "annealing_steps": [200, 1000, 5000],
    }

    def __init__(
        self,
        num_branches: int | None = None,
        temperature: float = 5.0,
        final_temperature: float = 0.2,
        annealing_steps: int = 1000,
    ):
        if num_branches is not None:
            check_integer("num_branches", num_branches, low=1)
        self.num_branches = num_branches
        self.temperature = check_number("temperature", temperature, low=1e-3)
        self.final_temperature = check_number(
            "final_temperature", final_temperature, low=1e-3
        )
        self.annealing_steps = check_integer("annealing_steps", annealing_steps, low=1)

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect`."""
        count = self.num_branches or len(tasks)
        parents: list[keras.KerasTensor] = []
        names: list[str] = []
        for stage in stages:
            children = []
            for index in range(count):
                name = f"{stage.name}_{index}"
                x = (
                    self._choice(f"{name}_parent", parents, names)
                    if parents
                    else inputs
                )
                children.append(copy_stage(stage, name, index)(x))
            parents, names = children, [f"{stage.name}_{i}" for i in range(count)]
        return {task: self._choice(f"{task}_branch", parents, names) for task in tasks}

    def _choice(
        self, name: str, parents: list[keras.KerasTensor], names: list[str]
    ) -> keras.KerasTensor:
        return BranchChoice(
            names,
            self.temperature,
            self.final_temperature,
            self.annealing_steps,
            name=name,
        )(parents)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "num_branches": self.num_branches,
            "temperature": self.temperature,
            "final_temperature": self.final_temperature,
            "annealing_steps": self.annealing_steps,
        }


Model = TypeVar("Model", bound=keras.Model)


def hard_branches(model: Model) -> Model:
    """Returns a model with every choice of branches made, over the same weights.

    What no task chose is left out; what one task alone chose is its own. The result
    is not compiled. A model without choices is returned as it is.

    Args:
        model: A functional model, for example with `Branching` in it.

    Example:

    ```python
    inputs = keras.Input((4,))
    features = mtl_keras.sharing.Branching(2)(
        inputs, [keras.layers.Dense(8)], ["a", "b"]
    )
    tree = mtl_keras.sharing.hard_branches(
        mtl_keras.MultiTaskModel(inputs, features)
    )
    ```
    """
    if not any(isinstance(layer, BranchChoice) for layer in model.layers):
        return model

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, BranchChoice):
            return layer.serving_call(*args, **kwargs)
        return layer(*args, **kwargs)

    return keras.models.clone_model(
        model, clone_function=lambda layer: layer, call_function=call
    )
