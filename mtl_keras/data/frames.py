"""Data frames as data sets that `fit` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import tensorflow as tf


class Splits(NamedTuple):
    """Data sets of the splits of a table.

    Attributes:
        train: Batches of the training rows, in a new order in every pass.
        validation: Batches of the rows for validation.
        test: Batches of the rows for test.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset
    test: tf.data.Dataset


def from_dataframe(
    frame: Any,
    *,
    tasks: Mapping[str, Any] | None = None,
    features: Mapping[str, Any] | None = None,
    split: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Splits:
    """Returns the splits of a table as data sets that `fit` takes as they are.

    A batch is `(features, labels)`, or `(features, labels, sample weights)` where
    labels are missing, each a dictionary of tensors `[batch]`: features by column
    (float32 of numbers, NaN where missing; else strings, "" where missing), labels and
    float32 weights by task. A weight is 0 where the label is missing. Numbers are
    labels as they stand, `[batch, 1]`; a binary label is 1 for the later of two values;
    classes are numbered in order. Names that no layer can have are changed as
    `mtl_keras.applications.Table(...).summary()` tells.

    Args:
        frame: A `pandas.DataFrame` or `pyarrow.Table`; or a path, of a CSV, TSV or
            Parquet file, or of a data file, which says the rest.
        tasks: `{column: kind}`, kinds being `"number"`, `"binary"`, `"multiclass"`; or
            `{"by": column, "label": column, "kind": kind}`, where each row labels the
            task that a column names.
        features: `{column: kind}`, kinds being `"number"`, `"category"`, `"text"`,
            `"image"`, `"vector"`; None takes all columns that are no task, of the
            kinds that they seem to be.
        split: The values of `data.split` in a data file; None means 80, 10 and 10 % of
            the rows, at random.
        batch_size: Rows of a batch.
        seed: Seed of the order of the training rows.

    Raises:
        InputError: If the table cannot be read, or a column is not of its kind.
        MissingExtraError: Without the packages of the extra `tables`.

    Example:

    ```python
    import pandas as pd

    frame = pd.DataFrame({"x": range(100), "y": [0.5, None] * 50, "z": [0, 1] * 50})
    data = mtl_keras.data.from_dataframe(frame, tasks={"y": "number", "z": "binary"})
    features, labels, weights = next(iter(data.train))
    ```
    """
    from mtl_keras.data.tables.samples import Samples
    from mtl_keras.data.tables.schema import SPLITS
    from mtl_keras.data.tables.sources import open_source
    from mtl_keras.data.tables.table import open_table

    file, table = open_source(frame, features, tasks, split)
    table = table or open_table(file)
    return Splits(
        *(
            Samples(table, name, table.description.tasks).dataset(
                batch_size, shuffle=name == "train", seed=seed
            )
            for name in SPLITS
        )
    )
