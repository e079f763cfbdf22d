"""Mixtures of experts: both implementations against NumPy and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import ops

IMPLEMENTATIONS = ["tensorflow"]
if ops.native_available():
    IMPLEMENTATIONS.append("native")


def sample(batch, inner, experts, width, dtype="float32"):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(batch, experts)).astype(dtype)
    return weights, rng.normal(size=(batch, *inner, experts, width)).astype(dtype)


@pytest.mark.parametrize(
    ("inner", "dtype"),
    [
        ((), "float32"),
        ((), "float64"),
        ((2, 1), "float32"),
        pytest.param((2, 1), "float64", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_mixture_and_its_gradients(name, inner, dtype):
    # Each value costs two evaluations; nine are more than a vector register holds.
    weights, values = sample(2, inner, 3, 9, dtype)
    with ops.implementation(name):
        mixed = ops.mix_experts(tf.constant(weights), tf.constant(values))
        expected = np.einsum("be,b...ed->b...d", weights, values)
        np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-6)

        def gradients(weights, values):
            with tf.GradientTape() as tape:
                tape.watch([weights, values])
                loss = tf.reduce_sum(tf.sin(ops.mix_experts(weights, values)))
            return tf.concat(
                [tf.reshape(g, [-1]) for g in tape.gradient(loss, [weights, values])], 0
            )

        tolerance = 1e-2 if dtype == "float32" else 1e-6
        for function in (ops.mix_experts, gradients):
            theory, numeric = tf.test.compute_gradient(
                function, [weights, values], delta=1e-2 if dtype == "float32" else 1e-5
            )
            for a, b in zip(theory, numeric, strict=True):
                np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not ops.native_available(), reason="no compiled ops")
def test_only_graphs_that_train_hold_the_compiled_op():
    weights, values = sample(2, (), 3, 4)

    def names_in(portable):
        graph = tf.function(ops.mix_experts).get_concrete_function(
            tf.constant(weights), tf.constant(values), portable=portable
        )
        return {op.type for op in graph.graph.get_operations()}

    assert "MtlKeras>MixExperts" in names_in(False)
    assert not any(name.startswith("MtlKeras>") for name in names_in(True))


@pytest.mark.skipif(not ops.native_available(), reason="no compiled ops")
@pytest.mark.parametrize(
    ("weights", "values"),
    [((2, 3), (2, 4, 5)), ((2, 3), (3, 3, 5)), ((2, 0), (2, 0, 5)), ((3,), (2, 3, 5))],
)
def test_shapes_that_do_not_fit_are_reported(weights, values):
    with (
        ops.implementation("native"),
        pytest.raises(tf.errors.InvalidArgumentError, match="Expected weights"),
    ):
        ops.mix_experts(tf.zeros(weights), tf.zeros(values))
