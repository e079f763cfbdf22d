"""Figures and columns of shared layers, against models known by hand."""

from __future__ import annotations

import io
import re

import keras
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from PIL import Image

import mtl_keras
from mtl_keras.errors import InputError
from mtl_keras.evaluation import model_plots, plot_history, plot_tasks


def build(loss=None):
    """All share the trunk; the tower is of two of four; one layer is nobody's."""
    inputs = keras.Input((4,), name="image")
    inner = keras.Input((8,), name="inner")
    nested = keras.Model(
        inner, [keras.layers.Dense(3, name=name)(inner) for name in ("up", "down")]
    )
    nested.name = "nested"
    trunk = keras.Sequential([keras.layers.Dense(8, name="inside")], name="trunk")
    h = trunk(inputs)
    up, down = nested(h)
    tower = keras.layers.Dense(5, name="tower_" + 40 * "n")(h)
    model = mtl_keras.MultiTaskModel(
        inputs,
        {
            "a": keras.layers.Dense(1, name="head_a")(up),
            "b": keras.layers.Dense(1, name="head_b")(down),
            "c": keras.layers.Dense(1, name="head_c")(tower) + 1.0,
            "d": keras.layers.Dense(1, name="head_d")(tower),
        },
    )
    model.compile(loss=dict.fromkeys("abcd", "mse") | (loss or {}))
    return model


EXPECTED = {
    "image": ["a", "b", "c", "d"],
    "trunk": ["a", "b", "c", "d"],
    "nested": ["a", "b"],
    "tower_" + 40 * "n": ["c", "d"],
    "head_a": ["a"],
    "head_b": ["b"],
    "head_c": ["c"],
    "add": ["c"],
    "head_d": ["d"],
}


def test_layers_have_the_tasks_that_depend_on_them():
    assert build().layer_tasks() == EXPECTED
    untrained = build({"b": None}).layer_tasks()
    assert untrained["head_b"] == []
    assert untrained["nested"] == ["a"]


def column(model, **arguments):
    """Returns the column by the first word of each row."""
    text: list[str] = []
    model.summary(print_fn=text.append, **arguments)
    lines = "".join(text).splitlines()
    table = [line for line in lines if line[-1:] in "┃│┓┩┤┘" and line]
    assert len({len(line) for line in table}) == 1  # still a table
    rows = [re.split("[┃│]", line)[1:-1] for line in table if line[0] in "┃│"]
    return {
        row[0].replace("└", "").split()[0].strip("…"): row[-1].strip()
        for row in rows
        if row[0].strip() and row[-1].strip()
    }


def test_the_summary_has_a_column_of_tasks(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    model = build()
    cells = column(model)
    assert cells.pop("Layer") == "Tasks"
    of_tower = next(cell for name, cell in cells.items() if name.startswith("tower"))
    assert of_tower == cells["nested"] == "2 of 4"
    assert cells["image"] == cells["trunk"] == "shared"
    assert [cells[f"head_{task}"] for task in "abcd"] == list("abcd")
    assert cells["add"] == "c"
    expanded = column(model, expand_nested=True, line_length=999)
    assert [expanded[name] for name in ("inside", "up", "down")] == ["shared", "a", "b"]
    ranged = column(model, layer_range=["nested", "head_a"])
    assert ranged["nested"] == "2 of 4"
    assert ranged["head_a"] == "a"


def test_the_summary_apart_from_the_column_is_keras_own(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    model = build()
    text: list[str] = []
    model.summary(print_fn=text.append, line_length=89)
    stock: list[str] = []
    keras.Model.summary(model, print_fn=stock.append, line_length=80)
    ours = [
        line[:80] if line[-1:] in "┃│┓┩┤┘" else line for line in text[0].split("\n")
    ]
    for one, two in zip(ours, stock[0].split("\n"), strict=True):
        assert one[:-1] == two[:-1]


def test_the_picture_has_the_colours_of_the_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(model_plots.shutil, "which", lambda name: None)
    model = build({"d": None})
    figure = plot_tasks(model, tmp_path / "tasks.png")
    colours = model_plots.task_colours(model)
    assert len({colours[layer] for layer in ("head_a", "head_b", "head_c")}) == 3
    assert colours["image"] == colours["trunk"]
    assert len({colours[name] for name in ("image", "nested", "head_a", "head_d")}) == 4
    texts = {
        text.get_text().split("\n")[0]: text.get_bbox_patch().get_facecolor()
        for text in figure.axes[0].texts
        if text.get_text()
    }
    for layer, colour in colours.items():
        name = next(n for n in texts if n[:8] == layer[:8])
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        np.testing.assert_allclose(texts[name][:3], rgb)
    assert Image.open(tmp_path / "tasks.png").size[0] > 300
    # IPython's own formatters, in a process where pyplot is not a notebook's.
    data, _ = DisplayFormatter().format(figure)
    assert Image.open(io.BytesIO(data["image/png"])).size[0] > 300
    with pytest.raises(InputError, match="Received: a Functional"):
        plot_tasks(keras.Model(model.input, model.output))


def test_graphviz_draws_the_same_colours():
    pytest.importorskip("pydot")
    model = build()
    colours = model_plots.task_colours(model)
    dot = model_plots.coloured_dot(model)
    for layer in model.operations:
        (node,) = dot.get_node(str(id(layer)))
        assert f'bgcolor="{colours[layer.name]}"' in node.get("label")
        assert 'bgcolor="black"' not in node.get("label")


def test_a_history_is_sorted_into_charts(tmp_path):
    logs = {
        "loss": [3.0, 2.0],
        "left_loss": [1.0, 0.5],
        "left_most_loss": [2.0, 1.5],
        "left_accuracy": [0.1, 0.2],
        "left_most_accuracy": [0.3, 0.4],
        "left_weight": [1.0, 1.1],
        "left_most_weight": [1.0, 0.9],
        "conflicts": [0.5, 0.25],
        "learning_rate": [0.1, 0.1],
        "val_loss": [3.5, 2.5],
        "val_left_accuracy": [0.0, 0.1],
    }
    charts = model_plots.charts_of(logs)
    assert charts == {
        "loss": {"loss": [3.0, 2.0], "val_loss": [3.5, 2.5]},
        "losses of the tasks": {"left": [1.0, 0.5], "left_most": [2.0, 1.5]},
        "accuracy": {
            "left": [0.1, 0.2],
            "left_most": [0.3, 0.4],
            "val_left": [0.0, 0.1],
        },
        "task weights": {"left": [1.0, 1.1], "left_most": [1.0, 0.9]},
        "conflicts": {"conflicts": [0.5, 0.25]},
    }
    figure = plot_history(logs, tmp_path / "history.png")
    drawn = {
        axes.get_title(loc="left"): {
            line.get_label(): list(line.get_ydata()) for line in axes.get_lines()
        }
        for axes in figure.axes
    }
    assert drawn["loss"] == {"loss (training)": [3.0, 2.0], "loss": [3.5, 2.5]}
    assert drawn["task weights"]["left_most"] == [1.0, 0.9]
    assert (tmp_path / "history.png").exists()
    with pytest.raises(InputError, match=r"an epoch or more. Received: \{\}"):
        plot_history({})
