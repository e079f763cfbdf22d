"""Tabular data sets, read in batches rather than example by example."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mtl_keras.data import catalog
from mtl_keras.data.preparation import check_split, prepare

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf


def stream(
    name: str,
    split: str,
    *,
    batch_size: int,
    columns: Iterable[str] | None = None,
    data_dir: str | os.PathLike | None = None,
) -> tf.data.Dataset:
    """Reads a split's TFRecord files batch by batch, in constant memory.

    For data sets whose features are all of fixed size. Parsing a batch at once is
    several times faster than `load`, which parses each example by itself.

    Args:
        name: One of `data.names()`.
        split: `"train"`, `"validation"` or `"test"`; no part of one.
        batch_size: Examples per batch; the last one may be smaller.
        columns: Features to read; `None` for all. Others are not parsed.
        data_dir: Folder of prepared data; `None` for the default one.

    Returns:
        Batches `{feature: [batch, ...]}` in the order of the files.

    Raises:
        InputError: The name or split is unknown, or the data set is not prepared
            and needs original files.
    """
    import tensorflow as tf

    prepare(name, data_dir=data_dir)
    builder = catalog.builder(name, data_dir)
    check_split(builder, split)
    spec = builder.info.features.tf_example_spec
    if columns is not None:
        spec = {name: spec[name] for name in columns}
    files = [os.fspath(path) for path in builder.info.splits[split].filepaths]
    return (
        tf.data.TFRecordDataset(files)
        .batch(batch_size)
        .map(
            lambda records: tf.io.parse_example(records, spec),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .prefetch(2)
    )


def read_table(
    name: str,
    split: str,
    *,
    columns: Iterable[str] | None = None,
    data_dir: str | os.PathLike | None = None,
) -> dict[str, np.ndarray]:
    """Reads a whole split into memory.

    Args:
        name: See `stream`.
        split: See `stream`.
        columns: See `stream`.
        data_dir: See `stream`.

    Returns:
        `{feature: [examples, ...]}`; text as bytes.

    Raises:
        InputError: As `stream`.
    """
    import numpy as np

    batches = list(
        stream(
            name, split, batch_size=8_192, columns=columns, data_dir=data_dir
        ).as_numpy_iterator()
    )
    return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
