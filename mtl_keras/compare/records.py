"""A cell's record, checked when it is read: a folder may come from anywhere."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable
from typing import Any

from mtl_keras import sharing
from mtl_keras.compare.comparison import COMBINATION, SINGLE, Cell
from mtl_keras.errors import InputError
from mtl_keras.runs.folder import is_json_number, is_table, read_json
from mtl_keras.runs.results import metric_names

Record = dict[str, Any]
_COSTS = ("step_ms", "step_cpu_ms", "peak_memory_mb", "peak_gpu_memory_mb", "seconds")


def read_record(path: pathlib.Path, cell: Cell) -> Record:
    """Reads the record of a cell; null in place of a metric is NaN again.

    Args:
        path: `record.json` in the cell's folder.
        cell: The cell that it has to be of.

    Raises:
        InputError: If the file cannot be read, or does not hold what the cell's
            training would have written.
    """
    record = read_json(path)
    completed = record.get("status") == "COMPLETED"
    checks = _checks(cell) if completed else {"status": lambda v: v == "FAILED"}
    checks["error"] = lambda value: isinstance(value, str)
    for key, is_right in checks.items():
        if key not in record or not is_right(record[key]):
            raise InputError(
                f"Expected another {key!r} in {path}: the comparison's folder is "
                "broken or of another version. Remove the file to train the cell "
                f"again. Received: {str(record.get(key))!r:.100}."
            )
    if completed:
        for key in ("validation", "test", "history"):
            record[key] = _with_nan(record[key])
    return record


def _checks(cell: Cell) -> dict[str, Callable[[Any], bool]]:
    """Returns what each entry of a finished cell's record has to be."""
    config = cell.config
    names = metric_names(config.get_application(), cell.tasks)
    epochs = config.epochs
    assert epochs is not None
    trained = set(cell.tasks) - set(sharing.get(config.sharing).untrained(cell.tasks))

    def is_test(value: Any) -> bool:
        return is_table(value, _is_metrics) and all(
            set(value.get(task, ())) >= set(metrics) for task, metrics in names.items()
        )

    def is_history(value: Any) -> bool:
        return is_table(value, lambda column: _is_list(column, is_json_number, epochs))

    def is_affinity(value: Any) -> bool:
        if cell.kind != COMBINATION:
            return value is None
        return _is_list(value, lambda found: _is_measured(found, len(trained)), epochs)

    return {
        "epoch": lambda value: type(value) is int and 1 <= value <= epochs,
        "validation": lambda value: (
            _is_metrics(value) and set(value) == set(cell.tasks)
        ),
        "validation_delta_m": lambda value: (
            (cell.kind == SINGLE) == (value is None) and is_json_number(value)
        ),
        "test": is_test,
        "history": is_history,
        "affinity": is_affinity,
        "jobs": lambda value: type(value) is int and value >= 1,
        **dict.fromkeys(_COSTS, is_json_number),
    }


def _is_list(value: Any, is_right: Callable[[Any], bool], length: int) -> bool:
    return (
        isinstance(value, list) and len(value) == length and all(map(is_right, value))
    )


def _is_metrics(value: Any) -> bool:
    return is_table(value, is_json_number)


def _is_measured(found: Any, tasks: int) -> bool:
    """Whether this is an epoch of `TaskAffinity.history`."""

    def is_row(row: Any) -> bool:
        return _is_list(row, is_json_number, tasks)

    return isinstance(found, dict) and all(
        _is_list(found.get(key), is_row, tasks) for key in ("cosines", "affinity")
    )


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value
