"""A study's results for people: the leaderboard, and all that `write` draws."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from mtl_keras.reports.figures import save_png
from mtl_keras.runs.progress import duration
from mtl_keras.search import page, plots
from mtl_keras.search.records import TrialRecord, flat_settings, front_of
from mtl_keras.search.study import Study
from mtl_keras.search.values import main_values, short, shown_tasks

PLOT = "trade_off.png"
PARALLEL = "parallel.png"
HYPERVOLUME = "hypervolume.png"
PAGE = "report.html"
FILES = (PLOT, PARALLEL, HYPERVOLUME, PAGE)


def leaderboard(study: Study, records: Sequence[TrialRecord], top: int = 10) -> Table:
    """Lays out the best trials, with the settings that differ between trials.

    With several objectives a star marks the trials on the front.

    Args:
        study: The study.
        records: Its trials, best first.
        top: How many trials to show.
    """
    application = study.application
    tasks = shown_tasks(study)
    shown = records[:top]
    settings = [flat_settings(record.config, short) for record in shown]
    names = [name for name in study.searched if name != "loss_weights"]
    weighted = "loss_weights" in study.searched
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right")
    objectives = [objective.label for objective in study.objectives]
    front = [record.trial for record in front_of(records)]
    for label in objectives:
        table.add_column(label.replace("_", "\n", 1), justify="right")
    for task in tasks:
        table.add_column(
            f"{task}\n{application.tasks[task].objective}", justify="right"
        )
    for name in names:
        table.add_column(name.replace("learning_rate", "learning\nrate"))
    if weighted:
        table.add_column("loss weights,\nas the tasks", no_wrap=True)
    table.add_column("time", justify="right")
    for record, values in zip(shown, settings, strict=True):
        failed = not record.completed
        starred = len(objectives) > 1 and record.trial in front
        row = [record.trial + ("*" if starred else "")]
        row += [
            "failed" if failed else f"{record.objectives[label]:.4f}"
            for label in objectives
        ]
        row += ["" if failed else f"{v:.4f}" for v in main_values(study, record)]
        row += [short(values[name]) for name in names]
        if weighted:
            row.append(" ".join(f"{values[f'loss_weight/{t}']:.2f}" for t in tasks))
        table.add_row(*row, duration(record.seconds))
    return table


def describe(study: Study, settings: dict[str, Any]) -> str:
    """Returns the searched settings of one trial in a few words."""
    parts = []
    for name in study.searched:
        if name == "loss_weights":
            pairs = [
                f"{key.removeprefix('loss_weight/')} {value:.2f}"
                for key, value in settings.items()
                if key.startswith("loss_weight/")
            ]
            parts.append("weights " + " ".join(pairs))
        else:
            parts.append(f"{name.replace('_', ' ')} {short(settings[name])}")
    return ", ".join(parts)


def outcome(study: Study, record: TrialRecord) -> str:
    """Returns how a finished trial went in a few words."""
    main = zip(shown_tasks(study), main_values(study, record), strict=True)
    metrics = ", ".join(f"{task} {value:.4f}" for task, value in main)
    score = ", ".join(f"{n} {v:.4f}" for n, v in record.objectives.items())
    return f"{score}; {metrics}" if metrics else score


def write(study: Study, records: Sequence[TrialRecord], out: pathlib.Path) -> None:
    """Draws the figures and the page, those of `FILES` that there is data for."""
    figures = {
        PLOT: plots.trade_offs(study, records),
        PARALLEL: plots.parallel(study, records),
        HYPERVOLUME: plots.hypervolume(records),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        save_png(figure, out / name)
    by_stem = {name.removesuffix(".png"): figure for name, figure in drawn.items()}
    page.write_page(study, records, out / PAGE, by_stem)
