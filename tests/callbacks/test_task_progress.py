"""The progress table of a training: its rows, columns and output."""

from __future__ import annotations

import io

import IPython.display
import keras
import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

import mtl_keras
from mtl_keras.applications.table.titled import TitledModel
from mtl_keras.callbacks import TaskProgress
from mtl_keras.errors import InputError


def fitted(progress, tasks, metrics):
    inputs = keras.Input((3,))
    model = mtl_keras.MultiTaskModel(
        inputs, {task: keras.layers.Dense(1)(inputs) for task in tasks}
    )
    model.compile("sgd", "mse", metrics=metrics, run_eagerly=True)
    x = np.ones((4, 3))
    y = {task: np.full((4, 1), index) for index, task in enumerate(tasks)}
    validation = (x[:2], {task: 3 + label[:2] for task, label in y.items()})
    arguments = {"validation_data": validation, "epochs": 2, "verbose": 0}
    return model.fit(x, y, callbacks=[progress], **arguments).history


def shown(progress, logs, epochs=2):
    """Shows two epochs of logs, without a model."""
    progress.set_params({"epochs": epochs})
    progress.set_model(None)
    progress.on_train_begin()
    for epoch in range(2):
        progress.on_epoch_begin(epoch)
        progress.on_epoch_end(epoch, {name: logs[name] + epoch for name in logs})


def console(width=100):
    return Console(file=io.StringIO(), width=width, highlight=False)


def test_a_row_has_one_number_of_each_task():
    output = console()
    # A task whose name begins like another's, and one without a metric.
    history = fitted(
        TaskProgress(console=output),
        ["left", "left_most", "right"],
        {"left_most": ["mae"], "right": ["mse", "mae"]},
    )
    lines = output.file.getvalue().splitlines()
    assert lines[0].split() == ["left", "left_most", "right"]
    assert lines[1].split()[:5] == ["epoch", "loss", "loss", "mae", "mse"]
    names = ["val_loss", "val_left_loss", "val_left_most_mae", "val_right_mse"]
    for epoch, line in enumerate(lines[2:]):
        number, *cells = line.split()
        assert number == f"{epoch + 1}/2"
        assert cells[:4] == [f"{history[name][epoch]:.4f}" for name in names]
    assert len(lines) == 4
    assert len({len(line.split(" s ")[0]) for line in lines[2:]}) == 1


def test_metrics_may_be_named_and_one_task_is_enough():
    output = console()
    progress = TaskProgress({"only": "mae", "none": "auc"}, epochs=9, console=output)
    shown(progress, {"loss": 1.0, "mae": 0.5})
    row = output.file.getvalue().splitlines()[-1].split()
    assert row[:4] == ["2/9", "2.0000", "1.5000", "-"]
    with pytest.raises(InputError, match="a MultiTaskModel for TaskProgress without"):
        shown(TaskProgress(), {"loss": 1.0})


def test_tasks_beyond_the_width_are_counted():
    output = console(width=60)
    metrics = {f"task_{i}": "loss" for i in range(9)}
    shown(
        TaskProgress(metrics, console=output), {f"{task}_loss": 1.0 for task in metrics}
    )
    lines = output.file.getvalue().splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert lines[0].split() == ["task_0", "task_1"]
    assert "7 more tasks do not fit" in lines[2]


def test_columns_are_as_wide_as_names_are_on_a_terminal():
    output = console(width=80)
    progress = TaskProgress({"北京 温度 与湿度": "mae", "b": "mae"}, console=output)
    logs = {"loss": 1.0, "北京 温度 与湿度_mae": 2.0, "b_mae": 3.0}
    shown(progress, logs)
    heads, _, row, _ = output.file.getvalue().splitlines()
    # Seven characters of two cells, two spaces; values end where the titles do.
    end = row.index("2.0000") + 6
    assert cell_len(heads[: heads.index("湿度") + 2]) == end
    assert heads.index("b") + 7 + 1 == row.index("3.0000") + 6


def test_tasks_that_are_columns_are_shown_by_their_mean():
    output = console()
    inputs = keras.Input((3,))
    group = keras.layers.Dense(40, "sigmoid", name="assays")(inputs)
    model = mtl_keras.MultiTaskModel(inputs, {"assays": group})
    columns = {"assays": [f"a{i}" for i in range(40)]}
    model.compile(
        "sgd",
        "binary_crossentropy",
        metrics=["accuracy"],
        columns=columns,
        run_eagerly=True,
    )
    x, y = np.ones((4, 3)), {"assays": np.eye(4, 40)}
    history = model.fit(x, y, verbose=0, callbacks=[TaskProgress(console=output)])
    heads, titles, row = output.file.getvalue().splitlines()
    assert heads.split() == ["assays"]
    assert titles.split() == ["epoch", "loss", "accuracy", "time", "left"]
    assert row.split()[2] == f"{history.history['accuracy'][0]:.4f}"


def test_a_notebook_has_one_table_that_grows(monkeypatch):
    rows = []

    class Handle:
        def update(self, table):
            rows.append(table.row_count)

    def display(table, display_id):
        assert isinstance(table, Table)
        assert display_id
        rows.append(table.row_count)
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    notebook = Console(file=io.StringIO(), force_jupyter=True)
    shown(TaskProgress({"a": "loss"}, console=notebook), {"loss": 1.0, "a_loss": 1.0})
    assert rows == [1, 2]


def test_a_task_has_the_name_that_the_logs_have():
    inputs = keras.Input((3,))
    outputs = {name: keras.layers.Dense(1)(inputs) for name in ("other", "price_k")}
    model = TitledModel(inputs, outputs, titles={"price_k": "price (k€)"})
    model.compile("sgd", "mse", metrics={"price_k": ["mae"]}, run_eagerly=True)
    output = console()
    x, y = np.ones((4, 3)), np.ones((4, 1))
    history = model.fit(
        x,
        {"other": y, "price_k": y},
        verbose=0,
        callbacks=[TaskProgress(console=output)],
    ).history
    titles, metrics, row = output.file.getvalue().splitlines()
    assert "price (k€)" in titles
    assert metrics.split()[2:4] == ["loss", "mae"]
    assert row.split()[3] == f"{history['price (k€)_mae'][0]:.4f}"
