"""100,000 small steps with every callback on: by how much do memory and time grow?

    python benchmarks/soak.py        (or `make soak`)

A tiny model trains with one and with 50 steps per execution, each in a process of its
own, in epochs of 1,000 steps. Everything that `fit` can be told to do beside training
is on: Keras's callbacks and ours, the monitor, a loss and a gradient balancer, the
skipping of tasks whose labels are not numbers, and validation. Beside it a stock
`keras.Model` of the same layers with Keras's callbacks alone. The CPU time of an epoch
and the memory that the process holds at its end are taken; the first fifth of the
epochs is for warming up. `growth` is from the first to the last quarter of the others,
`slope` that of a line through all of them. Writes benchmarks/results/soak.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import mtl_keras
from mtl_keras import sharing
from mtl_keras.runs.progress import EpochTensorBoard
from mtl_keras.runs.records import made_with

RESULTS = pathlib.Path(__file__).parent / "results" / "soak.json"
STEPS, PER_EPOCH, BATCH = 100_000, 1_000, 16
WARM_UP = 0.2
STOCK = "keras.Model"
# Steps per execution, by run.
RUNS = {"steps_per_execution_1": 1, "steps_per_execution_50": 50, STOCK: 1}


class Measurement(keras.callbacks.Callback):
    """Notes CPU time and memory of every epoch, all other callbacks included."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_seconds: list[float] = []
        self.memory: list[float] = []
        self._started = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts the clock."""
        self._started = time.process_time()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch, from the end of the one before."""
        now = time.process_time()
        self.cpu_seconds.append(now - self._started)
        gc.collect()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self._started = time.process_time()


def model(name: str) -> keras.Model:
    """Returns two tasks over a mixture of experts, compiled for a run."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    stages = [keras.layers.Dense(8, "tanh")]
    features = sharing.get("mmoe").connect(inputs, stages, ["a", "b"])
    tasks = {task: keras.layers.Dense(1)(features[task]) for task in ("a", "b")}
    settings = {
        "optimizer": keras.optimizers.Adam(1e-3),
        "loss": "mse",
        "metrics": {"a": ["mae"], "b": ["mae"]},
        "steps_per_execution": RUNS[name],
    }
    if name == STOCK:
        result = keras.Model(inputs, tasks)
        result.compile(**settings)
        return result
    result = mtl_keras.MultiTaskModel(inputs, tasks)
    result.compile(
        **settings,
        balancing=["dwa", "upgrad"],
        monitor="conflicts",
        on_nonfinite="skip_task",
    )
    return result


def data(batches: int, bad: bool) -> tf.data.Dataset:
    """Returns batches; of every 500, one has a label that is not a number."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500 * BATCH, 8)).astype("float32")
    y = np.tanh(x @ rng.normal(size=(8, 2)).astype("float32"))
    if bad:
        y[77, 1] = np.nan
    labels = {"a": y[:, :1], "b": y[:, 1:]}
    return tf.data.Dataset.from_tensor_slices((x, labels)).batch(BATCH).take(batches)


def callbacks(folder: pathlib.Path) -> list[keras.callbacks.Callback]:
    """Returns every callback that has work to do in a training."""
    probe = data(4, bad=False)
    watched = {task: f"val_{task}_mae" for task in ("a", "b")}
    lower = dict.fromkeys(watched, "min")
    return [
        mtl_keras.callbacks.ConflictImages(folder / "logs"),
        mtl_keras.callbacks.DeltaCheckpoint(
            folder / "best.keras", dict.fromkeys(watched, 1.0), watched, lower
        ),
        mtl_keras.callbacks.TaskAffinity(probe, path=folder / "affinity.json"),
        mtl_keras.callbacks.TaskEarlyStopping(watched, lower, patience=10**6),
        sharing.ExpertMetrics(probe),
        keras.callbacks.BackupAndRestore(folder / "backup"),
        keras.callbacks.CSVLogger(folder / "log.csv"),
        keras.callbacks.EarlyStopping("val_loss", patience=10**6),
        keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate),
        keras.callbacks.ModelCheckpoint(folder / "model.keras", "val_loss"),
        keras.callbacks.ReduceLROnPlateau("val_loss", patience=10**6),
        EpochTensorBoard(folder / "logs", write_graph=False),
        keras.callbacks.TerminateOnNaN(),
    ]


def soak(name: str, steps: int) -> dict[str, Any]:
    """Trains in this process and returns what was measured."""
    measurement = Measurement()
    with tempfile.TemporaryDirectory() as folder:
        used = callbacks(pathlib.Path(folder))
        if name == STOCK:
            used = [each for each in used if type(each).__module__.startswith("keras")]
        model(name).fit(
            data(500, bad=name != STOCK).cache().repeat(),
            validation_data=data(20, bad=False),
            steps_per_epoch=PER_EPOCH,
            epochs=steps // PER_EPOCH,
            callbacks=[*used, measurement],
            verbose=0,
        )
    result: dict[str, Any] = {}
    for measure in ("memory", "cpu_seconds"):
        values = getattr(measurement, measure)
        warm = values[int(WARM_UP * len(values)) :]
        quarter = max(len(warm) // 4, 1)
        first, last = (float(np.median(p)) for p in (warm[:quarter], warm[-quarter:]))
        result[measure] = {
            "first_quarter": round(first, 4),
            "last_quarter": round(last, 4),
            "growth": round(last / first - 1.0, 4),
            "slope": round(float(np.polyfit(range(len(warm)), warm, 1)[0]), 4),
            "by_epoch": [round(value, 3) for value in values],
        }
    return result


def main() -> None:
    """Soaks in each way, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--one", choices=RUNS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(soak(arguments.one, arguments.steps)))
        return
    result: dict[str, Any] = {
        "command": "python benchmarks/soak.py",
        "made_with": made_with(),
        "steps": arguments.steps,
        "steps_per_epoch": PER_EPOCH,
        "unit": {"memory": "MiB at the end of an epoch", "cpu_seconds": "per epoch"},
    }
    for name in RUNS:
        command = [sys.executable, __file__, "--one", name]
        command += ["--steps", str(arguments.steps)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result[name] = json.loads(run.stdout.splitlines()[-1])
        for measure, values in result[name].items():
            print(name, measure, {**values, "by_epoch": "..."})
    if arguments.steps == STEPS:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
