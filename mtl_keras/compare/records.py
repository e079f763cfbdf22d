"""Results of a cell's training, checked when they are read."""

from __future__ import annotations

import dataclasses
import pathlib

from pydantic import StrictInt

from mtl_keras import sharing
from mtl_keras.compare.comparison import COMBINATION, Cell
from mtl_keras.decoding import Count, Decodable, Result, decode
from mtl_keras.errors import InputError
from mtl_keras.model.columns import MANY_TASKS
from mtl_keras.runs.records import Record, read_record
from mtl_keras.runs.results import metric_names


@dataclasses.dataclass(frozen=True)
class Measured(Decodable):
    """An epoch of `TaskAffinity.history`: matrices `[tasks, tasks]`."""

    epoch: StrictInt
    cosines: list[list[Result]]
    affinity: list[list[Result]]
    shared: list[list[Result]] | None = None


@dataclasses.dataclass(frozen=True)
class CellResult(Decodable):
    """Results of a cell's training; costs that are not known are NaN.

    Attributes:
        epoch: The chosen epoch, counted from 1.
        validation: `{task: main metric}` of that epoch on the validation split.
        validation_delta_m: Δm in percent on it; NaN of a cell that others are
            compared with.
        test: `{task: {metric: value}}` of that epoch on the test split.
        jobs: How many trainings shared the machine.
        history: `{name: value of each epoch}`, the logs of the training.
        affinity: Measurements of `TaskAffinity`; None of a cell that is no
            combination, or of many tasks.
    """

    epoch: Count
    validation: dict[str, Result]
    validation_delta_m: Result
    test: dict[str, dict[str, Result]]
    jobs: Count
    step_ms: Result
    step_cpu_ms: Result
    peak_memory_mb: Result
    peak_gpu_memory_mb: Result
    history: dict[str, list[Result]]
    affinity: list[Measured] | None


def measures_affinity(kind: str, tasks: tuple[str, ...]) -> bool:
    """Returns whether a training measures affinity, which takes T times as long."""
    return kind == COMBINATION and len(tasks) <= MANY_TASKS


def read_cell(path: pathlib.Path, cell: Cell) -> Record:
    """Reads the record of a cell; its result, where it has one, is a `CellResult`.

    Raises:
        InputError: If the file cannot be read, or is not of this cell's training.
    """
    record = read_record(path)
    if not record.completed:
        return record
    result = decode(CellResult, record.result, str(path))
    for key, is_right in _checks(cell, result).items():
        if not is_right:
            raise InputError(
                f"Expected {key!r} in {path} to be of {cell}: the comparison's folder "
                "is broken. Remove the file to train the cell again."
            )
    return dataclasses.replace(record, result=result)


def _checks(cell: Cell, result: CellResult) -> dict[str, bool]:
    """Returns whether each part of a result is one of this cell's training."""
    config = cell.config
    names = metric_names(config.get_application(), cell.tasks)
    trained = len(cell.tasks) - len(sharing.get(config.sharing).untrained(cell.tasks))
    lengths = {len(column) for column in result.history.values()}
    tables = [t for m in result.affinity or () for t in (m.cosines, m.affinity)]
    return {
        "epoch": result.epoch <= config.epochs,
        "validation": set(result.validation) == set(cell.tasks),
        "test": all(
            set(result.test.get(task, ())) >= set(own) for task, own in names.items()
        ),
        "history": len(lengths) == 1 and result.epoch <= max(lengths) <= config.epochs,
        "affinity": measures_affinity(cell.kind, cell.tasks)
        == (result.affinity is not None)
        and len(tables) in (0, *(2 * length for length in lengths))
        and all(
            len(table) == trained and all(len(row) == trained for row in table)
            for table in tables
        ),
    }
