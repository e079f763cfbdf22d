"""Checks of the arguments that methods take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from mtl_keras.errors import InputError, unknown_name

PerTask = Mapping[str, float] | Sequence[float]
"""Numbers by task: `{task: number}`, or one for each in the order of the tasks."""


def check_choice(argument: str, value: Any, choices: Sequence[str | None]) -> None:
    """Raises `InputError` unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(
            f"Expected `{argument}` to be one of {list(choices)}. "
            f"Received: {argument}={value!r}."
        )


def check_primary(primary: str | None, tasks: Sequence[str]) -> None:
    """Raises `InputError` unless `primary` is `None` or one of the tasks."""
    if primary is not None and primary not in tasks:
        raise unknown_name("primary task", primary, tasks)


def primary_index(primary: str | None, tasks: Sequence[str]) -> int:
    """Returns the index of the main task; 0 for `None`, and where tasks are unknown."""
    return tasks.index(primary) if primary in tasks else 0


def per_task(
    argument: str, values: PerTask, tasks: Sequence[str], default: float
) -> list[float]:
    """Returns one number per task from a dict or a list given by the user.

    Raises:
        InputError: For a task that does not exist, a list of another length, or an
            entry that is no finite number.
    """
    if isinstance(values, Mapping):
        for task in values:
            if task not in tasks:
                raise unknown_name(f"task in `{argument}`", task, tasks)
        entries = [values.get(task, default) for task in tasks]
    else:
        entries = list(values)
    if len(entries) != len(tasks):
        raise InputError(
            f"Expected `{argument}` to have one entry per task {list(tasks)}. "
            f"Received: {argument}={list(values)}."
        )
    for entry in entries:
        is_number = isinstance(entry, Real) and not isinstance(entry, bool)
        if not is_number or not math.isfinite(entry):
            raise InputError(
                f"Expected `{argument}` to have a finite number for each task. "
                f"Received: {argument}={values}."
            )
    return [float(entry) for entry in entries]


def preference_per_task(preference: PerTask, tasks: Sequence[str]) -> list[float]:
    """Returns a preference as one number per task; tasks left out of a dict count 0.

    Raises:
        InputError: As `per_task`, and for numbers that are negative or all zero.
    """
    values = per_task("preference", preference, tasks, 0.0)
    if min(values) < 0.0 or sum(values) <= 0.0:
        raise InputError(
            "Expected `preference` to be non-negative and not all zero. "
            f"Received: preference={preference}."
        )
    return values


def plain(values: PerTask) -> PerTask:
    """Returns numbers by task as a configuration holds them: a dict or a list."""
    return dict(values) if isinstance(values, Mapping) else list(values)
