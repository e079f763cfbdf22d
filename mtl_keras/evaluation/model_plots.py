"""Pictures of a multi-task model and of its training, for notebooks."""

from __future__ import annotations

import importlib.util
import io
import math
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from mtl_keras import optional
from mtl_keras.errors import InputError
from mtl_keras.reports.figures import new_figure, save_png, styled

with optional.extra("plots", "matplotlib", "A picture of a model or a fit"):
    from matplotlib import colormaps
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure
    from matplotlib.image import imread
    from matplotlib.patches import Patch
if TYPE_CHECKING:
    from mtl_keras.model import MultiTaskModel

_SHARED = "#4d5763"  # of all tasks
_SEVERAL = "#a6adb6"  # of some
_NONE = "#e3e6ea"
_WIDTH, _HEIGHT = 2.3, 0.75  # of a layer's place, in inches


def plot_tasks(model: MultiTaskModel, path: str | pathlib.Path | None = None) -> Figure:
    """Draws a model's layers, coloured by the tasks that depend on them.

    Dark layers are shared by all tasks, grey ones by some of them, and a layer of one
    task has the colour of that task; see `MultiTaskModel.layer_tasks`. Laid out by
    Graphviz, as `keras.utils.plot_model` does it, where pydot and Graphviz are
    installed; else by depth.

    Args:
        model: A `MultiTaskModel`.
        path: Where to write the picture as a PNG as well; None for nowhere. An
            existing file is replaced.

    Returns:
        A Matplotlib figure, which a notebook shows.

    Raises:
        InputError: For another model.
        MissingExtraError: Without Matplotlib.

    Example:

    ```python
    mtl_keras.evaluation.plot_tasks(model, "layers.png")
    ```
    """
    if not hasattr(model, "layer_tasks"):
        raise InputError(
            f"Expected a MultiTaskModel. Received: a {type(model).__name__}."
        )
    dot = importlib.util.find_spec("pydot") and shutil.which("dot")
    figure = styled(_by_graphviz if dot else _by_depth)(model)
    if path is not None:
        save_png(figure, pathlib.Path(path))
    return figure


def task_colours(model: MultiTaskModel) -> dict[str, str]:
    """Returns the colour of each layer, and of the entries of the legend.

    Args:
        model: The model.

    Returns:
        `{name of layer: "#rrggbb"}`.
    """
    colours = _legend(model)
    return {
        layer: colours[tasks[0]]
        if len(tasks) == 1
        else _NONE
        if not tasks
        else _SHARED
        if len(tasks) == len(model.tasks)
        else _SEVERAL
        for layer, tasks in model.layer_tasks().items()
    }


def _legend(model: MultiTaskModel) -> dict[str, str]:
    """Returns the colour of each task."""
    count = len(model.tasks)
    palette = colormaps["tab10" if count <= 10 else "hsv"]
    return {
        task: to_hex(palette(index if count <= 10 else index / count))
        for index, task in enumerate(model.tasks)
    }


def _add_legend(figure: Figure, model: MultiTaskModel) -> None:
    counts = {len(tasks) for tasks in model.layer_tasks().values()}
    own = [task for task in model.tasks if [task] in list(model.layer_tasks().values())]
    entries = {task: _legend(model)[task] for task in own}
    if counts & set(range(2, len(model.tasks))):
        entries = {"some tasks": _SEVERAL, **entries}
    if len(model.tasks) > 1:
        entries = {"all tasks": _SHARED, **entries}
    if 0 in counts:
        entries["untrained"] = _NONE
    handles = [Patch(color=colour, label=name) for name, colour in entries.items()]
    columns = max(1, int(figure.get_figwidth() / 1.5))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False
    )


