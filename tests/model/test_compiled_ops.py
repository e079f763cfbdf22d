"""Which implementation of the ops a model trains with."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import mtl_keras
from mtl_keras import balancing, ops
from mtl_keras.balancing.base import GramBalancer
from mtl_keras.ops import native

GRAM_METHODS = [
    name for name in balancing.names() if isinstance(balancing.get(name), GramBalancer)
]


def after_20_steps(name, jit_compile, implementation):
    """Returns the weights of a model of three tasks."""
    keras.utils.set_random_seed(0)
    keras.utils.clear_session(free_memory=False)
    inputs = keras.Input((6,))
    shared = keras.layers.Dense(5, "tanh")(keras.layers.Dense(7, "tanh")(inputs))
    model = mtl_keras.MultiTaskModel(
        inputs, {task: keras.layers.Dense(1)(shared) for task in "abc"}
    )
    configs = {
        "krum": {"n_byzantine": 0},
        "pcd": {"primary": "a"},
        "samo": {"local": 0.0},  # XLA draws other numbers of the same seed.
    }
    config = configs.get(name, {})
    method = {"class_name": name, "config": config}
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 6)), {t: rng.normal(size=(80, 1)) for t in "abc"}
    with ops.implementation(implementation):
        model.compile(
            keras.optimizers.SGD(0.01),
            loss="mse",
            balancing=method,
            jit_compile=jit_compile,
        )
        model.fit(x, y, batch_size=4, epochs=1, verbose=0, shuffle=False)
    return np.concatenate([w.ravel() for w in model.get_weights()])


@pytest.mark.slow
@pytest.mark.skipif(not ops.native_available(), reason="no compiled ops")
@pytest.mark.parametrize("name", GRAM_METHODS)
def test_ops_custom_calls_and_tensorflow_train_alike(name):
    native, calls, composed, under_xla = (
        after_20_steps(name, *choice)
        for choice in (
            (False, "auto"),
            (True, "auto"),
            (False, "tensorflow"),
            (True, "tensorflow"),
        )
    )
    np.testing.assert_allclose(composed, native, rtol=0, atol=1e-6)
    np.testing.assert_allclose(under_xla, calls, rtol=0, atol=1e-6)
    if name not in ("pcgrad", "gradvac"):  # XLA draws other orders of tasks.
        np.testing.assert_allclose(calls, native, rtol=0, atol=1e-6)


def trained(jit_compile):
    """Returns a model after two steps."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6,))
    shared = keras.layers.Dense(5, "tanh")(image)
    model = mtl_keras.MultiTaskModel(
        image, {task: keras.layers.Dense(1)(shared) for task in "abc"}
    )
    model.compile("sgd", loss="mse", balancing="upgrad", jit_compile=jit_compile)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 6)), {t: rng.normal(size=(8, 1)) for t in "abc"}
    model.fit(x, y, batch_size=4, epochs=1, verbose=0, shuffle=False)
    return model


@pytest.mark.skipif(not ops.native_available(), reason="no compiled ops")
def test_compiled_ops_outside_xla_and_not_inside(monkeypatch):
    uses = []
    chosen = native.in_use

    def watched():
        library = chosen()
        uses.append(library is not None)
        return library

    monkeypatch.setattr(native, "in_use", watched)
    weights = []
    for jit_compile, compiled_ops in (("auto", True), (True, False)):
        uses.clear()
        model = trained(jit_compile)
        # On the CPU "auto" leaves XLA off.
        assert model.jit_compile is (not compiled_ops)
        assert uses
        assert set(uses) == {compiled_ops}
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
