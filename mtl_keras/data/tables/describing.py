"""One pass over a table: its description, with warnings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mtl_keras.data.tables import labels as table_labels
from mtl_keras.data.tables.description import Description, FeatureStats, TaskStats
from mtl_keras.data.tables.leaks import Sample
from mtl_keras.data.tables.names import layer_names
from mtl_keras.data.tables.reading import Chunk, Reader, Unit
from mtl_keras.data.tables.schema import SPLITS, DataFile
from mtl_keras.data.tables.splits import Splitter
from mtl_keras.data.tables.statistics import Collector
from mtl_keras.errors import InputError


def count_rows(file: DataFile, reader: Reader) -> dict[Unit, int]:
    """Returns the number of rows of each unit.

    Raises:
        InputError: If a file is damaged or there is no row at all.
    """
    counts = {unit: reader.count(unit) for unit in reader.units}
    if not sum(counts.values()):
        raise InputError(f"{file.path}: Expected a table with rows. Received: none.")
    return counts


def split_chunks(
    file: DataFile, reader: Reader, splitter: Splitter, units: Sequence[Unit]
) -> Iterator[tuple[Chunk, np.ndarray]]:
    """Yields the chunks of units, each with the splits of its rows, int8 `[rows]`."""
    for unit in units:
        row = 0
        for chunk in reader.read(unit, file.columns):
            yield chunk, splitter.of(chunk, unit, row)
            row += len(chunk)


def describe(file: DataFile, reader: Reader) -> tuple[Description, Splitter]:
    """Returns the statistics of a table and its splits, from one pass over it.

    Args:
        file: The data file.
        reader: Reads its table.

    Returns:
        The description, and the splitter that assigns rows to splits.

    Raises:
        InputError: If a cell is not what its column's kind says, with file and row,
            or there is nothing to learn from.
    """
    counts = count_rows(file, reader)
    splitter = Splitter(file, reader, counts)
    counted = table_labels.tallies(file)
    collectors = [
        Collector(title, title, feature, file.path.parent)
        for title, feature in file.features.items()
    ]
    rows, unlabelled = np.zeros(len(SPLITS), int), np.zeros(len(SPLITS), int)
    sample = Sample(file)
    for chunk, splits in split_chunks(file, reader, splitter, reader.units):
        owner = table_labels.owners(file, chunk)
        labelled = np.zeros(len(chunk), bool)
        for tally in counted:
            _, present = tally.add(chunk, splits, owner)
            labelled |= present if owner is None else present & (owner != "")
        for collector in collectors:
            collector.add(chunk, splits == 0)
        rows += np.bincount(splits, minlength=len(SPLITS))
        unlabelled += np.bincount(splits[~labelled], minlength=len(SPLITS))
        sample.add(chunk, splits == 0)
    for split, count in zip(SPLITS, rows - unlabelled, strict=True):
        if not count:
            column = file.data.split.group or file.data.split.time
            why = f": rows with one {column!r} stay together" if column else ""
            raise InputError(
                f"{file.path}: Expected rows with labels for {split}. Received: none "
                f"of {rows.sum():,} rows; see data.split{why}."
            )
    tasks = _tasks(file, counted)
    features = _features(collectors, tasks)
    empty = [t for t, f in features.items() if f.missing >= rows[0]]
    warnings = [
        f"{features[name].title!r} is empty in all training rows: it is no input."
        for name in empty
    ]
    features = {name: f for name, f in features.items() if name not in empty}
    if not features:
        raise InputError(
            f"{file.path}: Expected a feature with values in the training rows. "
            "Received: empty cells only."
        )
    return (
        Description(
            rows=dict(zip(SPLITS, rows.tolist(), strict=True)),
            unlabelled=dict(zip(SPLITS, unlabelled.tolist(), strict=True)),
            features=features,
            tasks=tasks,
            unit_rows=tuple(counts.values()),
            bounds=tuple(splitter.bounds.tolist()),
            warnings=(
                *warnings,
                *_feature_warnings(features, int(rows[0])),
                *_task_warnings(tasks),
                *sample.warnings(),
            ),
        ),
        splitter,
    )


def _tasks(file: DataFile, counted: list[table_labels.Tally]) -> dict[str, TaskStats]:
    names = table_labels.task_names(file, counted)
    if len(counted) == 1:
        return counted[0].results(names)
    return {
        name: stats
        for tally in counted
        for name, stats in tally.results({tally.column: names[tally.column]}).items()
    }


def _features(
    collectors: list[Collector], tasks: dict[str, TaskStats]
) -> dict[str, FeatureStats]:
    collected = [collector.result() for collector in collectors]
    names = layer_names([stats.title for stats in collected], tasks)
    return {
        names[stats.title]: dataclasses.replace(stats, name=names[stats.title])
        for stats in collected
    }


def _feature_warnings(features: dict[str, FeatureStats], rows: int) -> Iterator[str]:
    for stats in features.values():
        title = stats.title
        if stats.kind == "number" and stats.low == stats.high and not stats.missing:
            yield f"{title!r} is {stats.low:g} in all training rows."
        elif stats.kind == "category" and stats.distinct == 1 and not stats.missing:
            yield f"{title!r} is {stats.vocabulary[0]!r} in all training rows."
        elif stats.kind == "category" and (stats.distinct or 0) > 1:
            if stats.distinct == rows - stats.missing:
                yield (
                    f"{title!r} has another value in every row: nothing can be learnt "
                    "from it as a category."
                )
            elif (stats.distinct or 0) > len(stats.vocabulary):
                yield (
                    f"{title!r} has {stats.distinct:,} values; all but the "
                    f"{len(stats.vocabulary):,} most frequent share one."
                )


def _task_warnings(tasks: dict[str, TaskStats]) -> Iterator[str]:
    for stats in tasks.values():
        for split in SPLITS[1:]:
            if not stats.labels[split]:
                yield f"The task {stats.title!r} has no labels in {split}."
        for split in SPLITS if stats.classes else ():
            if not stats.labels[split]:
                continue
            lacking = [
                name
                for name, count in zip(stats.classes, stats.counts[split], strict=True)
                if not count
            ]
            if lacking:
                names = ", ".join(map(repr, lacking[:5]))
                more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
                yield f"The task {stats.title!r} lacks {names}{more} in {split}."
        if stats.kind == "number" and stats.low == stats.high:
            yield f"The task {stats.title!r} is {stats.low:g} in every row."
