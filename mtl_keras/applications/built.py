"""A model of one's own: a function that builds it, on a data file or data sets."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from mtl_keras import errors
from mtl_keras.applications import registry
from mtl_keras.applications.base import (
    SPLITS,
    Application,
    Task,
    TrainingDefaults,
    check_split,
)
from mtl_keras.model import MultiTaskModel
from mtl_keras.model.keras_compat import fresh_metric, resolved_metrics

if TYPE_CHECKING:
    import tensorflow as tf

    from mtl_keras.applications.table.application import Table

_BACKBONE = "own"


class BuiltModel(Application):
    """A function that builds a `MultiTaskModel`, on the data of a data file.

    The function may take any of these arguments: `table`, the
    `mtl_keras.applications.Table`; `tasks`, the names of the outputs to build;
    `sharing`, `width` and `depth`, as `Application.build` takes them. It returns a
    model with raw columns as inputs and the tasks as outputs, by their names; layers
    such as `keras.layers.Normalization` may be adapted to `table.load("train", …)`.

    Args:
        function: The function.
        name: What it was named by.
        table: The table; None before `for_data`.
    """

    default_data = ""
    backbones = (_BACKBONE,)

    def __init__(
        self,
        function: Callable[..., MultiTaskModel],
        name: str,
        table: Table | None = None,
    ):
        self.function = function
        self.name = name
        self._table = table

    def for_data(self, data: str | None) -> Application:
        """See `Application.for_data`.

        Args:
            data: Path of the data file, alone or as `data_name` returns it; or the
                name of a function that returns data sets, see `BuiltOnDatasets`.

        Raises:
            InputError: Without a data file, or if its table has changed.
        """
        from mtl_keras.applications.table.application import Table

        if not data:
            raise errors.InputError(
                f"Expected a data file beside the function {self.name!r}: --data "
                "FILE.toml, or a function that returns data sets: --data FILE.py:NAME. "
                "Received: none."
            )
        if registry.is_code(data):
            return _on_datasets(self.function, self.name, data)
        path, state = _parted(data)
        table = Table(path, group_tasks=False)
        table.for_data(state)
        return BuiltModel(self.function, self.name, table)

    def data_name(self, data: str | None) -> str:
        """See `Application.data_name`: path of the data file, name of its table."""
        path, _ = _parted(str(data))
        return f"{path}#{self.table.default_data}"

    @property
    def table(self) -> Table:
        """The table that the model is for."""
        if self._table is None:
            raise errors.InputError(f"Expected {self.name!r} with a data file.")
        return self._table

    @property
    def tasks(self) -> Mapping[str, Task]:  # type: ignore[override]
        """The table's tasks."""
        return self.table.tasks

    @property
    def defaults(self) -> TrainingDefaults:  # type: ignore[override]
        """The table's, with the one backbone that there is."""
        return dataclasses.replace(self.table.defaults, backbone=_BACKBONE)

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
        """See `Table.load`."""
        del data, data_dir
        return self.table.load(
            split,
            batch_size=batch_size,
            tasks=tasks,
            shuffle=shuffle,
            seed=seed,
            limit=limit,
            epoch=epoch,
        )

    def inputs(self) -> dict[str, keras.KerasTensor]:
        """See `Application.inputs`: the table's columns."""
        return self.table.inputs()

    def summary(self) -> str:
        """See `Application.summary`."""
        return self.table.summary()

    def class_names(self) -> Mapping[str, Sequence[str]]:
        """See `Application.class_names`."""
        return self.table.class_names()

    def missing_values(self) -> Mapping[str, float]:
        """See `Served.missing_values`."""
        return self.table.missing_values()

    def build(
        self,
        *,
        backbone: str | None = None,
        sharing: Any = None,
        width: int | None = None,
        depth: int | None = None,
        tasks: Iterable[str] | None = None,
    ) -> MultiTaskModel:
        """See `Application.build`: what the function returns, with the chosen tasks.

        Its outputs are called by the tasks' titles or by their names in the model.

        Raises:
            InputError: If it returns something else, a task has no output, or an input
                is no column.
        """
        del backbone
        titles = {task.name: title for title, task in self.select(tasks).items()}
        chosen = list(titles)
        model = _built(
            self,
            table=self.table,
            tasks=chosen,
            sharing=self.defaults.sharing if sharing is None else sharing,
            width=self.defaults.width if width is None else width,
            depth=self.defaults.depth if depth is None else depth,
        )
        self._check_inputs(model)
        outputs = {}
        for name, title in titles.items():
            output = model.output.get(name, model.output.get(title))
            if output is None:
                raise errors.InputError(
                    f"Expected {self.name!r} to return a model with an output "
                    f"{title!r}. Received: {', '.join(model.output)}."
                )
            outputs[name] = output
        return self.table.assemble(model.input, outputs)

    def _check_inputs(self, model: MultiTaskModel) -> None:
        features = self.table.description.features
        titles = {stats.title: name for name, stats in features.items()}
        for name in model.input if isinstance(model.input, dict) else ():
            if name in features:
                continue
            if name in titles:
                raise errors.InputError(
                    f"Expected the input {titles[name]!r} of {self.name!r} for the "
                    f"column {name!r}, as Keras cannot use its name. Received: "
                    f"{name!r}."
                )
            raise errors.unknown_name(
                f"column as an input of {self.name!r}", name, features
            )


