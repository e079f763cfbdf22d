"""One model for all preferences beside a model for each, on the same budget.

    python benchmarks/preferences.py --census FILE --mnist FOLDER

`--census` is census-income.data.gz of Census-Income (KDD): 60,000 people to train,
20,000 to test, the tasks income above 50,000 dollars and never married, without the
column of the latter. `--mnist` is the folder of MNIST's four files: 30,000 scenes of
two digits to train, 10,000 to test, of 18x18 pixels, the tasks the left digit and the
right one.

All models have two hidden layers of 64 units, losses of equal weight, Adam with a
cosine decay from `RATE`, and no other setting. `manifold` and `hypernetwork` are one
model, trained in `UPDATES` updates with the preference of each drawn uniformly, linear
scalarisation, and asked at five preferences. `separate` are five models, one for each
of these preferences as its loss weights, of a fifth of the updates each; `separate in
full` are the same with all the updates each, five times the budget.

The measure is the hypervolume of the five pairs of test losses after the last update,
as a share of the box up to the reference point: the losses of the frequencies of the
classes, with which a model has learnt nothing. A seed draws weights, batches and
preferences. Seconds are those of the processor in `fit`, on one thread, with tracing.
Results go to benchmarks/results/preferences.json; runs that it holds are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import json
import os
import pathlib
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import mtl_keras
from mtl_keras import pareto
from mtl_keras.data.generated import scenes
from mtl_keras.evaluation import hypervolume
from mtl_keras.files import write_json
from mtl_keras.runs.records import commit, made_with

RESULTS = pathlib.Path(__file__).parent / "results" / "preferences.json"
SEEDS = range(5)
UPDATES, BATCH, UNITS, RATE = 2_000, 256, 64, 2e-3
STEPS = 50  # of one call of the compiled step
PREFERENCES = [[share, round(1 - share, 1)] for share in (0.9, 0.7, 0.5, 0.3, 0.1)]
CONDITIONED: dict[str, Callable[[keras.Model], pareto.PreferenceModel]] = {
    "manifold": pareto.manifold,
    "hypernetwork": lambda model: pareto.hypernetwork(model, rank=4),
}
SEPARATE = {"separate": UPDATES // len(PREFERENCES), "separate in full": UPDATES}


class Problem(NamedTuple):
    """A data set of two tasks: inputs, and labels of a class by task."""

    train: tuple[np.ndarray, dict[str, np.ndarray]]
    test: tuple[np.ndarray, dict[str, np.ndarray]]

    def classes(self) -> dict[str, int]:
        """Returns the number of classes by task."""
        return {task: int(y.max()) + 1 for task, y in self.train[1].items()}

    def reference(self) -> list[float]:
        """Returns the test losses of the frequencies of the classes in training."""
        losses = []
        for task, y in self.train[1].items():
            shares = np.bincount(y) / len(y)
            losses.append(float(-np.log(shares[self.test[1][task]]).mean()))
        return losses


def census(path: pathlib.Path) -> Problem:
    """Inputs are hashed categories and standardised numbers."""
    numbers = [0, 5, 16, 17, 18, 30, 39]
    others = [i for i in range(40) if i not in (*numbers, 7, 24)]
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.reader(file, skipinitialspace=True))
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:80_000]]
    values = np.log1p([[float(row[i]) for i in numbers] for row in rows])
    hot = np.zeros((len(rows), 512), "float32")
    for line, row in zip(hot, rows, strict=True):
        line[[zlib.crc32(f"{i}={row[i]}".encode()) % 512 for i in others]] = 1.0
    values = (values - values[:60_000].mean(0)) / values[:60_000].std(0)
    x = np.concatenate([values, hot], 1).astype("float32")
    y = {
        "income": np.array([row[41] != "- 50000." for row in rows], int),
        "never_married": np.array([row[7] == "Never married" for row in rows], int),
    }
    return divided(x, y, 60_000)


def digits(folder: pathlib.Path) -> Problem:
    """Scenes of digits of MNIST, those of the test split of its test digits."""
    images, labels = [], []
    for seed, (name, count) in enumerate({"train": 30_000, "t10k": 10_000}.items()):
        pool = scenes.Pool(
            idx(folder / f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28),
            idx(folder / f"{name}-labels-idx1-ubyte.gz", 8).astype(int),
        )
        for scene in scenes.generate(pool, count, np.random.default_rng(seed)):
            halved = scene.image.reshape(18, 2, 18, 2).mean((1, 3), dtype="float32")
            images.append(halved.ravel() / 255)
            labels.append((scene.left, scene.right))
    left, right = np.array(labels).T
    return divided(np.array(images), {"left": left, "right": right}, 30_000)


def idx(path: pathlib.Path, header: int) -> np.ndarray:
    """Returns the bytes of one of MNIST's files after its header."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def divided(x: np.ndarray, y: dict[str, np.ndarray], count: int) -> Problem:
    """Returns a problem with the first rows to train on, the others to test."""
    first = x[:count], {task: labels[:count] for task, labels in y.items()}
    return Problem(first, (x[count:], {task: v[count:] for task, v in y.items()}))


