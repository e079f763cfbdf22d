"""Digits seen, heard and written: fusion against single modalities, and with gaps.

    mtl-keras datasets prepare multimodal/paired --downloads DIR
    python benchmarks/multimodal_paired.py

Trains on `multimodal/paired`, where each modality is missing with a chance of 0.3:
one model for each way to fuse, and one for each modality that is shown this modality
alone. All are measured on `test_complete`, the fused ones also with a growing share
of its modalities taken away at random, never all of a sample's. Writes
benchmarks/results/multimodal_paired.json and docs/images/multimodal_paired.png.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections import defaultdict
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib

matplotlib.use("Agg")
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import mtl_keras
from mtl_keras.runs.records import versions

DATA = "multimodal/paired"
MODALITIES = ("image", "audio", "text")
NAMES = {"image": "seen", "audio": "heard", "text": "written"}
SEEDS = range(3)
EPOCHS, BATCH = 12, 64
SHARES = [0, 1 / 6, 1 / 3, 1 / 2, 2 / 3]
ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "multimodal_paired.json"
PICTURE = ROOT / "docs" / "images" / "multimodal_paired.png"

application = mtl_keras.applications.get("multimodal").for_data(DATA)
defaults = application.defaults


def only(modality: str) -> Any:
    """Returns a function that empties the other modalities of a batch."""

    def empty_others(inputs: dict[str, Any], *rest: Any) -> tuple[Any, ...]:
        kept = {
            name: x if name == modality else tf.zeros_like(x)
            for name, x in inputs.items()
        }
        return kept, *rest

    return empty_others


def trained(fusion: str, modality: str | None, seed: int) -> keras.Model:
    """Trains a model for `digit`, on one modality or on all."""
    keras.utils.set_random_seed(seed)
    train = application.load(
        "train",
        batch_size=BATCH,
        tasks=["digit"],
        shuffle=True,
        seed=seed,
    )
    if modality:
        train = train.unbatch().map(only(modality))
        train = train.filter(lambda x, *_: has_content(x[modality])).cache()
        count = sum(1 for _ in train)
        train = train.apply(tf.data.experimental.assert_cardinality(count))
        train = train.shuffle(count, seed=seed).padded_batch(BATCH)
    model = application.build(backbone=fusion, tasks=["digit"], sharing="hard")
    decay = keras.optimizers.schedules.CosineDecay(
        defaults.learning_rate, len(train) * EPOCHS
    )
    model.compile(keras.optimizers.Adam(decay), loss=application.losses(["digit"]))
    model.fit(train, epochs=EPOCHS, shuffle=False, verbose=0)
    return model


def has_content(x: tf.Tensor) -> tf.Tensor:
    """Returns whether one sample's modality is there."""
    empty = tf.zeros_like(x)
    return tf.reduce_any(tf.not_equal(x, empty))


def gaps(samples: int, share: float, seed: int) -> np.ndarray:
    """Returns what to take away, bool `[samples, 3]`: exactly this share."""
    rng = np.random.default_rng(seed)
    gone = np.zeros((samples, 3), bool)
    left = round(share * gone.size)
    for place in rng.permutation(gone.size):
        sample, modality = divmod(int(place), 3)
        if left and gone[sample].sum() < 2:
            gone[sample, modality] = True
            left -= 1
    assert not left
    return gone


def accuracy(
    model: keras.Model, inputs: dict[str, np.ndarray], digit: np.ndarray, gone: Any
) -> float:
    """Returns the accuracy with modalities taken away, bool `[samples, 3]`."""
    given = {}
    for name, away in zip(MODALITIES, np.asarray(gone).T, strict=True):
        x = inputs[name].copy()
        x[away] = b"" if x.dtype == object else 0
        given[name] = x
    answers = np.concatenate(
        [
            model.predict_on_batch({k: v[i : i + 500] for k, v in given.items()})[
                "digit"
            ]
            for i in range(0, len(digit), 500)
        ]
    )
    return float(np.mean(answers.argmax(1) == digit))


def main() -> None:
    """Trains, measures, writes and draws."""
    test = application.load("test_complete", batch_size=10_000, tasks=["digit"])
    inputs, labels, _ = next(iter(test.as_numpy_iterator()))
    digit = labels["digit"]
    whole = np.zeros((len(digit), 3), bool)
    single: dict[str, list[float]] = defaultdict(list)
    fused: dict[str, list[list[float]]] = defaultdict(list)
    for seed in SEEDS:
        for modality in MODALITIES:
            model = trained("concat", modality, seed)
            away = np.tile([name != modality for name in MODALITIES], (len(digit), 1))
            single[NAMES[modality]].append(accuracy(model, inputs, digit, away))
            print(seed, modality, single[NAMES[modality]][-1], flush=True)
        for fusion in application.backbones:
            model = trained(fusion, None, seed)
            curve = [
                accuracy(model, inputs, digit, gaps(len(digit), share, seed))
                if share
                else accuracy(model, inputs, digit, whole)
                for share in SHARES
            ]
            fused[fusion].append(curve)
            print(seed, fusion, curve, flush=True)
            keras.utils.clear_session()
        write(single, fused, len(digit))
    draw(single, fused)


def write(
    single: dict[str, list[float]], fused: dict[str, list[list[float]]], samples: int
) -> None:
    """Writes all runs with mean and standard deviation over the seeds."""
    results = {
        "command": "python benchmarks/multimodal_paired.py",
        "versions": versions(),
        "epochs": EPOCHS,
        "test_samples": samples,
        "shares_missing": SHARES,
        "one_modality": {
            name: {"mean": np.mean(x), "std": np.std(x, ddof=1), "runs": x}
            for name, x in single.items()
        },
        "fused": {
            name: {
                "mean": np.mean(x, axis=0).tolist(),
                "std": np.std(x, axis=0, ddof=1).tolist(),
                "runs": x,
            }
            for name, x in fused.items()
        },
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def draw(single: dict[str, list[float]], fused: dict[str, list[list[float]]]) -> None:
    """Draws accuracy against the share of missing modalities."""
    figure, axes = plt.subplots(figsize=(6.4, 4))
    for name, runs in fused.items():
        mean, std = np.mean(runs, axis=0), np.std(runs, axis=0, ddof=1)
        axes.errorbar(SHARES, mean, std, marker="o", capsize=3, label=name)
    for (name, runs), style in zip(single.items(), (":", "--", "-."), strict=True):
        axes.axhline(
            float(np.mean(runs)), color="grey", linestyle=style, label=f"{name} alone"
        )
    axes.set_xlabel("share of missing modalities")
    axes.set_ylabel("accuracy of digit")
    axes.legend()
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
