"""Preferences on the command line: the table of a front, and preferences as text."""

from __future__ import annotations

import json
import math
from typing import Any

from rich.console import Console

from mtl_keras import runs
from mtl_keras.encoding import encode
from mtl_keras.errors import InputError
from mtl_keras.pareto import Front
from mtl_keras.runs.results import by_task, metric_names
from mtl_keras_cli.text import plain_table

# Of more tasks the hypervolume takes long.
_MOST_TASKS = 5
_BEYOND = 1.1


def evaluate(run: runs.Run, *, as_json: bool, console: Console) -> None:
    """Prints a run's metrics at the uniform preference and at each task's own.

    And the hypervolume of the losses there, up to 1.1 times the largest of each task,
    where losses are positive and tasks few.
    """
    front = runs.front(run)
    names = metric_names(run.config.get_application(), run.config.tasks)
    metrics = [by_task(row, names) for row in front.results]
    volume = _hypervolume(front)
    if as_json:
        points = [
            {"preference": dict(zip(front.tasks, shares, strict=True)), "metrics": row}
            for shares, row in zip(front.preferences.tolist(), metrics, strict=True)
        ]
        print(json.dumps(encode({"preferences": points, **volume}), indent=2))
        return
    table = plain_table("test split", "metric")
    for head in ("uniform", *(f"{task} alone" for task in front.tasks)):
        table.add_column(head, justify="right")
    for task, values in metrics[0].items():
        for name in values:
            table.add_row(task, name, *(f"{row[task][name]:.4f}" for row in metrics))
    console.print(table)
    if volume:
        reference = ", ".join(f"{value:.4f}" for value in volume["reference"])
        console.print(
            f"Hypervolume of the losses up to ({reference}): "
            f"{volume['hypervolume']:.4g}",
            highlight=False,
        )


def _hypervolume(front: Front) -> dict[str, Any]:
    losses = front.points()
    if len(front.tasks) > _MOST_TASKS or not (losses > 0).all():
        return {}
    reference = (_BEYOND * losses.max(axis=0)).tolist()
    return {"hypervolume": front.hypervolume(reference), "reference": reference}


def read_preference(text: str) -> list[float]:
    """Returns a preference, numbers with commas between them.

    Raises:
        InputError: For anything else.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise InputError(
            "Expected --preference to be numbers with commas between them, such as "
            f"0.7,0.3. Received: {text!r}."
        )
    return values
