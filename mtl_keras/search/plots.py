"""Pictures of a study. Matplotlib is loaded on first use."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtl_keras.evaluation.plots import trade_off
from mtl_keras.files import atomic_write
from mtl_keras.search.components import Components
from mtl_keras.search.records import (
    Record,
    finished,
    flat_settings,
    front_of,
    hypervolume_curve,
    objective_points,
)
from mtl_keras.search.study import Study
from mtl_keras.search.values import main_values, short

_MOST_OBJECTIVES = 5  # whose hypervolume is quick to compute


def draw_trade_off(
    study: Study, records: Sequence[Record], path: pathlib.Path
) -> pathlib.Path | None:
    """Draws the objectives, or else the tasks' main metrics, against each other.

    Returns:
        The path, or None with nothing to draw.
    """
    application = study.base_config().get_application()
    tasks = list(study.tasks or ())
    done = finished(records)
    names = [f"{task} {application.tasks[task].objective}" for task in tasks]
    directions = [application.tasks[task].direction for task in tasks]
    points = [main_values(study, record) for record in done]
    if len(study.objectives) > 1:
        names = [objective.label for objective in study.objectives]
        directions = [objective.direction for objective in study.objectives]
        points = [list(record["objectives"].values()) for record in done]
    if len(names) < 2 or not done:
        return None
    by = next(
        (n for n in ("balancing", "sharing", "backbone") if n in study.searched), None
    )
    groups = [_group(study, flat_settings(r)[by], by) for r in done] if by else None
    with atomic_write(path) as beside:
        trade_off(
            points,
            names,
            directions,
            beside,
            groups=groups,
            labels=[str(record["trial"]) for record in done],
            title=f"{study.application}: validation metrics of {len(done)} trials",
        )
    return path


def draw_parallel(
    study: Study, records: Sequence[Record], path: pathlib.Path
) -> pathlib.Path | None:
    """Draws every trial as a line over its searched settings and its objectives.

    The best line is on top; with several objectives, lines on the front are.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    done = finished(records)
    if not done:
        return None
    columns = _columns(study, done)
    figure = Figure(
        figsize=(1.0 + 1.05 * len(columns), 4.4), dpi=110, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    heights = np.stack([_heights(values) for values in columns.values()], axis=1)
    scores = np.array([record["score"] for record in done])
    order = np.argsort(scores, kind="stable")
    colours = np.linspace(0.15, 1.0, len(done))
    halo = [withStroke(linewidth=3, foreground="white")]
    best = [r["trial"] for r in front_of(done)]
    for place, index in enumerate(order):
        axis.plot(
            heights[index],
            color=figure_colour(colours[place]),
            linewidth=2.2 if done[index]["trial"] in best else 1.0,
            alpha=1.0 if done[index]["trial"] in best else 0.6,
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
    axis.set_title(f"{study.application}: {len(done)} trials", loc="left")
    with atomic_write(path) as beside:
        figure.savefig(beside, format="png")
    return path


def figure_colour(share: float) -> Any:
    """Returns the colour of a rank, from 0 (worst) to 1 (best)."""
    from matplotlib import colormaps

    return colormaps["viridis_r"](share)


def draw_hypervolume(
    records: Sequence[Record], path: pathlib.Path
) -> pathlib.Path | None:
    """Draws the hypervolume over trials, where there are several objectives."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    done = finished(records)
    if not done or not 2 <= objective_points(done).shape[1] <= _MOST_OBJECTIVES:
        return None
    curve = hypervolume_curve(records)
    figure = Figure(figsize=(5.0, 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.step(range(1, len(curve) + 1), curve, where="post")
    axis.set_xlabel("finished trials")
    axis.set_ylabel("hypervolume")
    axis.grid(alpha=0.25)
    with atomic_write(path) as beside:
        figure.savefig(beside, format="png")
    return path


def _broken(name: str) -> str:
    """Returns the name of a setting on several lines."""
    return name.replace("loss_weight/", "weight\n").replace("_", "\n")


def _columns(study: Study, done: Sequence[Record]) -> dict[str, list[Any]]:
    settings = [flat_settings(record) for record in done]
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
    for label in done[0]["objectives"]:
        columns[label] = [record["objectives"][label] for record in done]
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
