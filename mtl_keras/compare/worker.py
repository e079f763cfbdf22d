"""Processes that train cells, one each, so that none can harm another.

`python -m mtl_keras.compare.worker FOLDER` trains the cell of one folder; `start`
starts that. A process for each cell keeps memory apart, survives a cell that runs out
of it, and gives each its share of the cores and GPUs.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import threading
import traceback
from typing import Any

from mtl_keras.runs.folder import write_json

LOG = "log.txt"
_FAILED = 1


def start(path: pathlib.Path, slot: int, jobs: int, gpus: int) -> Any:
    """Starts the process of a cell.

    Args:
        path: The cell's folder.
        slot: Which of the `jobs` it is, from 0.
        jobs: How many processes share the machine.
        gpus: How many GPUs there are; each process sees one of them.

    Returns:
        A `subprocess.Popen`. It ends by itself when this process ends.
    """
    environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="2")
    threads = max(1, cores() // jobs)
    if jobs > 1:
        for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
            environment[name] = str(threads)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = _gpu(slot % gpus)
        environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    with (path / LOG).open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mtl_keras.compare.worker", str(path)],
            # Nothing is ever written to it: it closes when this process ends.
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C in a terminal is for the comparison, which stops its processes.
            start_new_session=True,
        )


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu(number: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[number] if visible else str(number)


def run(path: pathlib.Path) -> bool:
    """Trains the cell of a folder; a failure is recorded.

    Returns:
        Whether it went well.
    """
    from mtl_keras.compare.cell import RECORD, train_cell

    try:
        train_cell(path)
    except Exception as error:
        # Whatever a combination leads to, from a shape that does not fit to a loss
        # without a value, belongs to this cell; the others may go well.
        message = f"{type(error).__name__}: {error}"
        write_json(path / RECORD, failure(message, traceback.format_exc()))
        return False
    return True


def failure(message: str, trace: str = "") -> dict[str, Any]:
    """Returns the record of a cell that failed."""
    return {
        "status": "FAILED",
        "error": " ".join(message.split()),
        "traceback": trace,
    }


def _end_with(parent: int) -> None:
    # Straight from the file descriptor: a buffered reader that waits here would hold
    # a lock that the interpreter wants at its own end.
    while os.read(parent, 1):
        pass
    os._exit(_FAILED)


def main() -> None:
    """Trains the cell that the command line names."""
    parent = sys.stdin.fileno()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.exit(0 if run(pathlib.Path(sys.argv[1])) else _FAILED)


if __name__ == "__main__":
    main()
