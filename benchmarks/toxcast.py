"""All 617 assays of ToxCast in one model with one group of tasks.

    python benchmarks/toxcast.py toxcast_data.csv.gz [--seeds N] [--epochs N] [--stock]

Inputs are hashed counts of the substrings of a SMILES of 1 to 5 characters; 80 % of the
8,576 molecules train, the others test. Each training runs in a process of its own, and
tells: seconds from `fit`'s start to the end of its first step, the median step after
that, the most memory, and the mean AUC over the assays that have both classes in the
test. `--stock` adds a plain Keras model with 617 outputs, eight steps of it. Results go
to benchmarks/results/toxcast.json; runs that it holds are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
import zlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results" / "toxcast.json"
INPUTS, BATCH = 2048, 256
METHODS = ("equal", "nash running", "fairgrad running")


def molecules(path: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns inputs, labels with NaN, and the names of the assays."""
    with gzip.open(path, "rt", newline="") as file:
        header, *rows = csv.reader(file)
    x = np.zeros((len(rows), INPUTS), "float32")
    for row, values in enumerate(rows):
        smiles = values[0]
        for length in range(1, 6):
            for start in range(len(smiles) - length + 1):
                part = smiles[start : start + length].encode()
                x[row, zlib.crc32(part) % INPUTS] += 1
    y = [[float(v) if v else np.nan for v in values[1:]] for values in rows]
    return np.log1p(x), np.array(y, "float32"), header[1:]


class Times:
    """Moments at which the steps of a training end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def callback(self):
        import keras

        outer = self

        class Record(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                outer.times.append(time.perf_counter())

        return Record()


def train(path: str, name: str, seed: int, epochs: int) -> dict:
    """Trains one model in this process."""
    import keras
    import tensorflow as tf

    import mtl_keras

    x, y, assays = molecules(path)
    order = np.random.default_rng(seed).permutation(len(x))
    cut = int(0.8 * len(x))
    split = order[:cut], order[cut:]
    weight = np.isfinite(y).astype("float32")
    y = np.nan_to_num(y)
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((INPUTS,))
    features = keras.layers.Dropout(0.3)(keras.layers.Dense(512, "relu")(inputs))
    features = keras.layers.Dropout(0.3)(keras.layers.Dense(256, "relu")(features))
    times = Times()
    start = time.perf_counter()
    if name == "stock":
        heads = {a: keras.layers.Dense(1, "sigmoid")(features) for a in assays}
        model = keras.Model(inputs, heads)
        model.compile("adam", loss="binary_crossentropy")
        batch = split[0][: 2 * BATCH]
        labels = {a: y[batch, i : i + 1] for i, a in enumerate(assays)}
        weights = {a: weight[batch, i] for i, a in enumerate(assays)}
        data = tf.data.Dataset.from_tensor_slices((x[batch], labels, weights))
        data = data.batch(BATCH).repeat(4)
    else:
        outputs = {"assay": keras.layers.Dense(len(assays), "sigmoid")(features)}
        model = mtl_keras.MultiTaskModel(inputs, outputs)
        method, *solve = name.split()
        config = {"solve": solve[0]} if solve else {}
        model.compile(
            "adam",
            loss="binary_crossentropy",
            metrics={"assay": ["auc"]},
            balancing={"class_name": method, "config": config},
            columns={"assay": assays},
        )
        data = tf.data.Dataset.from_tensor_slices(
            (x[split[0]], {"assay": y[split[0]]}, {"assay": weight[split[0]]})
        )
        data = data.shuffle(cut, seed=seed).batch(BATCH, drop_remainder=True)
    start_fit = time.perf_counter()
    model.fit(
        data,
        epochs=1 if name == "stock" else epochs,
        verbose=0,
        callbacks=[times.callback()],
    )
    result = {
        "method": name,
        "seed": seed,
        "epochs": epochs,
        "compile_seconds": round(start_fit - start, 2),
        "first_step_seconds": round(times.times[0] - start_fit, 2),
        "step_ms": round(1e3 * float(np.median(np.diff(times.times))), 2),
    }
    result["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if name != "stock":
        y, weight = {"assay": y[split[1]]}, {"assay": weight[split[1]]}
        model.evaluate(x[split[1]], y, sample_weight=weight, verbose=0, batch_size=500)
        areas = model.column_results()["assay"]["auc"]
        result["assays_with_auc"] = int(np.isfinite(areas).sum())
        result["mean_auc"] = float(np.nanmean(areas))
    return result


def main() -> None:
    """Runs what is missing, each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SEED"))
    arguments = parser.parse_args()
    if arguments.one:
        name, seed = arguments.one
        print(json.dumps(train(arguments.data, name, int(seed), arguments.epochs)))
        return
    # Not above: it would count in the memory of the processes that measure.
    from mtl_keras.runs.records import made_with

    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    done = {(run["method"], run["seed"], run["epochs"]) for run in runs}
    wanted = [(name, seed) for seed in range(arguments.seeds) for name in METHODS]
    if arguments.stock:
        wanted.append(("stock", 0))
    for name, seed in wanted:
        if (name, seed, arguments.epochs) in done:
            continue
        command = [sys.executable, __file__, arguments.data, "--one", name, str(seed)]
        command += ["--epochs", str(arguments.epochs)]
        output = subprocess.run(command, check=True, capture_output=True, text=True)
        run = json.loads(output.stdout.splitlines()[-1])
        runs.append({"made_with": made_with(), **run})
        RESULTS.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
        print(runs[-1], flush=True)


if __name__ == "__main__":
    main()
