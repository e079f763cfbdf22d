"""`make demo` in a fresh clone, and the vision application's defaults.

    python benchmarks/vision_demo.py --work WORK

Clones this repository into an empty folder and takes the time of `make demo` there,
with installation and compilation; then trains `mtl-keras train vision` in the clone.
Scores are those of the test split. Needs the network for packages. Writes
benchmarks/results/vision_demo.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import subprocess
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "vision_demo.json"


def measured(command: list[str], clone: pathlib.Path) -> dict[str, Any]:
    """Runs a command in the clone; returns it with its seconds."""
    before, started = _cpu_seconds(), time.monotonic()
    subprocess.run(command, cwd=clone, check=True)
    return {
        "command": " ".join(command).removeprefix(".venv/bin/"),
        "wall_seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(_cpu_seconds() - before, 1),
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def outcome(run: pathlib.Path) -> dict[str, Any]:
    """Returns the settings and the metrics of a run folder."""
    return {
        "config": json.loads((run / "config.json").read_text()),
        "test": json.loads((run / "metrics.json").read_text()),
    }


def main() -> None:
    """Runs both and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    clone = parser.parse_args().work / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    demo = measured(["make", "demo"], clone)
    study = clone / "runs" / "demo" / "study"
    demo["trials"] = len(list((study / "trials").glob("*.json")))
    defaults = measured(
        [".venv/bin/mtl-keras", "train", "vision", "--out", "runs/defaults"], clone
    )
    result = {
        "command": "python benchmarks/vision_demo.py --work WORK",
        "cores": os.cpu_count(),
        "demo": demo | outcome(clone / "runs" / "demo" / "best"),
        "defaults": defaults | outcome(clone / "runs" / "defaults"),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
