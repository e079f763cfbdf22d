"""A run that was stopped resumes to the very same end."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import os

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies
from rich.console import Console
from tiny_application import SIZES

from mtl_keras.errors import InputError
from mtl_keras.runs import RunConfig, checkpoints, load_run, train, unfinished
from mtl_keras.runs.progress import StepBar, steps_done
from mtl_keras.runs.training import EarlyStop


class Killed(BaseException):
    """Raised in place of the end of the process."""


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
    return RunConfig("tiny", **{"epochs": 3, "limit": 80, "batch_size": 40, **changes})


@pytest.mark.parametrize(
    ("changes", "steps", "stops"),
    [
        pytest.param({"balancing": "dwa"}, None, [(2, False)], marks=pytest.mark.slow),
        (
            {"balancing": ["uncertainty", "pcgrad"]},
            2,
            [(2, False), (2, True), (3, False)],
        ),
        pytest.param(
            {"preferences": "manifold", "epochs": 2},
            2,
            [(2, False)],
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_a_stopped_run_ends_as_one_that_never_stopped(
    tiny, eagerly, tmp_path, monkeypatch, changes, steps, stops
):
    settings = config(batch_size=16, **changes)
    train(settings, tmp_path / "whole")
    for save in stops:
        with monkeypatch.context() as patch:
            stop_at(patch, save)
            with pytest.raises(Killed):
                train(settings, tmp_path / "run", checkpoint_steps=steps)
        assert names(tmp_path) == [".run.partial", "whole"]
    train(settings, tmp_path / "run", checkpoint_steps=steps)
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert names(tmp_path) == ["run", "whole"]


class Calls(keras.callbacks.Callback):
    """Steps done after each call of the training, of each epoch."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append([])

    def on_train_batch_end(self, batch, logs=None):
        self.epochs[-1].append(steps_done(self, batch))


@pytest.mark.parametrize(("size", "calls"), [(1, [1, 2, 3, 4, 5]), (3, [3, 5])])
def test_steps_are_counted_whatever_a_call_takes(size, calls):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse", steps_per_execution=size)
    counted = Calls()
    with StepBar(Console(force_terminal=True, file=io.StringIO()), 10, 0) as bar:
        data = np.ones((5, 2)), np.ones((5, 1))
        model.fit(
            *data,
            batch_size=1,
            epochs=2,
            verbose=0,
            callbacks=[counted, *bar.callbacks],
        )
        assert bar._progress.tasks[0].completed == 10
    assert counted.epochs == [calls, calls]


def test_several_steps_in_a_call_end_as_single_steps(tiny, tmp_path, monkeypatch):
    settings = config(
        balancing="pcgrad", tasks=("way", "level"), epochs=1, batch_size=16
    )
    train(settings, tmp_path / "whole")
    several = dataclasses.replace(settings, steps_per_execution=2)
    with monkeypatch.context() as patch:
        stop_at(patch, (1, False))
        with pytest.raises(Killed):
            train(several, tmp_path / "run", checkpoint_steps=3)
    # Of five steps in calls of two, the third is within the second call.
    saved = tmp_path / ".run.partial" / "checkpoints"
    assert names(saved) == ["epoch-000000-step-000000004.npz"]
    calls, output = Calls(), io.StringIO()
    train(
        several,
        tmp_path / "run",
        checkpoint_steps=3,
        callbacks=[calls],
        console=Console(file=output, force_terminal=True, color_system=None, width=200),
    )
    assert calls.epochs == [[1]]
    assert "5/5" in output.getvalue()
    assert "after 0 of 1 epochs and 4 steps" in output.getvalue()
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_finished_run_trained_further_is_one_training(
    tiny, eagerly, tmp_path, monkeypatch
):
    settings = {"schedule": "constant", "balancing": ["dwa", "pcgrad"]}
    train(config(**settings), tmp_path / "whole")
    out = tmp_path / "run"
    train(config(**settings, epochs=1), out)
    logged = set(names(out / "logs/train"))
    further = config(**settings)
    # Stopped after one more epoch, and again between the two renamings at the end.
    with monkeypatch.context() as patch:
        stop_at(patch, (1, False))
        with pytest.raises(Killed):
            train(further, out)
    assert load_run(out).config.epochs == 1
    with monkeypatch.context() as patch:
        patch.setattr(
            unfinished, "publish_folder", lambda *_: (_ for _ in ()).throw(Killed)
        )
        with pytest.raises(Killed):
            train(further, out)
    assert not out.exists()
    with pytest.raises(InputError, match="an unfinished run with another epochs"):
        train(config(**settings, epochs=4), out)
    output = io.StringIO()
    train(further, out, console=Console(file=output, width=200))
    assert "Resuming the unfinished run, after 3 of 3 epochs." in output.getvalue()
    assert_same(out, tmp_path / "whole")
    assert names(tmp_path) == ["run", "whole"]
    assert logged < set(names(out / "logs/train"))
    for other in (config(**settings), config(**settings, epochs=9, seed=1)):
        with pytest.raises(InputError, match="in use already"):
            train(other, out)


