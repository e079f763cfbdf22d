"""Base class of applications: data, backbones, tasks and training defaults."""

from __future__ import annotations

import abc
import dataclasses
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import keras

from mtl_keras import backbones as backbone_registry
from mtl_keras import errors
from mtl_keras import sharing as sharing_registry
from mtl_keras.applications.served import Served
from mtl_keras.model import MultiTaskModel
from mtl_keras.model.columns import MANY_TASKS

if TYPE_CHECKING:
    import tensorflow as tf

    from mtl_keras.pareto import PreferenceModel
    from mtl_keras.pareto.forms import Form

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of an application.

    Attributes:
        name: Name of the model's output and of the label.
        kind: `"multiclass"`, `"binary"`, `"number"`, `"boxes"`, `"segmentation"`,
            `"span"` or `"sequence"`.
        loss: Function that returns a new loss, in a form that Keras's `compile` takes.
        metrics: Function that returns new metrics, named without the task.
        objective: Name of the metric that models are compared by.
        direction: `"max"` or `"min"`: which way the objective is better.
        unit: What the objective is divided by where a mean is taken over tasks: the
            deviation of a target that has a unit.
    """

    name: str
    kind: str
    loss: Callable[[], keras.losses.Loss | str]
    metrics: Callable[[], list[keras.metrics.Metric]]
    objective: str
    direction: str = "max"
    unit: float = 1.0


@dataclasses.dataclass(frozen=True)
class TrainingDefaults:
    """Settings that train an application well on its default data.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Samples per step.
        learning_rate: First learning rate of Adam, which decays along a half
            cosine to 0 at the last step.
        backbone: Name of the backbone.
        sharing: The way to share: a name or a config dictionary.
        width: Width of the backbone.
        depth: Number of the backbone's stages.
        balancing: How several tasks are balanced: a name or a config dictionary.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    backbone: str
    sharing: str | dict[str, Any]
    width: int
    depth: int
    balancing: str | dict[str, Any] = "equal"


