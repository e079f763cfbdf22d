"""Data, model and metrics of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from mtl_keras import pareto, sharing
from mtl_keras.data import catalog
from mtl_keras.errors import InputError
from mtl_keras.pareto import Front, PreferenceModel
from mtl_keras.pareto.front import middle_and_corners, rows_of
from mtl_keras.runs import folder
from mtl_keras.runs.config import TrainingConfig
from mtl_keras.runs.optimizers import learning_rate_schedule, make_optimizer
from mtl_keras.runs.results import (
    by_task,
    main_metrics,
    metric_names,
    score,
    task_logs,
)

if TYPE_CHECKING:
    from mtl_keras.applications import Application

# Arguments of ways to share and to balance that name tasks.
_TASK_ARGUMENTS = (
    "primary",
    "chain",
    "click",
    "conversion",
    "click_and_conversion",
    "own_stages",
)
# A trial on a GPU compiles for half a minute to two; so many steps take about as long.
_STEPS_WORTH_COMPILING = 2_000


def load_split(
    config: TrainingConfig, split: str, epoch: tf.Variable | None = None
) -> tf.data.Dataset:
    """Returns the batches of a split, `"train"` shuffled and cut to `limit`.

    For `epoch` see `Application.load`.
    """
    training = split == "train"
    more: Any = {"accumulate": True} if training and config.accumulate else {}
    return config.get_application().load(
        split,
        data=config.data,
        batch_size=config.batch_size,
        tasks=config.tasks,
        shuffle=training,
        seed=config.seed,
        limit=config.limit if training else None,
        epoch=epoch,
        **more,
    )


def count_batches(dataset: tf.data.Dataset) -> int:
    """Returns the number of batches, by counting where it is not known."""
    known = int(dataset.cardinality())
    return known if known >= 0 else sum(1 for _ in dataset)


def compiled_model(config: TrainingConfig, steps: int) -> keras.Model:
    """Builds and compiles the model of a validated config.

    Sets the global seeds, so that two calls give the same initial weights.

    Args:
        config: Validated settings, from `RunConfig.validate`.
        steps: Training steps in all, over which the learning rate decays as the
            config says.
    """
    application = config.get_application()
    chosen = application.select(config.tasks)
    names = {title: task.name for title, task in chosen.items()}
    share: Any = _with_names(config.sharing, names)
    config = dataclasses.replace(config, balancing=_with_names(config.balancing, names))
    balancing: Any = config.balancing
    keras.utils.set_random_seed(config.seed)
    with _dtype_policy(config.precision):
        model = application.build(
            backbone=config.backbone,
            sharing=share,
            width=config.width,
            depth=config.depth,
            tasks=config.tasks,
        )
        losses = application.losses(config.tasks)
        losses |= dict.fromkeys(sharing.get(share).untrained(list(losses)))
        if (form := config.preference_form()) is not None:
            trained = [name for name, loss in losses.items() if loss is not None]
            model = application.condition(model, form, len(trained))
            balancing = [form.balancer(), *config.gradient_balancers()]
    rate = learning_rate_schedule(config.schedule, config.learning_rate, steps)
    few_steps = steps < _STEPS_WORTH_COMPILING
    weights = None
    if (own := config.loss_weights) is not None:
        weights = {names[title]: own.get(title, 1.0) for title in chosen}
    model.compile(
        optimizer=make_optimizer(config.optimizer, rate, application),
        loss=losses,
        loss_weights=weights,
        metrics=application.metrics(config.tasks),
        balancing=balancing,
        columns=application.columns_of(config.tasks),
        skip_unlabelled=bool(config.accumulate)
        and not any(b.needs_boundary for b in config.gradient_balancers()),
        jit_compile=False if few_steps and config.jit == "auto" else config.jit,
        steps_per_execution=config.steps_per_execution,
    )
    return model


def _with_names(spec: Any, names: Mapping[str, str]) -> Any:
    """Returns the spec of a method, or several, with outputs for the tasks in it.

    Its arguments name tasks as the application does; `names` are the outputs by task.
    """
    if isinstance(spec, (list, tuple)):
        return [_with_names(one, names) for one in spec]
    if not isinstance(spec, Mapping):
        return spec
    arguments = {
        key: _renamed(value, names) if key in _TASK_ARGUMENTS else value
        for key, value in spec.get("config", {}).items()
    }
    return {**spec, "config": arguments}


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Returns an argument with outputs for the tasks that it names."""
    if isinstance(value, Mapping):
        return {names.get(task, task): of_task for task, of_task in value.items()}
    return tf.nest.map_structure(lambda task: names.get(task, task), value)


