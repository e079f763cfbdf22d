"""The report of a study: figures, as PNG too, and a page with its table of trials."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from mtl_keras.applications import label
from mtl_keras.callbacks.task_progress import duration
from mtl_keras.evaluation.plots import trade_off_figure
from mtl_keras.reports import figures
from mtl_keras.reports.rendering import write_html
from mtl_keras.search import records as reading
from mtl_keras.search.records import TrialRecord, finished, flat_settings, front_of
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
    shown: dict[str, Any] = {}
    if done:
        shown = {
            "trade_off": _trade_offs(study, done),
            "parallel": _parallel(study, done),
            "hypervolume": _hypervolume(study, done),
        }
    shown = {name: figure for name, figure in shown.items() if figure is not None}
    for name, figure in shown.items():
        figures.save_png(figure, out / f"{name}.png")
    tasks = study.application.tasks
    context = {
        "title": f"{label(study.base.application)} on {label(study.base.data)}",
        "study": study,
        "records": records,
        "front": front_of(records),
        "metrics": [f"{t}\n{tasks[t].objective}" for t in reading.shown_tasks(study)],
        "figures": [
            figures.chart(name, figure, name, above=_CAPTIONS[name])
            for name, figure in shown.items()
        ],
        "duration": duration,
        "flat_settings": flat_settings,
        "main_values": reading.main_values,
        "searched_settings": reading.searched_settings,
        "short": reading.short,
    }
    write_html(out / PAGE, "study.html", context)


def _trade_offs(study: Study, done: Sequence[TrialRecord]) -> Any:
    """Returns the objectives, or else the shown tasks' main metrics, in pairs."""
    tasks = {t: study.application.tasks[t] for t in reading.shown_tasks(study)}
    names = [f"{name} {task.objective}" for name, task in tasks.items()]
    directions = [task.direction for task in tasks.values()]
    points = [reading.main_values(study, record) for record in done]
    if len(study.objectives) > 1:
        names = [objective.label for objective in study.objectives]
        directions = [objective.direction for objective in study.objectives]
        points = [list(record.objectives.values()) for record in done]
    if len(names) < 2:
        return None
    grouping = [n for n in ("balancing", "sharing", "backbone") if n in study.searched]
    return trade_off_figure(
        points,
        names,
        directions,
        groups=_values(study, done, grouping[0]) if grouping else None,
        labels=[record.trial for record in done],
        title=f"{label(study.base.application)}: validation metrics of "
        f"{len(done)} trials",
    )


def _parallel(study: Study, done: Sequence[TrialRecord]) -> Any:
    searched = reading.searched_settings(study)
    columns = {name: _values(study, done, name) for name in searched}
    for name in done[0].objectives:
        columns[name] = [record.objectives[name] for record in done]
    front = front_of(done)
    return figures.parallel(
        {
            name.replace("loss_weight/", "weight\n").replace("_", "\n"): values
            for name, values in columns.items()
        },
        [record.score or 0.0 for record in done],
        [index for index, record in enumerate(done) if record in front],
        f"{label(study.base.application)}: {len(done)} trials",
    )


def _hypervolume(study: Study, done: Sequence[TrialRecord]) -> Any:
    if not 2 <= len(study.objectives) <= _MOST_OBJECTIVES:
        return None
    curve = reading.hypervolume_curve(done)
    return figures.steps(curve, "finished trials", "hypervolume")


def _values(study: Study, done: Sequence[TrialRecord], name: str) -> list[Any]:
    """Returns the trials' values of a setting, without arguments that are searched."""
    values = [flat_settings(record.config)[name] for record in done]
    options = getattr(study.space.get(name), "options", ())
    if any(option.arguments for option in options):
        return [str(value).split("(")[0] for value in values]
    return values
