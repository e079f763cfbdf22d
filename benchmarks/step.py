"""Times of whole training steps, in one run: what balancing adds to the gradients.

    python benchmarks/step.py [xla [--hlo]] [TASKS ...]
    python benchmarks/step.py --running [TASKS ...]
    python benchmarks/step.py --running --resnet [TASKS ...]

LeNet on 36×36 images, batch 256, Adam; all through Keras's own train function:

- `floor`: the least that any method needs that reads all task gradients, as a bare
  `train_step`: one forward pass, a `tape.gradient` call for each task on the shared
  variables and its head, the mean of the shared gradients, the optimizer; losses are
  tracked as Keras does.
- `equal_by_task`: equal weights with `on_nonfinite="skip_task"`, which takes T backward
  passes: a step of this library with all but the method.
- every method that works on the Gram matrix of one set of task gradients (MoDo and
  SDMGrad take several).
- `stock`: `keras.Model`, one backward pass; and `representation`: UPGrad with
  gradients_of="representation".

The models take turns step by step, so that a slow minute of the machine hits all of
them; ratios are those of the medians, and their spread that of the ratios in single
rounds. `xla` compares with `equal_by_task`, on a small dense model under
`jit_compile=True`, by default at T = 2, 8 and 20; with `--hlo` it times nothing, but
counts HLO instructions of the models, with the solvers as custom calls and in
TensorFlow's ops.
`--only NAME,...` leaves out other methods and keeps their rows, each with the time that
its ratio is against. Writes benchmarks/results/step.json.

`--running` compares with `stock` the running solves, and up to 32 tasks the floor;
`--resnet` on ResNet-18, 32×32, batch 64. Writes benchmarks/results/step_running.json.
On a busy machine, `--busy` counts the processor's time in place of the clock's.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import re
import sys
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import mtl_keras
from mtl_keras import backbones, balancing
from mtl_keras.balancing.base import GramBalancer
from mtl_keras.runs.records import made_with

RUNNING, RESNET = "--running" in sys.argv, "--resnet" in sys.argv
BUSY, XLA, HLO = "--busy" in sys.argv, "xla" in sys.argv, "--hlo" in sys.argv
ONLY = dict(zip(sys.argv, sys.argv[1:], strict=False)).get("--only", "")
CLOCK = time.process_time if BUSY else time.perf_counter
BATCH, SECONDS = (64, 120.0) if RESNET else (256, 30.0 if XLA else 60.0)
# Where single steps vary by a tenth, so many that a median does by a hundredth.
ROUNDS = 10 if RESNET else 150
SHAPE = (32, 32, 3) if RESNET else (32,) if XLA else (36, 36, 1)
RESULTS = pathlib.Path(__file__).parent / "results" / "step.json"
RESULTS_RUNNING = RESULTS.with_name("step_running.json")
REPRESENTATION, BY_TASK = "representation", "equal_by_task"


class Floor(keras.Model):
    """Task gradients and their mean, as a bare custom `train_step`."""

    def __init__(self, inputs, outputs, **kwargs):
        super().__init__(inputs, outputs, **kwargs)
        self._task_names = sorted(outputs)
        self._loss_of = {
            task: keras.losses.SparseCategoricalCrossentropy()
            for task in self._task_names
        }
        self._trackers = {
            name: keras.metrics.Mean(name) for name in ["loss", *self._task_names]
        }

    def train_step(self, data):
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            y_pred = self(x, training=True)
            losses = [self._loss_of[t](y[t], y_pred[t]) for t in self._task_names]
        for task, loss in zip(self._task_names, losses, strict=True):
            self._trackers[task].update_state(loss, sample_weight=BATCH)
        self._trackers["loss"].update_state(tf.add_n(losses), sample_weight=BATCH)
        heads = [self.get_layer(task).trainable_variables for task in self._task_names]
        in_a_head = {id(v) for head in heads for v in head}
        shared = [v for v in self.trainable_variables if id(v) not in in_a_head]
        rows, own = [], {}
        for loss, head in zip(losses, heads, strict=True):
            gradients = tape.gradient(loss, [*shared, *head])
            rows.append(gradients[: len(shared)])
            own |= {
                id(v): g for v, g in zip(head, gradients[len(shared) :], strict=True)
            }
        own |= {
            id(v): tf.add_n(column) / len(rows)
            for v, column in zip(shared, zip(*rows, strict=True), strict=True)
        }
        self.optimizer.apply_gradients(
            [(own[id(v)], v) for v in self.trainable_variables]
        )
        return {name: metric.result() for name, metric in self._trackers.items()}


def lenet(tasks: list[str]) -> tuple[keras.KerasTensor, dict[str, keras.KerasTensor]]:
    """Returns inputs and the outputs of classification tasks."""
    image = keras.Input((36, 36, 1))
    x = keras.layers.Conv2D(10, 5, activation="relu")(image)
    x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Conv2D(20, 5, activation="relu")(x)
    x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Dense(50, "relu")(keras.layers.Flatten()(x))
    return image, {t: keras.layers.Dense(10, "softmax", name=t)(x) for t in tasks}


def resnet(tasks: list[str]) -> tuple[keras.KerasTensor, dict[str, keras.KerasTensor]]:
    """Returns inputs and the outputs of classification tasks."""
    image = keras.Input((32, 32, 3))
    x = image
    for stage in backbones.resnet(width=64, depth=4):
        x = stage(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return image, {t: keras.layers.Dense(10, "softmax", name=t)(x) for t in tasks}


def dense(tasks: list[str]) -> tuple[keras.KerasTensor, dict[str, keras.KerasTensor]]:
    """Returns inputs and the outputs of classification tasks."""
    inputs = keras.Input(SHAPE)
    x = keras.layers.Dense(64, "relu")(keras.layers.Dense(64, "relu")(inputs))
    return inputs, {t: keras.layers.Dense(10, "softmax", name=t)(x) for t in tasks}


def gram_methods(num_tasks: int) -> list[str]:
    """Returns the names of all methods that weight one set of task gradients."""
    names = [
        name
        for name in balancing.names()
        if isinstance(method := balancing.get(name), GramBalancer)
        and not (method.num_sub_batches or method.needs_probe or method.aligns_heads)
    ]
    # Krum, by default, needs four tasks.
    names = [name for name in names if name != "krum" or num_tasks >= 4]
    return [name for name in names if not ONLY or name in ONLY.split(",")]


def models(tasks: list[str]) -> dict[str, keras.Model]:
    """Returns the compiled models by name."""

    def compiled(cls, **kwargs) -> keras.Model:
        keras.utils.set_random_seed(0)
        model = cls(*(resnet if RESNET else dense if XLA else lenet)(tasks))
        model.compile(
            "adam", loss="sparse_categorical_crossentropy", jit_compile=XLA, **kwargs
        )
        model.make_train_function()
        return model

    at_boundary = balancing.UPGrad(gradients_of=REPRESENTATION)
    ours = mtl_keras.MultiTaskModel
    if RUNNING:
        methods = (balancing.Nash, balancing.FairGrad, balancing.MGDA)
        few = {"floor": compiled(Floor)} if len(tasks) <= 32 and not RESNET else {}
        return {"stock": compiled(keras.Model), **few} | {
            method.method: compiled(ours, balancing=method(solve="running"))
            for method in methods
        }
    return {
        "floor": compiled(Floor),
        "stock": compiled(keras.Model),
        REPRESENTATION: compiled(ours, balancing=at_boundary),
        BY_TASK: compiled(ours, balancing="equal", on_nonfinite="skip_task"),
    } | {name: compiled(ours, balancing=name) for name in gram_methods(len(tasks))}


def steppers(
    tasks: list[str], by_name: dict[str, keras.Model]
) -> dict[str, Callable[[], float]]:
    """Returns functions that take one step, traced, and return its seconds."""
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(BATCH, *SHAPE)), "float32")
    y = {task: tf.constant(rng.integers(0, 10, BATCH)) for task in tasks}
    data = tf.data.Dataset.from_tensors((x, y)).repeat()

    def stepper(model: keras.Model) -> Callable[[], float]:
        iterator = iter(data)

        def step() -> float:
            start = CLOCK()
            logs = model.train_function(iterator)
            float(logs["loss"])
            return CLOCK() - start

        step()
        step()
        return step

    return {name: stepper(model) for name, model in by_name.items()}


def measure(num_tasks: int, by_name: dict[str, Callable[[], float]]) -> dict:
    """Times all models in turns."""
    rng = np.random.default_rng(0)
    names = list(by_name)
    times: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    while time.perf_counter() - start < SECONDS or len(times["stock"]) < ROUNDS:
        for name in names:
            times[name].append(by_name[name]())
        # Another order every round, as one model's leavings burden the next.
        rng.shuffle(names)
    rows = []
    for name, values in times.items():
        against = BY_TASK if XLA else "floor"
        if RUNNING or name in (REPRESENTATION, "stock", BY_TASK):
            against = "stock"
        elif name == "floor":
            against = name
        base = np.array(times[against])
        low, high = np.quantile(np.array(values) / base, [0.25, 0.75])
        rows.append(
            {
                "model": name,
                "ms": {
                    key: 1e3 * float(np.quantile(values, q))
                    for key, q in (("median", 0.5), ("low", 0.25), ("high", 0.75))
                },
                "against": against,
                "against_ms": 1e3 * float(np.median(base)),
                "ratio": float(np.median(values) / np.median(base)),
                "ratio_quartiles": [float(low), float(high)],
            }
        )
    return {
        "tasks": num_tasks,
        "made_with": made_with(),
        "clock": CLOCK.__name__,
        "steps_each": len(times["stock"]),
        "rows": rows,
    }


def hlo(model: keras.Model, batch: tuple, implementation: str) -> dict[str, int]:
    """Counts what XLA gets to compile for a step: instructions, loops, calls."""
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    with mtl_keras.ops.implementation(implementation):
        text = step.experimental_get_compiler_ir(batch)(stage="hlo")
    return {
        "instructions": len(re.findall(r"^ +(?:ROOT )?%?[\w.-]+ = ", text, re.M)),
        "loops": text.count(" while("),
        "custom_calls": text.count('custom_call_target="mtl_keras_'),
    }


def add_hlo(result: dict) -> None:
    """Adds to the rows of the models, or makes them, what XLA gets to compile."""
    tasks = [f"task_{i}" for i in range(result["tasks"])]
    y = {task: tf.zeros((BATCH,), "int64") for task in tasks}
    batch = (tf.zeros((BATCH, *SHAPE)), y)
    rows = {row["model"]: row for row in result["rows"]}
    for name, model in models(tasks).items():
        if name not in rows:
            result["rows"].append(rows.setdefault(name, {"model": name}))
        row = rows[name]
        model.optimizer.build(model.trainable_variables)
        model.train_step(batch)  # Creates what is left of its variables.
        row["hlo"] = hlo(model, batch, "auto")
        row["hlo_tensorflow"] = hlo(model, batch, "tensorflow")


def table(result: dict) -> str:
    lines = ["| model | ms | ratio | against |", "|---|---|---|---|"]
    if XLA:
        lines[0] += " HLO with TensorFlow's solvers | with calls | loops | with calls |"
        lines[1] += "---|---|---|---|"
    for row in result["rows"]:
        if "ms" in row:
            low, median, high = (row["ms"][key] for key in ("low", "median", "high"))
            first, third = row["ratio_quartiles"]
            times = f"{median:.1f} ({low:.1f}–{high:.1f}) | "
            times += f"{row['ratio']:.3f} ({first:.3f}–{third:.3f}) | {row['against']}"
        else:
            times = "– | – | –"
        lines.append(f"| {row['model']} | {times} |")
        if "hlo" in row:
            before, after = row["hlo_tensorflow"], row["hlo"]
            lines[-1] += f" {before['instructions']} | {after['instructions']} |"
            lines[-1] += f" {before['loops']} | {after['loops']} |"
    return "\n".join(lines)


def keep_rows(found: dict, earlier: dict) -> None:
    """Adds what is known of a number of tasks from earlier runs.

    That are the models that `--only` left out, and the HLO of the others.
    """
    known = {row["model"]: row for row in earlier["rows"]}
    for row in found["rows"]:
        old = known.pop(row["model"], {})
        row |= {name: old[name] for name in ("hlo", "hlo_tensorflow") if name in old}
    if ONLY:
        found["rows"] += known.values()


def write(path: pathlib.Path, results: dict) -> None:
    """Writes the results so far."""
    results |= {
        "command": f"python benchmarks/step.py{' --running' if RUNNING else ''}",
        "seed": 0,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    path.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    """Runs the comparison for the numbers of tasks on the command line, or all."""
    path = RESULTS_RUNNING if RUNNING else RESULTS
    results = json.loads(path.read_text()) if path.exists() else {}
    key = "resnet" if RESNET else "xla" if XLA else "runs"
    numbers = [int(word) for word in sys.argv[1:] if word.isdecimal()]
    if not numbers:
        numbers = [2, 8, 20] if XLA else [2, 4, 8]
    for num_tasks in numbers:
        tasks = [f"task_{i}" for i in range(num_tasks)]
        runs = {run["tasks"]: run for run in results.get(key, [])}
        if HLO:
            run = runs.get(num_tasks, {"tasks": num_tasks, "rows": []})
            add_hlo(run)
        else:
            run = measure(num_tasks, steppers(tasks, models(tasks)))
            keep_rows(run, runs.get(num_tasks, {"rows": []}))
        print(f"T = {num_tasks}, {run.get('steps_each', 0)} steps each")
        print(table(run), flush=True)
        runs[num_tasks] = run
        results[key] = [runs[number] for number in sorted(runs)]
        write(path, results)


if __name__ == "__main__":
    main()
