"""KerasTuner's oracles, as a study names them."""

from __future__ import annotations

from typing import Any

import keras_tuner

from mtl_keras.search.hypermodel import OBJECTIVE, MultiTaskHyperModel
from mtl_keras.search.study import Study


def make(study: Study, hypermodel: MultiTaskHyperModel) -> keras_tuner.Oracle:
    """Makes a study's oracle with the whole space registered in it.

    Args:
        study: A validated study.
        hypermodel: The hypermodel of that study.
    """
    space = keras_tuner.HyperParameters()
    hypermodel.config(space)
    common: dict[str, Any] = {
        "objective": keras_tuner.Objective(OBJECTIVE, "max"),
        "hyperparameters": space,
        # KerasTuner takes a seed of 0 for none.
        "seed": study.seed + 1,
    }
    if study.oracle == "random":
        oracle = keras_tuner.oracles.RandomSearchOracle(**common)
    elif study.oracle == "grid":
        oracle = keras_tuner.oracles.GridSearchOracle(**common)
    elif study.oracle == "hyperband":
        # `trials` ends it, whichever bracket it is in by then.
        oracle = keras_tuner.oracles.HyperbandOracle(
            max_epochs=study.epochs, hyperband_iterations=10**6, **common
        )
    else:
        # Half of the trials explore: KerasTuner's own default, three per
        # dimension, would leave a small study no guided trial.
        oracle = _Bayesian(num_initial_points=max(2, study.trials // 2), **common)
    oracle.max_trials = study.trials
    return oracle


class _Bayesian(keras_tuner.oracles.BayesianOptimizationOracle):
    """Bayesian search that proposes nothing twice.

    KerasTuner's own learns nothing from a failed trial, and proposes it again.
    """

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Returns the next trial's values, random ones in place of known ones."""
        response = super().populate_space(trial_id)
        tried = [trial.hyperparameters.values for trial in self.trials.values()]
        if response["values"] not in tried:
            return response
        values = self._random_values()
        return {"status": "STOPPED" if values is None else "RUNNING", "values": values}
