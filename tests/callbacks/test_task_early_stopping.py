"""Tasks that leave the training, against trainings that never had them."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import mtl_keras
from mtl_keras.callbacks import TaskEarlyStopping
from mtl_keras.errors import InputError

METRICS = {"a": "val_a_score", "b": "val_b_score"}
DIRECTIONS = {"a": "max", "b": "min"}


def build(balancing="equal", **options):
    inputs = keras.Input((3,))
    h = keras.layers.Dense(4, "tanh")(inputs)
    outputs = {task: keras.layers.Dense(1, name=task)(h) for task in ("a", "b")}
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.1), "mse", balancing=balancing, **options)
    return model


def data():
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    return x, {"a": x[:, :1], "b": x[:, 1:2] ** 2}


class Scores(keras.callbacks.Callback):
    def __init__(self, a, b):
        super().__init__()
        self.scores = {"val_a_score": a, "val_b_score": b}

    def on_epoch_end(self, epoch, logs=None):
        logs.update({key: values[epoch] for key, values in self.scores.items()})


def fit(model, epochs, *callbacks, **options):
    x, y = data()
    return model.fit(
        *(x, y),
        epochs=epochs,
        batch_size=4,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **options,
    ).history


def test_stops_each_task_by_its_own_metric_and_then_the_training():
    # `a` is best at epoch 0 and stops after two more; `b`, to be minimised, improves
    # by less than min_delta from epoch 2 on.
    scores = Scores(a=[3, 2, 3, 9, 9, 9, 9], b=[5, 4, 3, 2.95, 2.9, 0, 0])
    stop = TaskEarlyStopping(METRICS, DIRECTIONS, patience=2, min_delta=0.2)
    model = build(run_eagerly=True)
    history = fit(model, 7, scores, stop)
    assert stop.stopped_epochs == {"a": 2, "b": 4}
    assert len(history["loss"]) == 5
    assert history["a_loss"][2] > 0
    assert np.isnan(history["a_loss"][3:]).all()
    assert history["a_weight"][3:] == [0, 0]
    np.testing.assert_allclose(history["loss"][3:], history["b_loss"][3:], rtol=1e-6)
    # The next training starts with all tasks, and counts anew.
    history = fit(model, 2, Scores([1, 1], [1, 1]), stop)
    assert min(history["a_loss"]) > 0
    assert stop.stopped_epochs == {}


@pytest.mark.parametrize(
    "balancing", [pytest.param("equal", marks=pytest.mark.slow), "pcgrad"]
)
def test_a_stopped_task_moves_nothing_any_more(balancing):
    """From the stop on, as a model that is trained with no label of that task."""
    scores = Scores(a=[1, 0, 0, 0], b=[4, 3, 2, 1])
    stop = TaskEarlyStopping(METRICS, DIRECTIONS, patience=1)
    model, other = build(balancing), build(balancing)
    other.set_weights(model.get_weights())
    fit(model, 4, scores, stop)
    assert stop.stopped_epochs == {"a": 1}
    fit(other, 2)
    head = other.get_layer("a").get_weights()
    absent = {"a": np.zeros(8, "float32"), "b": np.ones(8, "float32")}
    fit(other, 4, initial_epoch=2, sample_weight=absent)
    for actual, expected in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    for actual, expected in zip(model.get_layer("a").get_weights(), head, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_tasks_not_watched_neither_stop_nor_hold_up():
    stop = TaskEarlyStopping({"a": "val_a_score"}, DIRECTIONS, 1, start_from_epoch=1)
    history = fit(build(run_eagerly=True), 5, Scores([9, 1, 1, 1, 1], [1] * 5), stop)
    assert stop.stopped_epochs == {"a": 2}
    assert len(history["loss"]) == 3


def test_wrong_arguments_models_and_logs():
    with pytest.raises(InputError, match="direction"):
        TaskEarlyStopping(METRICS, {"a": "max"})
    with pytest.raises(InputError, match="patience"):
        TaskEarlyStopping(METRICS, DIRECTIONS, patience=0)
    stop = TaskEarlyStopping({"aa": "val_a_score"}, {"aa": "max"})
    with pytest.raises(InputError, match="Did you mean 'a'"):
        fit(build(run_eagerly=True), 1, stop)
    stop = TaskEarlyStopping({"a": "val_a_scor"}, {"a": "max"})
    with pytest.raises(InputError, match="val_a_scor"):
        fit(build(run_eagerly=True), 1, stop)
    stock = keras.Sequential([keras.layers.Dense(1)])
    stock.compile("sgd", "mse")
    with pytest.raises(InputError, match="MultiTaskModel"):
        stock.fit(*(data()[0],) * 2, verbose=0, callbacks=[stop])
