"""Running a study: asking its oracle for trials, and telling it their results."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import pathlib
import time
import warnings
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from mtl_keras.callbacks.task_progress import duration
from mtl_keras.decoding import Result, decode
from mtl_keras.encoding import encode
from mtl_keras.errors import InputError, check_integer
from mtl_keras.evaluation import has_relative_gain
from mtl_keras.files import make_folder, read_json, write_json
from mtl_keras.runs.config import TrainingConfig
from mtl_keras.runs.folder import disk_errors
from mtl_keras.runs.progress import say
from mtl_keras.runs.records import (
    RECORD,
    check_same,
    made_with,
    open_folder,
    read_record,
)
from mtl_keras.runs.results import by_task, metric_names
from mtl_keras.runs.scheduler import Job, Scheduler
from mtl_keras.runs.training import count_batches, load_split
from mtl_keras.search import keras_tuner_compat as oracles
from mtl_keras.search import records, report, tensorboard
from mtl_keras.search.hypermodel import SUM, StudyHyperModel
from mtl_keras.search.keras_tuner_compat import STATE, StudyOracle
from mtl_keras.search.records import TrialRecord, main_values, short, shown_tasks
from mtl_keras.search.study import DELTA_M, Study, oriented
from mtl_keras.search.workers import (
    BEAT_SECONDS,
    CHIEF_SECONDS,
    SILENCE_SECONDS,
    Chief,
    WorkerClient,
)

BASELINES = "baselines.json"
_ALONE = "mtl_keras.search.trial:train_alone"
_TRIAL = "mtl_keras.search.trial:train_trial"


def run_study(
    study: Study,
    out: str | pathlib.Path,
    *,
    workers: int = 1,
    console: Console | None = None,
) -> list[TrialRecord]:
    """Runs a study, or resumes it where it stopped.

    The folder gets `study.json`, `trials/<id>.json`, `logs/` for TensorBoard and
    `state/` (KerasTuner's own, and the working directories of the trials) while the
    study runs, and `results.csv`, figures and `report.html` at its end. A trial that
    fails is recorded with its error, and the study continues.

    Args:
        study: The study, as `load_study` returns it.
        out: The study's folder: a new one, or the one of an earlier, stopped or
            finished run of the same study. `trials` may have grown since.
        workers: How many trials run at a time, in processes of this machine that
            share its cores and GPUs.
        console: Where to show progress; None runs in silence.

    Returns:
        The trials' records, best first.

    Raises:
        InputError: If the data cannot be had, `out` cannot be used, or three
            trials in a row fail.
    """
    out = pathlib.Path(out)
    console = console or Console(quiet=True)
    check_integer("workers", workers, low=1)
    with Scheduler(workers) as scheduler:
        oracle = _prepare(study, out, console)
        search = Search(study, oracle, out, scheduler, console)
        with _known_warnings(), disk_errors(out):
            if not _is_over(oracle):
                train_missing(study, out, scheduler, console)
                search.run()
    return _finish(study, out, oracle)


def run_chief(
    study: Study,
    out: str | pathlib.Path,
    *,
    address: str,
    silence: float = SILENCE_SECONDS,
    console: Console | None = None,
) -> list[TrialRecord]:
    """Runs a study with workers on several machines, or resumes it.

    This process hands out the trials and trains none. All workers write into the
    same study folder.

    Args:
        study: As in `run_study`.
        out: The same.
        address: `"host:port"` to listen on; port 0 takes a free one.
        silence: Seconds without a word after which a worker counts as dead.
        console: Where to show progress; None runs in silence.

    Returns:
        The trials' records, best first.

    Raises:
        InputError: As `run_study`, and if `address` cannot be listened on.
    """
    out = pathlib.Path(out)
    console = console or Console(quiet=True)
    oracle = _prepare(study, out, console)
    if _is_over(oracle):
        return _finish(study, out, oracle)

    with _known_warnings(), disk_errors(out):
        with Scheduler(1) as scheduler:
            train_missing(study, out, scheduler, console)
        tell = functools.partial(say, console)
        chief = Chief(oracle, address, silence=max(silence, 2 * BEAT_SECONDS), say=tell)
        # Workers may still be at trials that an earlier chief gave them.
        chief.take_up()
        chief.start()
        tell(f"Waiting for workers at {address.rpartition(':')[0]}:{chief.port}")
        while not chief.ended():
            time.sleep(0.2)
        chief.stop()
    return _finish(study, out, oracle)


def run_worker(
    study: Study,
    out: str | pathlib.Path,
    *,
    chief: str,
    console: Console | None = None,
) -> None:
    """Runs trials that a chief hands out, until there are none left.

    Args:
        study: The study of the chief.
        out: The study folder that the chief writes to; other machines reach it
            over a shared file system.
        chief: `"host:port"` of the chief, which may be started later.
        console: Where to show progress; None runs in silence.

    Raises:
        InputError: If `chief` is no address, or no chief writes `out` within ten
            minutes, or it runs another study there.
    """
    out = pathlib.Path(out)
    host, _, port = chief.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"Expected the chief as HOST:PORT. Received: {chief!r}.")
    # KerasTuner tells its chief by this word.
    name = f"worker-{os.uname().nodename.replace('chief', 'host')}-{os.getpid()}"
    os.environ |= {
        "KERASTUNER_TUNER_ID": name,
        "KERASTUNER_ORACLE_IP": host,
        "KERASTUNER_ORACLE_PORT": port,
    }
    # A folder that is not there yet is the chief's to make.
    end = time.monotonic() + CHIEF_SECONDS
    while not (out / records.STUDY).is_file():
        if time.monotonic() > end:
            raise InputError(
                f"No chief has written to the study folder {str(out)!r} within ten "
                "minutes. Workers and chief need the same folder, on a shared file "
                "system."
            )
        time.sleep(BEAT_SECONDS)
    _open(study, out)
    console = console or Console(quiet=True)
    client = WorkerClient(oracles.make(StudyHyperModel(study)))
    with Scheduler(1) as scheduler, disk_errors(out):
        search = Search(study, client, out, scheduler, console, name)
        search.run()


def _prepare(study: Study, out: pathlib.Path, console: Console) -> StudyOracle:
    """Checks folder, data and state, and writes `study.json`, in this order."""
    known = _open(study, out)
    oracle = oracles.make(StudyHyperModel(study))
    oracles.open_state(oracle, out, [record.trial for record in known])
    if not _is_over(oracle):
        # Data that cannot be had is an error of the study, not of every trial.
        with console.status(f"Loading {study.base.data}"):
            for split in ("train", "validation"):
                count_batches(load_split(study.base, split))
    with disk_errors(out):
        make_folder(out)
        settings = {**encode(study.settings), "made_with": made_with()}
        write_json(out / records.STUDY, settings)
        oracle.save()
        if not known:
            tensorboard.write_columns(out, study)
    _announce(study, known, out, console)
    return oracle


def _open(study: Study, out: pathlib.Path) -> list[TrialRecord]:
    """Returns the records of an earlier run; InputError if it was another study."""
    earlier = open_folder(out, records.STUDY)
    if earlier is None:
        return []
    now = encode(study.settings)
    check_same(out, "a study", earlier | {"trials": now["trials"]}, now)
    return records.read_records(out)


def _is_over(oracle: StudyOracle) -> bool:
    """Returns whether no trial is left to run."""
    return not oracle.remaining_trials() and not oracle.waiting


def _announce(
    study: Study, known: list[TrialRecord], out: pathlib.Path, console: Console
) -> None:
    settings = study.settings
    say(
        console,
        f"Study of {settings.application} on {study.base.data}: up to "
        f"{settings.trials} trials of {study.epochs} by {settings.oracle} search over "
        f"{', '.join(study.searched)}",
    )
    if known:
        rest = settings.trials - len(known)
        todo = f"up to {rest} to go." if rest > 0 else "nothing left to run."
        trials = f"{len(known)} finished trial{'s' if len(known) > 1 else ''}"
        say(console, f"Reused from {out}: {trials}; {todo}")


@contextlib.contextmanager
def _known_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # KerasTuner looks for the best value of a failed trial's metrics, and
        # fits a kernel whose scale may end at a bound: neither is news.
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        warnings.filterwarnings("ignore", "The optimal value found for dim")
        yield


def _finish(study: Study, out: pathlib.Path, oracle: StudyOracle) -> list[TrialRecord]:
    results = records.read_records(out)
    if oracle.stopped:
        failed = max(results, key=lambda record: int(record.trial))
        raise InputError(
            f"The study in {str(out)!r} stopped: three trials in a row failed. "
            f"The last error: {failed.reason}"
        )
    with disk_errors(out):
        records.write_table(out, results)
        report.write(study, results, out)
    return results


@dataclasses.dataclass
class Search:
    """Asks an oracle for trials, has them run, and tells it their results.

    The oracle may be a client of a chief's, for which this process has a `name`.
    """

    study: Study
    oracle: Any
    out: pathlib.Path
    scheduler: Scheduler
    console: Console
    name: str | None = None

    def __post_init__(self) -> None:
        self._model = StudyHyperModel(self.study)
        # Those under way, with their settings, by ID.
        self._trials: dict[str, tuple[Any, TrainingConfig]] = {}

    @functools.cached_property
    def _baselines(self) -> dict[str, float] | None:
        """The baselines; read when there is a trial, by when a chief has them."""
        if not needs_baselines(self.study):
            return None
        return read_baselines(self.study, self.out)

    def run(self) -> None:
        """Runs trials until the oracle has none left."""
        for ended in self.scheduler.run(self._jobs()):
            for job in ended:
                self._end(job)

    def _jobs(self) -> Iterator[Job | None]:
        """Asks for trials until there are none left; None while others are awaited."""
        while True:
            trial = self.oracle.create_trial(self.name or self._free_slot())
            if trial.status == "STOPPED":
                return
            yield self._job(trial) if trial.status == "RUNNING" else None

    def _free_slot(self) -> str:
        slots = (f"slot-{number}" for number in range(self.scheduler.slots))
        return next(slot for slot in slots if slot not in self.oracle.ongoing_trials)

    def _job(self, trial: Any) -> Job:
        """Reports a trial's settings, and returns its job."""
        study, hp = self.study, trial.hyperparameters
        config = self._model.config(hp.copy())
        number = f"{int(trial.trial_id) + 1}/{study.settings.trials}"
        described = _described(study, config)
        say(self.console, f"trial {trial.trial_id} ({number}): {described}")
        start = hp.values.get("tuner/trial_id")
        settings = {
            "study": encode(study.settings),
            "hyperparameters": hp.get_config(),
            "baselines": self._baselines,
            "start": None if start is None else str(self._folder(start)),
        }
        self._trials[trial.trial_id] = (trial, config)
        folder = self._folder(trial.trial_id)
        return Job(trial.trial_id, folder, _TRIAL, settings)

    def _folder(self, trial_id: str) -> pathlib.Path:
        return self.out.absolute() / STATE / f"trial_{trial_id}"

    def _end(self, job: Job) -> None:
        """Records a trial, reports its outcome, and tells the oracle."""
        trial, config = self._trials.pop(job.label)
        record, results = self._record(job, trial, config)
        # In this order: a trial that the oracle has noted as ended is not run
        # again, so its record has to be there by then.
        records.write_record(self.out, record)
        tensorboard.write_trial(self.out, record)
        self.oracle.update_trial(trial.trial_id, results)
        # Of an objective without a value KerasTuner makes a failed trial.
        trial.status = "COMPLETED"
        self.oracle.end_trial(trial)
        line = f"failed, and is skipped: {record.reason}"
        if record.completed:
            line = _outcome(self.study, record)
        line = f"trial {trial.trial_id}: {line}; {duration(record.seconds)}"
        if self.name is None:
            todo = self.study.settings.trials - len(self.oracle.start_order)
            left = self.scheduler.time_left([("", 1.0)] * todo)
            line += left and f", {left}"
        say(self.console, line)

    def _record(
        self, job: Job, trial: Any, config: TrainingConfig
    ) -> tuple[TrialRecord, dict[str, float]]:
        """Returns the record of a trial, and the results that the oracle gets."""
        study, outcome = self.study, read_record(job.folder / RECORD)
        names = [objective.name for objective in study.objectives]
        results = dict.fromkeys([*names, SUM], math.nan)
        if outcome.completed:
            results |= decode(dict[str, Result], outcome.result)
        values = {o.label: results[o.name] for o in study.objectives}
        score = sum(oriented(o, values[o.label]) for o in study.objectives)
        error = outcome.error
        if not error and math.isnan(score):
            error = "The loss or a metric is not a number."
        names_of = metric_names(study.application, study.tasks)
        record = TrialRecord(
            status="FAILED" if error else "COMPLETED",
            seconds=outcome.seconds,
            error=error,
            traceback=outcome.traceback,
            made_with=outcome.made_with,
            trial=trial.trial_id,
            score=None if error else score,
            objectives=values,
            directions={o.label: o.direction for o in study.objectives},
            metrics=by_task(results, names_of, "val_") if outcome.completed else {},
            config=config,
            hyperparameters=dict(trial.hyperparameters.values),
        )
        return record, results


def _described(study: Study, config: TrainingConfig) -> str:
    """Returns the searched settings of a trial in a few words."""
    settings = records.flat_settings(config, short)
    parts = [
        f"{name.replace('_', ' ')} {short(settings[name])}"
        for name in study.searched
        if name != "loss_weights"
    ]
    if "loss_weights" in study.searched:
        weights = config.loss_weights or {}
        parts.append("weights " + " ".join(f"{t} {w:.2f}" for t, w in weights.items()))
    return ", ".join(parts)


def _outcome(study: Study, record: TrialRecord) -> str:
    """Returns how a finished trial went in a few words."""
    main = zip(shown_tasks(study), main_values(study, record), strict=True)
    metrics = ", ".join(f"{task} {value:.4f}" for task, value in main)
    score = ", ".join(f"{n} {v:.4f}" for n, v in record.objectives.items())
    return f"{score}; {metrics}" if metrics else score


def needs_baselines(study: Study) -> bool:
    """Returns whether Δm is an objective."""
    return any(objective.label == DELTA_M for objective in study.objectives)


def read_baselines(study: Study, out: pathlib.Path) -> dict[str, float]:
    """Returns the baselines that the folder holds, by task."""
    path = out / BASELINES
    if not path.is_file():
        return {}
    baselines = decode(dict[str, Result], read_json(path), str(path))
    if not set(baselines) <= set(study.tasks):
        raise InputError(f"{path} does not hold the baselines of this study.")
    return baselines


def train_missing(
    study: Study, out: pathlib.Path, scheduler: Scheduler, console: Console
) -> None:
    """Trains the single-task baselines that the folder lacks, where Δm needs them."""
    if not needs_baselines(study):
        return
    baselines = read_baselines(study, out)
    missing = [task for task in study.tasks if task not in baselines]
    folder, encoded = out.absolute() / STATE / "alone", encode(study.settings)
    jobs = (
        Job(task, folder / task, _ALONE, {"study": encoded, "task": task}, "alone")
        for task in missing
    )
    with console.status(f"Training {', '.join(missing)} alone, with a trial's budget"):
        for job in itertools.chain.from_iterable(scheduler.run(jobs)):
            record = read_record(job.folder / RECORD)
            if not record.completed:
                (job.folder / RECORD).unlink()
                raise InputError(
                    f"The baseline of {job.label!r} cannot be trained: {record.reason}"
                )
            value = record.result
            baselines[job.label] = math.nan if value is None else value
            write_json(out / BASELINES, baselines)
    excluded = [task for task in study.tasks if not has_relative_gain(baselines[task])]
    if len(excluded) == len(study.tasks):
        raise InputError(
            "Expected a baseline other than 0 for at least one task: a relative gain "
            f"over 0 has no value. Received: {baselines}. Choose another objective."
        )
    if excluded:
        say(
            console,
            f"Δm excludes {', '.join(excluded)}: alone, with a trial's budget, the "
            "main metric is 0 or no number.",
        )
