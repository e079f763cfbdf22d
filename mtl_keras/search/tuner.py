"""The tuner of a study: runs trials one by one, and records and reports each."""

from __future__ import annotations

import math
import pathlib
import time
import traceback
from typing import Any

import keras
import keras_tuner
from rich.console import Console

from mtl_keras.files import atomic_write
from mtl_keras.runs.folder import read_json
from mtl_keras.runs.progress import StepBar, duration
from mtl_keras.runs.results import by_task, metric_names
from mtl_keras.search import records, report, tensorboard
from mtl_keras.search.attempts import MOST, Attempts
from mtl_keras.search.hypermodel import SUM, StudyHyperModel
from mtl_keras.search.objectives import DELTA_M, oriented
from mtl_keras.search.oracles import StudyOracle
from mtl_keras.search.values import short
from mtl_keras.search.workers import WorkerClient

STATE = "state"


class StudyTuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Runs the trials of a study.

    It keeps no weights but those that Hyperband goes on from: trials are short, and
    the best one is trained anew. `Tuner` would save a checkpoint after every epoch
    of every trial.

    Args:
        hypermodel: The study's hypermodel.
        oracle: Its oracle.
        out: The study folder.
        console: Where to show progress.
        follow: For a worker: whether to end with the process that started it.
    """

    def __init__(
        self,
        hypermodel: StudyHyperModel,
        oracle: StudyOracle,
        out: pathlib.Path,
        console: Console,
        *,
        follow: bool = False,
    ):
        # The space is registered already: no hypermodel, no trial build.
        super().__init__(oracle, None, directory=str(out), project_name=STATE)
        self._attempts = Attempts(out / STATE)
        if self._is_worker():
            self.oracle = WorkerClient(
                oracle, follow=follow, leave=self._attempts.withdraw
            )
        self._model = hypermodel
        self._out = out
        self._console = console
        self._started = 0.0
        self._spent: list[float] = []
        study = hypermodel.study
        self._metrics = metric_names(
            study.base_config().get_application(), study.tasks or ()
        )
        self._results: dict[str, float] = {}
        self._error = self._trace = ""

    def on_trial_begin(self, trial: Any) -> None:
        """Says what the trial tries."""
        self._started = time.monotonic()
        self._results = {}
        self._error = self._trace = ""
        record = self._record(trial)
        settings = records.flat_settings(record, short)
        words = report.describe(self._model.study, settings)
        number = f"{int(trial.trial_id) + 1}/{self._model.study.trials}"
        self._console.print(
            f"trial {trial.trial_id} ({number}): {words}", soft_wrap=True, markup=False
        )

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Builds and trains the trial's model; a failure scores NaN.

        KerasTuner counts a trial with that score as failed. It would do the same
        with an exception, but print the traceback in the middle of the progress.
        """
        deaths = self._attempts.lost(trial.trial_id)
        if deaths >= MOST:
            self._error = (
                f"ProcessDied: the process that ran this trial died {deaths} times. "
                "Most often memory ran out: a smaller width, depth or batch size takes "
                "less of it."
            )
            return self._failed()
        try:
            with self._attempts.attempt(trial.trial_id):
                self._results = self._train(trial)
        except (Exception, SystemExit) as error:
            # Whatever a setting leads to, from a shape that does not fit to
            # memory running out, belongs to this trial; the next may go well.
            # As text: the error itself would keep the model.
            self._error = f"{type(error).__name__}: {error}"
            self._trace = traceback.format_exc()
            return self._failed()
        return self._results

    def _failed(self) -> dict[str, float]:
        names = [objective.name for objective in self._model.study.objectives]
        return dict.fromkeys([*names, SUM], math.nan)

    def _train(self, trial: Any) -> dict[str, float]:
        study = self._model.study
        needs_baselines = any(o.label == DELTA_M for o in study.objectives)
        if needs_baselines and self._model.baselines is None:
            # A worker starts before its chief has trained them.
            self._model.baselines = read_json(self._out / records.BASELINES)
        keras.utils.clear_session()
        hp = trial.hyperparameters
        model = self._model.build(hp)
        if "tuner/trial_id" in hp.values:
            # The optimizer's state is part of the weights file once it exists.
            model.optimizer.build(model.trainable_variables)
            model.load_weights(self._checkpoint(hp.values["tuner/trial_id"]))
        with StepBar(self._console, f"trial {trial.trial_id}") as bar:
            results = self._model.fit(
                hp,
                model,
                callbacks=bar.callbacks,
                initial_epoch=hp.values.get("tuner/initial_epoch", 0),
            )
        if study.oracle == "hyperband":
            with atomic_write(self._checkpoint(trial.trial_id)) as temporary:
                model.save_weights(temporary)
        return results

    def _checkpoint(self, trial_id: str) -> pathlib.Path:
        return pathlib.Path(self.get_trial_dir(trial_id)) / "checkpoint.weights.h5"

    def on_trial_end(self, trial: Any) -> None:
        """Records the trial and says how it went."""
        record = self._record(trial)
        if record["score"] is None:
            words = f"failed, and is skipped: {' '.join(record['error'].split())}"
        else:
            words = report.outcome(self._model.study, record)
        self._spent.append(record["seconds"])
        spent = duration(record["seconds"])
        lead = f"trial {trial.trial_id}: "  # lines of several workers mix
        if not self._is_worker():
            lead = "    "
            todo = self._model.study.trials - int(trial.trial_id) - 1
            left = sum(self._spent) / len(self._spent) * max(todo, 0)
            spent += f", about {duration(left)} left"
        self._console.print(f"{lead}{words}; {spent}", soft_wrap=True, markup=False)
        # In this order: a trial that the oracle has noted as ended is not run
        # again, so its record has to be there by then.
        records.write_record(self._out, record)
        tensorboard.write_trial(self._out, record)
        super().on_trial_end(trial)

    def save(self) -> None:
        """Writes the oracle's state, which is all there is; a worker has none."""
        if not self._is_worker():
            self.oracle.save()

    def _record(self, trial: Any) -> records.Record:
        study = self._model.study
        values = {
            o.label: self._results.get(o.name, math.nan) for o in study.objectives
        }
        score = sum(
            oriented(objective, values[objective.label])
            for objective in study.objectives
        )
        message = self._error
        if not message and math.isnan(score):
            message = "The loss or a metric is not a number."
        config = self._model.config(trial.hyperparameters.copy())
        return {
            "trial": trial.trial_id,
            "status": "FAILED" if message else "COMPLETED",
            "score": None if message else score,
            "objectives": values,
            "directions": {o.label: o.direction for o in study.objectives},
            "seconds": round(time.monotonic() - self._started, 3),
            "error": message,
            "traceback": self._trace,
            "metrics": by_task(self._results, self._metrics, "val_"),
            "config": config.to_dict(),
            "hyperparameters": dict(trial.hyperparameters.values),
        }
