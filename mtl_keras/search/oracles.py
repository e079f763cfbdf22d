"""KerasTuner's oracles, as a study names them, with state that survives a kill."""

from __future__ import annotations

import math
import os
import pathlib
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus

from mtl_keras.runs.folder import write_json
from mtl_keras.search.hypermodel import StudyHyperModel
from mtl_keras.search.pareto import ParetoOracle, check_bayesian

_FAILURES = 3  # in a row, after which a study stops
_ENDED = (TrialStatus.COMPLETED, TrialStatus.FAILED)


class StudyOracle(keras_tuner.Oracle):
    """What a study asks of every oracle, beside its way to search.

    KerasTuner's own loses trials when it is killed between two writes, raises in
    the middle of a locked section when trials fail, and lets workers go home while
    others may still die. Here state files appear whole, what they say of a trial is
    put in order when they are read, failures in a row end the search, and a search
    has ended only when no trial is under way.

    Attributes:
        stopped: Whether too many trials in a row failed.
        left_running: `{worker: trial}` that were under way when the state was
            written, after `reload`.
    """

    start_order: list[str]
    end_order: list[str]
    _retry_queue: list[str]
    stopped = False
    left_running: dict[str, str] = {}  # noqa: RUF012

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Any:
        """Returns the next trial; an idle one while others are under way."""
        if self.stopped:
            return Trial(self.get_space(), trial_id="", status=TrialStatus.STOPPED)
        trial = super().create_trial(tuner_id)
        if trial.status == TrialStatus.STOPPED and self.ongoing_trials:
            # Its worker may die, and somebody has to take it over then.
            trial.status = TrialStatus.IDLE
            self.tuner_ids.add(tuner_id)
        return trial

    @keras_tuner.synchronized
    def end_trial(self, trial: Any) -> None:
        """Ends a trial once: a second result of it changes nothing."""
        if self.ended(trial.trial_id):
            return
        self._retry_queue = [i for i in self._retry_queue if i != trial.trial_id]
        super().end_trial(trial)
        # KerasTuner's own state still names the trial as under way.
        self.save()

    def ended(self, trial_id: str) -> bool:
        """Whether a trial has its result."""
        return trial_id in self.end_order

    def give_back(self, tuner_id: str) -> Any:
        """Takes the trial of a worker that died, for another one; None without."""
        self.tuner_ids.discard(tuner_id)
        trial = self.ongoing_trials.pop(tuner_id, None)
        if trial is not None:
            self._retry_queue.append(trial.trial_id)
            self.save()
        return trial

    def take_up(self, tuner_id: str, trial_id: str) -> None:
        """Counts a trial as still under way with the worker that had it."""
        self._retry_queue = [i for i in self._retry_queue if i != trial_id]
        self.ongoing_trials[tuner_id] = self.trials[trial_id]
        self.tuner_ids.add(tuner_id)

    @property
    def waiting(self) -> bool:
        """Whether trials wait for somebody to run them again."""
        return bool(self._retry_queue)

    def _check_consecutive_failures(self) -> None:
        last = [self.trials[trial_id] for trial_id in self.end_order[-_FAILURES:]]
        failed = [trial.status == TrialStatus.FAILED for trial in last]
        self.stopped = len(failed) == _FAILURES and all(failed)

    def save(self) -> None:
        """Writes the state in one go, so that a kill leaves the old or the new."""
        write_json(pathlib.Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial: Any) -> None:
        path = os.path.join(self._get_trial_dir(trial.trial_id), "trial.json")
        write_json(pathlib.Path(path), trial.get_state())

    def set_state(self, state: dict[str, Any]) -> None:
        """Notes which worker had which trial; then as KerasTuner."""
        self.left_running = dict(state["ongoing_trials"])
        super().set_state(state)

    def reload(self) -> None:
        """Reads the state; what each trial's own file says of it counts.

        A kill may come between a trial's file and the oracle's: a trial that one of
        them misses is put where it belongs, to be run again or to have ended.
        """
        super().reload()
        for trial in self.trials.values():
            for history in trial.metrics.metrics.values():
                for seen in history.get_history():
                    # NaN, which JSON lacks, is written as null.
                    seen.value = [math.nan if v is None else v for v in seen.value]
        known = sorted(self.trials, key=int)
        self.start_order += [i for i in known if i not in self.start_order]
        ended = [i for i in known if self.trials[i].status in _ENDED]
        self.end_order = [i for i in self.end_order if i in ended]
        self.end_order += [i for i in ended if i not in self.end_order]
        # The last one is taken first.
        self._retry_queue = [i for i in reversed(known) if i not in ended]
        self.left_running = {
            tuner_id: trial_id
            for tuner_id, trial_id in self.left_running.items()
            if trial_id in self._retry_queue
        }


class _Random(StudyOracle, keras_tuner.oracles.RandomSearchOracle):
    pass


class _Grid(StudyOracle, keras_tuner.oracles.GridSearchOracle):
    pass


class _Hyperband(StudyOracle, keras_tuner.oracles.HyperbandOracle):
    pass


class _Pareto(StudyOracle, ParetoOracle):
    pass


class _Bayesian(StudyOracle, keras_tuner.oracles.BayesianOptimizationOracle):
    """Bayesian search that proposes nothing twice.

    KerasTuner's own learns nothing from a failed trial, and proposes it again.
    """

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Returns the next trial's values, random ones in place of known ones."""
        response = super().populate_space(trial_id)
        if response["values"] is None or not self._duplicate(response["values"]):
            return response
        return self._random_populate_space()


def make(hypermodel: StudyHyperModel) -> StudyOracle:
    """Makes the oracle of a study with the whole space registered in it."""
    study = hypermodel.study
    space = keras_tuner.HyperParameters()
    hypermodel.config(space)
    objectives = [
        keras_tuner.Objective(objective.name, objective.direction)
        for objective in study.objectives
    ]
    common: dict[str, Any] = {
        "objective": objectives if len(objectives) > 1 else objectives[0],
        "hyperparameters": space,
        # KerasTuner takes a seed of 0 for none.
        "seed": study.seed + 1,
    }
    oracle: StudyOracle
    if study.oracle == "random":
        oracle = _Random(**common)
    elif study.oracle == "grid":
        oracle = _Grid(**common)
    elif study.oracle == "pareto":
        oracle = _Pareto(**common)
    elif study.oracle == "hyperband":
        # `trials` ends it, whichever bracket it is in by then.
        oracle = _Hyperband(
            max_epochs=study.epochs, hyperband_iterations=10**6, **common
        )
    else:
        check_bayesian("The oracle 'bayesian'")
        # Half of the trials explore: KerasTuner's own default, three per
        # dimension, would leave a small study no guided trial.
        oracle = _Bayesian(num_initial_points=max(2, study.trials // 2), **common)
    oracle.max_trials = study.trials
    # The tuner reports trials. KerasTuner's own display fails, while it holds the
    # oracle's lock, on a trial that began before a restart.
    oracle.verbose = 0
    return oracle
