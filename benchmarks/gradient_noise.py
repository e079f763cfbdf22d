"""Rounding errors of task gradients, by model, batch and dtype.

    python benchmarks/gradient_noise.py

Two tasks share a dense, a convolutional, an embedding or a recurrent model; a third
loss is the mean of theirs, so that its gradient is exactly the mean of the two. For
each dtype, at the start and after training on the very batch (when the samples'
gradients cancel most), over the shared variables: how far the gradients are from those
in float64 (`error`, relative to their norms), how far the third is from the mean of the
first two (`defect`, relative to its norm), and how far the cosines, the entries of the
Gram matrix of unit gradients, are from float64's (`cosine`). `noise` is what the
solvers take for the dtype (`noise_of`). Writes benchmarks/results/gradient_noise.json.
"""

from __future__ import annotations

import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from mtl_keras.ops import solvers
from mtl_keras.runs.records import made_with

RESULTS = pathlib.Path(__file__).parent / "results" / "gradient_noise.json"
# Compute dtypes with their spacing at 1. Variables are float32 but for float64.
DTYPES = {
    "float32": 2.0**-23,
    "mixed_float16": 2.0**-10,
    "mixed_bfloat16": 2.0**-7,
}
STEPS = 100
MODELS = {
    "dense 32": lambda: (keras.Input((16,)), dense(2, 32)),
    "dense 256": lambda: (keras.Input((16,)), dense(4, 256)),
    "conv": lambda: (keras.Input((16, 16, 1)), conv()),
    "embedding": lambda: (keras.Input((12,), dtype="int32"), tokens("mean")),
    "gru": lambda: (keras.Input((12,), dtype="int32"), tokens("gru")),
}
BATCHES = (16, 256)


def dense(depth: int, width: int) -> list[keras.layers.Layer]:
    """Returns the shared layers of a perceptron."""
    return [keras.layers.Dense(width, "relu") for _ in range(depth)]


def conv() -> list[keras.layers.Layer]:
    """Returns the shared layers of a small convolutional net."""
    return [
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dense(32, "relu"),
    ]


def tokens(kind: str) -> list[keras.layers.Layer]:
    """Returns the shared layers of a text model."""
    pooled = {"mean": keras.layers.GlobalAveragePooling1D, "gru": keras.layers.GRU}
    arguments = {"mean": {}, "gru": {"units": 32}}
    embedding = keras.layers.Embedding(1000, 32)
    return [embedding, pooled[kind](**arguments[kind]), *dense(1, 32)]


def built(name: str, policy: str) -> tuple[keras.Model, list[keras.Variable]]:
    """Returns a model of two outputs, and its shared variables."""
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    inputs, layers = MODELS[name]()
    x = inputs
    for layer in layers:
        x = layer(x)
    dtype = "float64" if policy == "float64" else "float32"
    outputs = [
        keras.layers.Dense(5, dtype=dtype)(x),
        keras.layers.Dense(1, dtype=dtype)(x),
    ]
    model = keras.Model(inputs, outputs)
    keras.config.set_dtype_policy("float32")
    return model, [v for layer in layers for v in layer.trainable_variables]


def batch_of(model: keras.Model, size: int) -> tuple[np.ndarray, np.ndarray, tf.Tensor]:
    """Returns inputs, class ids and numbers, which depend on the inputs in part."""
    rng = np.random.default_rng(0)
    shape = (size, *model.inputs[0].shape[1:])
    if model.inputs[0].dtype == "int32":
        x = rng.integers(0, 1000, shape)
    else:
        x = rng.normal(size=shape).astype("float32")
    signal = np.sin(x.reshape(size, -1)[:, :4]).sum(axis=1)
    ids = np.digitize(signal, [-1.5, -0.5, 0.5, 1.5])
    return x, ids, (signal + 0.3 * rng.normal(size=size)).astype("float32")


def losses(model: keras.Model, batch: tuple) -> list[tf.Tensor]:
    """Returns the two tasks' losses and their mean."""
    x, ids, numbers = batch
    logits, guess = model(x, training=True)
    first = tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=logits)
    )
    second = tf.reduce_mean((guess[:, 0] - tf.cast(numbers, guess.dtype)) ** 2)
    return [first, second, (first + second) / 2]


def gradients(
    model: keras.Model, shared: list[keras.Variable], batch: tuple, scale: float
) -> np.ndarray:
    """Returns the three losses' gradients on the shared variables, `[3, P]`."""
    with tf.GradientTape(persistent=True) as tape:
        values = [loss * scale for loss in losses(model, batch)]
    rows = [
        [
            tf.reshape(tf.convert_to_tensor(g), [-1]).numpy().astype("float64")
            for g in tape.gradient(value, [v.value for v in shared])
        ]
        for value in values
    ]
    return np.array([np.concatenate(row) for row in rows]) / scale


def compared(actual: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Returns the relative errors of the gradients, as described above."""

    def cosines(rows: np.ndarray) -> np.ndarray:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit @ unit.T

    lengths = np.linalg.norm(expected, axis=1)
    error = np.linalg.norm(actual - expected, axis=1) / lengths
    defect = np.linalg.norm(actual[2] - (actual[0] + actual[1]) / 2)
    return {
        "error": float(error.max()),
        "defect": float(defect / np.linalg.norm(actual[2])),
        "cosine": float(np.abs(cosines(actual) - cosines(expected)).max()),
    }


def trained(model: keras.Model, batch: tuple) -> None:
    """Takes Adam's steps on one batch."""
    optimizer = keras.optimizers.Adam(3e-3)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = losses(model, batch)[2]
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    for _ in range(STEPS):
        step()


def measured(name: str, weights: list, batch: tuple, steps: int) -> list[dict]:
    """Returns the errors of a model with these weights, by dtype."""
    exact, shared = built(name, "float64")
    exact.set_weights(weights)
    expected = gradients(exact, shared, batch, 1.0)
    results = []
    for dtype, spacing in DTYPES.items():
        model, shared = built(name, dtype)
        model.set_weights(weights)
        scale = 2.0**10 if dtype == "mixed_float16" else 1.0
        row = {
            "model": name,
            "parameters": int(sum(np.prod(v.shape) for v in shared)),
            "batch": len(batch[0]),
            "steps": steps,
            "dtype": dtype,
            "noise": solvers.noise_of(spacing),
            **compared(gradients(model, shared, batch, scale), expected),
        }
        results.append(row)
        print(json.dumps(row), flush=True)
    return results


def main() -> None:
    """Measures all models, batches and dtypes."""
    results = []
    for name in MODELS:
        for size in BATCHES:
            model, _ = built(name, "float32")
            batch = batch_of(model, size)
            for steps in (0, STEPS):
                if steps:
                    trained(model, batch)
                results += measured(name, model.get_weights(), batch, steps)
    result = {
        "command": "python benchmarks/gradient_noise.py",
        "made_with": made_with(),
        "rows": results,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
