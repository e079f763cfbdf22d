"""Memory and time of a long study: does any of its processes grow?

    python benchmarks/search_memory.py --label after

Runs `mtl-keras tune` with 200 trials of 512 samples, reads the memory of the command's
process and of each worker every second, and writes results/search_memory.json here:
by process the memory when it had run its tenth trial (the worker) or had seen it (the
parent), the most after that, and the seconds of a trial. Results of a commit are kept
beside those of others.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "search_memory.json"
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


def measured(trials: int, folder: pathlib.Path) -> dict[str, object]:
    """Runs the study and returns what its processes held."""
    study, out = folder / "study.toml", folder / "out"
    study.write_text(STUDY.format(trials=trials), encoding="utf-8")
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
    records = [json.loads(p.read_text()) for p in (out / "trials").glob("*.json")]
    processes = []
    for pid, series in samples.items():
        first = series[0][0]
        tenth = [memory for done, memory in series if done >= first + _TENTH]
        processes.append(
            {
                "role": "parent" if pid == parent.pid else "worker",
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
        "seconds_a_trial": round((time.perf_counter() - started) / trials, 2),
        "processes": processes,
    }


def main() -> None:
    """Measures, and adds the result to those of other commits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--label", required=True, help="What was measured.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measured(options.trials, pathlib.Path(folder))
    results = {}
    if RESULTS.is_file():
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    results[options.label] = result
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
