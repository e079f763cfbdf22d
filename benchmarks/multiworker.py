"""Every balancing method over two workers, against one process with the same batches.

    python benchmarks/multiworker.py

Two processes on the loopback device train in step under MultiWorkerMirroredStrategy,
each on its half of every batch, one method after the other; a third trains alone on
whole batches. After 50 steps the weights of the two workers are compared with each
other, and with those of the third. What rounding alone may do to a method is seen from
a second training of the third process, on inputs that are larger by one part in 10
million. Writes benchmarks/results/multiworker.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results" / "multiworker.json"
STEPS, BATCH, NUDGE = 50, 16, 1.2e-7
CONFIGS = {"krum": {"n_byzantine": 0}, "pcd": {"primary": "a"}}


def trained_weights(method: str, strategy: Any, nudge: float = 0.0) -> list[Any]:
    """Returns a small model's weights after `STEPS` steps under a strategy."""
    import keras
    import numpy as np

    import mtl_keras

    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10 * BATCH, 6)).astype("float32")
    y = np.tanh(x @ rng.normal(size=(6, 3)).astype("float32")) * [1.0, 2.0, 0.5]
    labels = {task: y[:, i : i + 1] for i, task in enumerate("abc")}
    # Labels of one task are on one worker only, in every other batch.
    weights = {task: np.ones(len(x), "float32") for task in "abc"}
    weights["b"].reshape(10, BATCH)[::2, : BATCH // 2] = 0.0
    config = {**({"seed": 1} if _draws(method) else {}), **CONFIGS.get(method, {})}
    with strategy.scope():
        inputs = keras.Input((6,))
        h = keras.layers.Dense(8, "tanh")(inputs)
        model = mtl_keras.MultiTaskModel(
            inputs, {task: keras.layers.Dense(1)(h) for task in "abc"}
        )
        model.compile(
            keras.optimizers.SGD(0.02),
            loss="mse",
            balancing={"class_name": method, "config": config},
        )
    model.fit(
        x * np.float32(1.0 + nudge),
        labels,
        sample_weight=weights,
        batch_size=BATCH,
        epochs=STEPS // 10,
        shuffle=False,
        verbose=0,
    )
    assert model.optimizer.iterations.numpy() == STEPS
    return [weight.tolist() for weight in model.get_weights()]


def _draws(method: str) -> bool:
    from mtl_keras import balancing

    return type(balancing.get(method)).uses_seed


def wait_long(workers: int) -> None:
    """Lets a worker be silent for more than TensorFlow's 10 s without being lost.

    For a machine that does other things too. There is no public way to say so.
    """
    from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
    from tensorflow.python.eager import context

    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        heartbeat_timeout_in_ms=300_000,
        coordinated_jobs=[
            coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=workers)
        ],
    )


def work(methods: list[str], out: pathlib.Path) -> None:
    """Trains all methods in this process, as TF_CONFIG says, and writes the weights."""
    import tensorflow as tf

    if "TF_CONFIG" in os.environ:
        wait_long(workers=2)
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        assert strategy.num_replicas_in_sync == 2
    else:
        strategy = tf.distribute.get_strategy()
    results = {method: trained_weights(method, strategy) for method in methods}
    if "TF_CONFIG" not in os.environ:
        for method in methods:
            results[f"{method} nudged"] = trained_weights(method, strategy, NUDGE)
    out.write_text(json.dumps(results))


def start(methods: list[str], out: pathlib.Path, task: dict | None) -> subprocess.Popen:
    """Starts a worker of a cluster, or a process alone."""
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    env.pop("TF_CONFIG", None)
    if task is not None:
        env["TF_CONFIG"] = json.dumps(task)
    command = [sys.executable, __file__, "--work", str(out), *methods]
    return subprocess.Popen(command, env=env)


def cluster(size: int) -> list[dict]:
    """Returns the TF_CONFIG of each worker of a cluster on the loopback device."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(size)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for server in sockets:
        server.close()
    return [
        {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
        }
        for index in range(size)
    ]


def compare(methods: list[str]) -> dict[str, dict[str, float]]:
    """Returns for each method the largest differences between the weights."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        outs = [pathlib.Path(folder, f"{name}.json") for name in ("0", "1", "alone")]
        tasks = [*cluster(2), None]
        processes = [
            start(methods, out, task) for out, task in zip(outs, tasks, strict=True)
        ]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit(f"The processes ended with {codes}.")
        first, second, alone = (json.loads(out.read_text()) for out in outs)

    def largest(one: list, two: list) -> float:
        pairs = zip(one, two, strict=True)
        return max(float(np.max(np.abs(np.subtract(a, b)))) for a, b in pairs)

    return {
        method: {
            "between_workers": largest(first[method], second[method]),
            "from_one_process": largest(first[method], alone[method]),
            "of_one_process_nudged": largest(alone[f"{method} nudged"], alone[method]),
        }
        for method in methods
    }


def main() -> None:
    """Compares all methods."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", help="all by default")
    parser.add_argument("--work", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(arguments.methods, arguments.work)
        return
    from mtl_keras import balancing
    from mtl_keras.runs.records import made_with

    started = time.monotonic()
    methods = arguments.methods or balancing.names()
    differences = compare(methods)
    result = {
        "command": "python benchmarks/multiworker.py",
        "made_with": made_with(),
        "workers": 2,
        "steps": STEPS,
        "global_batch": BATCH,
        "largest_difference_of_a_weight": differences,
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(result, indent=2))
    if not arguments.methods:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
