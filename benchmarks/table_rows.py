"""A table of 10 million rows and 20 columns, streamed into a training.

    python benchmarks/table_rows.py
    python benchmarks/table_rows.py --only train --seconds 120

Writes the table as Parquet (about 500 MB, in `--to`), then, each in a process of its
own: describes it (the one pass over all rows that opening it takes), reads one epoch of
batches, trains on them (`--seconds` at most, warm-up aside), and trains the same model
on a million of the rows held in memory, which is what the model alone takes. Resident
memory is noted through all of it. Results of parts that are not run again (`--only`)
stay. Writes benchmarks/results/table_rows.json.
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
from collections.abc import Iterable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

ROWS = 10_000_000
GROUP = 250_000  # rows of a row group
BATCH = 1_024  # what a table of this size is trained with
IN_MEMORY = 1_000_000
NUMBERS, SMALL, CATEGORIES = 8, 4, 5
RESULTS = pathlib.Path(__file__).parent / "results" / "table_rows.json"


def write(folder: pathlib.Path, rows: int) -> dict[str, Any]:
    """Makes the table: 17 features, and three tasks that depend on them."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    sizes = [3, 20, 200, 2_000, 20_000][:CATEGORIES]
    names = [np.array([f"{n}" for n in range(size)], object) for size in sizes]
    weights = np.random.default_rng(0).normal(size=NUMBERS + SMALL)
    started = time.monotonic()
    writers: dict[str, pq.ParquetWriter] = {}
    for group in range(-(-rows // GROUP)):
        rng = np.random.default_rng([1, group])
        count = min(GROUP, rows - group * GROUP)
        numbers = rng.normal(size=(NUMBERS, count)).astype("float32")
        small = rng.integers(0, 100, (SMALL, count)).astype("int16")
        score = weights @ np.concatenate([numbers, (small - 50) / 29])
        columns: dict[str, Any] = {f"number {i}": x for i, x in enumerate(numbers)}
        columns |= {f"count {i}": x for i, x in enumerate(small)}
        for index, values in enumerate(names):
            # Few values are frequent, most are rare.
            drawn = (len(values) * rng.random(count) ** 3).astype("int32")
            score += (drawn % 3 - 1) * 0.5
            columns[f"category {index}"] = pa.DictionaryArray.from_arrays(
                pa.array(drawn), pa.array(values)
            )
        score += rng.normal(size=count)
        columns["amount"] = score.astype("float32")
        columns["bought"] = (score > 0).astype("int8")
        columns["kind"] = np.digitize(score, [-2, 0, 2]).astype("int8")
        for path, most in (("rows", rows), ("some", min(rows, IN_MEMORY))):
            if group * GROUP >= most:
                continue
            table = pa.table(columns)
            if path not in writers:
                writers[path] = pq.ParquetWriter(
                    folder / f"{path}.parquet", table.schema
                )
            writers[path].write_table(table, row_group_size=GROUP)
    for path, writer in writers.items():
        writer.close()
        (folder / f"{path}.toml").write_text(data_file(path, columns), "utf-8")
    return {
        "rows": rows,
        "columns": len(columns),
        "seconds": time.monotonic() - started,
        "mb": (folder / "rows.parquet").stat().st_size / 1e6,
    }


def data_file(path: str, columns: Iterable[str]) -> str:
    """Returns the text of a data file."""
    tasks = {"amount": "number", "bought": "binary", "kind": "multiclass"}
    lines = ["[data]", f'files = "{path}.parquet"']
    lines += [f"stream = {str(path == 'rows').lower()}", "[features]"]
    for name in columns:
        if name not in tasks:
            kind = "category" if name.startswith("category") else "number"
            lines.append(f'"{name}" = "{kind}"')
    lines += ["[tasks]", *(f'{name} = "{kind}"' for name, kind in tasks.items())]
    return "\n".join(lines) + "\n"


def resident_mib() -> float:
    """Returns this process's resident memory, in MiB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Clock:
    """Times of steps and resident memory through them.

    Args:
        seconds: For how long to measure; None for as long as there are batches.
    """

    def __init__(self, seconds: float | None = None):
        self.seconds = seconds
        self.started = self.cpu = 0.0
        self.rows = 0
        self.memory: list[float] = []

    def begin(self) -> None:
        """Starts to measure."""
        self.started, self.cpu = time.monotonic(), time.process_time()

    def step(self, rows: int) -> bool:
        """Counts a batch; returns whether to go on."""
        self.rows += rows
        if self.rows // rows % 50 == 1:
            self.memory.append(round(resident_mib(), 1))
        passed = time.monotonic() - self.started
        return self.seconds is None or passed < self.seconds

    def result(self) -> dict[str, Any]:
        """Returns rows per second and memory by tenths of the time."""
        seconds = time.monotonic() - self.started
        cpu = time.process_time() - self.cpu
        tenth = max(1, len(self.memory) // 10)
        return {
            "rows": self.rows,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "rows_per_second": self.rows / seconds,
            "rows_per_cpu_second": self.rows / cpu,
            "resident_mib_by_tenths": self.memory[::tenth],
            "resident_mib_at_most": max(self.memory),
        }


def describe(folder: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Opens the table: one pass for means, bins, vocabularies and splits."""
    from mtl_keras.applications import Table

    clock = Clock()
    clock.begin()
    table = Table(folder / "rows.toml")
    rows = sum(table.description.rows.values())
    clock.step(rows)
    return clock.result()


def read(folder: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Reads the training rows in the order of an epoch, without a model."""
    from mtl_keras.applications import Table

    batches = Table(folder / "rows.toml").load("train", batch_size=BATCH, shuffle=True)
    clock = Clock(seconds)
    for batch in counted(batches, clock):
        del batch
    return clock.result()


def counted(batches: Any, clock: Clock) -> Iterator[Any]:
    """Gives batches for as long as the clock says, from the second one on."""
    for index, batch in enumerate(batches):
        if index == 0:
            clock.begin()
        elif not clock.step(BATCH):
            return
        yield batch


def train(folder: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Trains for an epoch by streaming."""
    return trained(folder / "rows.toml", seconds)


def model(folder: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Trains the same model on rows in memory."""
    return trained(folder / "some.toml", seconds)


def trained(path: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Trains as `mtl-keras train` does, and returns what the steps took."""
    import keras

    from mtl_keras.applications import Table

    clock = Clock(seconds)

    class Steps(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            # The first steps trace the functions and fill the buffer.
            if not clock.started:
                if batch == 10:
                    clock.begin()
            elif not clock.step(BATCH):
                self.model.stop_training = True

    table = Table(path)
    batches = table.load("train", batch_size=BATCH, shuffle=True)
    network = table.build()
    network.compile(
        table.optimizer(table.defaults.learning_rate),
        table.losses(),
        metrics=table.metrics(),
    )
    # Passes follow each other where one is shorter than the time.
    epochs = 1 if "rows" in path.stem else 100
    stop = Steps()
    network.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[stop])
    return {**clock.result(), "whole_epoch": not stop.model.stop_training}


PARTS = {
    "describe": describe,
    "read": read,
    "train": train,
    "model": model,
}


def main() -> None:
    """Runs the parts, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, help="run this part alone")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--to", type=pathlib.Path, help="keep the table here")
    parser.add_argument("--inside", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        part = PARTS[arguments.inside]
        print(json.dumps(part(arguments.to, arguments.seconds)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.to or pathlib.Path(temporary)).absolute()
        run(folder, arguments)


def run(folder: pathlib.Path, arguments: argparse.Namespace) -> None:
    """Writes the table where it is not there, runs the parts, keeps the results."""
    from mtl_keras.runs.records import made_with

    results: dict[str, Any] = {
        "command": "python benchmarks/table_rows.py",
        "batch": BATCH,
    }
    if arguments.only and RESULTS.exists():
        results = json.loads(RESULTS.read_text())
    limit = {"seconds_at_most": arguments.seconds}
    if not (folder / "some.toml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        written = write(folder, arguments.rows)
        results["write"] = {**written, "made_with": made_with()}
        print("write", json.dumps(results["write"]), flush=True)
    for part in [arguments.only] if arguments.only else PARTS:
        command = [sys.executable, __file__, "--inside", part, "--to", str(folder)]
        command += ["--seconds", str(arguments.seconds)]
        environment = {**os.environ, "TFDS_DATA_DIR": str(folder / "kept")}
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        measured = json.loads(done.stdout.splitlines()[-1])
        results[part] = {**limit, **measured, "made_with": made_with()}
        print(part, json.dumps(results[part]), flush=True)
    if arguments.rows == ROWS:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