def network(problem: Problem) -> mtl_keras.MultiTaskModel:
    """Returns a new model, not compiled."""
    inputs = keras.Input(problem.train[0].shape[1:])
    h = inputs
    for _ in range(2):
        h = keras.layers.Dense(UNITS, "relu")(h)
    heads = {
        task: keras.layers.Dense(size, "softmax", name=task)(h)
        for task, size in problem.classes().items()
    }
    return mtl_keras.MultiTaskModel(inputs, heads)


def batches(problem: Problem, seed: int, updates: int) -> tf.data.Dataset:
    """Returns that many training batches, in an order out of the seed."""
    rows, count = np.random.default_rng(seed), len(problem.train[0])
    orders = [rows.permutation(count) for _ in range(-(-updates * BATCH // count))]
    chosen = np.concatenate(orders)[: updates * BATCH].reshape(updates, BATCH)
    x, y = keras.tree.map_structure(tf.constant, problem.train)
    return tf.data.Dataset.from_tensor_slices(chosen).map(
        lambda at: (tf.gather(x, at), {task: tf.gather(v, at) for task, v in y.items()})
    )


def fitted(
    model: mtl_keras.MultiTaskModel,
    problem: Problem,
    seed: int,
    updates: int,
    **options: Any,
) -> float:
    """Compiles and trains a model; returns the processor seconds."""
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(RATE, updates)),
        loss="sparse_categorical_crossentropy",
        steps_per_execution=STEPS,
        **options,
    )
    data = batches(problem, seed, updates)
    started = time.process_time()
    model.fit(data, shuffle=False, verbose=0)
    return time.process_time() - started


def trained(method: str, problem: Problem, seed: int) -> dict[str, Any]:
    """Returns the test losses at the preferences, and what they cost."""
    test = tf.data.Dataset.from_tensor_slices(problem.test).batch(10_000).cache()
    tasks = list(problem.classes())
    if method in CONDITIONED:
        keras.utils.set_random_seed(seed)
        model = CONDITIONED[method](network(problem))
        sampled = pareto.SampledPreference("linear", seed=seed)
        seconds = fitted(model, problem, seed, UPDATES, balancing=sampled)
        losses = pareto.front(model, test, PREFERENCES).points().tolist()
        return {
            "losses": losses,
            "parameters": model.count_params(),
            "updates": UPDATES,
            "cpu_seconds": seconds,
        }
    updates, losses, seconds, parameters = SEPARATE[method], [], 0.0, 0
    for number, preference in enumerate(PREFERENCES):
        keras.utils.clear_session()
        of_model = seed * len(PREFERENCES) + number
        keras.utils.set_random_seed(of_model)
        model = network(problem)
        weights = {task: 2 * p for task, p in zip(tasks, preference, strict=True)}
        options = {"loss_weights": weights}
        seconds += fitted(model, problem, of_model, updates, **options)
        logs = model.evaluate(test, return_dict=True, verbose=0)
        losses.append([logs[f"{task}_loss"] for task in tasks])
        parameters += model.count_params()
    return {
        "losses": losses,
        "parameters": parameters,
        "updates": updates * len(PREFERENCES),
        "cpu_seconds": seconds,
    }


def main() -> None:
    """Trains what the results lack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--census", type=pathlib.Path)
    parser.add_argument("--mnist", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"data": {}, "runs": []}
    if arguments.out.exists():
        results = json.loads(arguments.out.read_text("utf-8"))
    results |= {
        "command": "python benchmarks/preferences.py --census FILE --mnist FOLDER",
        "made_with": made_with(),
        "preferences": PREFERENCES,
        "settings": {"updates": UPDATES, "batch": BATCH, "units": UNITS, "rate": RATE},
    }
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    problems: dict[str, Problem] = {}
    for name, read in (("census", census), ("digits", digits)):
        if path := getattr(arguments, "mnist" if name == "digits" else name):
            problems[name] = read(path)
            results["data"][name] = {
                "tasks": list(problems[name].classes()),
                "reference": problems[name].reference(),
            }
    done = {(run["method"], run["seed"], run["data"]) for run in results["runs"]}
    # The comparison first, and the dearest last.
    for methods in (["manifold", "separate"], ["hypernetwork"], ["separate in full"]):
        for seed, method, name in itertools.product(SEEDS, methods, problems):
            if (method, seed, name) in done:
                continue
            keras.utils.clear_session()
            run = trained(method, problems[name], seed)
            reference = results["data"][name]["reference"]
            volume = hypervolume(run["losses"], reference, ["min", "min"])
            share = volume / float(np.prod(reference))
            run |= {
                "commit": commit(),
                "data": name,
                "method": method,
                "seed": seed,
                "hypervolume": share,
            }
            results["runs"].append(run)
            write_json(arguments.out, results)
            seconds = f"{run['cpu_seconds']:.0f} s"
            print(name, method, seed, f"{share:.4f}", seconds, flush=True)


if __name__ == "__main__":
    main()
