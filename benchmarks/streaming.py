"""Making and streaming rows of `behaviour`: throughput and peak memory.

    python benchmarks/streaming.py [--data behaviour/large]

Prepares the data set and streams 10 million rows of its training split from TFRecord:
a pass and a quarter through `behaviour/large`, more through a smaller one. Each part
runs in a process of its own, so that its peak memory is its own; a second reading, of a
hundredth of the rows, tells what memory depends on. Results of parts that are not run
again (`--only`) stay. Writes benchmarks/results/streaming_*.json.
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

ROWS = 10_000_000
BATCH = 8_192
RESULTS = pathlib.Path(__file__).parent / "results"


def peak_mib() -> float:
    """Returns this process's largest resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prepare(name: str) -> dict[str, Any]:
    """Generates and writes the data set."""
    from mtl_keras import data

    if data.info(name).prepared:
        raise SystemExit(f"{name} is prepared already: remove it to measure that.")
    before = peak_mib()
    started, cpu = time.monotonic(), time.process_time()
    data.prepare(name)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    info = data.info(name)
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


def read(name: str, rows: int = ROWS) -> dict[str, Any]:
    """Streams about as many rows of the training split, in passes if need be."""
    import tensorflow as tf

    from mtl_keras import data

    batches = data.stream(name, "train", batch_size=BATCH)
    batches = batches.repeat().take(rows // BATCH)
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
    "read_a_hundredth": lambda name: read(name, ROWS // 100),
}


def main() -> None:
    """Runs the parts, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="behaviour/large")
    parser.add_argument("--only", choices=PARTS, help="run this part alone")
    parser.add_argument("--inside", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(PARTS[arguments.inside](arguments.data)))
        return
    from mtl_keras.runs.records import versions

    name = arguments.data
    path = RESULTS / f"streaming_{name.rpartition('/')[2]}.json"
    results: dict[str, Any] = {
        "command": f"python benchmarks/streaming.py --data {name}",
        "data": name,
        "batch": BATCH,
    }
    if arguments.only and path.exists():
        results = json.loads(path.read_text())
    for part in [arguments.only] if arguments.only else PARTS:
        command = [sys.executable, __file__, "--data", name, "--inside", part]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        results[part] = {**measured, "versions": versions()}
        path.write_text(json.dumps(results, indent=2) + "\n")
        print(part, json.dumps(results[part]), flush=True)


if __name__ == "__main__":
    main()
