"""What holds on this machine's GPU: checks, each in a process of its own with a limit.

    python benchmarks/gpu_check.py [--minutes N] [--only NAME ...] [--device CPU]

An abort of TensorFlow is thus the result of one check and not the end of all. Runs them
in the order of their importance, those that fit into `--minutes`; prints a table and
writes benchmarks/results/gpu.json after each, and exits with 1 if one failed. Without a
GPU: one line, and exit code 2.

`--device CPU` runs small versions of the same checks on the CPU, so that their own code
can be tried without a GPU; figures of such a run say nothing. `--slack` multiplies the
limits, as on a busy machine.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
SIZES = (2, 8, 20)
# Parts of the names of ops whose operands are as large as layers or gradients.
DATA_SIZED = ("MatMul", "Conv2D", "Bias", "Tanh", "AddN", "TaskGra")
BATCH = 256
DRAWING = ("pcgrad", "gradvac")  # random orders of the tasks


@dataclasses.dataclass
class Check:
    """One check: its function fills `found` and raises `AssertionError`."""

    run: Callable[[str, dict[str, Any]], None]
    seconds: int
    gpus: int
    expected: str


CHECKS: dict[str, Check] = {}


def check(seconds: int, expected: str, gpus: int = 1) -> Callable:
    """Returns a decorator that adds a function to the checks, under its name."""

    def add(function: Callable) -> Callable:
        CHECKS[function.__name__] = Check(function, seconds, gpus, expected)
        return function

    return add


def expect(condition: Any, message: str) -> None:
    """Raises `AssertionError` unless a condition holds, also under `python -O`."""
    if not condition:
        raise AssertionError(message)


# Models and measurements, for all checks.


def dense(
    method: str, tasks: int, jit: bool, policy: str = "float32", **compiling: Any
) -> Any:
    """Returns a compiled model of dense layers of a dtype policy."""
    import keras
    import tensorflow as tf

    import mtl_keras

    if not tf.distribute.has_strategy():  # Whose scope it would take away.
        keras.utils.clear_session(free_memory=False)
    # Which the line before has forgotten.
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32,))
    initial = keras.initializers.Constant(0.1)
    h = keras.layers.Dense(64, "tanh")(keras.layers.Dense(64, "tanh")(inputs))
    model = mtl_keras.MultiTaskModel(
        inputs,
        {
            # Heads alike, so that labels alone tell which way tasks pull.
            f"t{i}": keras.layers.Dense(
                1, kernel_initializer=initial, dtype="float32", name=f"t{i}"
            )(h)
            for i in range(tasks)
        },
    )
    config = {"krum": {"n_byzantine": 0}, "pcd": {"primary": "t0"}}.get(method, {})
    compiling = {"optimizer": keras.optimizers.SGD(0.01)} | compiling
    model.compile(
        loss="mse",
        balancing={"class_name": method, "config": config},
        jit_compile=jit,
        **compiling,
    )
    return model


def samples(tasks: int, steps: int) -> tuple[Any, dict[str, Any]]:
    """Returns inputs and labels of so many batches for `dense`.

    Every second task is the opposite of the first, larger or smaller, and noise: their
    gradients conflict.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * steps, 32)).astype("float32")
    base = x @ rng.normal(size=(32, 1)) / 32**0.5
    y = {}
    for i in range(tasks):
        noise = rng.normal(size=base.shape)
        labels = (-1) ** i * (1 + i % 3) * base + 0.5 * noise
        y[f"t{i}"] = labels.astype("float32")
    return x, y


def trained_model(method: str, tasks: int, jit: bool, steps: int = 20) -> Any:
    """Returns a model after so many steps."""
    model = dense(method, tasks, jit)
    x, y = samples(tasks, steps)
    model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0, shuffle=False)
    return model


def as_vector(model: Any) -> Any:
    """Returns all weights of a model, `[parameters]`."""
    import numpy as np

    return np.concatenate([w.ravel() for w in model.get_weights()])


def trained(method: str, tasks: int, jit: bool, steps: int = 20) -> Any:
    """Returns the weights after so many steps, as one vector."""
    return as_vector(trained_model(method, tasks, jit, steps))


