"""Pools of handwritten digits for scenes, and which split may use which."""

from __future__ import annotations

import os

import numpy as np
import tensorflow_datasets as tfds

from mtl_keras import optional
from mtl_keras.data.generated.scenes import Pool
from mtl_keras.data.sources import prepared

MNIST_VALIDATION = 5_000
"""Number of MNIST's training digits that are kept for validation scenes."""


def bundled_digits() -> dict[str, Pool]:
    """Splits scikit-learn's bundled handwritten digits into disjoint pools.

    1,797 digits of 8x8 pixels: 1,197 for training, 250 for validation and 350
    for testing, drawn without replacement from a fixed seed.

    Returns:
        `{split: Pool}` for `train`, `validation` and `test`.
    """
    with optional.extra("data", "scikit-learn", "The data set of bundled digits"):
        from sklearn.datasets import load_digits

    bundle = load_digits()
    # The original values are 0 to 16.
    images = np.round(bundle.images * (255 / 16)).astype(np.uint8)
    labels = bundle.target.astype(np.int64)
    order = np.random.default_rng(1797).permutation(len(images))
    parts = np.split(order, [len(order) - 600, len(order) - 350])
    return {
        split: Pool(images[part], labels[part])
        for split, part in zip(("train", "validation", "test"), parts, strict=True)
    }


def mnist_digits(data_dir: str | os.PathLike) -> dict[str, Pool]:
    """Splits MNIST, as TensorFlow Datasets prepared it, into disjoint pools.

    Args:
        data_dir: The folder that holds TensorFlow Datasets' prepared data.

    Returns:
        `{split: Pool}`: MNIST's own test digits for `test`; its training digits
        for `train`, less the last 5,000, which are for `validation`.

    Raises:
        InputError: MNIST is not prepared in `data_dir`.
    """
    made = "multi_digits/mnist"
    builder = prepared("mnist", data_dir, made=made, to_run=made)
    train = _read(builder, "train")
    held_out = len(train.labels) - MNIST_VALIDATION
    return {
        "train": Pool(train.images[:held_out], train.labels[:held_out]),
        "validation": Pool(train.images[held_out:], train.labels[held_out:]),
        "test": _read(builder, "test"),
    }


def _read(builder: tfds.core.DatasetBuilder, split: str) -> Pool:
    # One fixed order, whatever the number of files, so that pools never mix.
    config = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=config)
    batches = list(tfds.as_numpy(dataset.batch(5_000)))
    return Pool(
        np.concatenate([batch["image"][..., 0] for batch in batches]),
        np.concatenate([batch["label"] for batch in batches]),
    )
