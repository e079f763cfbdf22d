"""A run that was stopped goes on to the very same end."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from mtl_keras.runs import RunConfig, checkpoints, load_run, train


class Killed(BaseException):
    """Stands for the end of the process."""


def stop_at(monkeypatch, save):
    """Ends the training at the save with this number, before or after it is written."""
    number, before = save
    real, calls = checkpoints.save, []

    def counted(*args):
        calls.append(args)
        if len(calls) == number and before:
            raise Killed
        real(*args)
        if len(calls) == number:
            raise Killed

    monkeypatch.setattr(checkpoints, "save", counted)


def result(out):
    with (out / "history.csv").open() as file:
        history = list(csv.reader(file))
    return (
        load_run(out).model().get_weights(),
        history,
        (out / "metrics.json").read_text(),
    )


def assert_same(out, other):
    (weights, *rest), (others, *others_rest) = result(out), result(other)
    assert rest == others_rest
    for one, two in zip(weights, others, strict=True):
        np.testing.assert_array_equal(one, two)


def config(**changes):
    return RunConfig("tiny", **{"epochs": 4, "limit": 80, **changes})


@pytest.mark.parametrize(
    ("balancing", "steps", "stops"),
    [
        ("dwa", None, [(2, False)]),
        (["uncertainty", "pcgrad"], 2, [(2, False), (2, True), (3, False)]),
        ("random", 2, [(1, False), (1, True)]),
    ],
    ids=str,
)
def test_a_stopped_run_ends_as_one_that_never_stopped(
    tiny, eagerly, tmp_path, monkeypatch, balancing, steps, stops
):
    settings = config(balancing=balancing)
    train(settings, tmp_path / "whole")
    for save in stops:
        with monkeypatch.context() as patch:
            stop_at(patch, save)
            with pytest.raises(Killed):
                train(settings, tmp_path / "stopped", checkpoint_steps=steps)
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            ".stopped.partial",
            "whole",
        ]
    train(settings, tmp_path / "stopped", checkpoint_steps=steps)
    assert_same(tmp_path / "stopped", tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["stopped", "whole"]
