"""Times of the compiled ops against the TensorFlow versions, in one run.

    python benchmarks/ops.py [solvers | solvers=T,...] [dense] [sparse] [memory]

Alternatives take turns, so that a slow minute of the machine hits all of them.
Writes benchmarks/results/ops.json and prints the tables of docs/ops.md. Needs a C++
compiler for the comparison with plain memory traffic.
"""

from __future__ import annotations

import ctypes
import functools
import json
import multiprocessing
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from mtl_keras import ops
from mtl_keras.ops import solvers
from mtl_keras.runs.records import made_with

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results" / "ops.json"
LOOP = 200  # solves in one call
PROBLEMS = 20  # different Gram matrices
PARAMETERS, VARIABLES = 10_000_000, 60
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


def task_rows(num_tasks: int) -> np.ndarray:
    """Returns gradients of conflicting tasks, `[problems, tasks, 4 * tasks]`."""
    rng = np.random.default_rng(num_tasks)
    rows = rng.normal(size=(PROBLEMS, num_tasks, 4 * num_tasks))
    return rows - 0.8 * rows.mean(axis=1, keepdims=True)


def solver_loop(solve, num_tasks: int, which: str, times: int):
    """A graph that solves problem after problem, `times` in all."""
    rows = task_rows(num_tasks)
    grams = tf.constant(rows @ rows.transpose(0, 2, 1))

    @tf.function(autograph=False)
    def run(grams):
        def body(i, scale):
            weights, _ = solve(grams[i % PROBLEMS] * scale)
            # Keeps the solves in order, and changes nothing.
            return i + 1, tf.where(weights[0] < 1e300, scale, 2.0 * scale)

        one = tf.ones((), tf.float64)
        return tf.while_loop(lambda i, _: i < times, body, (0, one))[1]

    def call():
        with ops.implementation(which):
            return run(grams).numpy()

    return call


def empty_loop(num_tasks: int, times: int = LOOP):
    """The loop around the solves alone."""
    return solver_loop(lambda gram: (gram[0], None), num_tasks, "auto", times)


def less(times: Times, idle: Times) -> Times:
    """Times without that of what surrounds the thing measured."""
    return {key: max(value - idle["median"], 0.0) for key, value in times.items()}


def bench_solvers(tasks: Sequence[int] = (2, 4, 8, 16, 32, 64)) -> list[dict]:
    rows = []
    for num_tasks in tasks:
        slow = 10 if num_tasks < 32 else 2
        for name, solve in SOLVERS.items():
            native = solver_loop(solve, num_tasks, "native", LOOP)
            fast = in_turns({"idle": empty_loop(num_tasks), "native": native}, 9, LOOP)
            composed = solver_loop(solve, num_tasks, "tensorflow", slow)
            slowly = in_turns({"tensorflow": composed}, 3, slow)
            rows.append(
                {
                    "solver": name,
                    "tasks": num_tasks,
                    "native": less(fast["native"], fast["idle"]),
                    "tensorflow": less(slowly["tensorflow"], fast["idle"]),
                }
            )
            print(rows[-1], flush=True)
    return rows


def memory_traffic() -> Callable:
    library = pathlib.Path(tempfile.mkdtemp()) / "memory_traffic.so"
    source = HERE / "memory_traffic.cc"
    flags = ["-O3", "-march=native", "-pthread", "-shared", "-fPIC"]
    subprocess.run(["c++", *flags, str(source), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).memory_traffic
    function.restype = ctypes.c_uint64
    return function


def dense_gradients(num_tasks: int) -> list[list[tf.Tensor]]:
    """Returns gradients of random sizes, `PARAMETERS` elements for each task."""
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.choice(PARAMETERS, VARIABLES - 1, replace=False))
    sizes = np.diff([0, *cuts, PARAMETERS])
    return [
        [tf.random.normal([int(n)], seed=t) for n in sizes] for t in range(num_tasks)
    ]


def dense_ways() -> dict[str, Callable]:
    """Returns ways to a Gram matrix and a combined gradient."""

    def composed(gradients, weights):
        return ops.gramian(gradients), ops.combine(weights, gradients)

    def concatenated(gradients, weights):
        matrix = tf.stack([tf.concat(row, 0) for row in gradients])
        gram = tf.matmul(matrix, matrix, transpose_b=True)
        update = tf.matmul(tf.cast(weights, tf.float32)[None], matrix)[0]
        return gram, tf.split(update, [tf.size(g) for g in gradients[0]])

    return {"native": composed, "concat+matmul": concatenated, "tensorflow": composed}


