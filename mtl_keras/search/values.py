"""Values of a trial, as its reports show them."""

from __future__ import annotations

import math
from typing import Any

from mtl_keras.model.columns import MANY_TASKS
from mtl_keras.search.records import TrialRecord
from mtl_keras.search.study import Study


def shown_tasks(study: Study) -> tuple[str, ...]:
    """Returns the tasks that are shown one by one: none where they are many."""
    return study.tasks if len(study.tasks) <= MANY_TASKS else ()


def main_values(study: Study, record: TrialRecord) -> list[float]:
    """Returns the shown tasks' main metrics of a trial, NaN for a failed one."""
    application = study.application
    values = []
    for task in shown_tasks(study):
        value = record.metrics.get(task, {}).get(application.tasks[task].objective)
        values.append(math.nan if value is None else value)
    return values


def epochs(study: Study) -> str:
    """Returns the number of epochs of a trial as text, such as `3 epochs`."""
    return f"{study.settings.epochs} epoch{'s' if study.settings.epochs > 1 else ''}"


def short(value: Any) -> str:
    """Returns a setting's value as short text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
