"""Runs the slow tests, and writes what came of them.

    python benchmarks/slow_tests.py
    python benchmarks/slow_tests.py --share 40 --days 14     # a part of them

build/slow_tests.jsonl keeps the outcome of each test: started again, the script goes on
with those that have neither passed nor been skipped. Remove that file to begin anew, as
after tests were renamed: it keeps what came of the old names.
Without a choice of tests it writes benchmarks/results/slow_tests.json: for each file
how many tests passed, were skipped and failed, the seconds that they took, and the
commits that they ran at.
"""

from __future__ import annotations

import collections
import json
import pathlib
import subprocess
import sys
from collections.abc import Collection

from mtl_keras.files import atomic_write
from mtl_keras.runs.records import made_with

ROOT = pathlib.Path(__file__).parents[1]
RECORD = ROOT / "build" / "slow_tests.jsonl"
RESULTS = ROOT / "benchmarks" / "results" / "slow_tests.json"


def main() -> int:
    """Runs pytest, and sums up what is recorded of a run of all."""
    code = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile"),
            # As two arguments, pytest takes an existing file for the tests to run.
            *("-m", "slow", f"--record={RECORD}", *sys.argv[1:]),
        ],
        cwd=ROOT,
        check=False,
    ).returncode
    if not sys.argv[1:]:
        lines = map(json.loads, RECORD.read_text().splitlines())
        last = {line["test"]: line for line in lines}
        with atomic_write(RESULTS) as file:
            file.write_text(json.dumps(summary(last), indent=2) + "\n")
    return code


def summary(tests: dict[str, dict]) -> dict:
    """Returns the outcomes by file, of the last run of each test."""
    files: dict[str, list[dict]] = collections.defaultdict(list)
    for name in sorted(tests):
        files[name.partition("::")[0]].append(tests[name])
    return {
        "command": "python benchmarks/slow_tests.py",
        "made_with": made_with(jobs=2),
        **counts(tests.values()),
        "files": {name: counts(lines) for name, lines in files.items()},
    }


def counts(lines: Collection[dict]) -> dict:
    """Returns how many tests passed, were skipped and failed, and where and when."""
    outcomes = collections.Counter(line["outcome"] for line in lines)
    return {
        **{name: outcomes[name] for name in ("passed", "skipped", "failed")},
        "seconds": round(sum(line["seconds"] for line in lines)),
        "commits": dict(collections.Counter(line["commit"] for line in lines)),
    }


if __name__ == "__main__":
    sys.exit(main())
