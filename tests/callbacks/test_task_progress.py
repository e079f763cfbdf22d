"""The table of a training: what it shows, where, and of which tasks."""

from __future__ import annotations

import io

import IPython.display
import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import mtl_keras
from mtl_keras.callbacks import TaskProgress


def fitted(progress, tasks, metrics=None, validate=True, **arguments):
    inputs = keras.Input((3,))
    h = keras.layers.Dense(4)(inputs)
    model = mtl_keras.MultiTaskModel(
        inputs, {task: keras.layers.Dense(1)(h) for task in tasks}
    )
    model.compile("sgd", "mse", metrics=metrics, run_eagerly=True)
    x = np.ones((4, 3))
    y = {task: np.full((4, 1), index) for index, task in enumerate(tasks)}
    validation = (x[:2], {task: 3 + label[:2] for task, label in y.items()})
    return model.fit(
        x,
        y,
        validation_data=validation if validate else None,
        epochs=2,
        verbose=0,
        callbacks=[progress],
        **arguments,
    ).history


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
    history = fitted(
        TaskProgress({"only": "mae", "none": "auc"}, epochs=9, console=output),
        ["only"],
        {"only": ["mse", "mae"]},
        validate=False,
    )
    row = output.file.getvalue().splitlines()[-1].split()
    assert row[:1] == ["2/9"]
    assert row[2:4] == [f"{history['mae'][-1]:.4f}", "-"]


def test_tasks_beyond_the_width_are_counted():
    output = console(width=60)
    fitted(TaskProgress(console=output), [f"task_{i}" for i in range(9)])
    lines = output.file.getvalue().splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert lines[0].split() == ["task_0", "task_1"]
    assert "7 more tasks do not fit" in lines[2]


def test_a_notebook_has_one_table_that_grows(monkeypatch):
    shown = []

    class Handle:
        def update(self, table):
            shown.append(table.row_count)

    def display(table, display_id):
        assert isinstance(table, Table)
        assert display_id
        shown.append(table.row_count)
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    notebook = Console(file=io.StringIO(), force_jupyter=True)
    fitted(TaskProgress(console=notebook), ["a", "b"])
    assert shown == [1, 2]
