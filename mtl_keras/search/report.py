"""A study's results for people: the leaderboard and the trade-off plot."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from mtl_keras.evaluation.plots import trade_off
from mtl_keras.runs.progress import duration
from mtl_keras.search.architectures import Architectures
from mtl_keras.search.records import PLOT, Record, flat_settings
from mtl_keras.search.study import Study


def main_values(study: Study, record: Record) -> list[float]:
    """Returns the tasks' main metrics of a trial, NaN for a failed one."""
    application = study.base_config().get_application()
    values = []
    for task in study.tasks or ():
        value = record["metrics"].get(task, {}).get(application.tasks[task].objective)
        values.append(math.nan if value is None else value)
    return values


def leaderboard(study: Study, records: Sequence[Record], top: int = 10) -> Table:
    """Lays out the best trials, with the settings that differ between trials.

    Args:
        study: The study.
        records: Its trials, best first.
        top: How many trials to show.
    """
    application = study.base_config().get_application()
    tasks = list(study.tasks or ())
    shown = records[:top]
    settings = [flat_settings(record) for record in shown]
    names = [name for name in study.searched if name != "loss_weights"]
    weighted = "loss_weights" in study.searched
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right")
    table.add_column("score", justify="right")
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
        failed = record["score"] is None
        row = [record["trial"], "failed" if failed else f"{record['score']:.4f}"]
        row += ["" if failed else f"{v:.4f}" for v in main_values(study, record)]
        row += [_short(values[name]) for name in names]
        if weighted:
            row.append(" ".join(f"{values[f'loss_weight/{t}']:.2f}" for t in tasks))
        table.add_row(*row, duration(record["seconds"]))
    return table


def describe(study: Study, settings: dict[str, Any]) -> str:
    """Returns the searched settings of one trial in a few words."""
    words = []
    for name in study.searched:
        if name == "loss_weights":
            pairs = [
                f"{key.removeprefix('loss_weight/')} {value:.2f}"
                for key, value in settings.items()
                if key.startswith("loss_weight/")
            ]
            words.append("weights " + " ".join(pairs))
        else:
            words.append(f"{name.replace('_', ' ')} {_short(settings[name])}")
    return ", ".join(words)


def plot(study: Study, records: Sequence[Record], out: pathlib.Path) -> str | None:
    """Draws `trade_off.png`; returns its path, or None with nothing to draw."""
    application = study.base_config().get_application()
    tasks = list(study.tasks or ())
    finished = [record for record in records if record["score"] is not None]
    if len(tasks) < 2 or not finished:
        return None
    by = next(
        (n for n in ("balancing", "sharing", "backbone") if n in study.searched), None
    )
    path = trade_off(
        [main_values(study, record) for record in finished],
        [f"{task} {application.tasks[task].objective}" for task in tasks],
        [application.tasks[task].direction for task in tasks],
        out / PLOT,
        groups=[_group(study, flat_settings(r)[by], by) for r in finished]
        if by
        else None,
        labels=[str(record["trial"]) for record in finished],
        title=f"{study.application}: validation metrics of {len(finished)} trials",
    )
    return str(path)


def _group(study: Study, value: Any, name: str) -> str:
    """Returns the name of a setting's value, without arguments that are searched."""
    searched = isinstance(study.space[name], Architectures)
    return _short(value).split("(")[0] if searched else _short(value)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
