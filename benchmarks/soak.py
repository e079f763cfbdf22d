"""100,000 small steps with every callback on: do memory and step time stay flat?

    python benchmarks/soak.py        (or `make soak`)

A tiny model trains with one and with 50 steps per execution, each in a process of its
own, in epochs of 1,000 steps. Everything that `fit` can be told to do beside training
is on: Keras's callbacks and ours, the monitor, a loss and a gradient balancer, the
skipping of tasks whose labels are not numbers, and validation. The CPU time of an
epoch and the memory that the process holds at its end are taken; the first fifth of
the epochs is for warming up. Writes benchmarks/results/soak.json.
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
ALLOWED = {"memory": 0.05, "cpu_seconds": 0.10}


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


def model(steps_per_execution: int) -> keras.Model:
    """Returns two tasks over a mixture of experts."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    stages = [keras.layers.Dense(8, "tanh")]
    features = sharing.get("mmoe").connect(inputs, stages, ["a", "b"])
    tasks = {task: keras.layers.Dense(1)(features[task]) for task in ("a", "b")}
    result = mtl_keras.MultiTaskModel(inputs, tasks)
    result.compile(
        keras.optimizers.Adam(1e-3),
        loss="mse",
        metrics={"a": ["mae"], "b": ["mae"]},
        balancing=["dwa", "upgrad"],
        monitor="conflicts",
        on_nonfinite="skip_task",
        steps_per_execution=steps_per_execution,
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


def soak(steps_per_execution: int, steps: int) -> dict[str, Any]:
    """Trains in this process and returns what was measured."""
    measurement = Measurement()
    with tempfile.TemporaryDirectory() as folder:
        model(steps_per_execution).fit(
            data(500, bad=True).cache().repeat(),
            validation_data=data(20, bad=False),
            steps_per_epoch=PER_EPOCH,
            epochs=steps // PER_EPOCH,
            callbacks=[*callbacks(pathlib.Path(folder)), measurement],
            verbose=0,
        )
    result: dict[str, Any] = {}
    for name in ALLOWED:
        values = getattr(measurement, name)
        warm = values[int(WARM_UP * len(values)) :]
        quarter = max(len(warm) // 4, 1)
        first, last = (float(np.median(p)) for p in (warm[:quarter], warm[-quarter:]))
        result[name] = {
            "first_quarter": round(first, 4),
            "last_quarter": round(last, 4),
            "growth": round(last / first - 1.0, 4),
            "flat": last / first - 1.0 <= ALLOWED[name],
            "by_epoch": [round(value, 3) for value in values],
        }
    return result


def main() -> None:
    """Soaks in both ways, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
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
    for steps_per_execution in (1, 50):
        command = [sys.executable, __file__, "--one", str(steps_per_execution)]
        command += ["--steps", str(arguments.steps)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured = json.loads(run.stdout.splitlines()[-1])
        result[f"steps_per_execution_{steps_per_execution}"] = measured
        for name, values in measured.items():
            print(steps_per_execution, name, {**values, "by_epoch": "..."})
    if arguments.steps == STEPS:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
