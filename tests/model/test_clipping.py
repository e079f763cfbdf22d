"""Gradients clipped by task before balancing, and after it by the optimizer."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import mtl_keras
from mtl_keras import ops

TASKS = ("a", "b", "c")


def build(method="equal", optimizer=None, **compile_arguments):
    keras.utils.set_random_seed(21)
    tokens = keras.Input((4,), dtype="int32")
    h = keras.layers.Embedding(64, 5)(tokens)
    h = keras.layers.Dense(8, "tanh")(keras.layers.Flatten()(h))
    model = mtl_keras.MultiTaskModel(
        tokens, {t: keras.layers.Dense(1, name=f"head_{t}")(h) for t in TASKS}
    )
    model.compile(
        optimizer or keras.optimizers.SGD(1.0),
        loss="mse",
        balancing=method,
        run_eagerly=True,
        **compile_arguments,
    )
    return model


def data(repeated=True):
    rng = np.random.default_rng(5)
    x = rng.integers(0, 20, (16, 4)) if repeated else np.arange(64).reshape(16, 4)
    return x, {
        task: scale * rng.normal(size=(16, 1)).astype("float32")
        for task, scale in zip(TASKS, (1.0, 10.0, 0.1), strict=True)
    }


def change(model, repeated=True):
    """Returns by how much one step moves each weight."""
    before = model.get_weights()
    model.train_on_batch(*data(repeated))
    return [old - new for old, new in zip(before, model.get_weights(), strict=True)]


def gradients_by_task(model):
    """Returns each task's gradients on all weights, by TensorFlow alone."""
    x, y = data()
    rows = []
    for task in TASKS:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(y[task] - model(x)[task]))
        rows.append(
            [
                None if g is None else tf.convert_to_tensor(g)
                for g in tape.gradient(loss, model.trainable_variables)
            ]
        )
    return rows


@pytest.mark.parametrize("policy", ["raise", "skip_task"])
@pytest.mark.parametrize("method", ["equal", "upgrad"])
def test_long_task_gradients_are_shortened_before_balancing(method, policy):
    model = build(method, task_clipnorm=0.5, on_nonfinite=policy)
    shared = 3  # the embedding, the kernel and the bias
    rows, expected = gradients_by_task(model), []
    norms = [tf.linalg.global_norm(row[:shared]).numpy() for row in rows]
    assert min(norms) < 0.5 < max(norms)
    clipped = [tf.clip_by_global_norm(row[:shared], 0.5)[0] for row in rows]
    weights = tf.ones(3)
    if method == "upgrad":
        balancer = mtl_keras.balancing.get(method)
        weights = 3.0 * balancer.weights(ops.gramian(clipped))
    expected = [g.numpy() for g in ops.combine(tf.cast(weights, "float32"), clipped)]
    actual = change(model)
    for one, two in zip(expected, actual[:shared], strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)
    # Heads belong to one task: nothing to balance, nothing to clip.
    columns = list(zip(*rows, strict=True))[shared:]
    heads = [sum(g for g in column if g is not None) for column in columns]
    for one, two in zip(heads, actual[shared:], strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)


def test_gradients_of_the_representation_are_shortened(monkeypatch):
    method = {"class_name": "upgrad", "config": {"gradients_of": "representation"}}
    seen = []
    model = build(method, task_clipnorm=0.01)
    aggregate = model.balancers[0].aggregate
    monkeypatch.setattr(
        model.balancers[0],
        "aggregate",
        lambda step: seen.append(step.gramian.numpy()) or aggregate(step),
    )
    change(model)
    norms = np.sqrt(np.diag(seen[0]))
    assert norms[1] == pytest.approx(0.01, rel=1e-5)
    assert norms.max() < 0.0101


def test_loss_weights_come_after_the_clipping():
    method = {"class_name": "Static", "config": {"task_weights": [2.0, 2.0, 2.0]}}
    doubled = change(build(method, task_clipnorm=0.5))[:3]
    for one, two in zip(change(build(task_clipnorm=0.5))[:3], doubled, strict=True):
        np.testing.assert_allclose(two, 2.0 * one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["equal", "upgrad"])
def test_the_optimizer_clips_after_balancing(method):
    # Of a sparse gradient, Keras takes repeated rows for different ones.
    def moved(**clip):
        return change(build(method, keras.optimizers.SGD(1.0, **clip)), repeated=False)

    whole = moved()
    norm = np.sqrt(sum(np.sum(np.square(w)) for w in whole))
    assert norm > 0.5
    clipped = moved(global_clipnorm=0.5)
    for one, two in zip(whole, clipped, strict=True):
        np.testing.assert_allclose(two, one * 0.5 / norm, rtol=1e-4, atol=1e-6)
    by_variable = moved(clipnorm=0.1)
    for one, two in zip(whole, by_variable, strict=True):
        factor = min(1.0, 0.1 / np.linalg.norm(one))
        np.testing.assert_allclose(two, one * factor, rtol=1e-4, atol=1e-6)
    by_value = moved(clipvalue=0.05)
    for one, two in zip(whole, by_value, strict=True):
        np.testing.assert_allclose(two, np.clip(one, -0.05, 0.05), rtol=1e-4, atol=1e-6)