def gram_methods(device: str) -> list[str]:
    """Returns the methods to check: all, or a few on the CPU."""
    import step

    return (
        ["upgrad", "pcgrad", "aligned_mtl"] if device == "CPU" else step.gram_methods(3)
    )


def gram_matrices(tasks: int, number: int) -> list[Any]:
    """Returns Gram matrices of conflicting gradients."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(tasks)
    matrices = []
    for _ in range(number):
        rows = rng.normal(size=(tasks, 2 * tasks + 3))
        rows -= 0.95 * rows.mean(axis=0)
        matrices.append(tf.constant(rows @ rows.T))
    return matrices


def all_solvers() -> dict[str, Callable]:
    """Returns the solvers with a compiled version, as functions of a Gram matrix."""
    from mtl_keras.ops import solvers

    def of_gramian(solve: Callable) -> Callable:
        # `experimental_get_compiler_ir` takes no function with defaults.
        return lambda gram_matrix: solve(gram_matrix)

    by_name = {
        "min_norm": solvers.min_norm,
        "upgrad": solvers.upgrad,
        "dualproj": solvers.dualproj,
        "cagrad": solvers.cagrad,
        "nash": solvers.power_root,
        "pcgrad": lambda g: solvers.pcgrad(
            g, solvers.random_orders(g.shape[0], [3, 4])
        ),
        "imtl_g": solvers.imtl_g,
        "config": solvers.config,
        "aligned_mtl": solvers.aligned,
    }
    return {name: of_gramian(solve) for name, solve in by_name.items()}


def quartiles(call: Callable[[], Any], least: int = 20) -> dict[str, float]:
    """Returns milliseconds of a call that waits for its result, after 3 others."""
    import numpy as np

    seconds = []
    for number in range(least + 3):
        start = time.perf_counter()
        call()
        if number >= 3:
            seconds.append(1e3 * (time.perf_counter() - start))
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return {"median": median, "low": low, "high": high}


def compiled_solver(call: Any, gram_matrix: Any, jit: bool, device: str) -> bool:
    """Returns whether a function of a Gram matrix has a compiled solver in it."""
    if jit:
        ir = call.experimental_get_compiler_ir(gram_matrix)
        return 'custom_call_target="mtl_keras_' in ir(
            stage="hlo", device_name=f"/device:{device}:0"
        )
    operations = call.get_concrete_function(gram_matrix).graph.get_operations()
    return any(operation.type.startswith("MtlKeras>") for operation in operations)


def misplaced(graphs: Any, device: str) -> collections.Counter[str]:
    """Returns how many ops of each kind in partition graphs are not on a device."""
    return collections.Counter(
        node.op
        for graph in graphs
        for node in graph.node
        if f"{device}:0" not in node.device.upper()
    )


def data_sized(names: Any) -> list[str]:
    """Returns the names of ops that are to run where the gradients are."""
    return sorted(n for n in names if any(part in n for part in DATA_SIZED))


def compilations_in(call: Callable[[], object]) -> int:
    """Returns how many programs XLA compiles in a call, as its log tells."""
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            call()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        log.seek(0)
        return log.read().count(b"Compilation of XLA executable")


def without_tf32() -> None:
    """Has products of float32 keep their digits, which comparisons need."""
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)


def command(*arguments: Any, **environment: str) -> str:
    """Runs `mtl-keras` and returns what it prints; an error is that of the check."""
    done = subprocess.run(
        [sys.executable, "-c", "from mtl_keras_cli import main; main()"]
        + [str(argument) for argument in arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    line = f"mtl-keras {arguments[0]}"
    expect(done.returncode == 0, f"{line}: {(done.stderr or done.stdout)[-500:]}")
    return done.stdout


STUDY = """
application = "vision"
data = "multi_digits/digits"
tasks = ["left", "right"]
oracle = "grid"
trials = {trials}
epochs = 1
limit = 256
[space]
width = {widths}
"""


def study_file(folder: str, widths: list[int]) -> pathlib.Path:
    """Returns the path of a study that trains every width."""
    path = pathlib.Path(folder) / "study.toml"
    path.write_text(STUDY.format(trials=len(widths), widths=widths))
    return path


# The checks, the most important ones first.


@check(30, "TensorFlow sees the GPU")
def machine(device: str, found: dict[str, Any]) -> None:
    """Versions, the card, and what TensorFlow was built with."""
    import keras
    import tensorflow as tf

    import mtl_keras
    from mtl_keras.ops import native

    build = tf.sysconfig.get_build_info()
    devices = tf.config.list_physical_devices(device)
    found |= {
        "versions": {
            "mtl_keras": mtl_keras.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "python": platform.python_version(),
        },
        "build": {
            k: str(v) for k, v in build.items() if k.startswith(("cuda", "cudnn"))
        },
        "devices": [
            {"name": d.name} | tf.config.experimental.get_device_details(d)
            for d in devices
        ],
        "count": len(devices),
        "compiled_ops": native.native_available(),
        "custom_calls": native.custom_calls_available(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }
    expect(devices, f"TensorFlow sees no {device}.")
    if device == "GPU" and shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,memory.total"
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
        )
        found["nvidia-smi"] = done.stdout.strip() or done.stderr.strip()


@check(60, "as the host, bit for bit; < 100 µs a solve")
def native_solvers(device: str, found: dict[str, Any]) -> None:
    """The compiled solvers with operands on the device, in graphs and under XLA.

    `found` has microseconds of a solve, less those of an addition.
    """
    import numpy as np
    import tensorflow as tf

    from mtl_keras import ops
    from mtl_keras.ops import native

    expect(native.custom_calls_available(), "No custom calls in this installation.")
    for name, solve in all_solvers().items():
        for tasks in SIZES:
            grams = gram_matrices(tasks, 20)
            with ops.implementation("native"), tf.device("CPU:0"):
                expected = [solve(gram)[0].numpy() for gram in grams]
            for jit in (False, True):
                key = f"{name} {tasks}{', XLA' if jit else ''}"
                with ops.implementation("auto"), tf.device(f"{device}:0"):
                    gram = tf.identity(grams[0])
                    call = tf.function(solve, jit_compile=jit, autograph=False)
                    compiled = compiled_solver(call, gram, jit, device)
                    expect(compiled, f"{key}: no compiled solver in the program.")
                    for matrix, weights in zip(grams, expected, strict=True):
                        same = np.array_equal(call(matrix)[0].numpy(), weights)
                        expect(same, f"{key}: weights differ.")
                    floor = tf.function(
                        lambda g: g[0] + 1.0, jit_compile=jit, autograph=False
                    )
                    ms = quartiles(lambda c=call, g=gram: c(g)[0].numpy())["median"]
                    ms -= quartiles(lambda f=floor, g=gram: f(g).numpy())["median"]
                found[key] = round(1e3 * ms, 1)
    slowest = max(found, key=found.__getitem__)
    expect(
        device == "CPU" or found[slowest] < 100,
        f"{slowest} takes {found[slowest]} µs.",
    )


@check(60, "ops on gradients run where the gradients are")
def placement(device: str, found: dict[str, Any]) -> None:
    """The devices of the ops of one step outside XLA."""
    import tensorflow as tf
    from tensorflow.python.eager import context

    x, y = samples(3, 1)
    data = tf.data.Dataset.from_tensors((x, y)).repeat()
    for method in gram_methods(device):
        model = dense(method, 3, jit=False)
        model.make_train_function()
        iterator = iter(data)
        # Before the first step: TensorFlow gives graphs as it makes them.
        context.enable_run_metadata()
        model.train_function(iterator)
        metadata = context.export_run_metadata()
        context.disable_run_metadata()
        graphs = [g for f in metadata.function_graphs for g in f.partition_graphs]
        names = [node.op for graph in graphs for node in graph.node]
        elsewhere = misplaced(graphs, device)
        found[method] = {
            "ops": len(names),
            "copies": sum("Recv" in name for name in names),
            "elsewhere": dict(elsewhere.most_common()),
        }
        expect(data_sized(names), f"{method}: TensorFlow gave no graph of the step.")
        wrong = data_sized(elsewhere)
        expect(not wrong, f"{method}: not on the {device}: {', '.join(wrong)}.")


@check(120, "weights of 20 steps within 1e-4 of the CPU's")
def agreement(device: str, found: dict[str, Any]) -> None:
    """Training on the device against training on the CPU."""
    import numpy as np
    import tensorflow as tf

    without_tf32()
    with tf.device("CPU:0"):
        equal = trained("equal", 3, jit=False)
    off = {}
    for method in gram_methods(device):
        with tf.device("CPU:0"):
            expected = trained(method, 3, jit=False)
        # That of a method which would weigh all tasks alike.
        found[method] = {"from equal": float(np.abs(equal - expected).max())}
        # XLA draws other orders of tasks than TensorFlow.
        for jit in (False,) if method in DRAWING else (False, True):
            with tf.device(f"{device}:0"):
                weights = trained(method, 3, jit=jit)
            key = "XLA" if jit else "graph"
            off[f"{method}, {key}"] = found[method][key] = float(
                np.abs(weights - expected).max()
            )
    worst = max(off, key=off.__getitem__)
    largest = max(row["from equal"] for row in found.values())
    expect(largest >= 1e-2, "All methods do as equal weights: this tells nothing.")
    expect(off[worst] <= 1e-4, f"{worst} is off by {off[worst]:.1e}.")


@check(60, "steps that overflow are skipped until the scale fits, and others train")
def precision(device: str, found: dict[str, Any]) -> None:
    """float16 with a loss scale that overflows, and bfloat16."""
    import keras
    import numpy as np
    import tensorflow as tf

    x, y = samples(3, 24)
    for policy in ("mixed_float16", "mixed_bfloat16"):
        for jit in (False, True):
            optimizer = keras.optimizers.SGD(0.01)
            if policy == "mixed_float16":
                optimizer = keras.optimizers.LossScaleOptimizer(
                    optimizer, initial_scale=2.0**30
                )
            with tf.device(f"{device}:0"):
                model = dense("upgrad", 3, jit, policy, optimizer=optimizer)
                before = model.get_weights()
                history = model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)
            key = f"{policy}{', XLA' if jit else ''}"
            row = found[key] = {"loss": history.history["loss"][-1]}
            row["moved"] = max(
                float(np.abs(new - old).max())
                for new, old in zip(model.get_weights(), before, strict=True)
            )
            if policy == "mixed_float16":
                row["scale"] = float(optimizer.dynamic_scale)
                expect(row["scale"] < 2.0**30, f"{key}: the scale has not fallen.")
            finite = np.isfinite([row["loss"], row["moved"]]).all()
            expect(finite, f"{key}: weights are not finite.")
            expect(row["moved"] > 1e-3, f"{key}: no step has trained.")


@check(150, "one epoch, an export, and the same answers without a GPU")
def applications(device: str, found: dict[str, Any]) -> None:
    """Each application from the command line, and its export on the CPU."""
    names = ["text"] if device == "CPU" else ["text", "vision", "recommendation"]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            start = time.perf_counter()
            run, served = f"{folder}/{name}", f"{folder}/{name}-served"
            command("train", name, "--limit", 256, "--epochs", 1, "--out", run)
            command("export", run, "--to", served)
            hidden = {"CUDA_VISIBLE_DEVICES": "-1"}
            command("serve-check", served, "--seconds", 0, **hidden)
            found[name] = {"seconds": round(time.perf_counter() - start, 1)}


@check(240, "with compiled solvers every method at most 1.05 times the floor")
def step_time(device: str, found: dict[str, Any]) -> None:
    """benchmarks/step.py's models: stock, the floor and all methods, without XLA."""
    import step
    import tensorflow as tf

    step.SECONDS = 5.0 if device == "CPU" else 60.0
    if device == "CPU":
        step.gram_methods = lambda tasks: ["upgrad"]
    with tf.device(f"{device}:0"):
        for tasks in (2,) if device == "CPU" else (2, 8):
            names = [f"task_{i}" for i in range(tasks)]
            result = step.measure(tasks, step.steppers(names, step.models(names)))
            found[f"T = {tasks}"] = {
                row["model"]: {"ms": row["ms"]["median"], "ratio": row["ratio"]}
                for row in result["rows"]
            }
    slow = [
        f"{name} {rows[name]['ratio']:.2f} at {tasks}"
        for tasks, rows in found.items()
        for name in rows
        if name not in ("stock", "representation") and rows[name]["ratio"] > 1.05
    ]
    expect(device == "CPU" or not slow, f"Above 1.05: {', '.join(slow)}.")


