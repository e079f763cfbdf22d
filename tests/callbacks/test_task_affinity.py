"""Look-ahead affinity against a linear model worked out in NumPy."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import mtl_keras
from mtl_keras.callbacks import TaskAffinity
from mtl_keras.errors import InputError

SLOPES = {"a": 1.0, "b": -0.5, "c": 2.0}
STEP = 0.01


def build(weights=(0.3, -0.2)):
    """Outputs are multiples of one shared linear layer."""
    inputs = keras.Input((2,))
    shared = keras.layers.Dense(1, use_bias=False, name="shared")(inputs)
    outputs = {t: keras.layers.Rescaling(s, name=t)(shared) for t, s in SLOPES.items()}
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    model.get_layer("shared").set_weights([np.array(weights, "float32")[:, None]])
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    return model


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 2)).astype("float32")
    return x, {task: rng.normal(size=(16, 1)).astype("float32") for task in SLOPES}


def by_hand(x, y, weights):
    w = np.array(weights)
    x = x.astype(float)

    def loss(task, w):
        return np.mean((SLOPES[task] * x @ w - y[task][:, 0]) ** 2)

    gradients = {
        task: 2 * slope * x.T @ (slope * x @ w - y[task][:, 0]) / len(x)
        for task, slope in SLOPES.items()
    }
    unit = {task: g / np.linalg.norm(g) for task, g in gradients.items()}
    length = STEP * np.linalg.norm(w)
    cosines = [[unit[i] @ unit[j] for j in SLOPES] for i in SLOPES]
    affinity = [
        [1 - loss(j, w - length * unit[i]) / loss(j, w) for j in SLOPES] for i in SLOPES
    ]
    return np.array(cosines), np.array(affinity)


def test_equals_the_closed_form_and_leaves_the_model_alone(tmp_path):
    x, y = data()
    batches = [(x[:8], {t: v[:8] for t, v in y.items()})]
    batches.append((x[8:], {t: v[8:] for t, v in y.items()}))
    measured = TaskAffinity(batches, step_size=STEP, path=tmp_path / "affinity.json")
    model = build()
    before = model.get_weights()
    fit = {"verbose": 0, "callbacks": [measured]}
    model.fit(x, y, epochs=2, **fit)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    expected = [by_hand(*batch, (0.3, -0.2)) for batch in batches]
    for table, index in (("cosines", 0), ("affinity", 1)):
        tables = np.mean([record[index] for record in expected], axis=0)
        np.testing.assert_allclose(measured.mean(table), tables, rtol=2e-3, atol=2e-5)
    assert [record["epoch"] for record in measured.history] == [0, 1]
    np.testing.assert_array_equal(measured.mean("shared"), 8.0)
    # A task's own step lowers its own loss; a resumed training adds epochs.
    assert (np.diag(measured.mean("affinity")) > 0).all()
    again = TaskAffinity(batches, step_size=STEP, path=tmp_path / "affinity.json")
    model.fit(x, y, epochs=3, initial_epoch=1, **{**fit, "callbacks": [again]})
    assert [record["epoch"] for record in again.history] == [0, 1, 2]
    assert again.history[0] == measured.history[0]
    # Stopped behind the last epoch, there is none left to train.
    ended = TaskAffinity(batches, step_size=STEP, path=tmp_path / "affinity.json")
    model.fit(x, y, epochs=3, initial_epoch=3, **{**fit, "callbacks": [ended]})
    assert ended.history == again.history


@pytest.mark.slow
def test_an_absent_task_is_unknown_not_zero():
    x, y = data()
    weights = {t: np.full(16, float(t != "b"), "float32") for t in SLOPES}
    measured = TaskAffinity([(x, y, weights)], step_size=STEP)
    build().fit(x, y, verbose=0, callbacks=[measured])
    for table in ("cosines", "affinity"):
        values = measured.mean(table)
        assert np.isnan(values[1]).all()
        assert np.isnan(values[:, 1]).all()
        assert np.isfinite(values[np.ix_([0, 2], [0, 2])]).all()
    assert measured.history[0]["affinity"][1][0] is None


def test_needs_a_model_that_shares():
    x, y = data()
    inputs = keras.Input((2,))
    outputs = {task: keras.layers.Dense(1, name=task)(inputs) for task in SLOPES}
    apart = mtl_keras.MultiTaskModel(inputs, outputs)
    apart.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(InputError, match="shares none"):
        apart.fit(x, y, verbose=0, callbacks=[TaskAffinity([(x, y)])])
    stock = keras.Model(inputs, outputs)
    stock.compile("sgd", "mse")
    with pytest.raises(InputError, match="MultiTaskModel"):
        stock.fit(x, y, verbose=0, callbacks=[TaskAffinity([(x, y)])])
    with pytest.raises(InputError, match="step_size"):
        TaskAffinity([], step_size=0.0)
