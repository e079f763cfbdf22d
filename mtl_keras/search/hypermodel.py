"""KerasTuner HyperModels over balancing, sharing, weights and architecture."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import keras_tuner
import tensorflow as tf

from mtl_keras import sharing as sharing_registry
from mtl_keras.errors import InputError, check_integer
from mtl_keras.evaluation.pareto import pareto_front
from mtl_keras.runs.config import TrainingConfig
from mtl_keras.runs.optimizers import learning_rate_schedule, make_optimizer
from mtl_keras.runs.results import by_task, flat, metric_names
from mtl_keras.runs.training import (
    TaskLogs,
    compiled_model,
    count_batches,
    load_split,
    training_batches,
)
from mtl_keras.search.space import LossWeights, parse_space, sample
from mtl_keras.search.study import Objective, Study, oriented, parse_objectives

SUM = "multi_objective"  # KerasTuner's name for the sum of several objectives


class MultiTaskHyperModel(keras_tuner.HyperModel):
    """Searches over balancing, sharing and loss weights of a model of your own.

    `build` makes the model from the settings that concern it, and the rest is done
    here: the model is compiled with the drawn balancing, loss weights, optimizer and
    schedule, and fitted with the drawn batch size.

    ```python
    def build(sharing, width, dropout=0.0):
        inputs = keras.Input((32,))
        stages = [keras.layers.Dense(width, "relu"), keras.layers.Dropout(dropout)]
        features = mtl_keras.sharing.get(sharing)(inputs, stages, ["a", "b"])
        outputs = {t: keras.layers.Dense(1, name=t)(x) for t, x in features.items()}
        return mtl_keras.MultiTaskModel(inputs, outputs)

    hypermodel = MultiTaskHyperModel(
        build,
        loss={"a": "mse", "b": "mse"},
        space={
            "sharing": ["hard", {"class_name": "mmoe", "search": True}],
            "balancing": ["equal", {"class_name": "dwa", "search": True}],
            "loss_weights": {"max_ratio": 4.0},
            "learning_rate": {"min": 1e-4, "max": 1e-2, "log": True},
            "width": [16, 32],
            "dropout": {"min": 0.0, "max": 0.5},
        },
    )
    tuner = keras_tuner.RandomSearch(hypermodel, objective="val_loss")
    tuner.search(x, y, validation_data=(x_val, y_val), epochs=5)
    ```

    `"val_loss"` is here the sum of the tasks' losses without the searched weights,
    see `fit`.

    The space is written as `[space]` of a study file is: a value fixes a setting, a
    list or `{"min": …, "max": …}` searches it, and the arguments of one method are
    active in trials with that method alone. Settings of any other name are
    `build`'s own.

    Args:
        build: Called with the settings that are not of the training, by keyword;
            returns a `MultiTaskModel` that is not compiled.
        loss: As in `compile`, a dictionary with the tasks as its keys.
        space: The settings. Those of the training are `"balancing"`,
            `"loss_weights"`, `"optimizer"`, `"learning_rate"`, `"schedule"` and
            `"batch_size"`; a learning rate that is not named is 0.001.
        metrics: As in `compile`; a function gives new ones to each model.
        steps: Training steps in all, for schedules other than `"constant"`.
        name: Name of the hypermodel.
        tunable: As in KerasTuner.

    Raises:
        InputError: For a space that does not hold.
    """

    def __init__(
        self,
        build: Callable[..., keras.Model],
        loss: Mapping[str, Any],
        space: Mapping[str, Any],
        *,
        metrics: Callable[[], Any] | Mapping[str, Any] | None = None,
        steps: int | None = None,
        name: str | None = None,
        tunable: bool = True,
    ):
        super().__init__(name=name, tunable=tunable)
        if steps is not None:
            check_integer("steps", steps, low=1)
        self._build_model = build
        self._loss = dict(loss)
        self._metrics = metrics
        self._steps = steps
        self.space = parse_space(space, list(loss), others=True)
        schedule = self.space.get("schedule")
        if steps is None and schedule and schedule.examples() != ["constant"]:
            raise InputError(
                "Expected `steps`, over which the schedules of the space go. "
                "Received: steps=None."
            )

    def settings(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """Returns every setting of a trial; registers the space in `hp`."""
        return sample(self.space, hp)

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Builds and compiles one model of the space."""
        settings = self.settings(hp)
        settings.pop("batch_size", None)
        schedule = settings.pop("schedule", "constant")
        learning_rate = settings.pop("learning_rate", 1e-3)
        rate = learning_rate_schedule(schedule, learning_rate, self._steps or 1)
        optimizer = settings.pop("optimizer", None)
        loss_weights = settings.pop("loss_weights", None)
        balancing = settings.pop("balancing", "equal")
        model = self._build_model(**settings)
        metrics = self._metrics() if callable(self._metrics) else self._metrics
        losses = dict(self._loss)
        if "sharing" in settings:
            way = sharing_registry.get(settings["sharing"])
            losses |= dict.fromkeys(way.untrained(list(losses)))
        model.compile(
            optimizer=make_optimizer(optimizer, rate),
            loss=losses,
            loss_weights=loss_weights,
            metrics=metrics,
            balancing=balancing,
        )
        return model

    def fit(
        self, hp: keras_tuner.HyperParameters, model: keras.Model, *args, **kwargs
    ) -> Any:
        """Fits with the drawn batch size; returns the history of `model.fit`.

        Where loss weights are searched, `"loss"` and `"val_loss"` of the history, and
        of the logs that callbacks get, are the sum of the tasks' losses without the
        weights.
        """
        batch_size = self.settings(hp).get("batch_size")
        if batch_size is not None:
            kwargs["batch_size"] = batch_size
        if isinstance(self.space.get("loss_weights"), LossWeights):
            tasks = list(self._loss)
            own = keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: _remove_weights(tasks, logs)
            )
            kwargs["callbacks"] = [own, *(kwargs.get("callbacks") or ())]
        return model.fit(*args, **kwargs)


