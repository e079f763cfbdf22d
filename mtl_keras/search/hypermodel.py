"""The KerasTuner HyperModel over balancing, sharing, weights and architecture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import keras_tuner

from mtl_keras.runs.config import RunConfig
from mtl_keras.runs.results import by_task, main_metrics, metric_names, score
from mtl_keras.runs.training import compiled_model, count_batches, load_split
from mtl_keras.search.space import LossWeights
from mtl_keras.search.study import Study

OBJECTIVE = "val_score"


class MultiTaskHyperModel(keras_tuner.HyperModel):
    """Builds and trains what a study's hyperparameters say.

    It brings its own data, so that KerasTuner's `search` needs none:

    ```python
    tuner = keras_tuner.RandomSearch(
        MultiTaskHyperModel(study),
        objective=keras_tuner.Objective("val_score", "max"),
    )
    tuner.search()
    ```

    The objective `"val_score"` is computed on the validation split after the
    last epoch, where the learning rate has decayed to 0: the mean over tasks of
    each task's main metric, those to be minimised counted negative; or, when
    the study's objective is a task, that task's main metric alone.

    Args:
        study: The study, as `load_study` or `Study.validate` returns it.
        name: Name of the hypermodel.
        tunable: As in KerasTuner.
    """

    def __init__(self, study: Study, name: str | None = None, tunable: bool = True):
        super().__init__(name=name, tunable=tunable)
        self.study = study

    def config(self, hp: keras_tuner.HyperParameters) -> RunConfig:
        """Returns the run that the hyperparameters stand for.

        Registers them in `hp` on the way, as every KerasTuner space does.
        """
        study = self.study
        drawn = {name: d.sample(hp, name) for name, d in study.space.items()}
        if isinstance(study.loss_weights, LossWeights):
            assert study.tasks is not None
            drawn["loss_weights"] = study.loss_weights.sample(hp, study.tasks)
        elif study.loss_weights is not None:
            drawn["loss_weights"] = study.loss_weights.value
        # Hyperband's oracle gives its short trials fewer epochs.
        drawn["epochs"] = hp.values.get("tuner/epochs", study.epochs)
        return dataclasses.replace(study.base_config(), **drawn).validate()

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Builds and compiles one model of the space."""
        config = self.config(hp)
        assert config.epochs is not None
        per_epoch = count_batches(load_split(config, "train"))
        return compiled_model(config, per_epoch * config.epochs)

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
            `"val_score"`, and `"val_<task>_<metric>"` for all metrics.

        Raises:
            TypeError: For positional data.
        """
        if args:
            raise TypeError(
                "Expected no positional data: the study names the data set. "
                f"Received: {len(args)} arguments."
            )
        config = self.config(hp)
        assert config.tasks is not None
        application = config.get_application()
        history = model.fit(
            load_split(config, "train"),
            validation_data=load_split(config, "validation"),
            callbacks=list(callbacks),
            **{"epochs": config.epochs, "shuffle": False, "verbose": 0, **kwargs},
        ).history
        last = {key: values[-1] for key, values in history.items()}
        results = by_task(last, metric_names(application, config.tasks), "val_")
        main = main_metrics(results, application)
        if self.study.objective != "mean":
            main = {self.study.objective: main[self.study.objective]}
        losses_finite = math.isfinite(last.get("loss", math.nan))
        flat = {
            f"val_{task}_{name}": value
            for task, values in results.items()
            for name, value in values.items()
        }
        # A model whose loss is not a number may still score by chance.
        flat[OBJECTIVE] = score(main, application) if losses_finite else math.nan
        return flat