def _parted(data: str) -> tuple[str, str | None]:
    """Returns the path of a data file, and the name of its table where it has one."""
    path, _, state = data.rpartition("#")
    return (path, state) if path.lower().endswith(".toml") else (data, None)


class BuiltOnDatasets(Application):
    """A function that builds a compiled model, on data sets that another returns.

    The first function may take `sharing`, `width`, `depth` and `tasks` (names of
    outputs to build, None for all). Losses, metrics and optimizer are those that the
    model was compiled with; the first metric of a task, or else its loss, is what
    models are compared by. The second function returns `(train, validation)` or
    `(train, validation, test)`: `tf.data.Dataset`s of batches `(inputs, {task:
    label})`, with sample weights if need be. It may take `batch_size`, `seed`, and
    `epoch`, which gives a resumed training the same order; see `Application.load`.
    Without a test split the one for validation stands in.

    Args:
        function: The function that builds a model.
        name: What it was named by.
        data: Name of the function that returns data sets.
    """

    default_data = ""
    backbones = (_BACKBONE,)

    def __init__(self, function: Callable[..., MultiTaskModel], name: str, data: str):
        self.function = function
        self.name = name
        self.default_data = data

    def for_data(self, data: str | None) -> Application:
        """See `Application.for_data`."""
        del data
        return self

    @functools.cached_property
    def _model(self) -> MultiTaskModel:
        """A model that tells of tasks, losses and metrics."""
        model = _built(self)
        if not isinstance(model, MultiTaskModel) or not model.compiled or model.columns:
            raise errors.InputError(
                f"Expected {self.name!r} to return a compiled MultiTaskModel without "
                "`columns`: with data sets the losses and metrics are the model's own. "
                f"Received: {model!r:.100}."
            )
        return model

    @functools.cached_property
    def tasks(self) -> Mapping[str, Task]:  # type: ignore[override]
        """The outputs with a loss."""
        _, labels, *_ = self._split("train", batch_size=1).element_spec
        symbols = {
            name: keras.KerasTensor(spec.shape, spec.dtype.name)
            for name, spec in self._by_task(labels).items()
        }
        model = self._model
        metrics = resolved_metrics(model, symbols, dict(model.output))
        outputs = sorted(model.output)
        losses = model.loss
        if isinstance(losses, (list, tuple)):
            losses = dict(zip(outputs, losses, strict=True))
        elif not isinstance(losses, Mapping):
            losses = dict.fromkeys(outputs, losses)
        tasks = {}
        for name in model.output:
            if name in model.tasks:
                of_task = metrics.get(name)
                own = [*of_task.unweighted, *of_task.weighted] if of_task else []
                tasks[name] = _task(name, losses[name], own)
        return tasks

    @property
    def defaults(self) -> TrainingDefaults:  # type: ignore[override]
        """Ten epochs; the learning rate is that of the model's optimizer."""
        return TrainingDefaults(
            epochs=10,
            batch_size=32,
            learning_rate=float(self._model.optimizer.learning_rate),
            backbone=_BACKBONE,
            sharing="hard",
            width=64,
            depth=2,
        )

    def optimizer(self, learning_rate: Any) -> keras.optimizers.Optimizer:
        """See `Application.optimizer`: as the model's own."""
        own: Any = self._model.optimizer
        # The one within a loss scale's.
        own = getattr(own, "inner_optimizer", own)
        config = {**own.get_config(), "learning_rate": learning_rate}
        return type(own).from_config(config)

    def inputs(self) -> dict[str, keras.KerasTensor]:
        """See `Application.inputs`: those of a model."""
        return {x.name: x for x in self._model.inputs}

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
        """See `Application.load`; the order is that of the function's data sets."""
        del data, shuffle, data_dir
        check_split(split)
        samples = self._split(split, batch_size=batch_size, seed=seed, epoch=epoch)
        if limit is not None:
            samples = samples.unbatch().take(limit).batch(batch_size)
        names = list(self.select(tasks))

        def chosen(x: Any, y: Any, *weights: Any) -> tuple[Any, ...]:
            labels = self._by_task(y)
            return (
                x,
                {name: labels[name] for name in names},
                *(
                    {n: w[n] for n in names if n in w} if isinstance(w, dict) else w
                    for w in weights
                ),
            )

        return samples.map(chosen)

    def _split(self, split: str, **offered: Any) -> tf.data.Dataset:
        """Returns one of the data sets that the function returns."""
        import tensorflow as tf

        datasets = _called(registry.load_code(self.default_data), **offered)
        if (
            not isinstance(datasets, (list, tuple))
            or len(datasets) not in (2, 3)
            or not all(isinstance(one, tf.data.Dataset) for one in datasets)
        ):
            raise errors.InputError(
                f"Expected {self.default_data!r} to return two or three "
                "tf.data.Datasets, (train, validation) or (train, validation, test). "
                f"Received: {datasets!r:.100}."
            )
        return datasets[min(SPLITS.index(split), len(datasets) - 1)]

    def _by_task(self, labels: Any) -> Mapping[str, Any]:
        if isinstance(labels, Mapping) and set(self._model.tasks) <= set(labels):
            return labels
        raise errors.InputError(
            f"Expected labels by task, a dict with the keys {self._model.tasks}, in "
            f"the data sets of {self.default_data!r}. Received: {labels!r:.100}."
        )

    def build(
        self,
        *,
        backbone: str | None = None,
        sharing: Any = None,
        width: int | None = None,
        depth: int | None = None,
        tasks: Iterable[str] | None = None,
    ) -> MultiTaskModel:
        """See `Application.build`: what the function returns, with the chosen tasks."""
        del backbone
        chosen = list(self.select(tasks))
        model = _built(
            self,
            tasks=chosen,
            sharing=self.defaults.sharing if sharing is None else sharing,
            width=self.defaults.width if width is None else width,
            depth=self.defaults.depth if depth is None else depth,
        )
        return MultiTaskModel(
            model.input, {name: model.output[name] for name in chosen}
        )


