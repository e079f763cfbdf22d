"""A process that runs the jobs of a scheduler, one after the other.

`python -m mtl_keras.runs.worker` reads jobs from standard input, a JSON object a line,
and answers each with a line. It ends when the input closes, which it does when the
scheduler's process dies in whatever way.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pathlib
import queue
import sys
import threading
import time
import traceback
from typing import Any

import keras
import tensorflow as tf

from mtl_keras.errors import is_of_cuda
from mtl_keras.files import read_json, write_json
from mtl_keras.runs.records import RECORD, SETTINGS, Record, made_with

LOG = "log.txt"


def run(folder: pathlib.Path, function: str) -> bool:
    """Calls a job's function and writes its record, also when it raises.

    The result is plain values or dataclasses of them.

    Returns:
        Whether this process can run further jobs: after an error of CUDA, as of an
        illegal address, all that follows on the GPU fails as well.
    """
    settings = read_json(folder / SETTINGS)
    started, is_usable = time.monotonic(), True
    result, error, trace = None, "", ""
    try:
        module, _, name = function.partition(":")
        result = getattr(importlib.import_module(module), name)(folder, settings)
    except (Exception, SystemExit) as raised:
        # Whatever settings lead to, from a shape that does not fit to a loss without a
        # value, belongs to this job; the others may go well. As text: the error itself
        # would keep the model.
        error = f"{type(raised).__name__}: {raised}"
        if isinstance(raised, (tf.errors.InternalError, tf.errors.UnknownError)):
            is_usable = not is_of_cuda(raised)
        trace = traceback.format_exc()
    record = Record(
        status="FAILED" if error else "COMPLETED",
        seconds=round(time.monotonic() - started, 3),
        error=error,
        traceback=trace,
        result=result,
        made_with=made_with(settings["jobs"]),
    )
    write_json(folder / RECORD, record)
    return is_usable


def resident_memory() -> int | None:
    """Returns the bytes of memory that this process holds; None where unknown."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _receive(jobs: queue.SimpleQueue[dict[str, Any]]) -> None:
    # Straight from the file descriptor: a buffered reader that waits here would hold
    # a lock that the interpreter wants at its own end.
    received = b""
    while part := os.read(0, 65536):
        *lines, received = (received + part).split(b"\n")
        for line in lines:
            jobs.put(json.loads(line))
    os._exit(0)


def _log_to(path: pathlib.Path) -> None:
    """Redirects all output of this process, native code's included, to a file."""
    with path.open("w", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError):
                stream.flush()
            os.dup2(file.fileno(), stream.fileno())


def main() -> None:
    """Runs jobs until standard input closes."""
    answers = os.dup(1)
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(jobs,), daemon=True).start()
    while True:
        job = jobs.get()
        folder = pathlib.Path(job["folder"])
        _log_to(folder / LOG)
        is_usable = run(folder, job["function"])
        keras.utils.clear_session()
        gc.collect()
        answer = json.dumps({"memory": resident_memory(), "is_usable": is_usable})
        os.write(answers, answer.encode() + b"\n")


if __name__ == "__main__":
    main()