def _remove_weights(tasks: Sequence[str], logs: dict[str, float]) -> None:
    """Sets `"loss"` and `"val_loss"` of an epoch to the sum of the tasks' losses.

    By weighted ones, the smaller the weight of the hardest task, the better a trial.
    """
    for prefix in ("", "val_"):
        names = [f"{prefix}{task}_loss" for task in tasks]
        losses = [logs[name] for name in names if name in logs]
        if losses:
            logs[f"{prefix}loss"] = sum(losses)


class StudyHyperModel(keras_tuner.HyperModel):
    """HyperModel that builds and trains the models of a study's hyperparameters.

    It brings its own data, so that KerasTuner's `search` needs none:

    ```python
    tuner = keras_tuner.RandomSearch(
        StudyHyperModel(study),
        objective=keras_tuner.Objective("val_mean", "max"),
    )
    tuner.search()
    ```

    The objectives are those of the study, computed on the validation split after
    every epoch; a trial has those of its best one, see `best_epoch`.

    Args:
        study: The study, as `load_study` or `Study.validate` returns it.
        baselines: Main metric of each task trained alone, as `train_baselines`
            gives it; needed where an objective is `"delta_m"`.
    """

    def __init__(self, study: Study, baselines: Mapping[str, float] | None = None):
        super().__init__()
        self.study = study
        self.baselines = baselines
        self._application = study.application
        self._names = metric_names(self._application, study.tasks)
        self._validation: dict[int | None, tf.data.Dataset] = {}

    def config(self, hp: keras_tuner.HyperParameters) -> TrainingConfig:
        """Returns the run that the hyperparameters stand for.

        Registers them in `hp` on the way, as every KerasTuner space does.
        """
        study = self.study
        drawn = sample(study.space, hp)
        # Hyperband's oracle gives its short trials fewer epochs.
        drawn["epochs"] = hp.values.get("tuner/epochs", study.settings.epochs)
        return dataclasses.replace(study.base, **drawn)

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Builds and compiles one model of the space.

        The learning rate is scheduled over the study's epochs, so that a trial of
        fewer epochs is the first part of a longer one.
        """
        config = self.config(hp)
        per_epoch = count_batches(load_split(config, "train"))
        return compiled_model(config, per_epoch * self.study.settings.epochs)

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        *args: Any,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        **kwargs: Any,
    ) -> dict[str, float]:
        """Trains a model on the study's data.

        Args:
            hp: The hyperparameters that `model` was built from.
            model: A model that `build` returned.
            *args: Not expected: the study names the data.
            callbacks: Keras callbacks.
            **kwargs: Further arguments of `keras.Model.fit`.

        Returns:
            Of the best epoch: the objectives by name, with several of them their sum
            as KerasTuner has it, and `"val_<task>_<metric>"` for all metrics.

        Raises:
            TypeError: For positional data.
        """
        if args:
            raise TypeError(
                "Expected no positional data: the study names the data set. "
                f"Received: {len(args)} arguments."
            )
        config, objectives = self.config(hp), self.study.objectives
        epochs: list[dict[str, float]] = []

        def add_results(epoch: int, logs: dict[str, float]) -> None:
            results = self.results(logs)
            epochs.append(results)
            # For later callbacks; KerasTuner has the sum of several objectives.
            names = [*(objective.name for objective in objectives), SUM]
            logs |= {name: results[name] for name in names if name in results}

        own: list[keras.callbacks.Callback] = [
            TaskLogs(self._application),
            keras.callbacks.LambdaCallback(on_epoch_end=add_results),
        ]
        if (patience := self.study.settings.patience) is not None:
            name, mode = objectives[0].name, objectives[0].direction
            own.append(
                keras.callbacks.EarlyStopping(name, mode=mode, patience=patience)
            )
        train, size = load_split(config, "train"), config.batch_size
        if size not in self._validation:
            # Read once for all trials of a batch size.
            self._validation[size] = load_split(config, "validation")
        model.fit(
            training_batches(train, model, size),
            validation_data=self._validation[size],
            callbacks=[*own, *callbacks],
            **{"epochs": config.epochs, "shuffle": False, "verbose": 0, **kwargs},
        )
        return best_epoch(epochs, objectives)

    def results(self, logs: Mapping[str, float]) -> dict[str, float]:
        """Returns the objectives and all metrics out of an epoch's logs."""
        application = self._application
        results = by_task(logs, self._names, "val_")
        # A model whose loss is not a number may still score by chance.
        failed = not math.isfinite(logs.get("loss", math.nan))
        values = {
            o: math.nan if failed else o.value(results, application, self.baselines)
            for o in self.study.objectives
        }
        named = flat(results) | {o.name: value for o, value in values.items()}
        if len(values) > 1:
            named[SUM] = -sum(itertools.starmap(oriented, values.items()))
        return named


