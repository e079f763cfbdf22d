"""Plots of multi-task results, by Matplotlib."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from mtl_keras import optional
from mtl_keras.evaluation.pareto import pareto_front
from mtl_keras.reports.figures import new_figure, save_png, styled

with optional.extra("plots", "matplotlib", "A plot"):
    from matplotlib.figure import Figure


def trade_off(
    points: ArrayLike,
    names: Sequence[str],
    directions: Sequence[str],
    path: str | pathlib.Path,
    *,
    groups: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    title: str = "",
) -> pathlib.Path:
    """Draws every pair of tasks against each other, as a PNG.

    Each panel shows all results in two tasks' metrics and joins the ones on
    that pair's Pareto front by a line. Rings mark the results that are on the
    front of all tasks together; arrows beside the labels point to the better
    end.

    Args:
        points: Array of shape `[N, T]`, T at least 2: N results, one metric
            per task. Results with a NaN are left out.
        names: T axis labels.
        directions: T strings, `"max"` or `"min"`.
        path: Where to write the picture. An existing file is replaced.
        groups: N names, for example of balancing methods; one colour each.
        labels: N short names written beside the points.
        title: Text above the panels.

    Returns:
        The path.
    """
    figure = trade_off_figure(
        points, names, directions, groups=groups, labels=labels, title=title
    )
    return save_png(figure, pathlib.Path(path))


@styled
def trade_off_figure(
    points: ArrayLike,
    names: Sequence[str],
    directions: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Returns `trade_off`'s Matplotlib figure; takes the same arguments."""
    array = np.asarray(points, dtype=np.float64)
    kept = np.flatnonzero(~np.isnan(array).any(axis=1)).tolist()
    array = array[kept]
    group_of = [str(groups[i]) if groups is not None else "" for i in kept]
    label_of = [str(labels[i]) if labels is not None else "" for i in kept]
    count = len(names)
    side = count - 1
    size = 4.2 if side == 1 else 2.6 * side + 0.6
    figure, axes = new_figure(
        size + (0.8 if side == 1 else 0),
        size,
        nrows=side,
        ncols=side,
        squeeze=False,
        sharex="col",
        sharey="row",
    )
    everywhere = set(pareto_front(array, directions))

    for row, column in itertools.product(range(side), range(side)):
        if column > row:
            axes[row][column].set_axis_off()
            continue
        first, second = column, row + 1
        _panel(
            axes[row][column],
            array[:, [first, second]],
            (directions[first], directions[second]),
            everywhere,
            group_of,
            label_of,
        )
        if row == side - 1:
            axes[row][column].set_xlabel(_axis_label(names[first], directions[first]))
        if column == 0:
            axes[row][column].set_ylabel(_axis_label(names[second], directions[second]))
    handles, texts = axes[0][0].get_legend_handles_labels()
    if handles:
        if side == 1:
            axes[0][0].legend(handles, texts, loc="best", fontsize="small")
        else:
            figure.legend(handles, texts, loc="upper right")
    figure.suptitle(title, x=0.02, ha="left")
    return figure


@styled
def expert_usage(
    usage: Mapping[str, Mapping[str, float]],
    path: str | pathlib.Path,
    *,
    title: str = "",
) -> pathlib.Path:
    """Draws the usage of experts and other parts as a table of shares, as a PNG.

    Args:
        usage: `{user: {part: share}}`, as `mtl_keras.sharing.usage` returns
            it.
        path: Where to write the picture. An existing file is replaced.
        title: Text above the table.

    Returns:
        The path.
    """
    columns = list(dict.fromkeys(name for row in usage.values() for name in row))
    table = np.asarray(
        [[row.get(name, np.nan) for name in columns] for row in usage.values()]
    )
    figure, axis = new_figure(2.5 + 0.6 * len(columns), 1.6 + 0.4 * len(usage))
    image = axis.imshow(table, vmin=0.0, vmax=1.0, cmap="Blues", aspect="auto")
    for row, column in itertools.product(*map(range, table.shape)):
        share = table[row, column]
        if not np.isnan(share):
            colour = "white" if share > 0.6 else "black"
            axis.text(column, row, f"{share:.2f}", ha="center", va="center", c=colour)
    axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axis.set_yticks(range(len(usage)), list(usage))
    axis.set_title(title, loc="left")
    figure.colorbar(image, label="share")
    return save_png(figure, pathlib.Path(path))


def _axis_label(name: str, direction: str) -> str:
    return f"{name} {'↑' if direction == 'max' else '↓'}"


def _panel(axis, points, directions, everywhere, groups, labels) -> None:
    front = pareto_front(points, directions)
    line = points[sorted(front, key=lambda i: points[i, 0])]
    axis.plot(line[:, 0], line[:, 1], "-", color="0.6", linewidth=1, zorder=1)
    for number, group in enumerate(sorted(set(groups))):
        members = [i for i, name in enumerate(groups) if name == group]
        axis.scatter(
            points[members, 0],
            points[members, 1],
            s=28,
            color=f"C{number % 10}",
            label=group or None,
            zorder=2,
        )
    if everywhere:
        ring = points[sorted(everywhere)]
        axis.scatter(
            ring[:, 0],
            ring[:, 1],
            s=90,
            facecolors="none",
            edgecolors="black",
            linewidths=0.8,
            label="Pareto front of all tasks",
            zorder=3,
        )
    for point, label in zip(points, labels, strict=True):
        axis.annotate(
            label, point, xytext=(4, 4), textcoords="offset points", fontsize=7
        )
    axis.margins(0.1)
    axis.locator_params(nbins=4)
    axis.grid(alpha=0.25)
