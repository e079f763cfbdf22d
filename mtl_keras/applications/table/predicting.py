"""Predictions for the rows of a file."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from mtl_keras.applications.table.application import Table
from mtl_keras.data.tables.arrow import pa, pa_csv, pc, pq
from mtl_keras.data.tables.description import TaskStats
from mtl_keras.data.tables.reading import FileReader, format_of
from mtl_keras.data.tables.samples import feature_values, read_image
from mtl_keras.data.tables.schema import Data, DataFile, Split
from mtl_keras.errors import InputError
from mtl_keras.files import atomic_write
from mtl_keras.pareto import PreferenceModel
from mtl_keras.pareto.model import PREFERENCE

_BATCH = 1_024


def predict_file(
    model: keras.Model,
    table: Table,
    source: str | os.PathLike,
    out: str | os.PathLike,
    preference: Mapping[str, float] | None = None,
) -> int:
    """Writes a file's rows with the model's predictions beside them.

    Each task adds columns: `TASK_prediction`, a number in the table's units or a
    class, and for classes `TASK_probability`, that of the positive or predicted one.

    Args:
        model: A model of the table's tasks.
        table: The table that it was trained on.
        source: A CSV, TSV or Parquet file with at least the columns of the features,
            read as the table's own files are.
        out: The file to write: Parquet by its name, else UTF-8 text, with the marks
            between cells and in numbers that the table has.
        preference: Of a `PreferenceModel`, the preference for all rows, `{task:
            number}`; None for the uniform one.

    Returns:
        The number of rows.

    Raises:
        InputError: If the file cannot be read, lacks a column or has another kind of
            values; or `out` cannot be written.
    """
    source, out = pathlib.Path(source).absolute(), pathlib.Path(out).absolute()
    # Rows to predict are in no split, and need no column for one.
    data = dataclasses.replace(table.file.data, files=source.name, split=Split())
    if (own := format_of(source)) is not None:
        data = dataclasses.replace(data, format=own)
    reader = FileReader(DataFile(source, data, {}, {}))
    reader.check(stats.title for stats in table.description.features.values())
    rows = 0
    try:
        with atomic_write(out) as temporary, contextlib.ExitStack() as opened:
            writer = None
            for batch in _predicted(model, table, reader, source.parent, preference):
                if format_of(out) != "parquet":
                    batch = _as_text(batch, reader.marks.decimal)
                if writer is None:
                    writer = _opened(temporary, out, data, batch.schema, opened)
                writer.write_table(batch)
                rows += len(batch)
            if writer is None:
                raise InputError(f"{source}: Expected rows. Received: none.")
    except OSError as error:
        raise InputError(
            f"{str(out)!r} cannot be written: {error.strerror}."
        ) from error
    return rows


def _opened(
    temporary: pathlib.Path,
    out: pathlib.Path,
    data: Data,
    schema: pa.Schema,
    opened: contextlib.ExitStack,
) -> pq.ParquetWriter | pa_csv.CSVWriter:
    """Returns a writer of the format that the name of `out` tells."""
    if format_of(out) == "parquet":
        return opened.enter_context(pq.ParquetWriter(str(temporary), schema))
    file = opened.enter_context(pa.output_stream(str(temporary), compression="detect"))
    delimiter = FileReader.delimiter_of(dataclasses.replace(data, format=None), out)
    options = pa_csv.WriteOptions(delimiter=delimiter)
    return opened.enter_context(pa_csv.CSVWriter(file, schema, write_options=options))


def _as_text(table: pa.Table, decimal: str) -> pa.Table:
    """Returns a table whose fractions are text with the given mark."""
    if decimal == ".":
        return table
    for index, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            text = table.column(index).cast(pa.string())
            text = pc.replace_substring(text, ".", decimal)
            table = table.set_column(index, field.name, text)
    return table


def _predicted(
    model: keras.Model,
    table: Table,
    reader: FileReader,
    folder: pathlib.Path,
    preference: Mapping[str, float] | None,
) -> Iterator[pa.Table]:
    features = table.description.features
    names = list(model.input)
    if isinstance(model, PreferenceModel):
        names.remove(PREFERENCE)
    for unit in reader.units:
        for chunk in reader.read(unit, reader.names):
            inputs = feature_values(chunk, features, folder)
            inputs = {name: inputs[name] for name in names}
            batches = tf.data.Dataset.from_tensor_slices(inputs).batch(_BATCH)
            for name in inputs:
                if features[name].kind == "image":
                    batches = batches.map(
                        lambda x, name=name: {**x, name: tf.map_fn(read_image, x[name])}
                    )
            if preference is not None:
                batches = batches.map(lambda x: model.with_preference(x, preference))
            answers = model.predict(batches, verbose=0)
            columns = dict(chunk.columns)
            for name, answer in _by_task(model, answers).items():
                columns |= _columns(table.description.tasks[name], answer)
            yield pa.table(columns)


def _by_task(
    model: keras.Model, answers: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns a model's answers by task: of a group each column, `[rows, 1]`."""
    groups = getattr(model, "columns", {})
    by_task: dict[str, np.ndarray] = {}
    for output, answer in answers.items():
        names = groups.get(output, (output,))
        parts = np.split(answer, len(names), axis=1) if output in groups else [answer]
        by_task |= dict(zip(names, parts, strict=True))
    return by_task


def _columns(task: TaskStats, answer: np.ndarray) -> Mapping[str, pa.Array]:
    """Returns the columns that a task adds, out of `[rows, 1]` or `[rows, classes]`."""
    if task.kind == "number":
        return {f"{task.title}_prediction": pa.array(answer[:, 0])}
    if task.kind == "binary":
        probability, index = answer[:, 0], (answer[:, 0] > 0.5).astype(int)
    else:
        probability, index = answer.max(axis=1), answer.argmax(axis=1)
    names = np.array(task.classes, object)[index]
    return {
        f"{task.title}_prediction": pa.array(names, pa.string()),
        f"{task.title}_probability": pa.array(probability),
    }
