"""Step time of `balancing="equal"` against a stock Keras model, in one run.

    python benchmarks/equal_step.py

LeNet on 36×36 images, batch 256, two tasks, Adam. The two models take turns in
short rounds, so that a slow minute of the machine hits both; the ratio is that of
the medians over all steps. Writes benchmarks/results/equal_step.json.
"""

from __future__ import annotations

import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import mtl_keras
from mtl_keras.runs.records import made_with

ROUNDS, STEPS, BATCH = 60, 10, 256
RESULTS = pathlib.Path(__file__).parent / "results" / "equal_step.json"


def lenet() -> tuple[keras.KerasTensor, dict[str, keras.KerasTensor]]:
    """Returns inputs and the outputs of two classification tasks."""
    image = keras.Input((36, 36, 1))
    x = keras.layers.Conv2D(10, 5, activation="relu")(image)
    x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Conv2D(20, 5, activation="relu")(x)
    x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Dense(50, "relu")(keras.layers.Flatten()(x))
    return image, {
        task: keras.layers.Dense(10, "softmax", name=task)(x)
        for task in ("left", "right")
    }


def compiled(cls: type[keras.Model]) -> keras.Model:
    """Returns a compiled model that has been traced."""
    keras.utils.set_random_seed(0)
    model = cls(*lenet())
    model.compile("adam", loss="sparse_categorical_crossentropy")
    model.make_train_function()
    return model


def main() -> None:
    """Runs the comparison."""
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(BATCH, 36, 36, 1)), "float32")
    y = {task: tf.constant(rng.integers(0, 10, BATCH)) for task in ("left", "right")}
    data = tf.data.Dataset.from_tensors((x, y)).repeat()
    models = {
        "stock": compiled(keras.Model),
        "equal": compiled(mtl_keras.MultiTaskModel),
    }
    iterators = {name: iter(data) for name in models}
    times: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(ROUNDS + 2):
        for name in list(models)[:: 1 if round_ % 2 else -1]:
            for _ in range(STEPS):
                start = time.perf_counter()
                logs = models[name].train_function(iterators[name])
                float(logs["loss"])
                if round_ >= 2:
                    times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    result = {
        "command": "python benchmarks/equal_step.py",
        "made_with": made_with(),
        "steps_each": ROUNDS * STEPS,
        "median_ms": {name: 1e3 * value for name, value in medians.items()},
        "quartiles_ms": {
            name: [1e3 * float(q) for q in np.quantile(values, [0.25, 0.75])]
            for name, values in times.items()
        },
        "ratio_of_medians": medians["equal"] / medians["stock"],
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