class TaskLogs(keras.callbacks.Callback):
    """Callback that completes the validation metrics by task in epochs' logs.

    See `results.task_logs`. Comes before the callbacks that read them.
    """

    def __init__(self, application: Application):
        super().__init__()
        self._application = application

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds or replaces `"val_<task>_<metric>"`."""
        if "val_loss" in logs:
            logs |= task_logs(self.model, self._application, "val_")


def training_batches(
    dataset: tf.data.Dataset, model: keras.Model, size: int
) -> tf.data.Dataset:
    """Returns the batches that a compiled model trains on; their number is known.

    Where XLA compiles the steps, batches of less than `size` samples are left out, for
    one shape; a batch that is alone is kept.
    """

    def is_full(x: Any, *labels: Any) -> tf.Tensor:
        return tf.equal(tf.shape(tf.nest.flatten(x)[0])[0], size)

    if model.jit_compile and count_batches(dataset) > 1:
        dataset = dataset.filter(is_full)
    if int(dataset.cardinality()) >= 0:
        return dataset
    # Else Keras finds the end of the data by running into it, and warns.
    count = tf.data.experimental.assert_cardinality(count_batches(dataset))
    return dataset.apply(count)


@contextlib.contextmanager
def _dtype_policy(name: str | None) -> Iterator[None]:
    """Context manager: sets Keras's global dtype policy; None changes nothing."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name or before)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def evaluate(path: str | pathlib.Path | folder.Run) -> dict[str, dict[str, float]]:
    """Evaluates a run's model on the test split again; writes nothing.

    Args:
        path: A run folder, or the run that `load_run` read.

    Returns:
        `{task: {metric: value}}`.

    Raises:
        InputError: If the folder is not a run, or the data cannot be had.
    """
    run = folder.load_run(path)
    with catalog.reading(run.config.data):
        return test_metrics(run.config, run.model(), load_split(run.config, "test"))


def front(
    path: str | pathlib.Path | folder.Run, points: int | ArrayLike | None = None
) -> Front:
    """Evaluates a run with preferences on the test split; writes nothing.

    Args:
        path: A run folder, or the run that `load_run` read.
        points: Preferences `[N, T]` of any numeric dtype, or a number of at least 2, as
            in `mtl_keras.pareto.front`, with entries in the order of the config's
            tasks; None for the uniform preference and each task's own.

    Returns:
        The front, whose tasks are in that order and, as the results, named as the
        application does.

    Raises:
        InputError: If the folder is not a run with preferences, the preferences do
            not fit the tasks, or the data cannot be had.
    """
    run = folder.load_run(path)
    config = run.config
    if config.preferences is None:
        raise InputError(
            f"Expected a run with preferences. Received: {str(run.path)!r}, a run "
            "without."
        )
    model = run.model()
    assert isinstance(model, PreferenceModel)
    tasks = preference_tasks(config, model)
    if points is None:
        points = middle_and_corners(len(tasks))
    order = [list(tasks.values()).index(task) for task in model.tasks]
    rows = rows_of(points, len(tasks))
    if rows.shape[1:] == (len(tasks),):
        rows = rows[:, order]
    with catalog.reading(config.data):
        results = pareto.front(model, load_split(config, "test"), rows)
    back = np.argsort(order)
    return Front(tuple(tasks), results.preferences[:, back], results.results)


def preference_tasks(config: TrainingConfig, model: PreferenceModel) -> dict[str, str]:
    """Returns the tasks of a run's preferences, `{name in the config: in the model}`.

    In the order of the application's tasks; the model's own is by name.
    """
    chosen = config.get_application().select(config.tasks)
    return {
        title: task.name for title, task in chosen.items() if task.name in model.tasks
    }


def test_metrics(
    config: TrainingConfig, model: keras.Model, test: tf.data.Dataset
) -> dict[str, dict[str, float]]:
    """Returns all metrics on the test split, `{task: {metric: value}}`."""
    application = config.get_application()
    logs = model.evaluate(test, return_dict=True, verbose=0)
    logs |= task_logs(model, application)
    metrics = by_task(logs, metric_names(application, config.tasks))
    measured = application.measure(
        model,
        "test",
        data=config.data,
        tasks=config.tasks,
        batch_size=config.batch_size,
    )
    for task, values in measured.items():
        metrics[task].update(values)
    return metrics


class EarlyStop(keras.callbacks.Callback):
    """Callback that ends a training once its validation score stops improving.

    All history counts: a resumed run stops where a whole one would have stopped.
    """

    def __init__(self, application: Any, tasks: Sequence[str], patience: int):
        super().__init__()
        self._application = application
        self._metrics = metric_names(application, tasks)
        self._patience = patience
        self._scores: list[float] = []

    def resume(self, history: Mapping[str, Sequence[float]]) -> bool:
        """Resumes from finished epochs' logs; returns whether training has ended."""
        epochs = max(map(len, history.values()), default=0)
        self._scores = [
            self._score(
                {name: v[epoch] for name, v in history.items() if epoch < len(v)}
            )
            for epoch in range(epochs)
        ]
        return self._is_over()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Ends the training after an epoch too many without improvement."""
        self._scores.append(self._score(logs or {}))
        if self._is_over():
            self.model.stop_training = True

    def _score(self, logs: Mapping[str, float]) -> float:
        main = main_metrics(by_task(logs, self._metrics, "val_"), self._application)
        value = score(main, self._application)
        return -math.inf if math.isnan(value) else value

    def _is_over(self) -> bool:
        if not self._scores:
            return False
        best = self._scores.index(max(self._scores))
        return len(self._scores) - 1 - best >= self._patience
