"""The report of a study: figures, as PNG too, and a page with its table of trials."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from mtl_keras.callbacks.task_progress import duration
from mtl_keras.evaluation.plots import trade_off_figure
from mtl_keras.reports import figures
from mtl_keras.reports.rendering import write_html
from mtl_keras.search.records import (
    TrialRecord,
    finished,
    flat_settings,
    front_of,
    hypervolume_curve,
    main_values,
    objective_points,
    searched_settings,
    short,
    shown_tasks,
)
from mtl_keras.search.search_space import Components
from mtl_keras.search.study import Study

PAGE = "report.html"
# Captions of the figures, by their names without suffix.
_CAPTIONS = {
    "trade_off": "Every trial in each pair of objectives or, with one objective, of "
    "the tasks' metrics. A line joins the front of the pair, a ring marks the front "
    "of all together.",
    "parallel": "Every trial as a line through its settings to its objectives: the "
    "more it stands out, the better; thick lines are those in bold above.",
    "hypervolume": "Hypervolume that the trials so far dominate.",
}
FILES = (*(f"{name}.png" for name in _CAPTIONS), PAGE)
_MOST_OBJECTIVES = 5  # whose hypervolume is quick to compute


def write(study: Study, records: Sequence[TrialRecord], out: pathlib.Path) -> None:
    """Writes the page and the figures, those of `FILES` that there is data for."""
    done = finished(records)
    drawn = {
        "trade_off": _trade_offs(study, done),
        "parallel": _parallel(study, done),
        "hypervolume": _hypervolume(done),
    }
    shown = {name: figure for name, figure in drawn.items() if figure is not None}
    for name, figure in shown.items():
        figures.save_png(figure, out / f"{name}.png")
    application = study.application
    names = searched_settings(study)
    front = front_of(records)
    context = {
        "title": f"{study.settings.application} on {study.base.data}",
        "introduction": _introduction(study, records),
        "heads": [
            "trial",
            *(objective.label for objective in study.objectives),
            *(f"{t}\n{application.tasks[t].objective}" for t in shown_tasks(study)),
            *(name.replace("/", "\n").replace("_", " ") for name in names),
            "time",
        ],
        "trials": [
            {
                "kind": "" if record.completed else "failed",
                "cells": _cells(study, record, names),
                "error": record.error,
            }
            | ({"kind": "front"} if record in front else {})
            for record in records
        ],
        "figures": [
            figures.chart(name, figure, name, above=_CAPTIONS[name])
            for name, figure in shown.items()
        ],
    }
    write_html(out / PAGE, "study.html", context)


def _introduction(study: Study, records: Sequence[TrialRecord]) -> str:
    failed = sum(not record.completed for record in records)
    objectives = ", ".join(o.label for o in study.objectives)
    several = len(study.objectives) > 1
    bold = "rows in bold are on the front" if several else "the best row is bold"
    return (
        f"{len(records)} trials of {study.epochs} by {study.settings.oracle} search "
        f"for {objectives} over {', '.join(study.searched)}; {failed} failed. Values "
        f"are those of the validation split; {bold}."
    )


def _cells(study: Study, record: TrialRecord, names: Sequence[str]) -> list[str]:
    """Returns a trial's row of the table, without results if it failed."""
    results = [""] * (len(study.objectives) + len(shown_tasks(study)))
    if record.completed:
        numbers = [*record.objectives.values(), *main_values(study, record)]
        results = [f"{number:.4f}" for number in numbers]
    settings = flat_settings(record.config, short)
    shown = [short(settings.get(name, "")) for name in names]
    return [record.trial, *results, *shown, duration(record.seconds)]


def _trade_offs(study: Study, done: Sequence[TrialRecord]) -> Any:
    """Returns the objectives, or else the tasks' main metrics, against each other.

    None for fewer than two of them, many tasks, or without a finished trial.
    """
    application = study.application
    tasks = shown_tasks(study)
    names = [f"{task} {application.tasks[task].objective}" for task in tasks]
    directions = [application.tasks[task].direction for task in tasks]
    points = [main_values(study, record) for record in done]
    if len(study.objectives) > 1:
        names = [objective.label for objective in study.objectives]
        directions = [objective.direction for objective in study.objectives]
        points = [list(record.objectives.values()) for record in done]
    if len(names) < 2 or not done:
        return None
    grouping = [n for n in ("balancing", "sharing", "backbone") if n in study.searched]
    return trade_off_figure(
        points,
        names,
        directions,
        groups=_values(study, done, grouping[0]) if grouping else None,
        labels=[record.trial for record in done],
        title=f"{study.settings.application}: validation metrics of {len(done)} trials",
    )


def _parallel(study: Study, done: Sequence[TrialRecord]) -> Any:
    """Returns the trials as lines; None without a finished one."""
    if not done:
        return None
    columns = {name: _values(study, done, name) for name in searched_settings(study)}
    for label in done[0].objectives:
        columns[label] = [record.objectives[label] for record in done]
    front = front_of(done)
    return figures.parallel(
        {
            name.replace("loss_weight/", "weight\n").replace("_", "\n"): values
            for name, values in columns.items()
        },
        [record.score or 0.0 for record in done],
        [index for index, record in enumerate(done) if record in front],
        f"{study.settings.application}: {len(done)} trials",
    )


def _hypervolume(done: Sequence[TrialRecord]) -> Any:
    """Returns the hypervolume over trials; None unless there are several objectives."""
    if not done or not 2 <= objective_points(done).shape[1] <= _MOST_OBJECTIVES:
        return None
    return figures.steps(hypervolume_curve(done), "finished trials", "hypervolume")


def _values(study: Study, done: Sequence[TrialRecord], name: str) -> list[Any]:
    """Returns the trials' values of a setting, without arguments that are searched."""
    values = [flat_settings(record.config)[name] for record in done]
    dimension = study.space.dimensions.get(name)
    if not isinstance(dimension, Components):
        return values
    if any(component.arguments for component in dimension.values):
        return [str(value).split("(")[0] for value in values]
    return list(map(short, values))
