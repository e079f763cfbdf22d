"""Figures of reports, drawn by Matplotlib: inline SVG in a page, PNG as a file.

Figures are made without pyplot: they need no display and leave no global state. Charts
are as wide as one column on a phone.
"""

from __future__ import annotations

import functools
import html
import io
import math
import pathlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from mtl_keras import optional
from mtl_keras.files import atomic_write

with optional.extra("plots", "matplotlib", "A figure"):
    from matplotlib import colormaps, rc_context
    from matplotlib.axes import Axes
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

WIDTH = 340 / 72  # inches: 340 CSS pixels
_DASHES = ("-", (0, (5, 3)), (0, (1.5, 2.5)))  # with ten colours, thirty lines
_MARK = 9.0  # radius of a numbered point, in points
_NEUTRAL = "0.45"
_CARD = "#f6f8fa"  # as in the style sheet
# Text stays text, and a name is no formula: "$" has no meaning in it.
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.alpha": 0.3,
    "svg.fonttype": "none",
    "svg.hashsalt": "mtl_keras",
    "text.parse_math": False,
}


P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Returns a function that draws, or saves, in the style of the reports."""

    @functools.wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapped


@styled
def svg(figure: Figure, about: str) -> str:
    """Returns a figure as inline SVG that scales with its column.

    Args:
        figure: The figure. Its background is left out.
        about: Text alternative.
    """
    buffer = io.StringIO()
    unset = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():
        # Text stays text: the reader's fonts have the glyphs, or have not.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(buffer, format="svg", metadata=unset, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Attributes that only a file of its own needs, and ids that would stand in a page
    # twice; markers and clip paths have ids made from what they are.
    for attribute in ("xmlns:xlink", "xmlns", "version", "width", "height"):
        text = re.sub(rf' {attribute}="[^"]*"', "", text, count=1)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)
    # Paths to a hundredth of a point.
    text = re.sub(
        r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text
    )
    width = f"width: {figure.get_figwidth() * 72:.0f}px"
    opening = f'<svg role="img" aria-label="{html.escape(about)}" style="{width}"'
    return text.replace("<svg", opening, 1)


def chart(
    title: str, figure: Figure, about: str, above: str = "", below: str = ""
) -> dict[str, str]:
    """Returns a titled figure with paragraphs above and below, as templates take it."""
    return {"title": title, "svg": svg(figure, about), "above": above, "below": below}


@styled
def save_png(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    """Writes a figure as a PNG, atomically, and returns the path.

    Args:
        figure: The figure.
        path: The file. An existing one is replaced.
    """
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path


class ShownFigure(Figure):
    """A figure that notebooks show, also before pyplot has made one there."""

    @styled
    def _repr_png_(self) -> bytes:
        """Returns the picture as IPython asks for it."""
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=72)
        return content.getvalue()


def new_figure(width: float, height: float, **kwargs: Any) -> tuple[Figure, Any]:
    """Returns a figure and its axes; to be called by `styled` functions.

    Args:
        width: Inches.
        height: Inches.
        **kwargs: Passed on to `Figure.subplots`.
    """
    figure = ShownFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**kwargs)


@styled
def bars(rows: Sequence[tuple[str, Mapping[str, Any], str]], unit: str) -> Figure:
    """Returns horizontal bars from 0 to a mean, with whiskers.

    Args:
        rows: Label, `{"mean": …, "std": …}` and text at the end of the row, from
            above; without a mean there is no bar, without a deviation no whisker.
        unit: Label of the axis.
    """
    figure, axes = new_figure(WIDTH, 0.7 + 0.5 * len(rows))
    for index, (label, spread, text) in enumerate(rows):
        above = {
            "transform": axes.get_yaxis_transform(),
            "va": "center",
            "bbox": {"facecolor": _CARD, "edgecolor": "none", "pad": 1.0},
        }
        axes.text(0.0, index - 0.36, label, ha="left", **above)
        axes.text(1.0, index - 0.36, text, ha="right", **above)
        mean = spread["mean"]
        if mean is not None and math.isfinite(mean):
            axes.barh(
                index + 0.08,
                mean,
                height=0.34,
                color="C0" if mean >= 0 else "C1",
                xerr=spread["std"] or None,
                error_kw={"ecolor": "0.2", "capsize": 3},
                alpha=0.75,
            )
    axes.axvline(0.0, color="0.2", linewidth=1)
    axes.set_ylim(len(rows) - 0.5, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.locator_params("x", nbins=5)
    axes.grid(axis="x")
    axes.set_xlabel(unit)
    return figure


@styled
def lines(rows: Sequence[Sequence[float]], name: str) -> Figure:
    """Returns values by epoch, the first epoch being 1.

    Args:
        rows: The lines, coloured in their order by `line_style`; NaN leaves a gap.
        name: Label of the axis of values.
    """
    figure, axes = new_figure(WIDTH, 3.1)
    for index, row in enumerate(rows):
        values = np.where(np.isfinite(row), row, np.nan)
        epochs = np.arange(1, len(values) + 1)
        marker = "o" if len(values) == 1 else None
        axes.plot(epochs, values, marker=marker, markersize=4, **line_style(index))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.locator_params(nbins=5)
    axes.grid()
    axes.set_xlabel("epoch")
    axes.set_ylabel(name)
    return figure


def line_style(index: int) -> dict[str, Any]:
    """Returns colour and dashes of the line at `index`, for a chart or its legend."""
    return {
        "color": f"C{index % 10}",
        "linestyle": _DASHES[index % len(_DASHES)],
        "linewidth": 1.8,
    }


def line_keys(names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns names with the keys of their lines in `lines`, for a legend of text.

    Args:
        names: In the order of the lines.

    Returns:
        Each name with a short line as inline SVG, which says nothing to a reader aloud.
    """
    keys = []
    for index, name in enumerate(names):
        style = line_style(index)
        dashes = ""
        if style["linestyle"] != "-":
            _, lengths = style["linestyle"]
            scaled = (f"{style['linewidth'] * length:g}" for length in lengths)
            dashes = f' stroke-dasharray="{" ".join(scaled)}"'
        line = (
            f'<line x2="28" y1="4" y2="4" stroke="{to_hex(style["color"])}" '
            f'stroke-width="{style["linewidth"]}"{dashes}/>'
        )
        svg = f'<svg aria-hidden="true" viewBox="0 0 28 8" width="28">{line}</svg>'
        keys.append((name, svg))
    return keys