class Application(Served, abc.ABC):
    """A domain that can be trained by name: data, backbones, tasks, metrics.

    Attributes:
        name: Name in `mtl_keras.applications`.
        default_data: Name of the data set where none is given.
        backbones: Names of the backbones that fit.
        accumulates: Whether batches are of one data set each, and `load` takes
            `accumulate=True` for training steps with a batch of every one.
        tasks: All tasks in the order of the model's outputs, by name; where that can
            be no name of a layer, `Task.name` is another one.
        defaults: Settings where none are given.
        width_factors: What a backbone multiplies the width by, 1 where it is not
            named: so that one width suits all backbones, and they can be
            searched together.
    """

    name: str
    default_data: str
    backbones: tuple[str, ...]
    tasks: Mapping[str, Task]
    defaults: TrainingDefaults
    width_factors: Mapping[str, int] = types.MappingProxyType({})
    accumulates: bool = False

    def for_data(self, data: str | None) -> Application:
        """Returns the application as it is for a data set.

        Its tasks and defaults may depend on the data set; here they do not.

        Args:
            data: Name of the data set; `None` for `default_data`.

        Raises:
            InputError: The application knows no data set of this name.
        """
        del data
        return self

    def data_name(self, data: str | None) -> str:
        """Returns the data set's name as the settings of a training hold it.

        Args:
            data: Name of the data set; `None` for `default_data`.
        """
        return self.default_data if data is None else data

    def summary(self) -> str:
        """Returns what is to be known of the data before training, in some lines.

        Here nothing: the empty text.
        """
        return ""

    def outputs_of(self, tasks: Iterable[str] | None = None) -> dict[str, Task]:
        """Returns the tasks by the model's outputs; here each has one, of its name.

        Args:
            tasks: Names of the tasks; `None` for all.
        """
        return {task.name: task for task in self.select(tasks).values()}

    def columns_of(
        self, tasks: Iterable[str] | None = None
    ) -> dict[str, tuple[str, ...]]:
        """Returns `columns` for `compile`: outputs that are groups of tasks.

        Here none: `{}`. An application of hundreds of tasks has an output
        `[batch, T]` of those of a kind, with labels and sample weights of this shape.

        Args:
            tasks: Names of the tasks; `None` for all.

        Returns:
            `{output: names}`, each a `Task.name`, for keys of `outputs_of`.
        """
        del tasks
        return {}

    @abc.abstractmethod
    def load(
        self,
        split: str,
        *,
        data: str | None = None,
        batch_size: int,
        tasks: Iterable[str] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        limit: int | None = None,
        data_dir: str | os.PathLike | None = None,
        epoch: tf.Variable | None = None,
    ) -> tf.data.Dataset:
        """Loads a split in the form that the model trains on.

        Args:
            split: `"train"`, `"validation"` or `"test"`.
            data: Name of the data set; `None` for `default_data`.
            batch_size: Samples per batch.
            tasks: Tasks whose labels to give; `None` for all.
            shuffle: Whether each pass has a new order, out of `seed`.
            seed: Seed of the order.
            limit: Number of samples to stop after; `None` for all. Where some label
                other tasks alone, they count and are left out after: models of any
                tasks train on the same samples.
            data_dir: Folder of prepared data; `None` for the default one.
            epoch: Number of the epoch whose order to give, an int64 scalar that is
                read at the start of each pass; `None` counts the passes. The order
                depends on `seed` and on this number alone.

        Returns:
            Batches of `(inputs, {task: label})`, cached in memory; or of `(inputs,
            {task: label}, {task: sample weight})` where labels are missing.

        Raises:
            InputError: A name is unknown or the data cannot be had.
        """

    def stages(self, backbone: str, width: int, depth: int) -> list[keras.layers.Layer]:
        """Returns the new stages of a backbone.

        Args:
            backbone: One of `backbones`.
            width: Its width, `width_factors` included.
            depth: Number of stages; see `mtl_keras.backbones`.
        """
        return backbone_registry.get(backbone)(width, depth)

    def preprocess(self, inputs: Mapping[str, keras.KerasTensor]) -> keras.KerasTensor:
        """Returns the backbone's input, made from the raw inputs by Keras layers.

        An application has this and `head`, or a `connect` of its own.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def inputs(self) -> dict[str, keras.KerasTensor]:
        """Returns new symbolic inputs of the model, by name."""

    def inputs_of(self, tasks: Iterable[str]) -> dict[str, keras.KerasTensor]:
        """Returns new symbolic inputs of a model of these tasks; here the same."""
        del tasks
        return self.inputs()

    def encode(
        self, inputs: Mapping[str, keras.KerasTensor], backbone: str, width: int
    ) -> keras.KerasTensor:
        """Returns the first stage's input; here the preprocessed inputs.

        Args:
            inputs: Symbolic inputs, as `inputs_of` returns them.
            backbone: One of `backbones`.
            width: Width of `stages`.
        """
        del backbone, width
        return self.preprocess(inputs)

    def optimizer(self, learning_rate: Any) -> keras.optimizers.Optimizer:
        """Returns a new optimizer that suits the models; here Adam.

        Args:
            learning_rate: A number or a schedule.
        """
        return keras.optimizers.Adam(learning_rate)

    def head(self, task: Task, features: keras.KerasTensor) -> keras.KerasTensor:
        """Returns a task's output, in a layer that bears the task's name.

        Args:
            task: The task.
            features: Its features, from the way to share.
        """
        raise NotImplementedError

    def connect(
        self,
        inputs: Mapping[str, keras.KerasTensor],
        stages: Sequence[keras.layers.Layer],
        share: sharing_registry.Sharing,
        tasks: Mapping[str, Task],
        *,
        backbone: str,
        width: int,
    ) -> dict[str, keras.KerasTensor]:
        """Connects inputs to outputs: preprocessing, shared stages, heads.

        Args:
            inputs: Symbolic inputs, as `inputs` returns them.
            stages: The backbone.
            share: The way to share it.
            tasks: The tasks by name.
            backbone: Name of the backbone of `stages`.
            width: Width of `stages`.

        Returns:
            Outputs of the tasks that `share` gave features for, each of a layer
            that bears the task's name; `build` connects them as `share` says.
        """
        encoded = self.encode(inputs, backbone, width)
        features = share(encoded, stages=stages, tasks=list(tasks))
        return {name: self.head(tasks[name], x) for name, x in features.items()}

    def measure(
        self,
        model: keras.Model,
        split: str,
        *,
        data: str | None = None,
        tasks: Iterable[str] | None = None,
        batch_size: int,
        data_dir: str | os.PathLike | None = None,
    ) -> dict[str, dict[str, float]]:
        """Returns scores that `evaluate` cannot give, such as those of texts.

        Args:
            model: A trained model of `build`.
            split: `"train"`, `"validation"` or `"test"`.
            data: Name of the data set; `None` for `default_data`.
            tasks: Tasks to score; `None` for all.
            batch_size: Samples per batch.
            data_dir: Folder of prepared data; `None` for the default one.

        Returns:
            `{task: {metric: value}}`; nothing, unless overridden.
        """
        del model, split, data, tasks, batch_size, data_dir
        return {}

    def build(
        self,
        *,
        backbone: str | None = None,
        sharing: str | dict[str, Any] | sharing_registry.Sharing | None = None,
        width: int | None = None,
        depth: int | None = None,
        tasks: Iterable[str] | None = None,
    ) -> MultiTaskModel:
        """Builds the model, with preprocessing inside, and does not compile it.

        Args:
            backbone: One of `backbones`.
            sharing: A name, configuration or instance out of
                `mtl_keras.sharing`.
            width: Width of the backbone; see `width_factors`.
            depth: Number of the backbone's stages.
            tasks: Names of the tasks; `None` for all.

        Arguments that are `None` take their value from `defaults`.

        Returns:
            A model from a dict of raw inputs to a dict of outputs by task.

        Raises:
            InputError: A name is unknown or a size is less than 1.
        """
        backbone = self.defaults.backbone if backbone is None else backbone
        if backbone not in self.backbones:
            raise errors.unknown_name(
                f"backbone of {self.name!r}", backbone, self.backbones
            )
        width = _size("width", width, self.defaults.width)
        width *= self.width_factors.get(backbone, 1)
        stages = self.stages(
            backbone, width, _size("depth", depth, self.defaults.depth)
        )
        share = sharing_registry.get(
            self.defaults.sharing if sharing is None else sharing
        )
        chosen = {task.name: task for task in self.select(tasks).values()}
        inputs = self.inputs_of(chosen)
        outputs = self.connect(
            inputs, stages, share, chosen, backbone=backbone, width=width
        )
        outputs = share.connect_outputs(outputs)
        names = self.outputs_of(tasks)
        return self.assemble(inputs, {name: outputs[name] for name in names})

    def check_sharing(
        self, share: sharing_registry.Sharing, tasks: Iterable[str] | None = None
    ) -> None:
        """Checks that tasks can share in a way.

        Args:
            share: The way to share.
            tasks: Names of the tasks; None for all.

        Raises:
            InputError: If a task is missing that an argument of `share` needs, or one
                is none of the application's, or `share` connects outputs and the tasks
                are columns of one.
        """
        chosen = list(self.select(tasks))
        share.check_named(list(self.tasks))
        share.check_tasks(chosen)
        connects = type(share).connect_outputs is not (
            sharing_registry.Sharing.connect_outputs
        )
        if connects and self.columns_of(chosen):
            raise errors.InputError(
                f"Expected at most {MANY_TASKS} tasks for the sharing "
                f"{share.method!r}, which connects outputs of theirs: choose some by "
                "`tasks` (--tasks), or another sharing. Received: "
                f"{len(chosen)} tasks, which are columns of one output."
            )

    def assemble(
        self,
        inputs: Mapping[str, keras.KerasTensor],
        outputs: Mapping[str, keras.KerasTensor],
    ) -> MultiTaskModel:
        """Returns the model, not compiled.

        Args:
            inputs: The model's inputs, by name.
            outputs: The heads' outputs, by the names that `outputs_of` gives.
        """
        return MultiTaskModel(inputs, outputs)

    def condition(
        self, model: MultiTaskModel, form: Form, num_tasks: int
    ) -> PreferenceModel:
        """Returns a model of `build` with a preference over the tasks as an input.

        Args:
            model: The model; its layers are taken over.
            form: How it is conditioned.
            num_tasks: Entries of the preference: the number of tasks with a loss.
        """
        return form.condition(model, num_tasks)

    def losses(self, tasks: Iterable[str] | None = None) -> dict[str, Any]:
        """Returns new losses by the model's outputs, for `compile`."""
        return {name: task.loss() for name, task in self.outputs_of(tasks).items()}

    def metrics(
        self, tasks: Iterable[str] | None = None
    ) -> dict[str, list[keras.metrics.Metric]]:
        """Returns new metrics by the model's outputs, for `compile`."""
        return {name: task.metrics() for name, task in self.outputs_of(tasks).items()}

    def select(self, tasks: Iterable[str] | None) -> dict[str, Task]:
        """Returns the named tasks, in the application's order.

        Args:
            tasks: Names of tasks; `None` for all.

        Raises:
            InputError: A name is unknown, or none is given.
        """
        if tasks is None:
            return dict(self.tasks)
        wanted = [tasks] if isinstance(tasks, str) else list(tasks)
        for name in wanted:
            if name not in self.tasks:
                raise errors.unknown_name(f"task of {self.name!r}", name, self.tasks)
        if not wanted:
            raise errors.InputError(
                f"Expected at least one task of {self.name!r}: "
                f"{', '.join(self.tasks)}. Received: none."
            )
        return {name: task for name, task in self.tasks.items() if name in wanted}


class BoundApplication(Application):
    """An application that is made for one data set, on which its tasks depend.

    Attributes:
        data: Name of the data set.
        data_dir: Folder of prepared data; `None` for the default one.

    Args:
        data: Name of the data set; `None` for `default_data`.
        data_dir: Folder of prepared data; `None` for the default one.
    """

    def __init__(
        self, data: str | None = None, data_dir: str | os.PathLike | None = None
    ):
        self.data = self.default_data if data is None else data
        self.data_dir = data_dir

    def for_data(self, data: str | None) -> Self:
        """See `Application.for_data`: with the tasks that the data set labels."""
        return type(self)(data, self.data_dir)


def check_split(split: str, splits: Sequence[str] = SPLITS) -> None:
    """Raises `InputError` if no split of the data has this name."""
    if split not in splits:
        raise errors.unknown_name("split", split, splits)


def _size(argument: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise errors.InputError(
            f"Expected `{argument}` to be a whole number of at least 1. "
            f"Received: {value!r}."
        )
    return value
