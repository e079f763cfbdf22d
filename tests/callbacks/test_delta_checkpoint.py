"""The best epoch by Δm: chosen by hand, kept through crashes and restarts."""

from __future__ import annotations

import pathlib
import zipfile

import keras
import numpy as np
import pytest

import mtl_keras
from mtl_keras.callbacks import DeltaCheckpoint
from mtl_keras.errors import InputError

# Higher is better for `a`, lower for `b`. Δm of the epochs: 0, 25, 20, 50 percent.
EPOCHS = [(0.5, 2.0), (0.75, 2.0), (0.6, 1.6), (0.75, 1.0)]


def build():
    inputs = keras.Input((2,))
    h = keras.layers.Dense(2)(inputs)
    outputs = {task: keras.layers.Dense(1, name=task)(h) for task in ("a", "b")}
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    model.compile("sgd", loss="mse", run_eagerly=True)
    return model


def callback(path, **arguments):
    return DeltaCheckpoint(
        path,
        baseline={"a": 0.5, "b": 2.0},
        metrics={"a": "val_a", "b": "val_b"},
        directions={"a": "max", "b": "min"},
        **arguments,
    )


class Validated(keras.callbacks.Callback):
    """Sets each epoch's validation metrics, and model weights that identify it."""

    def on_epoch_end(self, epoch, logs=None):
        logs["val_a"], logs["val_b"] = EPOCHS[epoch]
        mark(self.model, epoch)


def mark(model, epoch):
    model.set_weights([np.full(w.shape, float(epoch)) for w in model.get_weights()])


def marked(model):
    (epoch,) = {float(value) for w in model.get_weights() for value in np.ravel(w)}
    return epoch


def fit(model, keep, epochs, initial_epoch=0):
    x = np.zeros((2, 2), "float32")
    y = dict.fromkeys(("a", "b"), np.zeros((2, 1), "float32"))
    model.fit(
        *(x, y),
        epochs=epochs,
        initial_epoch=initial_epoch,
        verbose=0,
        callbacks=[Validated(), keep],
    )


def stored(path):
    return marked(keras.models.load_model(path))


def test_keeps_and_restores_the_best_epoch(tmp_path):
    path = tmp_path / "new" / "best.keras"
    model, keep = build(), callback(path, restore_best_weights=True)
    fit(model, keep, epochs=3)
    assert (keep.best_epoch, keep.best) == (1, pytest.approx(25.0))
    assert marked(model) == stored(path) == 1
    assert [p.name for p in path.parent.iterdir()] == ["best.keras"]


def test_baselines_below_0_and_of_0(tmp_path):
    """Epochs by `a` alone: −0.5 is 50 % better than −1, −1.2 is 20 % worse."""
    with pytest.warns(UserWarning, match=r"excludes .* b \(0.0\)"):
        keep = DeltaCheckpoint(
            tmp_path / "best.keras",
            baseline={"a": -1.0, "b": 0.0},
            metrics={"a": "val_a", "b": "val_b"},
            directions={"a": "max", "b": "min"},
        )
    keep.set_model(build())
    for epoch, value in enumerate((-1.2, -0.5, -0.9)):
        keep.on_epoch_begin(epoch)
        keep.on_epoch_end(epoch, {"val_a": value, "val_b": 10.0 - epoch})
    assert (keep.best_epoch, keep.best) == (1, pytest.approx(50.0))


def test_resumes_where_a_training_stopped(tmp_path):
    path = tmp_path / "best.keras"
    fit(build(), callback(path), epochs=2)
    # Epoch 2 is worse than the best before the interruption, epoch 3 is better.
    keep = callback(path, restore_best_weights=True)
    model = build()
    fit(model, keep, epochs=3, initial_epoch=2)
    assert (keep.best_epoch, marked(model), stored(path)) == (1, 1, 1)
    keep = callback(path)
    fit(build(), keep, epochs=4, initial_epoch=3)
    assert (keep.best_epoch, stored(path)) == (3, 3)
    # Nothing left to train: the best is restored all the same.
    model, keep = build(), callback(path, restore_best_weights=True)
    fit(model, keep, epochs=4, initial_epoch=4)
    assert (keep.best_epoch, marked(model)) == (3, 3)
    # A new training starts anew.
    keep = callback(path)
    fit(build(), keep, epochs=1)
    assert (keep.best_epoch, stored(path)) == (0, 0)


@pytest.mark.parametrize("moment", ["in the middle of the file", "before its name"])
def test_a_crash_while_saving_leaves_the_previous_best(tmp_path, monkeypatch, moment):
    path = tmp_path / "best.keras"
    fit(build(), callback(path), epochs=1)

    def crash(*args, **kwargs):
        raise OSError("No space left on device")

    if moment == "before its name":
        monkeypatch.setattr(pathlib.Path, "replace", crash)
    else:
        monkeypatch.setattr(zipfile.ZipFile, "writestr", crash)
    with pytest.raises(OSError, match="No space"):
        fit(build(), callback(path), epochs=2, initial_epoch=1)
    monkeypatch.undo()
    assert stored(path) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["best.keras"]


def test_wrong_arguments_and_logs(tmp_path):
    with pytest.raises(InputError, match=r"\.keras"):
        callback(tmp_path / "best.h5")
    with pytest.raises(InputError, match="Did you mean 'a'"):
        DeltaCheckpoint("b.keras", {"a": 1.0}, {"aa": "val_a"}, {"aa": "max"})
    keep = callback(tmp_path / "best.keras")
    keep.metrics = {"a": "val_a", "b": "val_c"}
    with pytest.raises(InputError, match="'val_c'"):
        fit(build(), keep, epochs=1)
    (tmp_path / "best.keras").write_text("other")
    with pytest.raises(InputError, match="no file of DeltaCheckpoint"):
        fit(build(), callback(tmp_path / "best.keras"), epochs=2, initial_epoch=1)