@functools.lru_cache(maxsize=8)
def _on_datasets(
    function: Callable[..., MultiTaskModel], name: str, data: str
) -> BuiltOnDatasets:
    """Returns the application, one for all that asks for it: it builds a model."""
    return BuiltOnDatasets(function, name, data)


def _task(name: str, loss: Any, metrics: Sequence[keras.metrics.Metric]) -> Task:
    """Returns a task with a loss and metrics of a compiled model."""
    objective, direction = "loss", "min"
    if metrics:
        objective = metrics[0].name
        known = {"up": "max", "down": "min"}
        if getattr(metrics[0], "_direction", None) not in known:
            raise errors.InputError(
                f"Expected a metric first for {name!r} of which Keras knows which way "
                f"it is better. Received: {objective!r}."
            )
        direction = known[metrics[0]._direction]
    return Task(
        name,
        kind="own",
        loss=lambda: loss,
        metrics=lambda: [fresh_metric(metric) for metric in metrics],
        objective=objective,
        direction=direction,
    )


def _called(function: Callable[..., Any], **offered: Any) -> Any:
    """Calls a function with those of the arguments that it takes."""
    parameters = inspect.signature(function).parameters
    return function(**{k: v for k, v in offered.items() if k in parameters})


def _built(application: BuiltModel | BuiltOnDatasets, **offered: Any) -> MultiTaskModel:
    """Returns what the function of an application builds, checked."""
    defaults = {"sharing": "hard", "width": 64, "depth": 2, "tasks": None}
    model = _called(application.function, **{**defaults, **offered})
    if not isinstance(model, keras.Model) or not isinstance(model.output, dict):
        raise errors.InputError(
            f"Expected {application.name!r} to return a MultiTaskModel. Received: "
            f"{model!r:.100}."
        )
    return model
