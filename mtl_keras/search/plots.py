"""Figures of a study: objectives against each other, trials as lines, hypervolume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtl_keras import optional
from mtl_keras.evaluation.plots import trade_off_figure
from mtl_keras.reports.figures import new_figure, styled
from mtl_keras.search.records import (
    TrialRecord,
    finished,
    flat_settings,
    front_of,
    hypervolume_curve,
    objective_points,
)
from mtl_keras.search.search_space import Components
from mtl_keras.search.study import Study
from mtl_keras.search.values import main_values, short, shown_tasks

with optional.extra("plots", "matplotlib", "The report of a study"):
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

_MOST_OBJECTIVES = 5  # whose hypervolume is quick to compute


def trade_offs(study: Study, records: Sequence[TrialRecord]) -> Figure | None:
    """Returns the objectives, or else the tasks' main metrics, against each other.

    None for fewer than two of them, many tasks, or without a finished trial.
    """
    application = study.application
    tasks = shown_tasks(study)
    done = finished(records)
    names = [f"{task} {application.tasks[task].objective}" for task in tasks]
    directions = [application.tasks[task].direction for task in tasks]
    points = [main_values(study, record) for record in done]
    if len(study.objectives) > 1:
        names = [objective.label for objective in study.objectives]
        directions = [objective.direction for objective in study.objectives]
        points = [list(record.objectives.values()) for record in done]
    if len(names) < 2 or not done:
        return None
    by = next(
        (n for n in ("balancing", "sharing", "backbone") if n in study.searched), None
    )
    return trade_off_figure(
        points,
        names,
        directions,
        groups=[_group(study, flat_settings(r.config)[by], by) for r in done]
        if by
        else None,
        labels=[str(record.trial) for record in done],
        title=f"{study.settings.application}: validation metrics of {len(done)} trials",
    )


@styled
def parallel(study: Study, records: Sequence[TrialRecord]) -> Figure | None:
    """Returns every trial as a line through its searched settings and objectives.

    The best line is on top; with several objectives, lines on the front are thick.
    None without a finished trial.
    """
    done = finished(records)
    if not done:
        return None
    columns = _columns(study, done)
    figure, axis = new_figure(1.0 + 1.05 * len(columns), 4.4)
    heights = np.stack([_heights(values) for values in columns.values()], axis=1)
    order = np.argsort([record.score or 0.0 for record in done], kind="stable")
    colours = colormaps["viridis_r"](np.linspace(0.15, 1.0, len(done)))
    halo = [withStroke(linewidth=3, foreground="white")]
    best = [r.trial for r in front_of(done)]
    for place, index in enumerate(order):
        on_front = done[index].trial in best
        axis.plot(
            heights[index],
            color=colours[place],
            linewidth=2.2 if on_front else 1.0,
            alpha=1.0 if on_front else 0.6,
        )
    for position, (values, height) in enumerate(
        zip(columns.values(), heights.T, strict=True)
    ):
        axis.axvline(position, color="0.7", linewidth=1, zorder=0)
        for text, at in _ticks(values, height):
            axis.text(
                position + 0.05, at, text, fontsize=9, va="center", path_effects=halo
            )
    axis.set_xticks(
        range(len(columns)), [_broken(name) for name in columns], fontsize=9
    )
    axis.set_yticks([])
    axis.set_xlim(-0.1, len(columns) - 0.3)
    axis.set_ylim(-0.06, 1.06)
    axis.spines[:].set_visible(False)
    axis.set_title(f"{study.settings.application}: {len(done)} trials", loc="left")
    return figure


@styled
def hypervolume(records: Sequence[TrialRecord]) -> Figure | None:
    """Returns the hypervolume over trials; None unless there are several objectives."""
    done = finished(records)
    if not done or not 2 <= objective_points(done).shape[1] <= _MOST_OBJECTIVES:
        return None
    curve = hypervolume_curve(records)
    figure, axis = new_figure(5.0, 3.2)
    axis.step(range(1, len(curve) + 1), curve, where="post")
    axis.set_xlabel("finished trials")
    axis.set_ylabel("hypervolume")
    axis.grid()
    return figure


def _broken(name: str) -> str:
    """Returns the name of a setting on several lines."""
    return name.replace("loss_weight/", "weight\n").replace("_", "\n")


def _columns(study: Study, done: Sequence[TrialRecord]) -> dict[str, list[Any]]:
    settings = [flat_settings(record.config) for record in done]
    names: list[str] = []
    for name in study.searched:
        if name == "loss_weights":
            names += [key for key in settings[0] if key.startswith("loss_weight/")]
        else:
            names.append(name)
    columns = {
        name: [_group(study, s[name], name) for s in settings]
        if name in study.space.dimensions
        else [s[name] for s in settings]
        for name in names
    }
    for label in done[0].objectives:
        columns[label] = [record.objectives[label] for record in done]
    return columns


def _heights(values: Sequence[Any]) -> np.ndarray:
    """Returns the values' places in [0, 1]; names are spread evenly."""
    if all(isinstance(value, (int, float)) for value in values):
        numbers = np.asarray(values, np.float64)
        span = numbers.max() - numbers.min()
        return (numbers - numbers.min()) / span if span else np.full(len(values), 0.5)
    names = sorted(set(map(str, values)))
    places = np.linspace(0.0, 1.0, len(names)) if len(names) > 1 else [0.5]
    return np.array([places[names.index(str(value))] for value in values])


def _ticks(values: Sequence[Any], heights: np.ndarray) -> list[tuple[str, float]]:
    pairs = {short(v): float(h) for v, h in zip(values, heights, strict=True)}
    if all(isinstance(value, (int, float)) for value in values):
        ends = (int(np.argmin(heights)), int(np.argmax(heights)))
        return [(short(values[i]), float(heights[i])) for i in ends]
    return list(pairs.items())


def _group(study: Study, value: Any, name: str) -> Any:
    """Returns a setting's value, without arguments that are searched."""
    dimension = study.space.dimensions[name]
    if isinstance(dimension, Components):
        searched = any(component.arguments for component in dimension.values)
        return str(value).split("(")[0] if searched else short(value)
    return value
