"""Running a study, in one process or with workers, and going on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from mtl_keras.errors import InputError
from mtl_keras.evaluation import has_relative_gain
from mtl_keras.runs.config import is_number
from mtl_keras.runs.folder import (
    check_free,
    check_no_links,
    disk_errors,
    read_json,
    write_json,
)
from mtl_keras.runs.training import count_batches, load_split
from mtl_keras.search import oracles, records, report, tensorboard
from mtl_keras.search.hypermodel import StudyHyperModel, train_baseline
from mtl_keras.search.local_workers import LocalWorkers
from mtl_keras.search.objectives import DELTA_M
from mtl_keras.search.study import Study
from mtl_keras.search.tuner import STATE, StudyTuner
from mtl_keras.search.values import epochs
from mtl_keras.search.workers import BEAT_SECONDS, CHIEF_SECONDS, SILENCE_SECONDS, Chief


def run_study(
    study: Study, out: str | pathlib.Path, *, console: Console | None = None
) -> list[records.Record]:
    """Runs a study, or goes on with it where it stopped.

    The folder gets `study.json`, `trials/<id>.json`, `logs/` for TensorBoard and
    `state/` (KerasTuner's own) while the study runs, and `results.csv`, pictures and
    `report.html` at its end. A trial that fails is recorded with its error, and the
    study goes on.

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
    tuner = _prepare(study, out, console)
    with _known_warnings(), disk_errors(out):
        tuner.search()
    return _finish(study, out, tuner.oracle)


def run_chief(
    study: Study,
    out: str | pathlib.Path,
    *,
    address: str = "127.0.0.1:0",
    command: Sequence[str] = (),
    workers: int = 0,
    silence: float = SILENCE_SECONDS,
    console: Console | None = None,
) -> list[records.Record]:
    """Runs a study with workers, or goes on with it where it stopped.

    This process hands out the trials and trains none. All workers write into the
    same study folder.

    Args:
        study: As in `run_study`.
        out: The same.
        address: `"host:port"` to listen on; port 0 takes a free one.
        command: What starts a worker on this machine. `--chief HOST:PORT` is
            added to it.
        workers: How many of them to start; with 0 they come from elsewhere.
        silence: Seconds without a word after which a worker counts as dead.
        console: Where to show progress; None runs in silence.

    Returns:
        The trials' records, best first.

    Raises:
        InputError: As `run_study`, and if `address` cannot be listened on or the
            workers die one after the other.
    """
    out = pathlib.Path(out)
    console = console or Console(quiet=True)
    tuner = _prepare(study, out, console)
    oracle = tuner.oracle
    if not oracle.remaining_trials() and not oracle.waiting:
        return _finish(study, out, oracle)

    def say(words: str) -> None:
        console.print(words, soft_wrap=True, markup=False)

    chief = Chief(oracle, address, silence=max(silence, 2 * BEAT_SECONDS), say=say)
    if not workers:
        # Local workers end with their chief; those elsewhere may still be at it.
        chief.take_up()
    host = address.rsplit(":", 1)[0]
    with (
        _known_warnings(),
        disk_errors(out),
        LocalWorkers(command, f"{host}:{chief.port}", workers, chief) as group,
    ):
        chief.start()
        say(f"Waiting for workers at {host}:{chief.port}" if not workers else "")
        while not chief.ended():
            group.watch(len(oracle.end_order))
        chief.stop()
    return _finish(study, out, oracle)


def run_worker(
    study: Study,
    out: str | pathlib.Path,
    *,
    chief: str,
    name: str | None = None,
    follow: bool = False,
    console: Console | None = None,
) -> None:
    """Runs trials that a chief hands out, until there are none left.

    Args:
        study: The study of the chief.
        out: The study folder that the chief writes to; other machines reach it
            over a shared file system.
        chief: `"host:port"` of the chief, which may be started later.
        name: What the chief knows this worker by; None makes one up.
        follow: Whether to end with the process that started this one.
        console: Where to show progress; None runs in silence.

    Raises:
        InputError: If `chief` is no address, or no chief writes `out` within ten
            minutes, or it runs another study there.
    """
    out = pathlib.Path(out)
    host, _, port = chief.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"Expected the chief as HOST:PORT. Received: {chief!r}.")
    name = name or f"worker-{os.uname().nodename}-{os.getpid()}"
    if "chief" in name:
        # KerasTuner tells its chief by this word.
        name = name.replace("chief", "host")
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
    hypermodel = StudyHyperModel(study)
    oracle = oracles.make(hypermodel)
    tuner = StudyTuner(hypermodel, oracle, out, console, follow=follow)
    with disk_errors(out):
        tuner.search()


