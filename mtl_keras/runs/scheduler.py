"""Jobs in processes of their own: the trials of a study, the cells of a comparison.

A process keeps the memory of trainings apart from the one that schedules them, survives
a training that runs out of it, and takes its share of the cores and GPUs. It serves
several jobs, as starting one takes seconds, and is replaced before what TensorFlow
keeps of each has added up. The scheduling process itself trains nothing.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import selectors
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from mtl_keras.callbacks.task_progress import duration
from mtl_keras.encoding import encode
from mtl_keras.errors import InputError, check_integer
from mtl_keras.files import make_folder, read_json, write_json
from mtl_keras.runs.records import RECORD, SETTINGS, failure, read_record
from mtl_keras.runs.worker import LOG

MOST_DEATHS = 2  # of its process, after which a job is not run again
_DEATHS = "deaths.json"
# A process is replaced when it holds this many times what it held after its first jobs,
# whose libraries and caches it has to load; where its memory is not known, by number.
_GROWTH, _FIRST_JOBS, _MOST_JOBS = 1.15, 3, 20
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Job:
    """A function to be called in a process of its own.

    Attributes:
        label: Name in messages.
        folder: Its working directory: gets its settings, output and record.
        function: `"module:name"` of a function of the directory and the settings.
        settings: Plain values.
        kind: Jobs of one kind take about as long as each other.
        size: How long it takes beside jobs of other kinds, roughly.
    """

    label: str
    folder: pathlib.Path
    function: str
    settings: Mapping[str, Any]
    kind: Hashable = ""
    size: float = 1.0


class Scheduler:
    """Runs jobs in `slots` processes at a time; a context manager that ends them.

    A job whose process dies is run again, once: the count lies in its working
    directory, so that it holds over restarts. What ends with the scheduler's own
    process is not counted. With `fresh` each job gets a new process, so that
    measurements of the process are its own.
    """

    def __init__(self, slots: int, *, fresh: bool = False):
        self.slots = slots
        self._fresh = fresh
        self._workers: dict[int, _Worker] = {}
        self._running: dict[int, tuple[Job, float]] = {}
        self._ended: list[Job] = []
        self._selector = selectors.DefaultSelector()
        self._seconds: dict[Hashable, list[float]] = collections.defaultdict(list)
        self._seconds_per_size: list[float] = []

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers.values():
            worker.close()
        for slot in list(self._workers):
            self._drop(slot)
        self._selector.close()

    def run(self, jobs: Iterator[Job | None]) -> Iterator[list[Job]]:
        """Runs jobs as slots get free; yields those that have ended, or none for now.

        None among `jobs` says that none is ready: the next one is asked for later.
        """
        more = True
        while True:
            while more and len(self._running) + len(self._ended) < self.slots:
                try:
                    job = next(jobs)
                except StopIteration:
                    more = False
                    break
                if job is None:
                    break
                self._submit(job)
            if not (more or self._running or self._ended):
                return
            if not self._ended:
                for key, _ in self._selector.select(_POLL_SECONDS):
                    self._receive(key.data)
            ended, self._ended = self._ended, []
            yield ended

    def _submit(self, job: Job) -> None:
        """Starts a job where a slot is free; one that has its record has ended."""
        settings = encode({**job.settings, "jobs": self.slots})
        if _has_record(job.folder, settings):
            self._ended.append(job)
            return
        make_folder(job.folder)
        (job.folder / RECORD).unlink(missing_ok=True)
        write_json(job.folder / SETTINGS, settings)
        slot = next(n for n in range(self.slots) if n not in self._running)
        self._start(slot, job)

    def time_left(self, rest: Iterable[tuple[Hashable, float]]) -> str:
        """Returns about how long the jobs under way and others take, as people read it.

        `rest` holds kind and size of the jobs that have not begun. Empty at first and
        at the end.
        """
        if not self._seconds:
            return ""
        now = time.monotonic()
        total = sum(self._expected(kind, size) for kind, size in rest)
        for job, started in self._running.values():
            total += max(self._expected(job.kind, job.size) - (now - started), 0.0)
        return f"about {duration(total / self.slots)} left" if total else ""

    def _expected(self, kind: Hashable, size: float) -> float:
        if same := self._seconds.get(kind):
            return statistics.fmean(same)
        return size * statistics.fmean(self._seconds_per_size)

    def _start(self, slot: int, job: Job) -> None:
        if slot not in self._workers:
            worker = start_worker(slot, self.slots, job.folder / LOG)
            self._workers[slot] = worker
            self._selector.register(worker, selectors.EVENT_READ, slot)
        self._running[slot] = (job, time.monotonic())
        self._workers[slot].send(job)

    def _receive(self, slot: int) -> None:
        worker = self._workers[slot]
        answer = worker.receive()
        if answer is None:
            code = self._drop(slot)
            if slot in self._running:
                self._count_death(slot, code)
            return
        job, started = self._running.pop(slot)
        self._end(job, time.monotonic() - started)
        if self._fresh or not answer["is_usable"] or worker.has_grown(answer):
            self._drop(slot)

    def _end(self, job: Job, seconds: float) -> None:
        self._seconds[job.kind].append(seconds)
        self._seconds_per_size.append(seconds / job.size)
        (job.folder / _DEATHS).unlink(missing_ok=True)
        self._ended.append(job)

    def _drop(self, slot: int) -> int:
        """Ends a worker; returns its exit code."""
        worker = self._workers.pop(slot)
        self._selector.unregister(worker)
        return worker.end()

    def _count_death(self, slot: int, code: int) -> None:
        job, _ = self._running.pop(slot)
        path = job.folder / _DEATHS
        before = read_json(path).get("deaths") if path.is_file() else 0
        deaths = check_integer(f"deaths in {path}", before, low=0) + 1
        write_json(path, {"deaths": deaths, "last": _ending(code)})
        if deaths < MOST_DEATHS:
            self._start(slot, job)
            return
        error = (
            f"ProcessDied: its process died {deaths} times, the last time with "
            f"{_ending(code)}; see {job.folder / LOG}. Most often memory ran out, of "
            "which a smaller width, depth or batch size takes less."
        )
        write_json(job.folder / RECORD, failure(error, self.slots))
        self._ended.append(job)


def _has_record(folder: pathlib.Path, settings: dict[str, Any]) -> bool:
    """Returns whether a folder holds the record of a job with these very settings."""
    try:
        read_record(folder / RECORD)
        earlier = read_json(folder / SETTINGS)
    except InputError:
        # Missing, damaged or of another version: the job runs anew.
        return False
    return earlier == json.loads(json.dumps(settings))


class _Worker:
    """A worker process, as its scheduler sees it."""

    def __init__(self, process: subprocess.Popen):
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._input, self._output = process.stdin, process.stdout
        self._memory: list[int] = []
        self._served = 0

    def send(self, job: Job) -> None:
        message = {"folder": str(job.folder.absolute()), "function": job.function}
        # One that died while it had nothing to do is found out by `receive`.
        with contextlib.suppress(BrokenPipeError):
            self._input.write(json.dumps(message).encode() + b"\n")
            self._input.flush()

    def fileno(self) -> int:
        return self._output.fileno()

    def receive(self) -> dict[str, Any] | None:
        """Returns the answer to a job; None when the process has died."""
        line = self._output.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def has_grown(self, answer: Mapping[str, Any]) -> bool:
        """Returns whether it is time to replace the process, after a job's answer."""
        self._served += 1
        if answer["memory"] is None:
            return self._served >= _MOST_JOBS
        self._memory.append(answer["memory"])
        return self._memory[-1] > _GROWTH * max(self._memory[:_FIRST_JOBS])

    def close(self) -> None:
        """Closes the process's input, upon which it ends by itself."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()

    def end(self) -> int:
        """Waits until the process has ended; returns its exit code."""
        self.close()
        try:
            code = self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._output.close()
        return code


def start_worker(slot: int, slots: int, log: pathlib.Path) -> _Worker:
    """Starts the worker process of a slot; early output goes to `log`."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "mtl_keras.runs.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"} | share_of(slot, slots),
            # Ctrl-C in a terminal is for the scheduler, which ends its workers.
            start_new_session=True,
        )
    return _Worker(process)


def share_of(slot: int, slots: int) -> dict[str, str]:
    """Returns the environment by which a worker takes its share of the machine.

    A GPU for each slot, in turn, with memory that grows; its part of the cores.
    """
    share = {}
    if gpus := len(tf.config.list_physical_devices("GPU")):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(n) for n in range(gpus)]
        share["CUDA_VISIBLE_DEVICES"] = names[slot % gpus].strip()
        share["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    if slots > 1:
        threads = str(max(1, cores() // slots))
        names = ["OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"]
        share |= dict.fromkeys(names, threads)
    return share


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
