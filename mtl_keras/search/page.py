"""The report of a study: its table of trials and its figures."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_keras.reports.figures import svg
from mtl_keras.reports.rendering import write_html
from mtl_keras.runs.progress import duration
from mtl_keras.search.records import TrialRecord, flat_settings, front_of
from mtl_keras.search.study import Study
from mtl_keras.search.values import epochs, main_values, short, shown_tasks

# Captions of the figures, by the names of their files.
_ABOUT = {
    "trade_off": "Every trial in each pair of objectives or, with one objective, of "
    "the tasks' metrics. A line joins the front of the pair, a ring marks the front "
    "of all together.",
    "parallel": "Every trial as a line through its settings to its objectives: the "
    "more it stands out, the better; thick lines are those in bold above.",
    "hypervolume": "Hypervolume that the trials so far dominate.",
}


def write_page(
    study: Study,
    records: Sequence[TrialRecord],
    path: pathlib.Path,
    figures: Mapping[str, Any],
) -> None:
    """Writes the report of a study, one HTML file that loads nothing.

    Args:
        study: The study.
        records: Its trials, best first.
        path: The page. An existing file is replaced.
        figures: Matplotlib figures, by the names of their files without suffix.
    """
    application = study.application
    objectives = [objective.label for objective in study.objectives]
    tasks = [f"{t}\n{application.tasks[t].objective}" for t in shown_tasks(study)]
    settings = [flat_settings(record.config, short) for record in records]
    names = [
        name
        for name in dict.fromkeys(name for values in settings for name in values)
        if name in study.searched or name.startswith("loss_weight/")
    ]
    labels = [name.replace("/", "\n").replace("_", " ") for name in names]
    front = [record.trial for record in front_of(records)]
    context = {
        "title": f"{study.settings.application} on {study.base.data}",
        "introduction": _introduction(study, records),
        "heads": ["trial", *objectives, *tasks, *labels, "time"],
        "trials": [
            _row(study, record, [short(values.get(name, "")) for name in names], front)
            for record, values in zip(records, settings, strict=True)
        ],
        "figures": [
            {"above": _ABOUT[name], "svg": svg(figure, name)}
            for name, figure in figures.items()
        ],
    }
    write_html(path, "study.html", context)


def _introduction(study: Study, records: Sequence[TrialRecord]) -> str:
    failed = sum(not record.completed for record in records)
    objectives = ", ".join(o.label for o in study.objectives)
    several = len(study.objectives) > 1
    oracle = study.settings.oracle
    bold = "rows in bold are on the front" if several else "the best row is bold"
    return (
        f"{len(records)} trials of {epochs(study)} by {oracle} search for "
        f"{objectives} over {', '.join(study.searched)}; {failed} failed. Values are "
        f"those of the validation split; {bold}."
    )


def _row(
    study: Study, record: TrialRecord, settings: Sequence[str], front: Sequence[str]
) -> dict[str, Any]:
    """Returns a trial's row of the table, as the template takes it."""
    failed = not record.completed
    values = [""] * (len(study.objectives) + len(shown_tasks(study)))
    if not failed:
        numbers = [*record.objectives.values(), *main_values(study, record)]
        values = [f"{number:.4f}" for number in numbers]
    kind = "failed" if failed else "front" if record.trial in front else ""
    time = duration(record.seconds)
    return {
        "kind": kind,
        "cells": [record.trial, *values, *settings, time],
        "error": record.error if failed else "",
    }
