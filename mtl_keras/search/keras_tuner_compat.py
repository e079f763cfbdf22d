"""The only place that reads KerasTuner's internals; written for KerasTuner 1.4.

Its oracles, as a study names them, with state that survives a kill, and the parts of
its protocol between chief and workers that `workers` builds on.
"""

from __future__ import annotations

import contextlib
import functools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.src import protos as protos
from keras_tuner.src.distribute.oracle_chief import OracleServicer as OracleServicer
from keras_tuner.src.distribute.oracle_client import OracleClient as OracleClient
from keras_tuner.src.engine import conditions

from mtl_keras.encoding import encode
from mtl_keras.errors import InputError, first_line
from mtl_keras.files import read_json, write_json
from mtl_keras.search.hypermodel import StudyHyperModel
from mtl_keras.search.pareto import ParetoOracle, check_bayesian

_FAILURES = 3  # in a row, after which a study stops
STATE = "state"  # the folder of the state in the study's
FILE = "oracle.json"
_TRIAL = "trial.json"
_ENDED = (TrialStatus.COMPLETED, TrialStatus.FAILED)

# KerasTuner prints every condition of the space that it sends to workers. Its own
# `print` is silenced, and not standard output: other threads write to that meanwhile.
vars(conditions)["print"] = lambda *values: None


class StudyOracle(keras_tuner.Oracle):
    """Base class of a study's oracles: state that outlives kills, and retries.

    KerasTuner's own loses trials when it is killed between two writes, raises in
    the middle of a locked section when trials fail, and dismisses workers while
    others may still die. `stopped` tells that too many trials in a row failed;
    `left_running` has the `{worker: trial}` of the state that was read.
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
            # Their workers may die, and another one has to run their trials then.
            trial.status = TrialStatus.IDLE
            self.tuner_ids.add(tuner_id)
        return trial

    @keras_tuner.synchronized
    def end_trial(self, trial: Any) -> None:
        """Ends a trial once: a second result of it changes nothing."""
        if trial.trial_id in self.end_order:
            return
        self._retry_queue = [i for i in self._retry_queue if i != trial.trial_id]
        super().end_trial(trial)
        # KerasTuner's own state still names the trial as under way.
        self.save()

    @keras_tuner.synchronized
    def update_trial(self, trial_id: str, metrics: Any, step: int = 0) -> Any:
        """Keeps a trial's results, unless it has ended; returns the trial."""
        if trial_id in self.end_order:
            return self.trials[trial_id]
        return super().update_trial(trial_id, metrics, step)

    def give_back(self, tuner_id: str) -> Any:
        """Requeues and returns the trial of a worker that died."""
        self.tuner_ids.discard(tuner_id)
        trial = self.ongoing_trials.pop(tuner_id)
        self._retry_queue.append(trial.trial_id)
        self.save()
        return trial

    def take_up(self, tuner_id: str, trial_id: str) -> None:
        """Assigns an orphaned trial to the worker that had it."""
        self._retry_queue = [i for i in self._retry_queue if i != trial_id]
        self.ongoing_trials[tuner_id] = self.trials[trial_id]
        self.tuner_ids.add(tuner_id)

    @property
    def waiting(self) -> bool:
        """Whether requeued trials wait for a worker."""
        return bool(self._retry_queue)

    def _check_consecutive_failures(self) -> None:
        last = [self.trials[trial_id] for trial_id in self.end_order[-_FAILURES:]]
        failed = [trial.status == TrialStatus.FAILED for trial in last]
        self.stopped = len(failed) == _FAILURES and all(failed)

    def save(self) -> None:
        """Writes the state in one go, so that a kill leaves the old or the new."""
        write_json(pathlib.Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial: Any) -> None:
        folder = pathlib.Path(self._get_trial_dir(trial.trial_id))
        write_json(folder / _TRIAL, trial.get_state())

    def set_state(self, state: dict[str, Any]) -> None:
        """Keeps the running trials by worker; then as KerasTuner."""
        self.left_running = dict(state["ongoing_trials"])
        super().set_state(state)

    def reload(self) -> None:
        """Reads the state; what each trial's own file says of it counts.

        A kill may come between a trial's file and the oracle's: a trial that one of
        them misses is put where it belongs, to be run again or to have ended.
        """
        self._check_files()
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

    def _check_files(self) -> None:
        """Raises an InputError for files that KerasTuner would stumble over."""
        folder = pathlib.Path(self._project_dir)
        trials = {_read_trial(path) for path in folder.glob(f"trial_*/{_TRIAL}")}
        with _decoding(folder, FILE):
            state = read_json(folder / FILE)
        for key, own in encode(self.get_state()).items():
            value = state.get(key)
            if own is not None and _kind(value) is not _kind(own):
                raise broken(folder, f"another {key!r} was expected in {FILE}")
        named = {*state["ongoing_trials"].values(), *state["start_order"]}
        for trial_id in named - trials:
            raise broken(folder, f"it has no file of trial {trial_id}")
        with _decoding(folder, FILE):
            keras_tuner.HyperParameters.from_config(state["hyperparameters"])
            type(self._display)(self).set_state(state["display"])


