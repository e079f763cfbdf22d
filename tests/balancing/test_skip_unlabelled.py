"""Outputs that are computed on labelled samples alone train as those of all do."""

from __future__ import annotations

import balancing_cases as cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import mtl_keras
from mtl_keras import balancing
from mtl_keras.errors import InputError

TASKS = ("a", "b", "c")
# Without gradients of shared variables there is nothing to skip in.
NAMES = [name for name in balancing.names() if name != "consmtl"]
QUICK = {"equal", "pcgrad", "nash", "famo", "moco", "samo", "m_config", "uncertainty"}


def data(n=48, shared=4):
    """Samples that have a label of one task each, every `shared`-th of all tasks."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(n, 5)).astype("float32")
    y = {task: rng.normal(size=(n, 2)).astype("float32") for task in TASKS}
    place = np.arange(n)
    weights = {
        task: ((place % 3 == index) | (place % shared == 0)).astype("float32")
        for index, task in enumerate(TASKS)
    }
    return x, y, weights


def batches(**of_data):
    return tf.data.Dataset.from_tensor_slices(data(**of_data)).batch(16)


def build(method="pcgrad", activity=None, **compiling):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,))
    h = keras.layers.Dense(8, "tanh", activity_regularizer=activity)(inputs)
    h = keras.layers.Dense(8, "tanh", kernel_regularizer="l2")(h)
    model = mtl_keras.MultiTaskModel(
        inputs, {task: keras.layers.Dense(2, name=task)(h) for task in TASKS}
    )
    config = dict(cases.CONFIGS.get(method, {}))
    if method in cases.WITH_PRIMARY:
        config["primary"] = "a"
    model.compile(
        keras.optimizers.SGD(0.05),
        loss="mse",
        metrics={task: ["mae"] for task in TASKS},
        balancing={"class_name": method, "config": config},
        **compiling,
    )
    return model


def assert_same(one, other, **tolerance):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in NAMES],
)
def test_every_method_takes_the_same_steps(name):
    logs, models = [], []
    for skips in (False, True):
        model = build(name, skip_unlabelled=skips, jit_compile=False)
        history = model.fit(batches(), epochs=2, shuffle=False, verbose=0)
        logs.append(history.history)
        models.append(model)
    assert_same(*models, rtol=1e-4, atol=1e-5)
    assert logs[0].keys() == logs[1].keys()
    for key in logs[0]:
        np.testing.assert_allclose(*(log[key] for log in logs), rtol=1e-4, atol=1e-5)