def coloured_dot(model: MultiTaskModel) -> Any:
    """Returns the pydot graph of `keras.utils.model_to_dot`, its layers coloured."""
    graph = keras.utils.model_to_dot(model, show_shapes=True, dpi=110)
    colours = task_colours(model)
    for layer in model.operations:
        colour = colours[layer.name]
        for node in graph.get_node(str(id(layer))):
            # The title's cell, and the text on it.
            label = node.get("label").replace('bgcolor="black"', f'bgcolor="{colour}"')
            ink = f'color="{_ink(colour)}"'
            node.set("label", label.replace('color="white"', ink, 1))
    return graph


def _by_graphviz(model: MultiTaskModel) -> Figure:

    picture = imread(io.BytesIO(coloured_dot(model).create_png()), format="png")
    height, width = picture.shape[:2]
    figure, axes = new_figure(width / 110, height / 110 + 0.5)
    axes.imshow(picture)
    axes.set_axis_off()
    _add_legend(figure, model)
    return figure


def _by_depth(model: MultiTaskModel) -> Figure:
    edges = _edges(model)
    places = _places([layer.name for layer in model.operations], edges)
    columns = max(x for x, _ in places.values()) + 1
    rows = max(y for _, y in places.values()) + 1
    figure, axes = new_figure(_WIDTH * columns, _HEIGHT * rows + 0.6)
    for start, end in edges:
        (x, y), (to_x, to_y) = places[start], places[end]
        axes.annotate(
            "",
            (to_x, to_y - 0.3),
            (x, y + 0.3),
            arrowprops={"arrowstyle": "->", "color": "0.5", "shrinkA": 0, "shrinkB": 0},
        )
    colours = task_colours(model)
    for layer in model.operations:
        colour = colours[layer.name]
        axes.text(
            *places[layer.name],
            f"{_short(layer.name)}\n{_short(type(layer).__name__)}",
            ha="center",
            va="center",
            fontsize=8,
            color=_ink(colour),
            bbox={
                "boxstyle": "round,pad=0.35",
                "facecolor": colour,
                "edgecolor": "0.3",
            },
        )
    axes.set_xlim(-0.6, columns - 0.4)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_axis_off()
    _add_legend(figure, model)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"


def _ink(colour: str) -> str:
    """Returns black or white, whichever reads better on a colour `"#rrggbb"`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else "black"


def _edges(model: MultiTaskModel) -> list[tuple[str, str]]:
    """Returns which layer is called on which one's output, each pair once."""
    from mtl_keras.model.keras_compat import graph_nodes

    nodes = graph_nodes(model)
    maker = {id(t): node.operation.name for node in nodes for t in node.outputs}
    pairs = [(maker[id(t)], node.operation.name) for node in nodes for t in node.inputs]
    return list(dict.fromkeys(pairs))


def _places(
    names: Sequence[str], edges: Sequence[tuple[str, str]]
) -> dict[str, tuple[float, int]]:
    """Returns the column and row of each layer: the row is its depth.

    Args:
        names: The layers, each after those that it is called on.
        edges: `_edges`' result.
    """
    above: dict[str, list[str]] = {name: [] for name in names}
    for start, end in edges:
        if start != end:
            above[end].append(start)
    depth: dict[str, int] = {}
    for name in names:
        # A layer called twice may stand on one that is listed after it.
        depth[name] = max((depth.get(n, -1) + 1 for n in above[name]), default=0)
    rows: dict[int, list[str]] = {}
    for name in names:
        rows.setdefault(depth[name], []).append(name)
    width = max(map(len, rows.values()))
    places: dict[str, tuple[float, int]] = {}
    for row in sorted(rows):
        # In the order of what they are called on, and centred.
        members = sorted(
            rows[row],
            key=lambda name: _mean([places[n][0] for n in above[name] if n in places]),
        )
        for index, name in enumerate(members):
            places[name] = ((width - len(members)) / 2 + index, row)
    return places


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def plot_history(
    history: keras.callbacks.History | Mapping[str, Sequence[float]],
    path: str | pathlib.Path | None = None,
) -> Figure:
    """Draws the losses, metrics, task weights and conflicts of a `fit` by epoch.

    One chart for the whole loss, one for the losses of the tasks, one for each metric
    with a line for each task, one for the task weights and one for the share of
    conflicting pairs, as far as the history has them. Validation is a solid line and
    training a dashed one.

    Args:
        history: A `History` of `fit`, or its `history`: `{name: values by epoch}`.
        path: Where to write the picture as a PNG as well; None for nowhere. An
            existing file is replaced.

    Returns:
        A Matplotlib figure, which a notebook shows.

    Raises:
        InputError: For a history without epochs.
        MissingExtraError: Without Matplotlib.

    Example:

    ```python
    model.compile("adam", loss="mse")
    history = model.fit(x, y, epochs=3, verbose=0)
    mtl_keras.evaluation.plot_history(history, "history.png")
    ```
    """
    logs = history.history if hasattr(history, "history") else history
    charts = charts_of(logs)
    if not charts:
        raise InputError(
            "Expected the history of a fit with an epoch or more. "
            f"Received: {dict(logs)!r:.100}."
        )
    figure = styled(_drawn)(charts)
    if path is not None:
        save_png(figure, pathlib.Path(path))
    return figure


