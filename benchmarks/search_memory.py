"""Memory and time of a long study: does any of its processes grow?

    python benchmarks/search_memory.py --label after
    python benchmarks/search_memory.py --jit

Runs `mtl-keras tune` with 200 trials of 512 samples, reads the memory of the command's
process and of each worker every second, and writes results/search_memory.json here:
by process the memory when it had run its tenth trial (the worker) or had seen it (the
parent), the most after that as long as trials ran, and the seconds of a trial; of the
parent also the most while it wrote the report at the end. Results of a commit are kept
beside those of others.

`--jit` runs a study of six short trials twice, with and without XLA, and adds for each
trial its seconds and the most memory that its process had held by then.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from search_workers import STUDY

from mtl_keras.runs.records import made_with

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "search_memory.json"
JITS = ("false", "true")
_TENTH = 10


def memory_mb(pid: int) -> float | None:
    """Returns the resident memory of a process; None when it has ended."""
    try:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1e3
    except OSError:
        pass
    return None


def children(pid: int) -> list[int]:
    """Returns the processes that a process has started and that still run."""
    try:
        text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


# tuning/demo.toml, cut down to eight steps an epoch.
JIT_STUDY = """
application = "vision"
data = "multi_digits/digits"
tasks = ["left", "right"]
oracle = "grid"
trials = 6
epochs = 2
limit = 512
[space]
balancing = ["equal", "uncertainty", "pcgrad"]
width = [8, 12]
depth = 2
batch_size = 64
jit = {jit}
"""


def measured(text: str, folder: pathlib.Path) -> dict[str, object]:
    """Runs a study and returns what its processes held."""
    study, out = folder / "study.toml", folder / "out"
    study.write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", "from mtl_keras_cli import main; main()"]
    started = time.perf_counter()
    parent = subprocess.Popen([*command, "tune", str(study), "--out", str(out)])
    samples: dict[int, list[tuple[int, float]]] = {}
    while parent.poll() is None:
        done = len(list((out / "trials").glob("*.json")))
        for pid in (parent.pid, *children(parent.pid)):
            memory = memory_mb(pid)
            if memory is not None:
                samples.setdefault(pid, []).append((done, memory))
        time.sleep(1.0)
    assert parent.returncode == 0
    paths = sorted((out / "trials").glob("*.json"), key=lambda path: int(path.stem))
    records = [json.loads(path.read_text()) for path in paths]
    processes = []
    for pid, series in samples.items():
        first = series[0][0]
        tenth = [m for done, m in series if first + _TENTH <= done < len(records)]
        report = [memory for done, memory in series if done == len(records)]
        is_parent = pid == parent.pid
        processes.append(
            {
                "role": "parent" if is_parent else "worker",
                **(
                    {"with_the_report_mb": max(report, default=None)}
                    if is_parent
                    else {}
                ),
                "trials": series[-1][0] - first,
                "at_tenth_mb": round(tenth[0], 1) if tenth else None,
                "most_after_mb": round(max(tenth), 1) if tenth else None,
                "growth": round(max(tenth) / tenth[0] - 1, 4) if tenth else None,
            }
        )
    return {
        "trials": len(records),
        "failed": sum(record["status"] == "FAILED" for record in records),
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_a_trial": round((time.perf_counter() - started) / len(records), 2),
        "processes": processes,
        "by_trial": [
            {
                "settings": record["hyperparameters"],
                "seconds": round(record["seconds"], 1),
                "memory_mb": max(
                    (
                        memory
                        for pid, series in samples.items()
                        for done, memory in series
                        if pid != parent.pid and done == number
                    ),
                    default=None,
                ),
            }
            for number, record in enumerate(records)
        ],
    }


def main() -> None:
    """Measures, and adds the result to those of other commits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--label", help="What was measured.")
    what.add_argument("--jit", action="store_true", help="Trials with and without XLA.")
    options = parser.parse_args()
    studies = {options.label: STUDY.format(trials=options.trials)}
    if options.jit:
        studies = {f"jit = {jit}": JIT_STUDY.format(jit=jit) for jit in JITS}
    for label, text in studies.items():
        with tempfile.TemporaryDirectory() as folder:
            result = measured(text, pathlib.Path(folder))
        results = {}
        if RESULTS.is_file():
            results = json.loads(RESULTS.read_text(encoding="utf-8"))
        results[label] = {"made_with": made_with(), **result}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