def best_epoch(
    epochs: Sequence[Mapping[str, float]], objectives: Sequence[Objective]
) -> dict[str, float]:
    """Returns the results of the epoch that a trial is scored by.

    With one objective its best epoch (the first of equal ones, as Keras's callbacks
    have it), with several the last one that no other dominates: a model that the trial
    had, and as its learning rate had decayed most. A training whose last epoch has a
    value that is no number has failed, whatever came before.
    """
    points = [[results[o.name] for o in objectives] for results in epochs]
    front = pareto_front(points, [o.direction for o in objectives])
    if any(map(math.isnan, points[-1])):
        return dict(epochs[-1])
    return dict(epochs[front[0] if len(objectives) == 1 else front[-1]])


def train_baselines(study: Study) -> dict[str, float]:
    """Trains each task of a study alone, with the budget of one trial.

    The application's defaults hold for all settings but the study's epochs, limit
    and seed.

    Args:
        study: A validated study.

    Returns:
        The main metric of each task on the validation split, at its best epoch as
        trials have it.
    """
    return {task: train_baseline(study, task) for task in study.tasks}


def train_baseline(study: Study, task: str) -> float:
    """Returns the main metric of a task trained alone; see `train_baselines`."""
    keras.utils.clear_session()
    objectives = parse_objectives(task, study.application, (task,))
    alone = dataclasses.replace(
        study,
        settings=dataclasses.replace(study.settings, patience=None),
        base=dataclasses.replace(study.base, tasks=(task,), balancing="equal"),
        space={},
        objectives=objectives,
    )
    hypermodel, hp = StudyHyperModel(alone), keras_tuner.HyperParameters()
    return hypermodel.fit(hp, hypermodel.build(hp))[objectives[0].name]