@check(60, "< 1 ms on a GPU; the CPU's within 1e-9, weights of LazyAdam 1e-4")
def sparse(device: str, found: dict[str, Any]) -> None:
    """The Gram matrix of sparse gradients, and LazyAdam on a large table."""
    import keras
    import numpy as np
    import tensorflow as tf

    import mtl_keras
    from mtl_keras import ops
    from mtl_keras.embeddings import LazyAdam, SparseEmbedding

    rng = np.random.default_rng(0)
    ids, width, rows = (512, 8, 10_000) if device == "CPU" else (8_192, 16, 1_000_000)
    values = rng.normal(size=(4, ids, width)).astype("float32")
    # So that tasks have rows in common, and more than once.
    places = rng.integers(0, ids, (4, ids))
    batch = rng.integers(0, rows, (BATCH, 4))
    y = {t: rng.normal(size=(BATCH, 1)).astype("float32") for t in "ab"}

    def gram(values: Any, places: Any) -> Any:
        slices = [
            [tf.IndexedSlices(v, p, tf.constant([rows, width], tf.int64))]
            for v, p in zip(tf.unstack(values), tf.unstack(places), strict=True)
        ]
        return ops.gramian(slices)

    def embedded(jit: bool) -> Any:
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,), dtype="int32")
        h = keras.layers.Flatten()(SparseEmbedding(rows, width)(inputs))
        model = mtl_keras.MultiTaskModel(
            inputs, {t: keras.layers.Dense(1, name=t)(h) for t in "ab"}
        )
        model.compile(LazyAdam(0.01), "mse", balancing="upgrad", jit_compile=jit)
        for _ in range(3):
            model.train_on_batch(batch, y)
        return model

    without_tf32()
    with tf.device("CPU:0"):
        expected = gram(tf.constant(values), tf.constant(places)).numpy()
        table = embedded(jit=False).get_weights()[0]
    for jit in (False, True):
        with tf.device(f"{device}:0"):
            on_device = tf.constant(values), tf.constant(places)
            call = tf.function(gram, jit_compile=jit, autograph=False)
            off = np.abs(call(*on_device).numpy() - expected).max()
            expect(
                off <= 1e-9 * np.abs(expected).max(), f"The Gram matrix is off: {off}."
            )
            ms = quartiles(lambda c=call, a=on_device: c(*a).numpy())
            model = embedded(jit)
            apart = np.abs(model.get_weights()[0] - table).max()
            step = quartiles(lambda m=model: m.train_on_batch(batch, y), 10)
        found["XLA" if jit else "graph"] = {"gram_ms": ms, "step_ms": step}
        expect(apart <= 1e-4, f"A table that LazyAdam trained is off by {apart:.1e}.")
        slow = device == "GPU" and ms["median"] > 1.0
        expect(not slow, f"The Gram matrix takes {ms['median']:.1f} ms.")


