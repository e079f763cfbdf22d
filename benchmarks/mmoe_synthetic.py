"""MMoE against hard sharing on tasks of known relatedness.

    python benchmarks/mmoe_synthetic.py

The synthetic data of the MMoE paper at task correlations 0.5, 0.9 and 1.0, drawn anew
for every seed, and its models of equal size: 8 experts of 16 units, or a shared layer
of 113; towers of 8. Both train alike. Writes benchmarks/results/mmoe_synthetic.json
(test losses, mean and standard deviation over seeds) and
docs/images/mmoe_synthetic.png.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import mtl_keras
from mtl_keras.data.generated.mmoe_synthetic import WIDTH, draw_samples, draw_tasks
from mtl_keras.runs.records import versions

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mmoe_synthetic.json"
PICTURE = ROOT / "docs" / "images" / "mmoe_synthetic.png"
CORRELATIONS = (0.5, 0.9, 1.0)
TASKS = ("first", "second")
TRAIN, TEST, BATCH, LEARNING_RATE = 10_000, 5_000, 200, 5e-3
METHODS: dict[str, tuple[Any, int]] = {
    "hard": ("hard", 113),
    "mmoe": ({"class_name": "mmoe", "config": {"num_experts": 8}}, 16),
}


def build(method: str) -> mtl_keras.MultiTaskModel:
    """Returns a model of the paper's size."""
    sharing, units = METHODS[method]
    inputs = keras.Input((WIDTH,))
    stage = keras.layers.Dense(units, "relu", name="stage")
    features = mtl_keras.sharing.get(sharing)(inputs, [stage], TASKS)
    outputs = {}
    for task, x in features.items():
        tower = keras.layers.Dense(8, "relu", name=f"{task}_tower")(x)
        outputs[task] = keras.layers.Dense(1, name=task)(tower)
    return mtl_keras.MultiTaskModel(inputs, outputs)


def batches(x: np.ndarray, y: np.ndarray, shuffle: int | None) -> tf.data.Dataset:
    """Returns batches; `shuffle` is the seed of their order."""
    labels = {task: y[:, k : k + 1] for k, task in enumerate(TASKS)}
    data = tf.data.Dataset.from_tensor_slices((x, labels))
    if shuffle is not None:
        data = data.shuffle(len(x), seed=shuffle)
    return data.batch(BATCH)


def test_loss(method: str, correlation: float, seed: int, epochs: int) -> float:
    """Trains once; returns the mean of both tasks' squared errors on new samples."""
    rng = np.random.default_rng(seed)
    tasks = draw_tasks(correlation, rng)
    train, test = (draw_samples(tasks, count, rng) for count in (TRAIN, TEST))
    keras.utils.set_random_seed(seed)
    model = build(method)
    steps = epochs * TRAIN // BATCH
    decay = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    model.compile(
        keras.optimizers.Adam(decay), loss="mse", steps_per_execution=TRAIN // BATCH
    )
    model.fit(batches(*train, shuffle=seed), epochs=epochs, verbose=0, shuffle=False)
    predicted = model.predict(test[0], batch_size=TEST, verbose=0)
    errors = [predicted[t][:, 0] - test[1][:, k] for k, t in enumerate(TASKS)]
    return float(np.mean(np.square(errors)))


def draw(losses: dict[str, dict[str, list[float]]], target: pathlib.Path) -> None:
    """Draws mean and spread over the correlations, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for offset, (method, title) in enumerate(
        (("hard", "hard sharing"), ("mmoe", "MMoE, 8 experts"))
    ):
        for place, correlation in enumerate(losses):
            values = losses[correlation][method]
            x = place + 0.2 * (offset - 0.5)
            axis.plot([x] * len(values), values, ".", color=f"C{offset}", alpha=0.5)
            axis.errorbar(
                x,
                np.mean(values),
                np.std(values, ddof=1),
                fmt="o",
                capsize=4,
                color=f"C{offset}",
                label=title if place == 0 else None,
            )
    axis.set_xticks(range(len(losses)), losses)
    axis.set_xlabel("task correlation")
    axis.set_ylabel("test loss")
    axis.grid(alpha=0.25, axis="y")
    axis.legend()
    figure.savefig(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    losses: dict[str, dict[str, list[float]]] = {}
    for correlation in CORRELATIONS:
        found = losses.setdefault(str(correlation), {m: [] for m in METHODS})
        for seed in range(arguments.seeds):
            for method, values in found.items():
                values.append(test_loss(method, correlation, seed, arguments.epochs))
            print(correlation, seed, {m: round(v[-1], 4) for m, v in found.items()})
    report = {
        "command": "python benchmarks/mmoe_synthetic.py "
        f"--seeds {arguments.seeds} --epochs {arguments.epochs}",
        "versions": versions(),
        "parameters": {m: build(m).count_params() for m in METHODS},
        "seeds": list(range(arguments.seeds)),
        "test_loss": losses,
        "mean": {c: {m: np.mean(v) for m, v in f.items()} for c, f in losses.items()},
        "std": {
            c: {m: np.std(v, ddof=1) for m, v in f.items()} for c, f in losses.items()
        },
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    draw(losses, PICTURE)
    print(json.dumps({"mean": report["mean"], "std": report["std"]}))


if __name__ == "__main__":
    main()
