"""Gradients of the columns of one output: a loop of the graph, or vectorised.

    python benchmarks/column_gradients.py

A dense and a convolutional model with one output of T columns, batch 128. `loop` is
`tf.map_fn`, traced once, as the loop of groups of tasks is; `vectorised` is
`tf.vectorized_map` over the same function. Each runs in a process of its own. Writes
benchmarks/results/column_gradients.json: seconds of the first call, median
milliseconds of eight more, and the most memory.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

RESULTS = pathlib.Path(__file__).parent / "results" / "column_gradients.json"
BATCH, CALLS = 128, 8
CASES = list(itertools.product(("dense", "convolutional"), (16, 64)))
WAYS = ("loop", "vectorised")


def measure(kind: str, num_tasks: int, way: str) -> dict:
    """Times the gradients of all columns, in this process."""
    import keras
    import numpy as np
    import tensorflow as tf

    layers = keras.layers
    if kind == "dense":
        inputs = keras.Input((512,))
        stages = [layers.Dense(256, "relu"), layers.Dense(256, "relu")]
    else:
        inputs = keras.Input((28, 28, 1))
        stages = [
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, "relu"),
        ]
    model = keras.Model(
        inputs, keras.Sequential([*stages, layers.Dense(num_tasks)])(inputs)
    )
    variables = [variable.value for variable in model.trainable_variables]
    x = tf.random.normal((BATCH, *inputs.shape[1:]))
    y = tf.random.normal((BATCH, num_tasks))

    @tf.function(autograph=False)
    def gradients():
        with tf.GradientTape(persistent=True) as tape:
            losses = tf.reduce_mean(tf.square(model(x) - y), axis=0)

        def of_column(chosen):
            return tape.gradient(losses, variables, output_gradients=chosen)

        columns = tf.eye(num_tasks)
        if way == "vectorised":
            rows = tf.vectorized_map(of_column, columns)
        else:
            dtypes = [tf.float32] * len(variables)
            rows = tf.map_fn(of_column, columns, fn_output_signature=dtypes)
        return [tf.reduce_sum(row) for row in rows]

    seconds = []
    for _ in range(1 + CALLS):
        start = time.perf_counter()
        gradients()
        seconds.append(time.perf_counter() - start)
    return {
        "first_seconds": seconds[0],
        "ms": 1e3 * float(np.median(seconds[1:])),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Measures all cases, each way in turn."""
    # Not above: it would count in the memory of the processes that measure.
    from mtl_keras.runs.records import made_with

    rows = []
    for kind, num_tasks in CASES:
        row = {"model": kind, "tasks": num_tasks}
        for way in WAYS:
            command = [sys.executable, __file__, kind, str(num_tasks), way]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            row[way] = json.loads(done.stdout)
        print(row, flush=True)
        rows.append(row)
    RESULTS.write_text(
        json.dumps(
            {
                "command": f"python benchmarks/{pathlib.Path(__file__).name}",
                "made_with": made_with(),
                "rows": rows,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if sys.argv[1:]:
        kind, num_tasks, way = sys.argv[1:]
        print(json.dumps(measure(kind, int(num_tasks), way)))
    else:
        main()
