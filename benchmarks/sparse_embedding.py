"""Step time and memory with a table of 1 million rows against one of 10 thousand.

    python benchmarks/sparse_embedding.py

Two tasks share an embedding of 32 numbers a row; batch 1,024, 20 ids a sample. The two
tables take turns, so that a slow minute of the machine hits both; the ratio is that of
the medians. "8,000 ids" draws a batch from 8,000 ids spread over either table, so that
only the table's size differs; "all ids" draws from the whole table, which in a batch
of the larger one gives 2.3 times as many distinct rows to update. The memory of
training steps is their peak beyond what is resident once table, optimizer slots and
compiled step are there, in a process of its own for each case. Keras's Embedding and
Adam stand beside SparseEmbedding and LazyAdam to show what sparse reads and updates
save. Writes benchmarks/results/sparse_embedding.json.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROWS = (10_000, 1_000_000)
WIDTH, BATCH, IDS = 32, 1_024, 20
DISTINCT = 8_000
# Whether with Keras's own layer and optimizer, balancing, whether the same ids.
CASES = (
    (False, "pcgrad", True),
    (False, "upgrad", True),
    (False, "pcgrad", False),
    (False, "upgrad", False),
    (False, "equal", True),
    (True, "equal", True),
)
ROUNDS, STEPS = 12, 10
RESULTS = pathlib.Path(__file__).parent / "results" / "sparse_embedding.json"


class Case:
    """A compiled model with its batch."""

    def __init__(self, rows: int, method: str, keras_own: bool, same_ids: bool):
        import keras
        import numpy as np
        import tensorflow as tf

        import mtl_keras
        from mtl_keras.embeddings import LazyAdam, SparseEmbedding

        keras.utils.set_random_seed(0)
        ids = keras.Input((IDS,), dtype="int32")
        embedding = keras.layers.Embedding if keras_own else SparseEmbedding
        x = embedding(rows, WIDTH)(ids)
        x = keras.layers.GlobalAveragePooling1D()(x)
        for _ in range(2):
            x = keras.layers.Dense(128, "relu")(x)
        outputs = {
            task: keras.layers.Dense(1, "sigmoid", name=task)(x)
            for task in ("click", "like")
        }
        self.model = mtl_keras.MultiTaskModel(ids, outputs)
        adam = keras.optimizers.Adam if keras_own else LazyAdam
        self.model.compile(adam(1e-3), "binary_crossentropy", balancing=method)
        rng = np.random.default_rng(0)
        # Ids spread over the table: the same for every size, or as they come.
        known = rng.permutation(rows)[: DISTINCT if same_ids else rows]
        self.batch = (
            tf.constant(known[rng.integers(0, len(known), (BATCH, IDS))], "int32"),
            {t: tf.constant(rng.integers(0, 2, (BATCH, 1))) for t in outputs},
        )
        data = tf.data.Dataset.from_tensors(self.batch).repeat()
        self._iterator = iter(data)
        self.model.make_train_function()
        self.step()

    def step(self) -> None:
        """Trains one step and waits for its end."""
        float(self.model.train_function(self._iterator)["loss"])


def times(method: str, keras_own: bool, same_ids: bool) -> dict[str, Any]:
    """Returns the step times of both tables, which take turns."""
    import numpy as np

    cases = {rows: Case(rows, method, keras_own, same_ids) for rows in ROWS}
    seconds: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for round_ in range((2 if keras_own else ROUNDS) + 1):
        for rows in ROWS[:: 1 if round_ % 2 else -1]:
            for _ in range(STEPS):
                started = time.perf_counter()
                cases[rows].step()
                if round_:
                    seconds[rows].append(time.perf_counter() - started)
    medians = {rows: float(np.median(values)) for rows, values in seconds.items()}
    return {
        "median_ms": {str(rows): 1e3 * value for rows, value in medians.items()},
        "ratio": medians[ROWS[1]] / medians[ROWS[0]],
    }


def memory(rows: int, method: str, keras_own: bool, same_ids: bool) -> dict[str, float]:
    """Returns what ten steps take at their peak, in MiB."""

    def status(field: str) -> float:
        text = pathlib.Path("/proc/self/status").read_text()
        return float(text.split(f"{field}:")[1].split()[0]) / 1024

    case = Case(rows, method, keras_own, same_ids)
    case.step()
    # The largest memory so far is that of making the table: forget it.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    for _ in range(10):
        case.step()
    peak = status("VmHWM")
    table_and_slots = 3 * rows * WIDTH * 4 / 2**20
    return {
        "table_and_slots": table_and_slots,
        "resident_beyond_them": before - table_and_slots,
        "steps": peak - before,
    }


def main() -> None:
    """Runs the named parts, or both; each case in a process of its own."""
    if sys.argv[1:2] == ["--inside"]:
        part, *arguments = json.loads(sys.argv[2])
        print(json.dumps(PARTS[part](*arguments)))
        return
    from mtl_keras.runs.records import versions

    def run(*call: Any) -> Any:
        done = subprocess.run(
            [sys.executable, __file__, "--inside", json.dumps(call)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        return json.loads(done.stdout.splitlines()[-1])

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cases": {}}
    results |= {
        "command": "python benchmarks/sparse_embedding.py [times] [memory]",
        "versions": versions(),
        "rows": ROWS,
        "steps_each": ROUNDS * STEPS,
    }
    for part in sys.argv[1:] or PARTS:
        for keras_own, method, same_ids in CASES:
            name = ", ".join(
                (
                    "keras" if keras_own else "sparse",
                    method,
                    f"{DISTINCT:,} ids" if same_ids else "all ids",
                )
            )
            case = results["cases"].setdefault(name, {})
            if part == "times":
                case["times"] = run("times", method, keras_own, same_ids)
            else:
                case["memory_mib"] = {
                    str(rows): run("memory", rows, method, keras_own, same_ids)
                    for rows in ROWS
                }
            print(part, name, json.dumps(case), flush=True)
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")


PARTS = {"times": times, "memory": memory}


if __name__ == "__main__":
    main()