@pytest.mark.slow
def test_a_run_without_a_better_score_ends_and_stays_ended(
    tiny, eagerly, tmp_path, monkeypatch
):
    settings = config(learning_rate=1e-30, epochs=9, patience=1)
    train(settings, tmp_path / "whole")
    assert len(result(tmp_path / "whole")[1]) == 1 + 2
    with monkeypatch.context() as patch:
        stop_at(patch, (2, False))
        with pytest.raises(Killed):
            train(settings, tmp_path / "run")
    with pytest.raises(InputError, match="with another patience: 1 there, None here"):
        train(dataclasses.replace(settings, patience=None), tmp_path / "run")
    train(settings, tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert load_run(tmp_path / "run").config.patience == 1
    with pytest.raises(InputError, match="patience"):
        dataclasses.replace(settings, patience=0).validate()


def test_the_score_that_patience_waits_for_is_the_best_one(tiny):
    stop = EarlyStop(tiny, ["way", "level"], patience=2)

    def history(accuracies):
        return {
            "val_way_accuracy": accuracies,
            "val_level_mae": [0.5] * len(accuracies),
        }

    assert not stop.resume({})
    assert not stop.resume(history([0.5, 0.6, 0.6]))
    assert stop.resume(history([0.5, 0.6, 0.6, 0.5]))
    assert not stop.resume(history([0.5, 0.6, 0.6, 0.7]))
    assert not stop.resume(history([float("nan"), 0.2, 0.1]))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def stopped(tiny, eagerly, tmp_path, monkeypatch):
    """A run of three epochs that was stopped after two."""
    with monkeypatch.context() as patch:
        stop_at(patch, (2, False))
        with pytest.raises(Killed):
            train(config(), tmp_path / "run")
    return tmp_path


@pytest.mark.parametrize("broken", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.slow
def test_broken_checkpoints_are_reported_and_skipped(stopped, broken):
    train(config(), stopped / "whole")
    saved = sorted((stopped / ".run.partial/checkpoints").iterdir())
    assert [path.name[:12] for path in saved] == ["epoch-000001", "epoch-000002"]
    content = bytearray(saved[1].read_bytes())
    content[len(content) // 2] ^= 1
    saved[1].write_bytes(content)
    if broken == 2:
        saved[0].write_bytes(b"")
    with pytest.warns(UserWarning, match="is broken") as caught:
        train(config(), stopped / "run")
    assert sum("is broken" in str(w.message) for w in caught) == broken
    assert_same(stopped / "run", stopped / "whole")


def test_an_interrupted_run_says_that_it_can_be_resumed(
    tiny, eagerly, tmp_path, monkeypatch
):
    real = checkpoints.save

    def interrupted(*args):
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", interrupted)
    with pytest.raises(KeyboardInterrupt, match="resumes the run"):
        train(config(), tmp_path / "run")


def test_runs_that_cannot_be_resumed_are_refused_and_kept(stopped, monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", lambda *a, **k: pytest.fail("trained"))
    work = stopped / ".run.partial"
    before = {p: p.read_bytes() for p in work.rglob("*") if p.is_file()}

    def refused(message, settings):
        with pytest.raises(InputError, match=message) as caught:
            train(settings, stopped / "run")
        assert "\n" not in str(caught.value)

    refused("another seed: 0 there, 5 here", config(seed=5))
    with unfinished.held(work):
        refused("Another process", config())
        assert unfinished.next_free(stopped, config().validate()).name == "tiny-1"
    (work / "run" / "model.keras").symlink_to(stopped / "elsewhere")
    refused("no symbolic link", config())
    (work / "run" / "model.keras").unlink()
    monkeypatch.setitem(SIZES, "train", 40)
    refused("2 steps in an epoch. Received: data of 1", config())
    assert {p: p.read_bytes() for p in work.rglob("*") if p.is_file()} == before


def test_runs_are_numbered_past_those_that_cannot_be_resumed(stopped):
    settings = config().validate()
    (stopped / ".run.partial").rename(stopped / ".tiny-1.partial")
    assert unfinished.next_free(stopped, settings).name == "tiny-1"
    assert unfinished.next_free(stopped, config(seed=5).validate()).name == "tiny-2"
    with unfinished.held(stopped / ".tiny-1.partial"):
        assert unfinished.next_free(stopped, settings).name == "tiny-2"
    (stopped / "tiny-1").mkdir()
    assert unfinished.next_free(stopped, settings).name == "tiny-2"


def test_a_full_disk_is_one_line_and_costs_nothing_that_was_saved(
    tiny, eagerly, tmp_path, monkeypatch
):
    real, calls = np.savez, []

    def full(file, **arrays):
        calls.append(file)
        if len(calls) == 2:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(InputError, match="No space left on device"):
            train(config(), tmp_path / "run")
    saved = tmp_path / ".run.partial" / "checkpoints"
    assert names(saved) == ["epoch-000001-step-000000000.npz"]
    output = io.StringIO()
    train(config(), tmp_path / "run", console=Console(file=output, width=200))
    assert "Resuming the unfinished run, after 1 of 3 epochs." in output.getvalue()
    train(config(), tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")


class StateOf:
    """A model with nothing but state."""

    def __init__(self, values):
        self._values = values

    def state(self, *, epoch_means):
        return {key: tf.constant(value) for key, value in self._values.items()}


@hypothesis.settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(draw=strategies.data())
def test_a_checkpoint_with_any_bytes_changed_is_broken_or_the_same(tmp_path, draw):
    values = {"a": np.arange(12.0), "b": np.int64(3), "c": np.zeros((2, 3), "float32")}
    progress = checkpoints.Progress(1, 0, 5, 0.25, {"loss": [0.1]})
    checkpoints.save(tmp_path, StateOf(values), progress)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    for _ in range(draw.draw(strategies.integers(0, 4))):
        place = draw.draw(strategies.integers(0, len(content) - 1))
        content[place] = draw.draw(strategies.integers(0, 255))
    end = draw.draw(strategies.none() | strategies.integers(0, len(content)))
    path.write_bytes(content[:end])
    checkpoint, broken = checkpoints.newest(tmp_path)
    if checkpoint is None:
        assert len(broken) == 1
        return
    assert checkpoint.progress == progress
    assert {key: value.tolist() for key, value in checkpoint.values.items()} == {
        key: value.tolist() for key, value in values.items()
    }