@check(40, "the error of a cosine below 1e-7, of a combination 1e-5")
def gram(device: str, found: dict[str, Any]) -> None:
    """Times of the Gram matrix and the combination of dense gradients."""
    import numpy as np
    import tensorflow as tf

    from mtl_keras import ops

    parameters = 100_000 if device == "CPU" else 10_000_000
    without_tf32()
    for tasks in (2,) if device == "CPU" else (2, 4, 8, 16):
        rng = np.random.default_rng(0)
        sizes = [parameters // 60] * 60
        gradients = [[rng.normal(size=n).astype("float32") for n in sizes]] * tasks
        gradients = [[g + i for g in row] for i, row in enumerate(gradients)]
        rows = np.stack([np.concatenate(row) for row in gradients]).astype("float64")
        exact = rows @ rows.T
        weights = rng.uniform(size=tasks)
        total = weights @ rows
        del rows
        with tf.device(f"{device}:0"):
            tensors = [[tf.constant(g) for g in row] for row in gradients]
            for jit in (False, True):

                @tf.function(jit_compile=jit, autograph=False)
                def update(tensors: Any, weights: Any) -> Any:
                    return ops.gramian(tensors), ops.combine(weights, tensors)

                arguments = tensors, tf.constant(weights)
                matrix, combined = update(*arguments)
                sums = np.concatenate([np.asarray(g) for g in combined])
                apart = np.abs(sums - total).max() / np.abs(total).max()
                lengths = np.sqrt(np.diag(exact))
                error = np.abs((matrix.numpy() - exact) / np.outer(lengths, lengths))
                error = error.max()
                ms = quartiles(lambda u=update, a=arguments: u(*a)[1][0][0].numpy())
                key = f"T = {tasks}{', XLA' if jit else ''}"
                gigabytes = 2 * 4 * tasks * parameters / 1e9
                rate = gigabytes / ms["median"] * 1e3
                found[key] = {"ms": ms, "error": error, "apart": apart, "GB/s": rate}
                expect(error < 1e-7, f"{key}: a cosine is off by {error:.1e}.")
                expect(apart < 1e-5, f"{key}: a combination is off by {apart:.1e}.")


@check(90, "the large trial fails, the small one after it passes, memory is back")
def out_of_memory(device: str, found: dict[str, Any]) -> None:
    """A study whose first trial does not fit into any memory."""
    import gc

    import tensorflow as tf

    from mtl_keras.runs import worker
    from mtl_keras.search import load_study, run_study

    with tempfile.TemporaryDirectory() as folder:
        # The second layer of the first has 324 terabytes.
        study = load_study(study_file(folder, [3_000_000, 8]))
        out = pathlib.Path(folder) / "out"
        results = run_study(study, out)
        found["trials"] = [(r.status, (r.error or "")[:120]) for r in results]
        statuses = sorted(status for status, _ in found["trials"])
        expect(statuses == ["COMPLETED", "FAILED"], f"Trials ended as {statuses}.")
        (failed,) = (r for r in results if r.status == "FAILED")
        short = "ResourceExhausted" in failed.error or "OOM" in failed.error
        expect(short, f"It failed otherwise: {failed.error:.200}")
        # Again, in this process, whose memory can be measured.
        job = out / "state" / f"trial_{failed.trial}"
        worker.run(job, "mtl_keras.search.trial:train_trial")
        gc.collect()
    if device == "GPU":
        found["bytes"] = memory = tf.config.experimental.get_memory_info("GPU:0")
        # The first layer of the large model has a hundred megabytes.
        expect(memory["current"] < 50e6, f"Still in use: {memory['current']} bytes.")


@check(60, "two runs with the same seed: the same bits")
def deterministic(device: str, found: dict[str, Any]) -> None:
    """Training twice under op determinism."""
    import keras
    import numpy as np
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    for method in gram_methods(device):
        with tf.device(f"{device}:0"):
            first, second = (trained(method, 3, jit=False, steps=5) for _ in range(2))
        found[method] = bool(np.array_equal(first, second))
    others = [method for method, same in found.items() if not same]
    expect(not others, f"Differ from run to run: {', '.join(others)}.")


@check(90, "within 1e-9 of the compiled solvers; aligned_mtl under XLA 1e-6")
def solvers(device: str, found: dict[str, Any]) -> None:
    """The TensorFlow versions of the solvers: eager, in a graph, under XLA."""
    import numpy as np
    import tensorflow as tf

    from mtl_keras import ops

    for name, solve in all_solvers().items():
        for tasks in SIZES[:1] if device == "CPU" else SIZES:
            (gram_matrix,) = gram_matrices(tasks, 1)
            with ops.implementation("native"), tf.device("CPU:0"):
                expected = solve(gram_matrix)[0].numpy()
            with ops.implementation("tensorflow"), tf.device(f"{device}:0"):
                ways = {
                    "eager": solve,
                    "graph": tf.function(solve, autograph=False),
                    "XLA": tf.function(solve, autograph=False, jit_compile=True),
                }
                for way, call in ways.items():
                    weights = call(gram_matrix)[0].numpy()
                    off = np.abs(weights - expected).max() / np.abs(expected).max()
                    ms = quartiles(lambda c=call, g=gram_matrix: c(g)[0].numpy(), 10)
                    key = f"{name} {tasks}, {way}"
                    found[key] = {"off": off, "ms": ms["median"]}
                    within = 1e-6 if (name, way) == ("aligned_mtl", "XLA") else 1e-9
                    expect(off <= within, f"{key}: off by {off:.1e}.")


@check(150, "one compilation for each fit")
def compilation(device: str, found: dict[str, Any]) -> None:
    """Seconds that XLA takes, and how often it compiles."""
    import tensorflow as tf

    for tasks in (2,) if device == "CPU" else (2, 8):
        for method in ("upgrad", "equal"):
            with tf.device(f"{device}:0"):
                model = dense(method, tasks, jit=True)
                x, y = samples(tasks, 4)
                start = time.perf_counter()
                count = compilations_in(
                    lambda m=model, a=x, b=y: m.fit(a, b, BATCH, epochs=2, verbose=0)
                )
            seconds = round(time.perf_counter() - start, 1)
            key = f"{method}, T = {tasks}"
            found[key] = {"compilations": count, "seconds": seconds}
            expect(count == 1, f"{key}: {count} compilations.")


@check(90, "all trials end")
def workers(device: str, found: dict[str, Any]) -> None:
    """A search by two workers, which share the GPU where there is one alone."""
    with tempfile.TemporaryDirectory() as folder:
        study, out = study_file(folder, [4, 8]), pathlib.Path(folder) / "out"
        command("tune", study, "--out", out, "--workers", 2)
        trials = [json.loads(p.read_text()) for p in (out / "trials").glob("*.json")]
    found["trials"] = [
        {"score": trial["score"], "seconds": trial["seconds"]} for trial in trials
    ]
    scored = [trial for trial in trials if trial["score"] is not None]
    expect(len(scored) == 2, f"{len(scored)} of 2 trials ended.")


@check(
    120, "weights within 1e-4 of one device's, equal on both; one sum of each", gpus=2
)
def two_gpus(device: str, found: dict[str, Any]) -> None:
    """Training on two devices at once against one.

    In each step the task gradients on shared variables (3 of 4) are summed once, each
    task's in a call of its own, and those of the heads (3 of 2), and not the update of
    the shared variables. The devices take the mean of their Gram matrices, and so the
    same weights.
    """
    import numpy as np
    import tensorflow as tf
    from tensorflow.python.distribute import cross_device_ops

    if device == "CPU":
        (cpu, *_) = tf.config.list_physical_devices("CPU")
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, halves)
    without_tf32()
    strategy = tf.distribute.MirroredStrategy([f"{device}:0", f"{device}:1"])
    calls: list[int] = []
    reduce = cross_device_ops.CrossDeviceOps.batch_reduce

    def counted(self: Any, operation: Any, pairs: Any, options: Any = None) -> Any:
        pairs = list(pairs)
        # Others sum flags and totals, vectors of their own.
        if any(value.values[0].shape.rank == 2 for value, _ in pairs):
            calls.append(len(pairs))
        return reduce(self, operation, pairs, options)

    cross_device_ops.CrossDeviceOps.batch_reduce = counted
    for method in ("upgrad", "nash"):
        expected = trained(method, 3, jit=False)
        calls.clear()
        start = time.perf_counter()
        with strategy.scope():
            model = trained_model(method, 3, jit=False)
        off = float(np.abs(as_vector(model) - expected).max())
        seconds = round(time.perf_counter() - start, 1)
        found[method] = {"off": off, "sums_of": list(calls), "seconds": seconds}
        expect(off <= 1e-4, f"{method}: off by {off:.1e}.")
        expect(
            sorted(calls) == [1, 4, 4, 4, 6], f"{method}: sums of {calls} gradients."
        )
        copies = [strategy.experimental_local_results(v.value) for v in model.weights]
        same = all(np.array_equal(a, b) for a, b in copies)
        expect(same, f"{method}: the devices' variables differ.")