def _read_trial(path: pathlib.Path) -> str:
    """Checks a trial's own file; returns its ID."""
    with _decoding(path.parents[1], f"{path.parent.name}/{_TRIAL}"):
        state = read_json(path)
        trial_id = Trial.from_state(state).trial_id
    if path.parent.name != f"trial_{trial_id}" or not trial_id.isdecimal():
        raise broken(path.parents[1], f"{path} is of trial {trial_id!r}")
    return trial_id


@contextlib.contextmanager
def _decoding(folder: pathlib.Path, name: str) -> Iterator[None]:
    """Context manager: one line for KerasTuner's errors about foreign content."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise broken(folder, f"{name}: {first_line(error)}") from error


def _kind(value: Any) -> type:
    return float if isinstance(value, (int, float)) else type(value)


def broken(state: pathlib.Path, why: str) -> InputError:
    """Returns the error for a state folder that a study cannot be resumed from."""
    return InputError(
        f"The search state {str(state)!r} is broken and cannot be resumed ({why}). "
        "Name another folder with --out."
    )


class _Grid(StudyOracle, keras_tuner.oracles.GridSearchOracle):
    """Grid search whose place in the grid follows from its trials.

    KerasTuner's own keeps the place in memory alone: reloaded, it ends, or raises at
    the first trial that was under way.
    """

    _ordered_ids: Any

    def reload(self) -> None:
        """Reads the state, and finds the place in the grid."""
        super().reload()
        values = {i: self.trials[i].hyperparameters.values for i in self.start_order}
        compare = functools.cmp_to_key(self._compare)
        self._ordered_ids = type(self._ordered_ids)()
        for trial_id in sorted(values, key=lambda i: compare(values[i])):
            self._ordered_ids.insert(trial_id)
        # Those whose next combination was tried are skipped.
        self._populate_next = list(self.start_order)


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


_ORACLES: dict[str, type[StudyOracle]] = {"bayesian": _Bayesian, "grid": _Grid} | {
    name: type(name, (StudyOracle, base), {})
    for name, base in {
        "hyperband": keras_tuner.oracles.HyperbandOracle,
        "pareto": ParetoOracle,
        "random": keras_tuner.oracles.RandomSearchOracle,
    }.items()
}


def make(hypermodel: StudyHyperModel) -> StudyOracle:
    """Returns the oracle of a study, with the whole space registered in it."""
    study, settings = hypermodel.study, hypermodel.study.settings
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
        "seed": settings.seed + 1,
    }
    if settings.oracle == "hyperband":
        # `trials` ends it, whichever bracket it is in by then.
        common |= {"max_epochs": settings.epochs, "hyperband_iterations": 10**6}
    elif settings.oracle == "bayesian":
        check_bayesian("The oracle 'bayesian'")
        # Half of the trials explore: KerasTuner's own default, three per
        # dimension, would leave a small study no guided trial.
        common["num_initial_points"] = max(2, settings.trials // 2)
    oracle = _ORACLES[settings.oracle](**common)
    oracle.max_trials = settings.trials
    # The tuner reports trials. KerasTuner's own display fails, while it holds the
    # oracle's lock, on a trial that began before a restart.
    oracle.verbose = 0
    return oracle


def open_state(oracle: StudyOracle, out: pathlib.Path, known: Sequence[str]) -> None:
    """Sets an oracle's folder, and loads an earlier state, with the known trials."""
    oracle._set_project_dir(str(out), STATE)
    if (out / STATE / FILE).is_file():
        oracle.reload()
    elif known:
        # KerasTuner would begin anew.
        raise broken(out / STATE, "a file is missing")
    for trial_id in known:
        if trial_id not in oracle.trials:
            raise broken(out / STATE, f"it does not know trial {trial_id}")
