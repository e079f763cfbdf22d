"""Times of the compiled ops against the TensorFlow versions, in one run.

    python benchmarks/ops.py [solvers] [dense] [sparse]

Alternatives take turns, so that a slow minute of the machine hits all of them.
Writes benchmarks/results/ops.json and prints the tables of docs/ops.md. Needs a C++
compiler for the comparison with plain memory traffic.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from mtl_keras import ops
from mtl_keras.ops import solvers

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results" / "ops.json"
LOOP = 200  # solves in one call
SOLVERS = {
    "min_norm": solvers.min_norm,
    "upgrad": solvers.upgrad,
    "dualproj": solvers.dualproj,
    "cagrad": solvers.cagrad,
    "power_root 1": solvers.power_root,
    "power_root 2": lambda g: solvers.power_root(g, 2.0),
    "pcgrad": lambda g: solvers.pcgrad(
        g,
        [
            [(i + k) % g.shape[0] for k in range(1, g.shape[0])]
            for i in range(g.shape[0])
        ],
    ),
}

Times = dict[str, float]


def summary(seconds: list[float], per: int = 1) -> Times:
    """Median and quartiles, in microseconds."""
    low, median, high = np.percentile(seconds, [25, 50, 75]) * 1e6 / per
    return {"median": median, "low": low, "high": high, "min": min(seconds) * 1e6 / per}


def in_turns(
    calls: dict[str, Callable[[], object]], rounds: int, per: int = 1
) -> dict[str, Times]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: summary(times, per) for name, times in seconds.items()}


def solver_loop(solve, gram: tf.Tensor, which: str, times: int):
    """A graph that solves `times` times, one after the other."""

    @tf.function(autograph=False)
    def run():
        def body(i, scale):
            weights, _ = solve(gram * scale)
            # Keeps the solves in order, and changes nothing.
            return i + 1, tf.where(weights[0] < 1e300, scale, 2.0 * scale)

        one = tf.ones((), tf.float64)
        return tf.while_loop(lambda i, _: i < times, body, (0, one))[1]

    def call():
        with ops.implementation(which):
            return run().numpy()

    return call


def bench_solvers() -> list[dict]:
    rows = []
    for num_tasks in (2, 4, 8, 16, 32, 64):
        rng = np.random.default_rng(num_tasks)
        gradients = rng.normal(size=(num_tasks, 4 * num_tasks))
        gradients -= 0.8 * gradients.mean(axis=0)
        gram = tf.constant(gradients @ gradients.T)
        slow = 10 if num_tasks < 32 else 2
        idle = in_turns(
            {"loop": solver_loop(lambda g: (g[0], None), gram, "auto", LOOP)}, 15, LOOP
        )["loop"]["median"]
        for name, solve in SOLVERS.items():
            native = solver_loop(solve, gram, "native", LOOP)
            composed = solver_loop(solve, gram, "tensorflow", slow)
            fast = in_turns({"native": native}, 9, LOOP)["native"]
            slowly = in_turns({"tensorflow": composed}, 3, slow)["tensorflow"]
            for times in (fast, slowly):
                for key in times:
                    times[key] = max(times[key] - idle, 0.0)
            rows.append(
                {
                    "solver": name,
                    "tasks": num_tasks,
                    "native": fast,
                    "tensorflow": slowly,
                }
            )
            print(name, num_tasks, fast, slowly, flush=True)
    return rows


def memory_traffic() -> Callable:
    library = pathlib.Path(tempfile.mkdtemp()) / "memory_traffic.so"
    source = HERE / "memory_traffic.cc"
    flags = ["-O3", "-march=native", "-pthread", "-shared", "-fPIC"]
    subprocess.run(["c++", *flags, str(source), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).memory_traffic
    function.restype = ctypes.c_uint64
    return function


def bench_dense(parameters: int = 10_000_000, variables: int = 60) -> list[dict]:
    traffic = memory_traffic()
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.choice(parameters, variables - 1, replace=False))
    sizes = np.diff([0, *cuts, parameters])
    rows = []
    for num_tasks in (2, 4, 8, 16, 32):
        gradients = [
            [tf.random.normal([int(n)], seed=t) for n in sizes]
            for t in range(num_tasks)
        ]
        weights = tf.constant(rng.normal(size=num_tasks))

        @tf.function(autograph=False)
        def composed(gradients, weights):
            return ops.gramian(gradients), ops.combine(weights, gradients)

        @tf.function(autograph=False)
        def concatenated(gradients, weights):
            matrix = tf.stack([tf.concat(row, 0) for row in gradients])
            gram = tf.matmul(matrix, matrix, transpose_b=True)
            update = tf.matmul(tf.cast(weights, tf.float32)[None], matrix)[0]
            return gram, tf.split(update, [int(n) for n in sizes])

        def run(function, which, gradients=gradients, weights=weights):
            def call():
                with ops.implementation(which):
                    # Arguments, so that nothing is folded into the graph.
                    return function(gradients, weights)[0].numpy()

            return call

        flat = [np.full(parameters // 2, t, np.uint64) for t in range(num_tasks)]
        out = np.ones(parameters // 2, np.uint64)
        pointers = (ctypes.c_void_p * num_tasks)(*[row.ctypes.data for row in flat])

        def plain(pointers=pointers, out=out, num_tasks=num_tasks):
            traffic(
                pointers,
                ctypes.c_int64(num_tasks),
                ctypes.c_int64(out.size),
                ctypes.c_void_p(out.ctypes.data),
                os.cpu_count(),
            )

        times = in_turns(
            {
                "memory": plain,
                "native": run(composed, "native"),
                "concat+matmul": run(concatenated, "native"),
            },
            9,
        )
        slow = tf.function(composed.python_function, autograph=False)
        times |= in_turns({"tensorflow": run(slow, "tensorflow")}, 3)
        rows.append({"tasks": num_tasks, **times})
        print(
            num_tasks,
            {k: round(v["median"] / 1e3, 1) for k, v in times.items()},
            flush=True,
        )
    return rows


def bench_sparse() -> dict:
    rng = np.random.default_rng(0)
    rows, width, count, num_tasks = 1_000_000, 32, 20 * 1024, 4
    ids = tf.constant(rng.integers(0, rows, count))
    sparse = [
        [
            tf.IndexedSlices(
                tf.constant(rng.normal(size=(count, width)), tf.float32),
                ids,
                tf.constant([rows, width], tf.int64),
            )
        ]
        for _ in range(num_tasks)
    ]
    weights = tf.constant(rng.normal(size=num_tasks))

    def compute(gradients):
        (update,) = ops.combine(weights, gradients)
        return ops.gramian(gradients), update

    def traced(densify):
        @tf.function(autograph=False)
        def function(gradients):
            if densify:
                gradients = [
                    [tf.convert_to_tensor(g) for g in row] for row in gradients
                ]
            return compute(gradients)

        return function

    def run(function, which):
        def call():
            with ops.implementation(which):
                return function(sparse)[0].numpy()

        return call

    times = in_turns(
        {
            "native": run(traced(False), "native"),
            "tensorflow": run(traced(False), "tensorflow"),
            "densified": run(traced(True), "native"),
        },
        9,
    )
    print({k: round(v["median"] / 1e3, 2) for k, v in times.items()}, flush=True)
    return times


def cell(times: Times, unit: float = 1.0) -> str:
    low, median, high = (times[k] / unit for k in ("low", "median", "high"))
    return f"{median:.3g} ({low:.3g}–{high:.3g})"


def tables(results: dict) -> str:
    lines = []
    if "solvers" in results:
        lines += ["| solver | T | compiled, µs | TensorFlow, µs | times |"]
        lines += ["|---|---|---|---|---|"]
        for row in results["solvers"]:
            ratio = row["tensorflow"]["median"] / max(row["native"]["median"], 1e-3)
            lines.append(
                f"| {row['solver']} | {row['tasks']} | {cell(row['native'])} | "
                f"{cell(row['tensorflow'])} | {ratio:.0f} |"
            )
    if "dense" in results:
        kinds = ("memory", "native", "concat+matmul", "tensorflow")
        lines += ["", "| T | " + ", ms | ".join(kinds) + ", ms |"]
        lines += ["|---" * (len(kinds) + 1) + "|"]
        for row in results["dense"]:
            cells = " | ".join(cell(row[kind], 1e3) for kind in kinds)
            lines.append(f"| {row['tasks']} | {cells} |")
    if "sparse" in results:
        lines += ["", "| way | ms |", "|---|---|"]
        for name, times in results["sparse"].items():
            lines.append(f"| {name} | {cell(times, 1e3)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the parts named on the command line, or all."""
    parts = {"sparse": bench_sparse, "dense": bench_dense, "solvers": bench_solvers}
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in sys.argv[1:] or parts:
        results[name] = parts[name]()
    results["machine"] = f"{os.cpu_count()} cores, {platform.machine()}"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(tables(results))


if __name__ == "__main__":
    main()