# Running them.


def in_this_process(name: str, device: str) -> None:
    """Runs a check and prints its result as JSON, on the last line."""
    found: dict[str, Any] = {}
    result = {"status": "passed", "message": "", "found": found}
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        CHECKS[name].run(device, found)
    except AssertionError as error:
        result |= {"status": "failed", "message": str(error)}
    except Exception as error:  # Each is a result of the check.
        message = " ".join(f"{type(error).__name__}: {error}".split())
        result |= {"status": "failed", "message": message[:500]}
    print("\n" + json.dumps(result, default=float), flush=True)


def in_a_process(name: str, device: str, limit: float) -> dict[str, Any]:
    """Returns the result of a check that runs in a process of its own."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    if device == "CPU":
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
    if name == "compilation":
        environment |= {
            "TF_CPP_MIN_LOG_LEVEL": "0",
            "TF_CPP_VMODULE": "device_compiler=1",
        }
    arguments = [sys.executable, __file__, "--check", name, "--device", device]
    start = time.perf_counter()
    # With its children, which a limit would leave.
    with subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            result = {"status": "timeout", "message": f"Not done after {limit:.0f} s."}
        else:
            result = _result(process.returncode, output, errors)
    seconds = round(time.perf_counter() - start, 1)
    return result | {"seconds": seconds, "expected": CHECKS[name].expected}


def _result(code: int, output: str, errors: str) -> dict[str, Any]:
    try:
        result = json.loads(output.strip().rpartition("\n")[2])
        assert "status" in result
        return result
    except (ValueError, AssertionError, TypeError):
        message = f"Exit code {code}: {errors.strip()[-400:]}"
        return {"status": "crashed", "message": message}


def chosen(minutes: float | None, only: list[str] | None) -> Iterator[str]:
    """Gives the names of the checks to run, `machine` always first."""
    left = float("inf") if minutes is None else 60.0 * minutes
    for name, a_check in CHECKS.items():
        if only and name not in only and name != "machine":
            continue
        if a_check.seconds <= left:
            left -= a_check.seconds
            yield name


def commit() -> str:
    """Returns the present commit, or "" outside a repository."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip()


