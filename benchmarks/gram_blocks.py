"""The Gram matrix and the weighted sum under XLA: by variable, or on one matrix.

    python benchmarks/gram_blocks.py

`by variable` is `mtl_keras.ops` under XLA: products of each variable's gradients, in
float64. `one matrix` copies all gradients into one float32 matrix `[T, P]`, multiplies
blocks of 4,096 columns in float32 and sums the blocks' products in float64. Each is
called in turn, 15 times after its compilation; times are the processor's, so that other
programs matter less. Writes benchmarks/results/gram_blocks.json: median milliseconds of
both, and the largest error of a cosine.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from mtl_keras import ops
from mtl_keras.runs.records import made_with

RESULTS = pathlib.Path(__file__).parent / "results" / "gram_blocks.json"
BLOCK, CALLS = 4096, 15
CASES = list(itertools.product((2, 8, 20), (100_000, 2_000_000)))
# Of 20 variables, as of a small convolutional network.
SHARES = np.array([64, 4096, 16, 20_000, 128] * 4)


def by_variable(
    gradients: list[list[tf.Tensor]], weights: tf.Tensor
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    return ops.gramian(gradients), ops.combine(weights, gradients)


def one_matrix(
    gradients: list[list[tf.Tensor]], weights: tf.Tensor
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    rows = tf.stack([tf.concat(row, axis=0) for row in gradients])
    tasks, size = rows.shape
    padded = tf.pad(rows, [[0, 0], [0, -size % BLOCK]])
    blocks = tf.transpose(tf.reshape(padded, [tasks, -1, BLOCK]), [1, 0, 2])
    products = tf.matmul(blocks, blocks, transpose_b=True)
    gramian = tf.reduce_sum(tf.cast(products, "float64"), axis=0)
    total = tf.reduce_sum(tf.cast(weights, "float32")[:, None] * rows, axis=0)
    return gramian, tf.split(total, [g.shape[0] for g in gradients[0]])


def measure(tasks: int, parameters: int) -> dict:
    """Times both ways on one set of gradients."""
    rng = np.random.default_rng(0)
    sizes = (SHARES * parameters / SHARES.sum()).astype(int) + 1
    gradients = [
        [tf.constant(rng.normal(size=size), "float32") for size in sizes]
        for _ in range(tasks)
    ]
    weights = tf.constant(rng.uniform(size=tasks))
    rows = np.stack([np.concatenate(row) for row in gradients]).astype("float64")
    exact = rows @ rows.T
    lengths = np.sqrt(np.diag(exact))
    ways = {
        way.__name__.replace("_", " "): tf.function(
            way, jit_compile=True, autograph=False
        )
        for way in (by_variable, one_matrix)
    }
    result: dict = {"tasks": tasks, "parameters": int(sizes.sum())}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for name, way in ways.items():
        gramian, _ = way(gradients, weights)
        off = np.abs(gramian.numpy() - exact) / np.outer(lengths, lengths)
        result[name] = {"error": float(off.max())}
    for _ in range(CALLS):
        for name, way in ways.items():
            start = time.process_time()
            gramian, update = way(gradients, weights)
            gramian.numpy(), update[-1].numpy()
            times[name].append(time.process_time() - start)
    for name, seconds in times.items():
        result[name]["cpu_ms"] = 1e3 * float(np.median(seconds))
    return result


def main() -> None:
    """Measures all cases."""
    rows = []
    for tasks, parameters in CASES:
        rows.append(measure(tasks, parameters))
        print(rows[-1], flush=True)
    results = {"made_with": made_with(), "rows": rows}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
