"""Which implementation of the ops a model trains with."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import mtl_keras
from mtl_keras import ops
from mtl_keras.ops import native


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
