"""Jobs of a study's worker processes: a trial, and a task trained alone."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import keras_tuner

from mtl_keras.decoding import decode
from mtl_keras.files import atomic_write
from mtl_keras.search.hypermodel import StudyHyperModel, train_baseline
from mtl_keras.search.study import StudySettings

WEIGHTS = "checkpoint.weights.h5"


def train_trial(
    folder: pathlib.Path, settings: Mapping[str, Any]
) -> Mapping[str, float]:
    """Builds and trains a trial's model; a job of `Scheduler`.

    A Hyperband trial leaves its weights in its folder, for the longer ones that start
    from it: `settings["start"]` is the folder of such a trial, or None.
    """
    hypermodel = _hypermodel(json.dumps(settings["study"]))
    hypermodel.baselines = settings["baselines"]
    hp = keras_tuner.HyperParameters.from_config(settings["hyperparameters"])
    model = hypermodel.build(hp)
    if settings["start"] is not None:
        # The optimizer's state is part of the weights file once it exists.
        model.optimizer.build(model.trainable_variables)
        model.load_weights(pathlib.Path(settings["start"], WEIGHTS))
    results = hypermodel.fit(
        hp, model, initial_epoch=hp.values.get("tuner/initial_epoch", 0)
    )
    if hypermodel.study.settings.oracle == "hyperband":
        with atomic_write(folder / WEIGHTS) as temporary:
            model.save_weights(temporary)
    return results


def train_alone(folder: pathlib.Path, settings: Mapping[str, Any]) -> float:
    """Returns the main metric of `task` alone, on validation; a job of `Scheduler`."""
    study = _hypermodel(json.dumps(settings["study"])).study
    return train_baseline(study, settings["task"])


@functools.lru_cache(maxsize=1)
def _hypermodel(study: str) -> StudyHyperModel:
    """Returns the hypermodel of a study, with its validation data, for many trials."""
    return StudyHyperModel(decode(StudySettings, json.loads(study)).validate())
