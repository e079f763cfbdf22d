"""Running a study with KerasTuner's oracles, and going on where it stopped."""

from __future__ import annotations

import contextlib
import io
import json
import math
import pathlib
import time
import traceback
import warnings
from typing import Any

import keras
import keras_tuner
from rich.console import Console

from mtl_keras.errors import InputError
from mtl_keras.runs.folder import check_free, first_line, read_json, write_json
from mtl_keras.runs.progress import StepBar, duration
from mtl_keras.runs.results import by_task, metric_names
from mtl_keras.runs.training import count_batches, load_split
from mtl_keras.search import oracles, records, report
from mtl_keras.search.hypermodel import OBJECTIVE, MultiTaskHyperModel
from mtl_keras.search.study import Study

_STATE = "state"


def run_study(
    study: Study, out: str | pathlib.Path, *, console: Console | None = None
) -> list[records.Record]:
    """Runs a study, or goes on with it where it stopped.

    The folder gets `study.json`, `trials/<id>.json` and `state/` (KerasTuner's
    own) while the study runs, `results.csv` and `trade_off.png` at its end. A
    trial that fails is recorded with its error, and the study goes on.

    Args:
        study: The study, as `load_study` or `Study.validate` returns it.
        out: The study's folder: a new one, or the one of an earlier, stopped or
            finished run of the same study. `trials` may have grown since.
        console: Where to show progress; None runs in silence.

    Returns:
        The trials' records, best first.

    Raises:
        InputError: If the data cannot be had, `out` cannot be used, or three
            trials in a row fail.
    """
    out = pathlib.Path(out)
    console = console or Console(quiet=True)
    known = _open(study, out)
    # Data that cannot be had is an error of the study, not of every trial.
    base = study.base_config().validate()
    with console.status(f"Loading {study.data}"):
        for split in ("train", "validation"):
            count_batches(load_split(base, split))
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / records.STUDY, study.to_dict())
    except OSError as error:
        raise InputError(
            f"The study folder {str(out)!r} cannot be written: {error.strerror}."
        ) from error
    tuner = _tuner(study, out, console)
    _announce(study, known, out, console)
    try:
        with warnings.catch_warnings():
            # KerasTuner looks for the best value of a failed trial's metrics, and
            # fits a kernel whose scale may end at a bound: neither is news.
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
            warnings.filterwarnings("ignore", "The optimal value found for dim")
            tuner.search(verbose=0)
    except RuntimeError as error:
        raise InputError(
            f"The study in {str(out)!r} stopped: {first_line(error)} "
            f"The last error: {tuner.last_error}"
        ) from error
    results = records.read_records(out)
    records.write_table(out, results)
    report.plot(study, results, out)
    return results


def _open(study: Study, out: pathlib.Path) -> list[records.Record]:
    """Returns the records of an earlier run; InputError if it was another study."""
    if not (out / records.STUDY).is_file():
        check_free(out)
        return []
    earlier = read_json(out / records.STUDY)
    now = json.loads(json.dumps(study.to_dict()))
    for key in now:
        if key != "trials" and now[key] != earlier.get(key):
            raise InputError(
                f"{str(out)!r} holds a study with another {key!r}. Name another "
                "folder with --out, or remove that one."
            )
    return records.read_records(out)


def _tuner(study: Study, out: pathlib.Path, console: Console) -> _StudyTuner:
    """Makes the tuner, which reads the state of an earlier run, if there is one."""
    hypermodel = MultiTaskHyperModel(study)
    try:
        # It announces on standard output that it reads its state.
        with contextlib.redirect_stdout(io.StringIO()):
            oracle = oracles.make(study, hypermodel)
            return _StudyTuner(hypermodel, oracle, out, console)
    except (json.JSONDecodeError, KeyError, RuntimeError) as error:
        raise InputError(
            f"The search state {str(out / _STATE)!r} is broken and cannot be gone on "
            f"with ({first_line(error)}). Name another folder with --out."
        ) from error


def _announce(
    study: Study, known: list[records.Record], out: pathlib.Path, console: Console
) -> None:
    console.print(
        f"Study of {study.application} on {study.data}: up to {study.trials} trials of "
        f"{study.epochs} epochs by {study.oracle} search over "
        f"{', '.join(study.searched)}",
        soft_wrap=True,
    )
    if known:
        done = len(known)
        rest = max(study.trials - done, 0)
        console.print(
            f"Reused from {out}: {done} finished trial{'s' if done > 1 else ''}; "
            + (f"up to {rest} to go." if rest else "nothing left to run."),
            soft_wrap=True,
        )