def _prepare(study: Study, out: pathlib.Path, console: Console) -> StudyTuner:
    """Checks folder, data and state, and writes `study.json`, in this order."""
    known = _open(study, out)
    # Data that cannot be had is an error of the study, not of every trial.
    base = study.base_config().validate()
    with console.status(f"Loading {study.data}"):
        for split in ("train", "validation"):
            count_batches(load_split(base, split))
    tuner = _tuner(study, out, console, known)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / records.STUDY, {"version": records.VERSION, **study.to_dict()})
        tuner.save()
        if not known:
            tensorboard.write_columns(out, study)
    _announce(study, known, out, console)
    return tuner


def _open(study: Study, out: pathlib.Path) -> list[records.Record]:
    """Returns the records of an earlier run; InputError if it was another study."""
    if not (out / records.STUDY).is_file():
        check_free(out)
        return []
    check_no_links(*out.rglob("*"))
    earlier = read_json(out / records.STUDY)
    if earlier.get("version") != records.VERSION:
        raise InputError(
            f"{str(out)!r} was written by another version of mtl_keras. Name another "
            "folder with --out, or remove that one."
        )
    now = json.loads(json.dumps(study.to_dict()))
    for key in now:
        if key != "trials" and now[key] != earlier.get(key):
            raise InputError(
                f"{str(out)!r} holds a study with another {key!r}. Name another "
                "folder with --out, or remove that one."
            )
    return records.read_records(out)


def _tuner(
    study: Study, out: pathlib.Path, console: Console, known: list[records.Record]
) -> StudyTuner:
    """Makes the tuner, which reads the state of an earlier run, if there is one."""
    hypermodel = StudyHyperModel(study)
    state = out / STATE
    oracle = oracles.make(hypermodel)
    tuner = StudyTuner(hypermodel, oracle, out, console)
    if (state / oracles.FILE).is_file():
        oracle.reload()
    elif known:
        # KerasTuner would begin anew.
        raise oracles.broken(state, "a file is missing")
    lost = [r["trial"] for r in known if r["trial"] not in tuner.oracle.trials]
    if lost:
        raise oracles.broken(state, f"it does not know trial {lost[0]}")
    if any(objective.label == DELTA_M for objective in study.objectives):
        hypermodel.baselines = _baselines(study, out, console)
    return tuner


def _baselines(study: Study, out: pathlib.Path, console: Console) -> dict[str, float]:
    """Returns the single-task baselines, each trained once and kept in the folder."""
    path = out / records.BASELINES
    baselines = read_json(path) if path.is_file() else {}
    tasks = study.tasks or ()
    # A baseline that was not a number is null.
    if not set(baselines) <= set(tasks) or not all(
        value is None or is_number(value) for value in baselines.values()
    ):
        raise InputError(f"{path} does not hold the baselines of this study.")
    for task in tasks:
        if task not in baselines:
            with console.status(f"Training {task} alone, with a trial's budget"):
                baselines[task] = train_baseline(study, task)
            with disk_errors(out):
                out.mkdir(parents=True, exist_ok=True)
                write_json(path, baselines)
    excluded = [task for task in tasks if not has_relative_gain(baselines[task])]
    if len(excluded) == len(tasks):
        raise InputError(
            "Expected a baseline other than 0 for at least one task: a relative gain "
            f"over 0 has no value. Received: {baselines}. Choose another objective."
        )
    if excluded:
        console.print(
            f"Δm excludes {', '.join(excluded)}: alone, with a trial's budget, the "
            "main metric is 0 or no number.",
            soft_wrap=True,
            markup=False,
        )
    return baselines


def _announce(
    study: Study, known: list[records.Record], out: pathlib.Path, console: Console
) -> None:
    console.print(
        f"Study of {study.application} on {study.data}: up to {study.trials} trials of "
        f"{epochs(study)} by {study.oracle} search over "
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


@contextlib.contextmanager
def _known_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # KerasTuner looks for the best value of a failed trial's metrics, and
        # fits a kernel whose scale may end at a bound: neither is news.
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        warnings.filterwarnings("ignore", "The optimal value found for dim")
        yield


def _finish(study: Study, out: pathlib.Path, oracle: Any) -> list[records.Record]:
    results = records.read_records(out)
    if oracle.stopped:
        failed = max(results, key=lambda record: int(record["trial"]))
        raise InputError(
            f"The study in {str(out)!r} stopped: three trials in a row failed. "
            f"The last error: {' '.join(failed['error'].split())}"
        )
    with disk_errors(out):
        records.write_table(out, results)
        report.write(study, results, out)
    return results
