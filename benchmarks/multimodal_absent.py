"""Step time of a batch without its most expensive modality, against a full batch.

    python benchmarks/multimodal_absent.py
    mtl-keras datasets prepare multimodal/unpaired --downloads DIR
    python benchmarks/multimodal_absent.py --data multimodal/unpaired

The default model on batches of 64 samples that have all three modalities, put
together from training samples that have one each, and on the same batches with one
modality taken away, in turns. `most_expensive` is the modality whose absence saves
most. Adds to benchmarks/results/multimodal_absent.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from mtl_keras.applications import Multimodal
from mtl_keras.runs.records import versions

ROUNDS, WARM_UP, BATCH = 40, 3, 64
MODALITIES = ("image", "audio", "text")
RESULTS = pathlib.Path(__file__).parent / "results" / "multimodal_absent.json"


def samples(application: Multimodal) -> dict[str, tf.Tensor]:
    """Returns the first samples of the training split that have each modality."""
    found: dict[str, list[tf.Tensor]] = {name: [] for name in MODALITIES}
    for inputs, *_ in application.load("train", batch_size=1):
        for name, rows in found.items():
            value = inputs[name][0]
            empty = tf.zeros_like(value)
            if len(rows) < BATCH and bool(tf.reduce_any(tf.not_equal(value, empty))):
                rows.append(value)
        if all(len(rows) == BATCH for rows in found.values()):
            break
    found["audio"] = list(tf.ragged.stack(found["audio"]).to_tensor())
    return {name: tf.stack(rows) for name, rows in found.items()}


def batches(inputs: dict[str, tf.Tensor]) -> dict[str, Any]:
    """Returns a full batch, and one without each modality, by name."""
    rng = np.random.default_rng(0)
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
    """Runs the comparison on one data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=Multimodal.default_data)
    data = parser.parse_args().data
    keras.utils.set_random_seed(0)
    application = Multimodal(data)
    model = application.build()
    model.compile("adam", loss=application.losses())
    model.make_train_function()
    iterators = {
        name: iter(tf.data.Dataset.from_tensors(batch).repeat())
        for name, batch in batches(samples(application)).items()
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
        "command": f"python benchmarks/multimodal_absent.py --data {data}",
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
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**results, data: result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