class _StudyTuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Runs trials one by one, and records and reports each.

    It keeps no weights: trials are short, and the best one is trained anew.
    `Tuner` would save a checkpoint after every epoch of every trial.
    """

    def __init__(
        self,
        hypermodel: MultiTaskHyperModel,
        oracle: keras_tuner.Oracle,
        out: pathlib.Path,
        console: Console,
    ):
        # The space is registered already: no hypermodel, no trial build.
        super().__init__(oracle, None, directory=str(out), project_name=_STATE)
        self._model = hypermodel
        self._out = out
        self._console = console
        self._started = 0.0
        self._spent: list[float] = []
        study = hypermodel.study
        self._metrics = metric_names(
            study.base_config().get_application(), study.tasks or ()
        )
        self._results: dict[str, dict[str, float]] = {}
        self._errors: dict[str, tuple[Exception, str]] = {}
        self.last_error = ""

    def on_trial_begin(self, trial: Any) -> None:
        """Says what the trial tries."""
        self._started = time.monotonic()
        record = self._record(trial)
        words = report.describe(self._model.study, records.flat_settings(record))
        number = f"{int(trial.trial_id) + 1}/{self._model.study.trials}"
        self._console.print(
            f"trial {trial.trial_id} ({number}): {words}", soft_wrap=True, markup=False
        )

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Builds and trains the trial's model; a failure scores NaN.

        KerasTuner counts a trial with that score as failed. It would do the same
        with an exception, but print the traceback in the middle of the progress.
        """
        try:
            results = self._train(trial)
        except Exception as error:
            # Whatever a setting leads to, from a shape that does not fit to
            # memory running out, belongs to this trial; the next may go well.
            self._errors[trial.trial_id] = (error, traceback.format_exc())
            return {OBJECTIVE: math.nan}
        self._results[trial.trial_id] = results
        return results

    def _train(self, trial: Any) -> dict[str, float]:
        keras.utils.clear_session()
        model = self._model.build(trial.hyperparameters)
        with StepBar(self._console, f"trial {trial.trial_id}") as bar:
            return self._model.fit(
                trial.hyperparameters, model, callbacks=bar.callbacks
            )

    def on_trial_end(self, trial: Any) -> None:
        """Records the trial and says how it went."""
        record = self._record(trial)
        if record["score"] is None:
            self.last_error = " ".join(record["error"].split())
            words = f"failed, and is skipped: {self.last_error}"
        else:
            main = report.main_values(self._model.study, record)
            named = zip(self._model.study.tasks or (), main, strict=True)
            words = f"score {record['score']:.4f}; " + ", ".join(
                f"{task} {value:.4f}" for task, value in named
            )
        self._spent.append(record["seconds"])
        todo = self._model.study.trials - int(trial.trial_id) - 1
        left = sum(self._spent) / len(self._spent) * max(todo, 0)
        self._console.print(
            f"    {words}; {duration(record['seconds'])}, about {duration(left)} left",
            soft_wrap=True,
            markup=False,
        )
        # In this order: a trial that the oracle has noted as ended is not run
        # again, so its record has to be there by then.
        records.write_record(self._out, record)
        super().on_trial_end(trial)

    def _record(self, trial: Any) -> records.Record:
        results = self._results.get(trial.trial_id, {})
        score = results.get(OBJECTIVE, math.nan)
        error, trace = self._errors.get(trial.trial_id, (None, ""))
        message = "" if error is None else f"{type(error).__name__}: {error}"
        if error is None and math.isnan(score):
            message = "The loss or a metric is not a number."
        config = self._model.config(trial.hyperparameters.copy())
        return {
            "trial": trial.trial_id,
            "status": "FAILED" if message else "COMPLETED",
            "score": None if message else score,
            "seconds": round(time.monotonic() - self._started, 3),
            "error": message,
            "traceback": trace,
            "metrics": by_task(results, self._metrics, "val_"),
            "config": config.to_dict(),
            "hyperparameters": dict(trial.hyperparameters.values),
        }
