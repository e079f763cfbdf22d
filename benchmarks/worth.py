"""Joint training against training each task alone, on four public data sets.

    python benchmarks/worth.py tox21.csv.gz        # MoleculeNet: 12 binary assays
    python benchmarks/worth.py fdu_mtl_reviews.tar.gz   # sentiment of 16 domains
    python benchmarks/worth.py school.csv.gz       # exam scores of 139 schools
    python benchmarks/worth.py census-income.data.gz    # 2 tasks of the same people

Small multilayer perceptrons, with hard sharing under some balancers, with MMoE, and one
for each task alone, of the same sizes. `pooled` is one model of one output that does
not know which task a row is of, where all tasks predict the same quantity; `linear` is
a logistic or ridge regression for each task. Curves are over the number of training
labels of each task, drawn independently by task; validation labels are the same for
all.

Protocol: four settings (two learning rates, two rates of dropout; four strengths for
`linear`) are trained on seed 0, and the one of least mean validation loss over the
tasks is trained on seeds 1 to 10, and tested once each. A seed draws splits, labels,
weights and batches. Training stops when the validation loss (the mean over the model's
tasks) has not improved for three checks, and keeps the best weights; a check follows
each epoch, or 20 steps where an epoch is shorter. The models of `alone` train side by
side in one program, which changes nothing but time: what they take is measured on those
of `separate`, one after the other, seeds 1 and 2. Times are of `fit` alone, on one
thread, validation included, without tracing: a model is traced once for all its
trainings, and the seconds of that stand apart. Results go to
benchmarks/results/worth.json; runs that it holds are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
import json
import os
import pathlib
import tarfile
import tempfile
import time
import zlib
from collections import Counter

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from scipy import sparse
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score

import mtl_keras
from mtl_keras.files import atomic_write
from mtl_keras.runs.records import commit, made_with

RESULTS = pathlib.Path(__file__).parent / "results" / "worth.json"
SEEDS, TIMED = range(1, 11), (1, 2)
SETTINGS = [(rate, dropout) for rate in (2e-3, 5e-3) for dropout in (0.2, 0.5)]
SMALL = (50, 200)
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
CHECKS, PATIENCE, STEPS = 60, 3, 20
BALANCING = {
    "equal": "equal",
    "uncertainty": "uncertainty",
    "fairgrad": {"class_name": "fairgrad", "config": {"solve": "running"}},
}


@dataclasses.dataclass
class Problem:
    """A data set with the labels of T tasks, NaN where a row has none.

    Attributes:
        x: float32 `[n, features]`.
        y: float32 `[n, T]`.
        tasks: Names of the T tasks.
        measure: `"auc"`, `"accuracy"` or `"rmse"`.
        sizes: Numbers of labels of a task to train on; None is all.
        methods: In the order in which they run.
        units: Units of the hidden layers.
        test: Rows of a fixed test split; None draws a fifth of the rows.
        unit: What RMSE is multiplied by.
    """

    x: np.ndarray
    y: np.ndarray
    tasks: list[str]
    measure: str
    sizes: tuple[int | None, ...]
    methods: tuple[str, ...]
    units: tuple[int, ...]
    test: np.ndarray | None = None
    unit: float = 1.0


def hashed(parts: list[str], size: int) -> np.ndarray:
    """Returns log counts of strings by the hash of each, float32 `[size]`."""
    counts = np.zeros(size, "float32")
    for part in parts:
        counts[zlib.crc32(part.encode()) % size] += 1
    return np.log1p(counts)


def tox21(path: str) -> Problem:
    """Inputs are the substrings of a SMILES of 1 to 4 characters, hashed."""
    with gzip.open(path, "rt", newline="") as file:
        header, *rows = csv.reader(file)

    def substrings(text: str) -> list[str]:
        return [text[i : i + n] for n in range(1, 5) for i in range(len(text) - n + 1)]

    return Problem(
        x=np.stack([hashed(substrings(row[-1]), 512) for row in rows]),
        y=np.array([[float(v or "nan") for v in row[:12]] for row in rows], "float32"),
        tasks=header[:12],
        measure="auc",
        sizes=(200, None, 50, 1000),
        methods=(
            "alone",
            "equal",
            "separate",
            "linear",
            "fairgrad",
            "mmoe",
            "uncertainty",
        ),
        units=(64, 32),
    )


def reviews(path: str) -> Problem:
    """Inputs are which of the 1,000 most frequent words of the training split occur."""
    texts, domains, labels, in_test = [], [], [], []
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if not member.isfile():
                continue
            domain, _, part = pathlib.Path(member.name).name.split(".")
            content = archive.extractfile(member).read().decode("utf-8", "replace")
            for line in content.rstrip("\n").split("\n"):
                label, _, text = line.partition("\t")
                texts.append(set(text.split()))
                labels.append(float(label))
                domains.append(domain)
                in_test.append(part == "test")
    known: Counter[str] = Counter()
    for text, is_test in zip(texts, in_test, strict=True):
        if not is_test:
            known.update(text)
    words = {w: i for i, (w, _) in enumerate(sorted(known.most_common(1000)))}
    x = np.zeros((len(texts), len(words)), "float32")
    for row, text in enumerate(texts):
        x[row, [words[w] for w in text if w in words]] = 1
    tasks = sorted(set(domains))
    y = np.full((len(texts), len(tasks)), np.nan, "float32")
    y[np.arange(len(texts)), [tasks.index(d) for d in domains]] = labels
    methods = (
        "alone",
        "equal",
        "separate",
        "linear",
        "pooled",
        "fairgrad",
        "mmoe",
        "uncertainty",
    )
    return Problem(
        x,
        y,
        tasks,
        "accuracy",
        (50, 200, 1000, None),
        methods,
        (32,),
        test=np.flatnonzero(in_test),
    )


def school(path: str) -> Problem:
    """Inputs are 28 features of a pupil and the school."""
    with gzip.open(path, "rt", newline="") as file:
        _, *rows = csv.reader(file)
    tasks = sorted({row[0] for row in rows})
    x = np.array([row[1:-1] for row in rows], "float32")
    score = np.array([row[-1] for row in rows], "float32")
    y = np.full((len(rows), len(tasks)), np.nan, "float32")
    columns = [tasks.index(row[0]) for row in rows]
    y[np.arange(len(rows)), columns] = (score - score.mean()) / score.std()
    methods = (
        "alone",
        "equal",
        "separate",
        "pooled",
        "uncertainty",
        "fairgrad",
        "linear",
    )
    spread = np.where(x.std(0) > 0, x.std(0), 1.0)
    return Problem(
        (x - x.mean(0)) / spread, y, tasks, "rmse", (None,), methods, (16,),
        unit=float(score.std()),
    )  # fmt: skip


def census(path: str) -> Problem:
    """20,000 of the people; inputs are hashed categories and standardised numbers."""
    numbers = [0, 5, 16, 17, 18, 30, 39]
    others = set(range(40)) - {*numbers, 7, 24}  # marital status, instance weight
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.reader(file, skipinitialspace=True))
    chosen = np.random.default_rng(0).permutation(len(rows))[:20_000]
    rows = [rows[i] for i in chosen]
    values = np.log1p([[float(row[i]) for i in numbers] for row in rows])
    values = (values - values.mean(0)) / values.std(0)
    hot = [hashed([f"{i}={row[i]}" for i in others], 512) for row in rows]
    y = [[row[41] != "- 50000.", row[7] == "Never married"] for row in rows]
    methods = (
        "alone",
        "equal",
        "separate",
        "uncertainty",
        "fairgrad",
        "mmoe",
        "linear",
    )
    return Problem(
        np.concatenate([values, hot], 1).astype("float32"), np.array(y, "float32"),
        ["income", "never_married"], "auc", (1000, 200, 5000), methods, (32, 16),
    )  # fmt: skip


PROBLEMS = {"tox21": tox21, "fdu_mtl": reviews, "school": school, "census": census}


def split(problem: Problem, size: int | None, seed: int) -> dict[str, tuple]:
    """Returns inputs and labels of the three splits, training labels thinned out.

    Validation has a tenth of the rows of each task, a fifth where that is fewer
    than 50.
    """
    random = np.random.default_rng(seed)
    test = problem.test
    if test is None:
        test = random.permutation(len(problem.x))[: len(problem.x) // 5]
    is_open = np.ones(len(problem.x), bool)
    is_open[test] = False
    order = random.permutation(np.flatnonzero(is_open))
    if problem.measure == "rmse" or problem.test is not None:
        # Each row is of one task: a part of each task's rows.
        task_of = np.isfinite(problem.y[order]).argmax(1)
        part = [order[task_of == t] for t in range(len(problem.tasks))]
        part = [np.split(p, [len(p) // (10 if len(p) >= 500 else 5)]) for p in part]
        validation = np.concatenate([first for first, _ in part])
        train = random.permutation(np.concatenate([rest for _, rest in part]))
    else:
        cut = len(order) // 10
        validation, train = order[:cut], order[cut:]
    labels = problem.y[train].copy()
    if size is not None:
        for column in labels.T:
            column[~drawn(column, size, problem.measure)] = np.nan
    kept = np.isfinite(labels).any(1)
    return {
        "train": (problem.x[train[kept]], labels[kept]),
        "validation": (problem.x[validation], problem.y[validation]),
        "test": (problem.x[test], problem.y[test]),
    }


def drawn(labels: np.ndarray, size: int, measure: str) -> np.ndarray:
    """Returns a mask of the first `size` labels, classes in proportion.

    Each class has two labels at least: a model of one class has nothing to learn.
    """
    mask = np.zeros(len(labels), bool)
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    size = min(size, len(positive) + len(negative))
    share = len(positive) / (len(positive) + len(negative))
    count = max(2, round(size * share))
    mask[positive[:count]] = mask[negative[: size - count]] = True
    return mask


def losses(labels: np.ndarray, predicted: np.ndarray, measure: str) -> np.ndarray:
    """Returns cross-entropy or squared error of each task, `[T]`."""
    if measure == "rmse":
        return np.nanmean((labels - predicted) ** 2, axis=0)
    p = np.clip(predicted, 1e-6, 1 - 1e-6)
    entropy = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    return np.nanmean(entropy, axis=0)


def scores(problem: Problem, labels: np.ndarray, predicted: np.ndarray) -> list[float]:
    """Returns the measure of each task."""
    result = []
    for y, p in zip(labels.T, predicted.T, strict=True):
        y, p = y[np.isfinite(y)], p[np.isfinite(y)]
        if problem.measure == "auc":
            result.append(roc_auc_score(y, p))
        elif problem.measure == "accuracy":
            result.append(((p > 0.5) == y).mean())
        else:
            result.append(problem.unit * np.sqrt(((p - y) ** 2).mean()))
    return [round(float(value), 5) for value in result]


class Network:
    """A model that is trained again and again from new weights, traced once.

    Args:
        problem: Gives sizes and the kind of task.
        method: A key of `BALANCING`, `"mmoe"`, or `"alone"` for a `Stacked` of all
            tasks; anything else is one output.
        dropout: Rate after each hidden layer.

    Attributes:
        build_seconds: Processor time of building, compiling and tracing.
    """

    def __init__(self, problem: Problem, method: str, dropout: float):
        self.problem, self.method, self.dropout = problem, method, dropout
        self.is_regression = problem.measure == "rmse"
        self.is_stacked = method == "alone"
        is_single = method in ("separate", "pooled")
        self.width = 1 if is_single else len(problem.tasks)
        self.shape = (problem.x.shape[1],)
        if self.is_stacked:
            self.shape = (self.width, *self.shape)
        start = time.process_time()
        self.model = self.compiled()
        self.answer = tf.function(
            lambda x: self.model(x, training=False),
            input_signature=[tf.TensorSpec((None, *self.shape))],
            autograph=False,
        )
        rows = np.zeros((64, *self.shape), "float32")
        labels = np.ones((len(rows), self.width), "float32")
        self.model.fit(rows, self.by_output(labels), batch_size=32, verbose=0)
        self.predict(rows)
        self.build_seconds = time.process_time() - start

    def compiled(self) -> keras.Model:
        """Returns a model with new weights and a new optimizer, not traced."""
        model = self.build()
        options = {}
        if self.method == "mmoe":
            options = {"balancing": "equal", "missing_labels": "nan"}
        elif self.method in BALANCING:
            options = {
                "balancing": BALANCING[self.method],
                "columns": {"task": self.problem.tasks},
                "missing_labels": "nan",
            }
        loss = "mse" if self.is_regression else "binary_crossentropy"
        if self.is_stacked:
            # Keras takes the mean over the columns; each is a model of its own.
            options = {"loss_weights": float(self.width)}
        model.compile(
            keras.optimizers.Adam(1e-3),
            loss=loss,
            steps_per_execution=STEPS,
            **options,
        )
        model.optimizer.build(model.trainable_variables)
        return model

    def build(self) -> keras.Model:
        """Returns a model with new weights, not compiled."""
        inputs = keras.Input(self.shape)
        dense = Stacked if self.is_stacked else keras.layers.Dense
        stages = [
            keras.Sequential([dense(units, "relu"), keras.layers.Dropout(self.dropout)])
            for units in self.problem.units
        ]
        activation = "linear" if self.is_regression else "sigmoid"
        if self.method == "mmoe":
            names = [f"task{i}" for i in range(self.width)]
            features = mtl_keras.sharing.get("mmoe")(inputs, stages, tasks=names)
            heads = {
                name: keras.layers.Dense(1, activation)(features[name])
                for name in names
            }
            return mtl_keras.MultiTaskModel(inputs, heads)
        features = inputs
        for stage in stages:
            features = stage(features)
        if self.is_stacked:
            head = keras.layers.Flatten()(Stacked(1, activation)(features))
        else:
            head = keras.layers.Dense(self.width, activation)(features)
        if self.method in BALANCING:
            return mtl_keras.MultiTaskModel(inputs, {"task": head})
        return keras.Model(inputs, head)

    def by_output(self, labels: np.ndarray) -> object:
        """Returns labels `[n, T]` as the model takes them."""
        if self.method == "mmoe":
            return {f"task{i}": labels[:, i : i + 1] for i in range(self.width)}
        return {"task": labels} if self.method in BALANCING else labels

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Returns predictions `[n, T]`."""
        answers = self.answer(tf.constant(x))
        if isinstance(answers, dict):
            answers = tf.concat(list(answers.values()), axis=1)
        return answers.numpy()

    def fit(
        self, data: dict[str, tuple], rate: float, seed: int, batch: int
    ) -> dict[str, float]:
        """Trains from new weights, and returns what that took.

        Returns:
            Validation loss of the weights kept, a mean over tasks, steps in all, and
            seconds by the clock and of the processor.
        """
        keras.utils.set_random_seed(seed)
        new = self.compiled()
        pairs = [(self.model.optimizer.variables, new.optimizer.variables)]
        pairs += [
            (old.variables, layer.variables)
            for old, layer in zip(self.model.layers, new.layers, strict=True)
        ]
        pairs += [
            (old.variables.values(), balancer.variables.values())
            for old, balancer in zip(
                getattr(self.model, "balancers", ()),
                getattr(new, "balancers", ()),
                strict=True,
            )
        ]
        for olds, values in pairs:
            for old, value in zip(olds, values, strict=True):
                old.assign(value)
        self.model.optimizer.learning_rate = rate
        x, labels = data["train"]
        times = -(-STEPS * batch // len(x))
        best = BestWeights(self, *data["validation"])
        wall, processor = time.perf_counter(), time.process_time()
        self.model.fit(
            np.concatenate([x] * times),
            self.by_output(np.concatenate([labels] * times)),
            batch_size=batch,
            epochs=CHECKS,
            verbose=0,
            callbacks=[best],
        )
        result = {
            "cpu_seconds": time.process_time() - processor,
            "seconds": time.perf_counter() - wall,
            "validation_loss": float(best.loss.mean()),
            "steps": int(self.model.optimizer.iterations.numpy()),
        }
        self.model.set_weights(best.weights)
        return result


class Stacked(keras.layers.Layer):
    """T dense layers side by side, each with an input of its own.

    Models that share nothing train as if each stood alone: Adam goes entry by entry.

    Args:
        units: Units of each.
        activation: As of `keras.layers.Dense`.
    """

    def __init__(self, units: int, activation: str):
        super().__init__()
        self.units, self.activation = units, keras.activations.get(activation)

    def build(self, shape: tuple) -> None:
        """Makes kernels as Glorot's for each, and biases."""
        _, tasks, inputs = shape
        limit = (6 / (inputs + self.units)) ** 0.5
        self.kernel = self.add_weight(
            shape=(tasks, inputs, self.units),
            initializer=keras.initializers.RandomUniform(-limit, limit),
        )
        self.bias = self.add_weight(shape=(tasks, self.units), initializer="zeros")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps `[batch, T, inputs]` to `[batch, T, units]`."""
        product = tf.matmul(tf.transpose(x, (1, 0, 2)), self.kernel)
        return self.activation(tf.transpose(product, (1, 0, 2)) + self.bias)


def stacked(x: np.ndarray, y: np.ndarray, repeat: bool) -> tuple:
    """Returns the labelled rows of each task side by side.

    Args:
        x: `[n, features]`.
        y: `[n, T]`, NaN for no label.
        repeat: Whether tasks of fewer rows repeat them, or have no label there.

    Returns:
        `[m, T, features]` and `[m, T]`, m being the most labels of a task.
    """
    rows = [np.flatnonzero(np.isfinite(column)) for column in y.T]
    length = max(map(len, rows))
    index = np.stack([np.resize(one, length) for one in rows], axis=1)
    labels = np.take_along_axis(y, index, axis=0)
    if not repeat:
        for column, one in zip(labels.T, rows, strict=True):
            column[len(one) :] = np.nan
    return x[index], labels


class BestWeights(keras.callbacks.Callback):
    """Early stopping that checks a network's validation loss after each epoch.

    Stacked models stop each by its own loss.
    """

    def __init__(self, network: Network, x: np.ndarray, y: np.ndarray):
        super().__init__()
        self.network, self.x, self.y = network, x, y
        size = network.width if network.is_stacked else 1
        self.loss, self.waited = np.full(size, np.inf), np.zeros(size, int)
        self.weights: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Keeps the weights that are better."""
        predicted = self.network.predict(self.x)
        loss = losses(self.y, predicted, self.network.problem.measure)
        if not self.network.is_stacked:
            loss = loss.mean(keepdims=True)
        better = (loss < self.loss) & (self.waited < PATIENCE)
        self.loss = np.where(better, loss, self.loss)
        waited = np.minimum(self.waited + 1, PATIENCE)
        self.waited = np.where(better, 0, waited)
        weights = self.model.get_weights()
        if not self.weights:
            self.weights = weights
        for kept, new in zip(self.weights, weights, strict=True):
            if self.network.is_stacked:
                kept[better] = new[better]
            elif better.all():
                kept[:] = new
        self.model.stop_training = bool((self.waited == PATIENCE).all())


class Linear:
    """Logistic or ridge regression of one task, with the interface of `Network`."""

    build_seconds = 0.0

    def __init__(self, problem: Problem, method: str, dropout: float):
        self.problem = problem

    def fit(
        self, data: dict[str, tuple], rate: float, seed: int, batch: int
    ) -> dict[str, float]:
        """Fits with inverse strength of regularisation `rate`."""
        x, labels = data["train"]
        wall, processor = time.perf_counter(), time.process_time()
        if self.problem.measure == "rmse":
            self.model = Ridge(alpha=1 / rate)
        else:
            self.model = LogisticRegression(C=rate, solver="liblinear")
        self.model.fit(sparse.csr_matrix(x), labels.ravel())
        result = {
            "cpu_seconds": time.process_time() - processor,
            "seconds": time.perf_counter() - wall,
        }
        validation, labels = data["validation"]
        loss = losses(labels, self.predict(validation), self.problem.measure)
        return {**result, "validation_loss": float(loss.mean()), "steps": 0}

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Returns predictions `[n, 1]`."""
        if self.problem.measure == "rmse":
            return self.model.predict(x)[:, None]
        return self.model.predict_proba(sparse.csr_matrix(x))[:, 1:]


def only(task: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labelled rows of one task, `[m, features]` and `[m, 1]`."""
    mask = np.isfinite(y[:, task])
    return x[mask], y[mask, task, None]


class Bench:
    """Runs of one problem.

    Args:
        name: A key of `PROBLEMS`.
        problem: Its data.
        results: Content of the results file, to which runs are added.
    """

    def __init__(self, name: str, problem: Problem, results: dict):
        self.name, self.problem, self.results = name, problem, results
        self.networks: dict[tuple, Network | Linear] = {}

    def network(self, method: str, dropout: float) -> Network | Linear:
        """Returns the network of a method, which later runs train again."""
        key = method, dropout
        if key not in self.networks:
            cls = Linear if method == "linear" else Network
            self.networks[key] = cls(self.problem, method, dropout)
        return self.networks[key]

    def kept(self, method: str, size: int | None, seed: int) -> list[dict]:
        """Returns the records of these runs."""
        key = self.name, method, size, seed
        return [
            run
            for run in self.results["runs"]
            if (run["data"], run["method"], run["labels"], run["seed"]) == key
        ]

    def measure(self, method: str, size: int | None) -> dict:
        """Tries the settings, tests the best on each seed; returns the last record."""
        settings = [(c, 0.0) for c in STRENGTHS] if method == "linear" else SETTINGS
        tuned = "alone" if method == "separate" else method
        tried = {tuple(run["setting"]) for run in self.kept(tuned, size, 0)}
        for setting in settings:
            if setting not in tried:
                self.run(tuned, size, 0, setting)
        trials = self.kept(tuned, size, 0)
        best = min(trials, key=lambda run: run["validation_loss"])["setting"]
        seeds = TIMED if method == "separate" else SEEDS
        for seed in seeds:
            if not self.kept(method, size, seed):
                self.run(method, size, seed, tuple(best))
        return self.kept(method, size, seeds[-1])[0]

    def run(self, method: str, size: int | None, seed: int, setting: tuple) -> None:
        """Trains one model, or one for each task; only seeds from 1 on are tested."""
        rate, dropout = setting
        batch = 32 if size in SMALL or self.problem.measure == "rmse" else 128
        network = self.network(method, dropout)
        data = split(self.problem, size, seed)
        test, labels = data["test"]
        predicted = np.full_like(labels, np.nan)
        if method == "alone":
            data = {k: stacked(*pair, repeat=k == "train") for k, pair in data.items()}
            trained = [network.fit(data, rate, seed, batch)]
            test, labels = data["test"]
            predicted = network.predict(test)
        elif method in ("separate", "linear"):
            trained = []
            for task in range(len(self.problem.tasks)):
                part = {key: only(task, *pair) for key, pair in data.items()}
                trained.append(network.fit(part, rate, seed, batch))
                predicted[:, task] = network.predict(test)[:, 0]
        else:
            if method == "pooled":
                data = {k: (x, np.nanmax(y, 1)[:, None]) for k, (x, y) in data.items()}
            trained = [network.fit(data, rate, seed, batch)]
            predicted[:] = network.predict(test)
        record = {
            "commit": commit(),
            "data": self.name,
            "method": method,
            "labels": size,
            "seed": seed,
            "setting": list(setting),
            "validation_loss": float(np.mean([t["validation_loss"] for t in trained])),
            "steps": sum(t["steps"] for t in trained),
            "cpu_seconds": round(sum(t["cpu_seconds"] for t in trained), 3),
            "seconds": round(sum(t["seconds"] for t in trained), 3),
            "build_cpu_seconds": round(network.build_seconds, 2),
        }
        if seed:
            record["test"] = scores(self.problem, labels, predicted)
        self.results["runs"].append(record)
        self.save()

    def save(self) -> None:
        """Writes the results file."""
        self.results["made_with"] = made_with()
        with atomic_write(RESULTS) as temporary:
            temporary.write_text(json.dumps(self.results) + "\n")


def serving(bench: Bench) -> dict[str, dict]:
    """Returns what N exported models and one cost, by method.

    Answers of all tasks to requests of 1 and of 256 rows, in one process; a request
    goes to each of the N models.
    """
    result = {}
    for method in ("separate", "equal", "mmoe"):
        network = bench.network(method, SETTINGS[0][1])
        with tempfile.TemporaryDirectory() as folder:
            network.model.export(folder, format="tf_saved_model", verbose=False)
            count = len(bench.problem.tasks) if method == "separate" else 1
            files = [f for f in pathlib.Path(folder).rglob("*") if f.is_file()]
            size = sum(f.stat().st_size for f in files)
            models = [tf.saved_model.load(folder) for _ in range(count)]
        cost = {"models": count, "megabytes": count * size / 2**20}
        cost["parameters"] = count * network.model.count_params()
        for rows in (1, 256):
            x = tf.constant(bench.problem.x[:rows])
            times = []
            for _ in range(100):
                start = time.process_time()
                for model in models:
                    model.serve(x)
                times.append(time.process_time() - start)
            cost[f"cpu_ms_{rows}"] = 1e3 * float(np.median(times))
        result[method] = cost
    return result


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--methods", type=lambda text: text.split(","))
    parser.add_argument("--size", help="a number of labels, or all")
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    file = pathlib.Path(arguments.data).name
    name = next(n for n in PROBLEMS if file.startswith(n))
    problem = PROBLEMS[name](arguments.data)
    results = {"made_with": {}, "data": {}, "serving": {}, "runs": []}
    if RESULTS.exists():
        results = json.loads(RESULTS.read_text())
    results["data"][name] = {
        "tasks": problem.tasks,
        "measure": problem.measure,
        "sizes": problem.sizes,
    }
    bench = Bench(name, problem, results)
    for size in problem.sizes:
        for method in problem.methods:
            is_wanted = not arguments.methods or method in arguments.methods
            if is_wanted and arguments.size in (None, str(size or "all")):
                last = bench.measure(method, size)
                mean, seconds = np.mean(last["test"]), last["cpu_seconds"]
                print(name, size, method, last["setting"], mean, seconds, flush=True)
    if "mmoe" in problem.methods and name not in results["serving"]:
        results["serving"][name] = serving(bench)
        bench.save()


if __name__ == "__main__":
    main()
