"""Tables as Python names them: a data file, a table's file, or a data frame."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from mtl_keras.data.tables.proposal import propose_features, reading_of
from mtl_keras.data.tables.reading import FileReader, in_memory, of_frame
from mtl_keras.data.tables.schema import DataFile, make_data_file, read_data_file
from mtl_keras.data.tables.table import OpenTable
from mtl_keras.encoding import encode
from mtl_keras.errors import InputError


def open_source(
    source: Any,
    features: Mapping[str, Any] | None,
    tasks: Mapping[str, Any] | None,
    split: Mapping[str, Any] | None,
) -> tuple[DataFile, OpenTable | None]:
    """Returns a data file for a table, and the table where it is open already.

    Args:
        source: A data file (TOML); a CSV, TSV or Parquet file; a `pandas.DataFrame`
            or a `pyarrow.Table`.
        features: `{column: kind}`, or what a data file has in place of a kind; None
            takes all columns that are no task, of the kinds that they seem to be.
        tasks: `{column: kind}`, likewise, or `by`, `label` and `kind`.
        split: The values of `data.split` in a data file.

    Raises:
        InputError: If the source cannot be read, or arguments do not go with it.
    """
    is_path = isinstance(source, (str, os.PathLike))
    if is_path and os.fspath(source).lower().endswith(".toml"):
        if not (features is tasks is split is None):
            raise InputError(
                "Expected features, tasks and split in the data file. Received them "
                f"beside {os.fspath(source)!r}."
            )
        return read_data_file(source), None
    if not tasks:
        raise InputError(
            f"Expected tasks, {{column: kind}}, of a table. Received: tasks={tasks!r}."
        )
    data: dict[str, Any] = {"files": "data frame"}
    path = pathlib.Path("data frame").absolute()
    if is_path:
        path = pathlib.Path(source).absolute()
        settings, _ = reading_of([path.name], path.parent)
        data = {k: v for k, v in encode(settings).items() if v is not None}
        file_reader = FileReader(DataFile(path, settings, {}, {}))
        reader = in_memory(file_reader, file_reader.names)
    else:
        reader = of_frame(source)
    if features is None:
        used = [tasks[key] for key in ("by", "label") if "by" in tasks]
        others = [*tasks, *used]
        features = propose_features(reader, others, split or {}, path.parent)
    values = {
        "data": {**data, **({"split": dict(split)} if split else {})},
        "features": dict(features),
        "tasks": dict(tasks),
    }
    file = make_data_file(values, path)
    reader.check(file.columns)
    return file, OpenTable(file, reader)
