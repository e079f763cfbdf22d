"""Worker processes on this machine: their share of it, and what becomes of them."""

from __future__ import annotations

import collections
import os
import subprocess
import time
from collections.abc import Sequence

import tensorflow as tf

from mtl_keras.errors import InputError
from mtl_keras.search.workers import Chief

_DEATHS = 3  # with the same trial, or with none: more than a trial is tried


class LocalWorkers:
    """Keeps a number of workers running, as a context manager.

    Args:
        command: What starts a worker; the chief's address and the worker's name are
            added to it.
        address: Of the chief.
        count: How many workers.
        chief: Is told at once of a worker that died.
    """

    def __init__(self, command: Sequence[str], address: str, count: int, chief: Chief):
        self._command = [*command, "--chief", address]
        self._chief = chief
        self._count = count
        self._started = 0
        self._running: dict[str, tuple[int, subprocess.Popen]] = {}
        self._deaths: collections.Counter[str | None] = collections.Counter()
        self._finished = 0

    def __enter__(self) -> LocalWorkers:
        for slot in range(self._count):
            self._start(slot)
        return self

    def __exit__(self, *error: object) -> None:
        for _, process in self._running.values():
            if error[0] is not None:
                process.terminate()
        for _, process in self._running.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, slot: int) -> None:
        self._started += 1
        name = f"worker-{self._started}"
        process = subprocess.Popen(
            [*self._command, "--name", name],
            env=os.environ | share_of_machine(slot, self._count),
        )
        self._running[name] = (slot, process)

    def watch(self, finished: int) -> None:
        """Waits a moment, and replaces workers that died in it.

        Args:
            finished: Number of trials that have ended so far.

        Raises:
            InputError: If workers die one after the other before they have a trial,
                or around the same one.
        """
        time.sleep(0.2)
        if finished > self._finished:
            self._finished = finished
            self._deaths.clear()
        for name, (slot, process) in list(self._running.items()):
            if not process.poll():
                continue
            del self._running[name]
            trial_id = self._chief.give_back(name)
            self._deaths[trial_id] += 1
            if self._deaths[trial_id] >= _DEATHS:
                raise InputError(
                    f"The study stopped: {_DEATHS} workers in a row died, the last one "
                    f"with exit code {process.returncode}."
                )
            self._start(slot)


def share_of_machine(slot: int, count: int) -> dict[str, str]:
    """Returns the environment by which a worker takes its share of the machine.

    Args:
        slot: Number of the worker, from 0.
        count: Number of workers.

    Returns:
        One GPU for each worker, where there are any (workers in excess share them),
        with memory that grows; otherwise its part of the processors.
    """
    gpus = len(tf.config.list_physical_devices("GPU"))
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(n) for n in range(gpus)]
        return {
            "CUDA_VISIBLE_DEVICES": names[slot % gpus],
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        }
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))
    return {
        "OMP_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": threads,
    }
