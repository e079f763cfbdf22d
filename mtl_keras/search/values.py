"""Values of a trial, as its reports show them."""

from __future__ import annotations

import math
from typing import Any

from mtl_keras.search.records import Record
from mtl_keras.search.study import Study


def main_values(study: Study, record: Record) -> list[float]:
    """Returns the tasks' main metrics of a trial, NaN for a failed one."""
    application = study.base_config().get_application()
    values = []
    for task in study.tasks or ():
        value = record["metrics"].get(task, {}).get(application.tasks[task].objective)
        values.append(math.nan if value is None else value)
    return values


def epochs(study: Study) -> str:
    """Says how many epochs a trial has."""
    return f"{study.epochs} epoch{'s' if study.epochs > 1 else ''}"


def short(value: Any) -> str:
    """Writes a setting's value."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