@styled
def scatter(
    points: Sequence[tuple[float, float]],
    front: Sequence[int],
    x_name: str,
    y_name: str,
) -> Figure:
    """Returns numbered points, those of a front joined by a line.

    A number that would cover another stands beside its point, tied to it by a line.

    Args:
        points: The points, numbered 1, 2, …; non-finite ones are not drawn.
        front: Indices of the points on the front.
        x_name: Label of the horizontal axis.
        y_name: Label of the vertical axis.
    """
    figure, axes = new_figure(WIDTH, 3.5)
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    axes.grid()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4))
    drawn = [i for i, (x, y) in enumerate(points) if math.isfinite(x + y)]
    joined = sorted(points[i] for i in front)
    if joined:
        axes.plot(*zip(*joined, strict=True), "--", color=_NEUTRAL, linewidth=1.2)
    places = np.array([points[i] for i in drawn]).reshape(-1, 2)
    axes.plot(*places.T, linestyle="none")  # sets the limits
    axes.margins(0.12)
    figure.draw_without_rendering()  # fixes the layout, and with it the pixels
    marks = _spread_out(axes.transData.transform(places) * 72 / figure.dpi, axes)
    offsets = marks - axes.transData.transform(places) * 72 / figure.dpi
    for index, place, offset in zip(drawn, places, offsets, strict=True):
        colour = f"C{index % 10}"
        moved = bool(offset.any())
        if moved:
            axes.plot(*place, "o", color=colour, markersize=5, zorder=3)
        axes.annotate(
            str(index + 1),
            place,
            offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            fontweight="bold",
            color="white",
            zorder=4,
            bbox={
                "boxstyle": "circle,pad=0.25",
                "facecolor": colour,
                "edgecolor": "0.1" if index in front else colour,
                "linewidth": 1.6,
            },
            arrowprops={"arrowstyle": "-", "color": _NEUTRAL} if moved else None,
        )
    return figure


def _spread_out(places: np.ndarray, axes: Axes) -> np.ndarray:
    """Returns where to number each point: on it, or nearby if that is taken.

    Args:
        places: `[N, 2]`, the points in points (1/72 inch) from the figure's corner.
        axes: The axes, beyond which no number goes.
    """
    box = axes.get_window_extent().get_points() * 72 / axes.figure.dpi
    low, high = box[0] + _MARK, box[1] - _MARK
    turns = np.arange(16) * math.tau / 16
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    marks: list[np.ndarray] = []
    for index, place in enumerate(places):
        mark = place
        if any(math.dist(place, other) < 2 * _MARK for other in marks):
            others = np.delete(places, index, axis=0)
            candidates = (
                place + radius * direction
                for radius in np.arange(2 * _MARK, 7 * _MARK, 6)
                for direction in circle
            )
            free = (
                candidate
                for candidate in candidates
                if (candidate >= low).all()
                and (candidate <= high).all()
                and all(math.dist(candidate, o) > _MARK + 4 for o in others)
                and all(math.dist(candidate, m) > 2 * _MARK + 2 for m in marks)
            )
            mark = next(free, place)
        marks.append(mark)
    return np.array(marks).reshape(-1, 2)


