"""Step time of a batch without its most expensive modality, against a full batch.

    python benchmarks/multimodal_absent.py

The default model on batches of 64 samples that have all three modalities, and on the
same batches with one modality taken away, in turns. `most_expensive` is the modality
whose absence saves most. Random input: nothing has to be prepared but the default
data, whose texts give the vocabulary. Writes
benchmarks/results/multimodal_absent.json.
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
from mtl_keras.runs.training import versions

ROUNDS, WARM_UP, BATCH = 40, 3, 64
MODALITIES = ("image", "audio", "text")
RESULTS = pathlib.Path(__file__).parent / "results" / "multimodal_absent.json"


def batches() -> dict[str, tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]]:
    """Returns a full batch, and one without each modality, by name."""
    rng = np.random.default_rng(0)
    words = ["good film", "bad film", "dull plot", "fine cast"]
    inputs = {
        "image": tf.constant(rng.integers(1, 256, (BATCH, 28, 28, 1)), "uint8"),
        "audio": tf.constant(rng.normal(0, 0.2, (BATCH, 8_000)), "float32"),
        "text": tf.constant([" ".join(rng.choice(words, 120)) for _ in range(BATCH)]),
    }
    labels = {
        "digit": tf.constant(rng.integers(0, 10, BATCH)),
        "speaker": tf.constant(rng.integers(0, 5, BATCH)),
        "even": tf.constant(rng.integers(0, 2, (BATCH, 1)), "float32"),
        "sentiment": tf.constant(rng.integers(0, 2, (BATCH, 1)), "float32"),
    }
    made = {"full": (inputs, labels)}
    for name in MODALITIES:
        made[f"without {name}"] = (
            {**inputs, name: tf.zeros_like(inputs[name])},
            labels,
        )
    return made


def main() -> None:
    """Runs the comparison."""
    keras.utils.set_random_seed(0)
    application = mtl_keras.applications.get("multimodal")
    model = application.build()
    model.compile("adam", loss=application.losses())
    model.make_train_function()
    iterators = {
        name: iter(tf.data.Dataset.from_tensors(batch).repeat())
        for name, batch in batches().items()
    }
    times: dict[str, list[float]] = {name: [] for name in iterators}
    for round_ in range(ROUNDS + WARM_UP):
        for name in list(times)[:: 1 if round_ % 2 else -1]:
            start = time.perf_counter()
            float(model.train_function(iterators[name])["loss"])
            if round_ >= WARM_UP:
                times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    without = {name: medians[f"without {name}"] for name in MODALITIES}
    cheapest = min(without, key=without.__getitem__)
    result = {
        "command": "python benchmarks/multimodal_absent.py",
        "versions": versions(),
        "batch_size": BATCH,
        "steps_each": ROUNDS,
        "median_ms": {name: 1e3 * value for name, value in medians.items()},
        "quartiles_ms": {
            name: [1e3 * float(q) for q in np.quantile(values, [0.25, 0.75])]
            for name, values in times.items()
        },
        "most_expensive": cheapest,
        "ratio_without_it": without[cheapest] / medians["full"],
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
