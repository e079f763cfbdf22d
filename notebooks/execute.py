"""Runs the notebooks from top to bottom and checks what they hold.

    python notebooks/execute.py                    # all of them, as `make notebooks`
    python notebooks/execute.py 01 text            # those with this in their name
    python notebooks/execute.py --write 03         # and keep the outputs
    python notebooks/execute.py --share 3          # a third, each day another one

Each runs in an empty folder and a process of its own, two at a time. A cell that
raises, or writes to standard error, fails; so does a notebook that takes too long, and
a committed one that lacks outputs, is too large or names a folder of the machine that
it ran on.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import datetime
import functools
import os
import pathlib
import re
import resource
import sys
import tempfile

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

FOLDER = pathlib.Path(__file__).parent.resolve()
# Of CPU time, which depends little on what else the machine does, but much on the
# machine: on a throttled one the longest took 167 s in place of 48.
SECONDS = 600
BYTES = 400_000
# What TensorFlow and TensorFlow Datasets write whatever the log level.
START_UP = re.compile(
    r"WARNING: All log messages before absl|I\d{4} |INFO:tensorflow:Assets written"
    r"|WARNING:absl:`FeatureConnector.dtype` is deprecated|\s*$"
)
# Named after a folder that is gone; goes to either stream.
SAVED = re.compile(r"INFO:tensorflow:Assets written to: .*\n")


def main() -> int:
    """Returns 1 if anything is wrong with a notebook."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="parts of names; all if left out")
    parser.add_argument("--write", action="store_true", help="keep the outputs")
    parser.add_argument("--share", type=int, default=1, metavar="N", help="an Nth part")
    arguments = parser.parse_args()
    # TensorFlow tells of its build and of missing GPUs before anything runs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    paths = sorted(
        path
        for path in FOLDER.glob("*.ipynb")
        if not arguments.names or any(part in path.name for part in arguments.names)
    )
    today = datetime.datetime.now(tz=datetime.UTC).toordinal()
    paths = paths[today % arguments.share :: arguments.share]
    if not paths:
        parser.error(f"no notebook is named like {' or '.join(arguments.names)}")
    wrong = False
    with concurrent.futures.ProcessPoolExecutor(max_workers=2) as processes:
        checked = processes.map(functools.partial(check, write=arguments.write), paths)
        for path, (seconds, problems) in zip(paths, checked, strict=True):
            wrong = wrong or bool(problems)
            print(f"{path.name}: {seconds:.0f} s", *problems, sep="\n    ", flush=True)
    return 1 if wrong else 0


def check(path: pathlib.Path, write: bool) -> tuple[float, list[str]]:
    """Returns the CPU time that a notebook takes, and what is wrong with it.

    Args:
        path: A notebook.
        write: Keep its outputs if nothing is wrong.
    """
    started = cpu_seconds()
    committed = nbformat.read(path, as_version=4)
    executed = nbformat.read(path, as_version=4)
    problems = run(executed)
    seconds = cpu_seconds() - started
    if seconds > SECONDS:
        problems.append(f"takes more than {SECONDS} s")
    if write and not problems:
        nbformat.write(executed, path)
        committed = executed
    return seconds, problems + flaws(path, committed, executed)


def cpu_seconds() -> float:
    """Returns the CPU time of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(notebook: nbformat.NotebookNode) -> list[str]:
    """Executes a notebook in place and returns what went wrong."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            startup_timeout=600,
            record_timing=False,
            # Else how often a stream is flushed decides into how many outputs.
            coalesce_streams=True,
            # By files in the folder: a port would be open to all users of the machine.
            config=Config({"KernelManager": {"transport": "ipc"}}),
        )
        try:
            client.execute()
        except CellExecutionError as error:
            return [str(error)]
    found = []
    for cell in notebook.cells:
        for output in list(cell.get("outputs", ())):
            if output.output_type != "stream":
                continue
            if output.name == "stdout":
                output.text = SAVED.sub("", output.text)
            else:
                rest = [x for x in output.text.splitlines() if not START_UP.match(x)]
                cell.outputs.remove(output)
                found += [f"standard error: {line}" for line in rest]
    return found


def flaws(
    path: pathlib.Path,
    committed: nbformat.NotebookNode,
    executed: nbformat.NotebookNode,
) -> list[str]:
    """Returns what is wrong with a committed notebook, beside its execution."""
    found = []
    if kinds(committed) != kinds(executed):
        found.append("the committed outputs are not those of these cells: --write")
    if path.stat().st_size > BYTES:
        found.append(f"{path.stat().st_size} bytes, more than {BYTES}")
    text = path.read_text(encoding="utf-8")
    for place in {str(pathlib.Path.home()), str(FOLDER.parent), sys.prefix}:
        if place in text:
            found.append(f"names {place}")
    return found


def kinds(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """Returns the kinds of each cell's outputs."""
    return [
        [sorted(output.get("data", {output.output_type: ""})) for output in outputs]
        for outputs in (cell.get("outputs", ()) for cell in notebook.cells)
    ]


if __name__ == "__main__":
    sys.exit(main())