@styled
def steps(values: Sequence[float], x_name: str, y_name: str) -> Figure:
    """Returns values as steps, at 1, 2, … of the horizontal axis."""
    figure, axes = new_figure(5.0, 3.2)
    axes.step(range(1, len(values) + 1), values, where="post")
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    axes.grid()
    return figure


@styled
def parallel(
    columns: Mapping[str, Sequence[Any]],
    scores: Sequence[float],
    front: Sequence[int],
    title: str,
) -> Figure:
    """Returns every row of a table as a line through its values, best on top.

    Args:
        columns: Values of N rows, by column: numbers by size, names spread evenly.
        scores: N numbers, higher being better.
        front: Indices of the rows on the front, whose lines are thick.
        title: Text above.
    """
    figure, axes = new_figure(1.0 + 1.05 * len(columns), 4.4)
    heights = np.stack([_heights(values) for values in columns.values()], axis=1)
    colours = colormaps["viridis_r"](np.linspace(0.15, 1.0, len(scores)))
    halo = [withStroke(linewidth=3, foreground="white")]
    for rank, index in enumerate(np.argsort(scores, kind="stable")):
        axes.plot(
            heights[index],
            color=colours[rank],
            linewidth=2.2 if index in front else 1.0,
            alpha=1.0 if index in front else 0.6,
        )
    for position, values in enumerate(columns.values()):
        axes.axvline(position, color="0.7", linewidth=1, zorder=0)
        for text, at in _ticks(values, heights[:, position]):
            axes.text(
                position + 0.05, at, text, fontsize=9, va="center", path_effects=halo
            )
    axes.set_xticks(range(len(columns)), list(columns), fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 0.3)
    axes.set_ylim(-0.06, 1.06)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left")
    return figure


def _heights(values: Sequence[Any]) -> np.ndarray:
    """Returns the values' positions in [0, 1]; names are spread evenly."""
    if all(isinstance(value, (int, float)) for value in values):
        numbers = np.asarray(values, np.float64)
        span = numbers.max() - numbers.min()
        return (numbers - numbers.min()) / span if span else np.full(len(values), 0.5)
    names = sorted(set(map(str, values)))
    positions = np.linspace(0.0, 1.0, len(names)) if len(names) > 1 else [0.5]
    return np.array([positions[names.index(str(value))] for value in values])


def _ticks(values: Sequence[Any], heights: np.ndarray) -> list[tuple[str, float]]:
    """Returns the labels of a column: its ends, or every name."""
    texts = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in values]
    if all(isinstance(value, (int, float)) for value in values):
        ends = (int(np.argmin(heights)), int(np.argmax(heights)))
        return [(texts[i], float(heights[i])) for i in ends]
    return list(dict(zip(texts, map(float, heights), strict=True)).items())


@styled
def heat(
    table: Sequence[Sequence[float | None]], names: Sequence[str], largest: float
) -> Figure:
    """Returns a square table as colours around 0, with its numbers.

    Args:
        table: `[T, T]` rows of numbers; None and NaN stay blank.
        names: T names of the rows and columns.
        largest: The magnitude that gets the full colour.
    """
    figure, axes = new_figure(WIDTH, 1.2 + 0.5 * len(names))
    values = np.array(
        [[math.nan if v is None else v for v in row] for row in table], np.float64
    )
    end = largest if largest > 0 else 1.0
    edges = np.arange(len(names) + 1) - 0.5
    colours = {"cmap": "RdBu", "vmin": -end, "vmax": end, "alpha": 0.7}
    axes.pcolormesh(edges, edges, values, edgecolor="white", **colours)
    axes.invert_yaxis()
    for (row, column), value in np.ndenumerate(values):
        if math.isfinite(value):
            # Adding 0 takes the sign off what is rounded to 0.
            text = f"{round(value, 2) + 0.0:.2f}"
            axes.text(column, row, text, ha="center", va="center")
    axes.set_xticks(
        range(len(names)), names, rotation=40, ha="left", rotation_mode="anchor"
    )
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
