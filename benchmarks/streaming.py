"""Making and streaming 10 million rows of `behaviour`: throughput and peak memory.

    python benchmarks/streaming.py

Prepares `behaviour/large` and reads its training split once from TFRecord. Each part
runs in a process of its own, so that its peak memory is its own; a second reading, of
a hundredth of the rows, tells what memory depends on. Results of parts that are not
run again (`--only`) stay. Writes benchmarks/results/streaming.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

DATA = "behaviour/large"
BATCH = 8_192
RESULTS = pathlib.Path(__file__).parent / "results" / "streaming.json"


def peak_mib() -> float:
    """Returns this process's largest resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prepare() -> dict[str, Any]:
    """Generates and writes the data set."""
    from mtl_keras import data

    if data.info(DATA).prepared:
        raise SystemExit(f"{DATA} is prepared already: remove it to measure that.")
    before = peak_mib()
    started, cpu = time.monotonic(), time.process_time()
    data.prepare(DATA)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    info = data.info(DATA)
    rows = sum(info.splits.values())
    size = sum(path.stat().st_size for path in info.path.iterdir())
    return {
        "rows": rows,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "rows_per_cpu_second": rows / cpu,
        "bytes_per_row": size / rows,
        "peak_mib_before": before,
        "peak_mib": peak_mib(),
    }


def read(rows: int | None = None) -> dict[str, Any]:
    """Reads the training split once, all of it or about as many rows."""
    import tensorflow as tf

    from mtl_keras import data

    batches = data.stream(DATA, "train", batch_size=BATCH)
    if rows is not None:
        batches = batches.take(rows // BATCH)
    tf.zeros(()).numpy()
    before, memory, seen, clicks = peak_mib(), [], 0, 0
    started, cpu = time.monotonic(), time.process_time()
    for number, batch in enumerate(batches):
        clicks += int(tf.reduce_sum(batch["click"]))
        seen += int(tf.size(batch["click"]))
        if number % 100 == 0:
            memory.append(round(peak_mib(), 1))
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    return {
        "rows": seen,
        "clicks": clicks,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "rows_per_second": seen / seconds,
        "rows_per_cpu_second": seen / cpu,
        "peak_mib_before": before,
        "peak_mib": peak_mib(),
        "peak_mib_by_tenths": memory[:: max(1, len(memory) // 10)],
    }


PARTS = {
    "prepare": prepare,
    "read": read,
    "read_a_hundredth": lambda: read(80_000),
}


def main() -> None:
    """Runs the parts, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, help="run this part alone")
    parser.add_argument("--inside", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(PARTS[arguments.inside]()))
        return
    from mtl_keras.runs.training import versions

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results |= {
        "command": "python benchmarks/streaming.py",
        "data": DATA,
        "batch": BATCH,
        "versions": versions(),
    }
    for part in [arguments.only] if arguments.only else PARTS:
        command = [sys.executable, __file__, "--inside", part]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[part] = json.loads(done.stdout.splitlines()[-1])
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(part, json.dumps(results[part]), flush=True)


if __name__ == "__main__":
    main()