def main() -> int:
    """Runs the checks and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, help="at most so long, by limits")
    parser.add_argument("--only", nargs="+", choices=CHECKS, metavar="NAME")
    parser.add_argument("--device", choices=("GPU", "CPU"), default="GPU")
    parser.add_argument("--slack", type=float, default=1.0)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--check", choices=CHECKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = options.device
    if options.check:
        in_this_process(options.check, device)
        return 0
    results: dict[str, Any] = {
        "command": "python benchmarks/gpu_check.py",
        "device": device,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "checks": {},
    }
    count = 0
    for name in chosen(options.minutes, options.only):
        a_check = CHECKS[name]
        if name != "machine" and device == "GPU" and count < a_check.gpus:
            message = f"Needs {a_check.gpus} GPUs; here: {count}."
            result: dict[str, Any] = {
                "status": "skipped",
                "seconds": 0.0,
                "message": message,
            }
        else:
            result = in_a_process(name, device, a_check.seconds * options.slack)
        if name == "machine":
            count = result.get("found", {}).get("count", 0)
            if count == 0:
                reason = result["message"] or "TensorFlow sees none."
                print(f"No {device} to check: {reason}", file=sys.stderr)
                return 2
        results["checks"][name] = result
        line = f"{name:16} {result['status']:8} {result['seconds']:6.1f} s"
        print(f"{line}  {result['message'] or a_check.expected}", flush=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    bad = {"failed", "crashed", "timeout"}
    return int(any(r["status"] in bad for r in results["checks"].values()))


if __name__ == "__main__":
    sys.exit(main())
