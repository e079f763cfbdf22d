"""Seconds of `import mtl_keras`, and of `import keras` with the TensorFlow backend.

    python benchmarks/import_time.py
    python benchmarks/import_time.py --python DIR/bin/python --name without_extras

Each import in a fresh process, in turns, so that a slow moment of the machine hits
both. Figures are medians over the rounds: seconds on the clock and in user mode, of the
whole process; `more` is the median of the differences within a round. `after_keras` are
the processor seconds of `import mtl_keras` in a fresh process that has imported Keras,
which other work on the machine disturbs less. Counts the modules that it loads then.
Adds to benchmarks/results/import_time.json under the environment's name.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter

RESULTS = pathlib.Path(__file__).parent / "results" / "import_time.json"
IMPORTS = ("keras", "mtl_keras")
_COUNT = """
import gc, json, platform, sys, time
import keras
gc.disable()  # a collection of all that Keras has made may fall into it, or not
before, start = set(sys.modules), time.process_time()
import mtl_keras
taken = time.process_time() - start
loaded = sorted(set(sys.modules) - before)
print(json.dumps([platform.python_version(), taken, loaded]))
"""


def seconds(python: str, module: str) -> dict[str, float]:
    """Returns `wall` and `user` seconds of a process that imports one module."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    start = time.perf_counter()
    _run(python, f"import {module}")
    wall = time.perf_counter() - start
    user = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    return {"wall": wall, "user": user}


def _run(python: str, source: str) -> str:
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # would compile every time
    done = subprocess.run(
        [python, "-c", source],
        capture_output=True,
        check=True,
        cwd=tempfile.gettempdir(),  # imports what is installed, not what lies here
        env=environment,
        text=True,
    )
    return done.stdout


def measure(python: str, rounds: int) -> dict[str, object]:
    """Returns the figures of one environment."""
    for module in IMPORTS:  # once to compile, and to fill the disk's cache
        _run(python, f"import {module}")
    times = [{name: seconds(python, name) for name in IMPORTS} for _ in range(rounds)]
    result: dict[str, object] = {"rounds": rounds, "cores": os.cpu_count()}
    for clock in ("wall", "user"):
        keras, own = ([each[name][clock] for each in times] for name in IMPORTS)
        result[clock] = {
            "keras": statistics.median(keras),
            "mtl_keras": statistics.median(own),
            "more": statistics.median(b - a for a, b in zip(keras, own, strict=True)),
        }
    told = [json.loads(_run(python, _COUNT).splitlines()[-1]) for _ in range(rounds)]
    version, _, loaded = told[0]
    result["after_keras"] = statistics.median(taken for _, taken, _ in told)
    result["python"] = version
    result["modules"] = dict(Counter(name.partition(".")[0] for name in loaded))
    return result


def main() -> None:
    """Measures one environment."""
    from mtl_keras.runs.records import made_with

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--name", default="all_extras")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    measured = measure(arguments.python, arguments.rounds)
    result[arguments.name] = {"made_with": made_with(), **measured}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result[arguments.name], indent=2))


if __name__ == "__main__":
    main()
