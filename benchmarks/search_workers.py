"""How much sooner workers finish a study of small trials.

Runs one study of small trainings on `digits` through the command line, with one worker
and with more of them, start of all processes included.

    python benchmarks/search_workers.py --workers 1
    python benchmarks/search_workers.py --workers 2

Each adds to `benchmarks/results/search_workers.json`; the machine should do nothing
else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from mtl_keras.runs.records import made_with

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "search_workers.json"
STUDY = """
application = "vision"
data = "multi_digits/digits"
tasks = ["left", "right"]
oracle = "random"
trials = {trials}
epochs = 1
limit = 512
[space]
balancing = ["equal", "uncertainty", "dwa"]
width = [8, 12, 16]
learning_rate = {{ min = 5e-4, max = 5e-3, log = true }}
"""


def main() -> None:
    """Measures one number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--trials", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = pathlib.Path(folder) / "study.toml"
        study.write_text(STUDY.format(trials=options.trials), encoding="utf-8")
        out = pathlib.Path(folder) / "out"
        command = [sys.executable, "-c", "from mtl_keras_cli import main; main()"]
        command += ["tune", str(study), "--out", str(out)]
        started = time.perf_counter()
        subprocess.run([*command, "--workers", str(options.workers)], check=True)
        seconds = time.perf_counter() - started
        trials = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in (out / "trials").glob("*.json")
        ]
    results = {"runs": {}}
    if RESULTS.is_file():
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    results["command"] = "python benchmarks/search_workers.py --workers N"
    results["cores"] = len(os.sched_getaffinity(0))
    results["runs"][str(options.workers)] = {
        "made_with": made_with(jobs=options.workers),
        "trials": len(trials),
        "failed": sum(trial["score"] is None for trial in trials),
        "seconds": round(seconds, 1),
        "seconds_in_trials": round(sum(trial["seconds"] for trial in trials), 1),
    }
    one = results["runs"].get("1")
    results["times_sooner_than_one"] = {
        count: round(one["seconds"] / run["seconds"], 2)
        for count, run in results["runs"].items()
        if one and run["trials"] == one["trials"]
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
