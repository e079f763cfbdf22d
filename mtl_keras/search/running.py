"""Running a study: asking its oracle for trials, and telling it their results."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import time
import warnings
from collections.abc import Iterator

from rich.console import Console

from mtl_keras.encoding import encode
from mtl_keras.errors import InputError, check_integer
from mtl_keras.files import make_folder, write_json
from mtl_keras.runs.folder import disk_errors
from mtl_keras.runs.progress import say
from mtl_keras.runs.records import check_same, made_with, open_folder
from mtl_keras.runs.scheduler import Scheduler
from mtl_keras.runs.training import count_batches, load_split
from mtl_keras.search import keras_tuner_compat as oracles
from mtl_keras.search import records, report, tensorboard
from mtl_keras.search.ask_and_tell import Search, train_missing
from mtl_keras.search.hypermodel import StudyHyperModel
from mtl_keras.search.keras_tuner_compat import StudyOracle
from mtl_keras.search.records import TrialRecord
from mtl_keras.search.study import Study
from mtl_keras.search.workers import (
    BEAT_SECONDS,
    CHIEF_SECONDS,
    SILENCE_SECONDS,
    Chief,
    WorkerClient,
)


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
        done, rest = len(known), max(settings.trials - len(known), 0)
        say(
            console,
            f"Reused from {out}: {done} finished trial{'s' if done > 1 else ''}; "
            + (f"up to {rest} to go." if rest else "nothing left to run."),
        )


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
            f"The last error: {' '.join(failed.error.split())}"
        )
    with disk_errors(out):
        records.write_table(out, results)
        report.write(study, results, out)
    return results