def bench_dense() -> list[dict]:
    traffic = memory_traffic()
    rows = []
    for num_tasks in (2, 4, 8, 16, 32):
        gradients = dense_gradients(num_tasks)
        weights = tf.random.normal([num_tasks], dtype=tf.float64)
        # Captured by the graph: as arguments, Python's part would be milliseconds.
        # Tensors of this size are captured as inputs, so that nothing is folded.
        graphs = {
            name: tf.function(
                functools.partial(way, gradients, weights), autograph=False
            )
            for name, way in dense_ways().items()
        }

        def run(name, graphs=graphs):
            which = "tensorflow" if name == "tensorflow" else "native"

            def call():
                with ops.implementation(which):
                    return graphs[name]()[0]

            return call

        flat = [np.full(PARAMETERS // 2, t, np.uint64) for t in range(num_tasks)]
        out = np.ones(PARAMETERS // 2, np.uint64)
        pointers = (ctypes.c_void_p * num_tasks)(*[row.ctypes.data for row in flat])

        def plain(pointers=pointers, out=out, num_tasks=num_tasks):
            traffic(
                pointers,
                ctypes.c_int64(num_tasks),
                ctypes.c_int64(out.size),
                ctypes.c_void_p(out.ctypes.data),
                os.cpu_count(),
            )

        rounds = 15 if num_tasks <= 8 else 7
        names = ("native", "concat+matmul")
        times = in_turns({"memory": plain, **{n: run(n) for n in names}}, rounds)
        times |= in_turns({"tensorflow": run("tensorflow")}, 3)
        rows.append({"tasks": num_tasks, **times})
        print(
            num_tasks,
            {k: round(v["median"] / 1e3, 1) for k, v in times.items()},
            flush=True,
        )
    return rows


def sparse_gradients(rows: int) -> list[list[tf.IndexedSlices]]:
    """Returns the gradients of four tasks on an embedding table of `rows` × 32."""
    rng = np.random.default_rng(0)
    width, count, num_tasks = 32, 20 * 1024, 4
    ids = tf.constant(rng.integers(0, rows, count))
    shape = tf.constant([rows, width], tf.int64)

    def values():
        return tf.constant(rng.normal(size=(count, width)), tf.float32)

    return [[tf.IndexedSlices(values(), ids, shape)] for _ in range(num_tasks)]


def sparse_way(gradients: list[list[tf.IndexedSlices]], densify: bool):
    """Returns a graph from captured gradients to Gram matrix and combination."""

    @tf.function(autograph=False)
    def function():
        given = gradients
        if densify:
            given = [[tf.convert_to_tensor(g) for g in row] for row in given]
        weights = tf.constant([0.1, 0.2, 0.3, 0.4], tf.float64)
        (update,) = ops.combine(weights, given)
        return ops.gramian(given), update

    return function


def bench_sparse() -> dict:
    gradients = sparse_gradients(1_000_000)

    def run(densify, which):
        function = sparse_way(gradients, densify)

        def call():
            with ops.implementation(which):
                return function()[0].numpy()

        return call

    times = in_turns(
        {
            "native": run(False, "native"),
            "tensorflow": run(False, "tensorflow"),
            "densified": run(True, "native"),
        },
        15,
    )
    print({k: round(v["median"] / 1e3, 2) for k, v in times.items()}, flush=True)
    return times


def memory_of(call: Callable[[], object]) -> float:
    """Returns by how many MB the process grows at most while it runs something."""

    def status(key: str) -> float:
        text = pathlib.Path("/proc/self/status").read_text()
        (line,) = [line for line in text.splitlines() if line.startswith(key)]
        return int(line.split()[1]) / 1000

    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = status("VmRSS")
    call()
    return status("VmHWM") - before


def dense_memory(name: str) -> float:
    weights = tf.random.normal([8], dtype=tf.float64)
    specs = [[tf.TensorSpec([None])] * VARIABLES] * 8
    signature = [specs, tf.TensorSpec([8], tf.float64)]
    function = tf.function(dense_ways()[name], signature, autograph=False)
    with ops.implementation("tensorflow" if name == "tensorflow" else "native"):
        function([[tf.ones([2])] * VARIABLES] * 8, weights)
    gradients = dense_gradients(8)
    return memory_of(lambda: function(gradients, weights))


def sparse_memory(rows: int, densify: bool) -> float:
    with ops.implementation("native"):
        sparse_way(sparse_gradients(100), densify)()  # what TensorFlow sets up once
        function = sparse_way(sparse_gradients(rows), densify)
        function.get_concrete_function()
    return memory_of(function)


def bench_memory() -> dict:
    """Peak memory beyond the gradients, MB; each in a fresh process, traced before."""
    jobs: dict[str, tuple] = {f"dense, {n}": (dense_memory, n) for n in dense_ways()}
    for rows in (10_000, 1_000_000):
        for densify in (False, True):
            label = f"{'densified' if densify else 'sparse'}, table of {rows}"
            jobs[label] = (sparse_memory, rows, densify)
    found = {}
    for label, (function, *arguments) in jobs.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[label] = pool.apply(function, arguments)
        print(label, found[label], flush=True)
    return found


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
    if "memory" in results:
        lines += ["", "| what | MB |", "|---|---|"]
        lines += [f"| {what} | {mb:.0f} |" for what, mb in results["memory"].items()]
    return "\n".join(lines)


def main() -> None:
    """Runs the parts named on the command line, or all."""
    parts: dict[str, Callable] = {
        "memory": bench_memory,
        "sparse": bench_sparse,
        "dense": bench_dense,
        "solvers": bench_solvers,
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for argument in sys.argv[1:] or parts:
        name, _, numbers = argument.partition("=")
        results.setdefault("made_with", {})[name] = made_with()
        if numbers:
            tasks = [int(n) for n in numbers.split(",")]
            kept = [row for row in results.get(name, []) if row["tasks"] not in tasks]
            rows = [*kept, *parts[name](tasks)]
            results[name] = sorted(rows, key=lambda row: row["tasks"])
        else:
            results[name] = parts[name]()
    results |= {
        "command": "python benchmarks/ops.py",
        "unit": "microseconds: median, quartiles and least over rounds; memory in MB",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(tables(results))


if __name__ == "__main__":
    main()
