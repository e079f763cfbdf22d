"""Base class of ways to share: backbone stages in, features per task out."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from mtl_keras.errors import InputError
from mtl_keras.sharing.bound import BoundStage, Inputs, bound


class Sharing:
    """A functional builder: backbone stages in, features per task out.

    It adds ordinary Keras layers to the functional graph and is not a layer
    itself. The model's summary, plots and files therefore show its parts, and a
    part that serves one task is seen to be that task's own.

    A model is made in three steps, of which the third does nothing for most ways
    to share:

    ```python
    inputs, tasks = keras.Input((8,)), ["a", "b"]
    stages = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu")]
    sharing = mtl_keras.sharing.get("mmoe")
    features = sharing(inputs, stages, tasks)
    outputs = {task: keras.layers.Dense(1)(x) for task, x in features.items()}
    outputs = sharing.connect_outputs(outputs)
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    ```

    Where tasks form a chain (a click, then a purchase), a way to share also
    connects the tasks' outputs, which then are probabilities. It may give no
    features for a task whose output follows from others', and it may leave an
    output without a loss of its own (`untrained`).
    """

    method = "sharing"
    """Name in the registry."""
    search_space: Mapping[str, Any] = types.MappingProxyType({})
    """The constructor's arguments that a study searches by default, each as a study
    file writes a setting: a list of values, or `{"min": …, "max": …}`."""

    def __call__(
        self,
        inputs: Inputs,
        stages: Sequence[keras.layers.Layer],
        tasks: Sequence[str],
    ) -> dict[str, keras.KerasTensor]:
        """Connects the stages.

        Args:
            inputs: Input of the first stage. For a backbone of several inputs a
                dict of all of them by name, or a list of `keras.Input`s, as
                `backbone.input` is.
            stages: The backbone in its order: any Keras layers, also
                `keras.Sequential` or functional models. Of a functional model of
                several inputs the first is the features of the stage before, and
                the others are read from `inputs`.
            tasks: Task names.

        Returns:
            `{task: features}` for the tasks that need a head, which are all but
            those that `connect_outputs` adds. Features are shaped as the last
            stage's output.

        Raises:
            InputError: Without stages or tasks, or as `check_tasks`.
        """
        if not stages or not tasks:
            raise InputError(
                "Expected at least one backbone stage and one task. "
                f"Received: {len(stages)} stages, tasks={list(tasks)}."
            )
        self.check_tasks(tasks)
        callable_stages, features = bound(stages, inputs)
        return self.connect(features, callable_stages, list(tasks))

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """Returns `{task: features}`, as `__call__`; each method implements it.

        Args:
            inputs: Input of the first stage.
            stages: The backbone's stages, at least one.
            tasks: Names of the tasks, each once.
        """
        raise NotImplementedError

    def connect_outputs(
        self, outputs: Mapping[str, keras.KerasTensor]
    ) -> dict[str, keras.KerasTensor]:
        """Connects the outputs of the heads with each other.

        Args:
            outputs: `{task: output}` of the heads, one for each task that has
                features. Where this method does something, the outputs that it
                connects are probabilities in [0, 1] of one shape.

        Returns:
            `{task: output}` for every task: the outputs themselves, unless the
            class says otherwise.

        Raises:
            InputError: When a task is missing or shapes differ.
        """
        return dict(outputs)

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Checks that the tasks are those that this way to share is for.

        Args:
            tasks: Task names.

        Raises:
            InputError: If one is missing that an argument names.
        """
        del tasks

    def check_named(self, tasks: Sequence[str]) -> None:
        """Checks that tasks which arguments name, whether chosen or not, exist.

        Args:
            tasks: All task names of the application.

        Raises:
            InputError: If an argument names none of them.
        """
        del tasks

    def untrained(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Returns those of the tasks whose outputs take no loss of their own.

        They learn through other tasks' outputs. Their entry in `compile(loss=...)`
        is None; labels and metrics are as for any task.

        Args:
            tasks: Task names.
        """
        del tasks
        return ()

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Sharing:
        """Returns an instance made from `get_config`'s result."""
        return cls(**config)


class Combination(keras.layers.Layer):
    """Base class of layers from several tensors of one shape, `[batch, …, d]`, to one.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the mask of the last tensor, which stands for all."""
        del inputs
        return None if mask is None else mask[-1]

    def compute_output_shape(
        self, input_shape: list[tuple[int | None, ...]]
    ) -> tuple[int | None, ...]:
        """Returns the shape of one input."""
        return tuple(input_shape[-1])


def at_least_float32() -> str:
    """Returns the dtype of layers that no policy makes less precise than float32."""
    return keras.backend.result_type(keras.config.floatx(), "float32")


def weighted_sum(weights: Any, tensors: Sequence[Any]) -> Any:
    """Returns Σ_i weights[i] · tensors[i]; `weights` is a vector."""
    parts = [weights[index] * x for index, x in enumerate(tensors)]
    return sum(parts[1:], parts[0])


def in_turn(
    stages: Sequence[keras.layers.Layer], inputs: keras.KerasTensor
) -> keras.KerasTensor:
    """Returns the output of stages called one after the other."""
    for stage in stages:
        inputs = stage(inputs)
    return inputs


def task_towers(
    inputs: keras.KerasTensor,
    stages: Sequence[keras.layers.Layer],
    tasks: Sequence[str],
) -> dict[str, keras.KerasTensor]:
    """Returns `{task: features}` of one copy of all stages for each task."""
    return {task: tower(inputs, stages, task, i) for i, task in enumerate(tasks)}


def tower(
    inputs: keras.KerasTensor,
    stages: Sequence[keras.layers.Layer],
    task: str,
    index: int,
) -> keras.KerasTensor:
    """Returns the features of a task's copy of the stages, its copy number `index`."""
    copies = [copy_stage(stage, f"{task}_{stage.name}", index) for stage in stages]
    return in_turn(copies, inputs)


def copy_stage(stage: Any, name: str, index: int = 0) -> Any:
    """Returns a fresh layer with the stage's configuration and weights of its own.

    Args:
        stage: Any Keras layer or model, or a `BoundStage`, whose copy is one.
        name: Name of the copy; names of layers within a copied model stay.
        index: Number of the copy. Copies of a stage with fixed seeds (of its
            initializers, say) get different ones, or they would stay alike.
    """
    if isinstance(stage, BoundStage):
        return BoundStage(copy_stage(stage.layer, name, index), stage.inputs)
    config = {**reseeded(stage.get_config(), index), "name": name}
    return type(stage).from_config(config)


_OF_THE_ORIGINAL = ("shared_object_id", "build_config", "build_input_shape")


def reseeded(config: Any, index: int) -> Any:
    """Returns the configuration of a fresh copy of a layer, with weights of its own.

    Every seed in it is raised by `index`; it does not refer to parts that Keras
    knows already while it loads a model, or copies would have these in common; and it
    has no shapes to build parts of at once: built where they are called, they have the
    copy's name in the paths of their variables.
    """
    if isinstance(config, dict):
        return {
            key: value + index
            if key == "seed" and isinstance(value, int)
            else reseeded(value, index)
            for key, value in config.items()
            if key not in _OF_THE_ORIGINAL
        }
    if isinstance(config, (list, tuple)):
        return type(config)(reseeded(value, index) for value in config)
    return config


def stage_mask(stage: keras.layers.Layer, mask: Any) -> Any:
    """Returns the mask that a stage's output has, given its input's mask."""
    layers = stage.layers if isinstance(stage, keras.Sequential) else [stage]
    for layer in layers:
        if mask is None or not layer.supports_masking:
            return None
        mask = layer.compute_mask(None, mask)
    return mask