def charts_of(
    logs: Mapping[str, Sequence[float]],
) -> dict[str, dict[str, Sequence[float]]]:
    """Returns the logs by chart, `{title: {line: values by epoch}}`.

    Args:
        logs: `{name: values by epoch}`. Names that end in `_weight` tell the tasks.
    """
    names = [name.removeprefix("val_") for name in logs]
    tasks = [name.removesuffix("_weight") for name in names if name.endswith("_weight")]
    tasks = tasks or [n.removesuffix("_loss") for n in names if n.endswith("_loss")]
    tasks.sort(key=len, reverse=True)  # "left_most" before "left"
    charts: dict[str, dict[str, Sequence[float]]] = {}
    for name, values in logs.items():
        if not len(values) or name.endswith(("_nonfinite", "learning_rate")):
            continue
        validation = "val_" if name.startswith("val_") else ""
        bare = name.removeprefix("val_")
        task = next((t for t in tasks if bare.startswith(f"{t}_")), None)
        title = bare if task is None else bare.removeprefix(f"{task}_")
        title = {"loss": "losses of the tasks", "weight": "task weights"}.get(
            title if task else "", title
        )
        charts.setdefault(title, {})[f"{validation}{task or bare}"] = values
    order = ["loss", "losses of the tasks"]
    last = ["task weights", "conflicts", "fallbacks", "skipped_steps"]
    middle = [title for title in charts if title not in (*order, *last)]
    return {t: charts[t] for t in (*order, *middle, *last) if t in charts}


def _drawn(charts: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    from mtl_keras.reports.figures import WIDTH, new_figure

    columns = min(2, len(charts))
    rows = math.ceil(len(charts) / columns)
    figure, axes = new_figure(
        WIDTH * columns, 2.6 * rows, nrows=rows, ncols=columns, squeeze=False
    )
    places = list(axes.flat)
    lines = {
        re.sub("^val_", "", line): None for chart in charts.values() for line in chart
    }
    colours = {line: f"C{index % 10}" for index, line in enumerate(lines)}
    for place, (title, chart) in zip(places, charts.items(), strict=False):
        for line, values in chart.items():
            bare = line.removeprefix("val_")
            # Where there is no validation, training is the solid line.
            trained = not line.startswith("val_") and f"val_{line}" in chart
            place.plot(
                range(1, len(values) + 1),
                values,
                label=f"{bare} (training)" if trained else bare,
                color=colours[bare],
                linestyle="--" if trained else "-",
                marker="o" if len(values) == 1 else None,
            )
        place.set_title(title, loc="left")
        place.xaxis.get_major_locator().set_params(integer=True)
        place.grid()
        if len(chart) > 1:
            place.legend(fontsize="small", frameon=False)
    for place in places[len(charts) :]:
        place.set_axis_off()
    for place in places[max(0, len(charts) - columns) : len(charts)]:
        place.set_xlabel("epoch")
    return figure
