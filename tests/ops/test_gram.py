"""Gram matrices and combinations against NumPy on dense gradients."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import ops


def slices(rng, ids, rows, width, dtype=np.float32):
    values = rng.normal(size=(len(ids), width)).astype(dtype)
    return tf.IndexedSlices(
        tf.constant(values),
        tf.constant(ids),
        dense_shape=tf.constant([rows, width], tf.int64),
    )


def dense(gradient, shape):
    if gradient is None:
        return np.zeros(shape)
    if isinstance(gradient, tf.IndexedSlices):
        out = np.zeros(shape)
        np.add.at(out, gradient.indices.numpy(), gradient.values.numpy())
        return out
    return np.asarray(gradient, dtype=np.float64)


def example(seed=0):
    """Three tasks: dense, sparse, mixed and missing gradients, scalars too."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return tf.constant(rng.normal(size=shape), tf.float32)

    shapes = [(4, 3), (10, 2), (10, 2), (), (5,), (3,)]
    gradients = [
        [
            normal(4, 3),
            slices(rng, [1, 7, 1], 10, 2),
            normal(10, 2),
            normal(),
            None,
            None,
        ],
        [
            normal(4, 3),
            slices(rng, [7, 7, 9, 0], 10, 2),
            slices(rng, [3, 3, 8], 10, 2),
            normal(),
            normal(5),
            None,
        ],
        [
            normal(4, 3),
            slices(rng, [2, 7], 10, 2),
            slices(rng, [8, 2], 10, 2),
            None,
            normal(5),
            None,
        ],
    ]
    return gradients, shapes


@pytest.mark.parametrize("how", ["eager", "graph", "xla", "tensorflow"])
def test_gramian_and_combine_match_dense_gradients(how):
    gradients, shapes = example()
    weights = tf.constant([0.5, -2.0, 3.0], tf.float64)

    def both(gradients):
        return ops.gramian(gradients), ops.combine(weights, gradients)

    if how != "eager":
        both = tf.function(both, jit_compile=how == "xla")
    with ops.implementation("tensorflow" if how == "tensorflow" else "auto"):
        gram, update = both(gradients)

    rows = [[dense(g, s) for g, s in zip(t, shapes, strict=True)] for t in gradients]
    flat = np.array([np.concatenate([g.ravel() for g in t]) for t in rows])
    assert gram.dtype == tf.float64
    np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-12, atol=1e-14)

    assert update[5] is None
    assert isinstance(update[1], tf.IndexedSlices)
    # Clipping by the norm takes each row for an id of its own.
    np.testing.assert_allclose(
        tf.linalg.global_norm([update[1].values]),
        np.linalg.norm(dense(update[1], shapes[1])),
        rtol=1e-6,
    )
    assert not isinstance(update[2], tf.IndexedSlices)
    for v in range(5):
        expected = sum(w * r[v] for w, r in zip(weights.numpy(), rows, strict=True))
        np.testing.assert_allclose(
            dense(update[v], shapes[v]), expected, rtol=2e-6, atol=1e-6
        )


def test_sparse_cost_does_not_depend_on_the_table():
    rng = np.random.default_rng(0)
    rows = 2**40  # a dense row set of this size could not be allocated
    a = slices(rng, np.array([3, rows - 1, 3]), rows, 4)
    b = slices(rng, np.array([rows - 1]), rows, 4)
    gram = ops.gramian([[a], [b]])
    product = a.values.numpy()[1].astype(float) @ b.values.numpy()[0].astype(float)
    np.testing.assert_allclose(gram[0, 1], product, rtol=1e-12)


def test_float32_sums_are_as_good_as_float64():
    rng = np.random.default_rng(0)
    x = (1.0 + rng.normal(size=10**6)).astype(np.float32)
    y = rng.normal(size=10**6).astype(np.float32)
    y -= np.float32(x.astype(float) @ y / (x.astype(float) @ x)) * x
    gram = ops.gramian([[tf.constant(x)], [tf.constant(y)]])
    exact = np.array([x, y], np.longdouble)
    scale = np.sqrt(float(np.sum(exact[0] ** 2) * np.sum(exact[1] ** 2)))
    np.testing.assert_allclose(gram[0, 0], float(np.sum(exact[0] ** 2)), rtol=1e-12)
    # The product nearly cancels: float32 sums would be wrong in the first digit.
    difference = float(gram[0, 1]) - float(np.sum(exact[0] * exact[1]))
    assert abs(difference) < 1e-13 * scale


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_cast_up_first(dtype):
    gradient = tf.fill([64], tf.constant(3e4, dtype))  # squares overflow float16
    gram = ops.gramian([[gradient], [tf.zeros([64], dtype)]])
    np.testing.assert_allclose(gram[0, 0], 64 * float(gradient[0]) ** 2, rtol=1e-12)
    small = tf.fill([64], tf.constant(1e-4, dtype))
    (update,) = ops.combine(tf.constant([1e5, 0.0], tf.float64), [[small], [small]])
    assert update.dtype == dtype
    np.testing.assert_allclose(tf.cast(update, tf.float32), 10.0, rtol=1e-2)


def test_unknown_row_counts_in_a_graph():
    @tf.function(
        input_signature=[tf.TensorSpec([None, 2]), tf.TensorSpec([None], tf.int64)]
    )
    def gram(values, ids):
        return ops.gramian([[tf.IndexedSlices(values, ids)]] * 2)

    values = tf.constant([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_allclose(gram(values, tf.constant([5, 5], tf.int64)), 52.0)


def test_no_gradient_at_all():
    np.testing.assert_array_equal(ops.gramian([[None], [None]]), np.zeros((2, 2)))
    assert ops.combine(tf.ones(2), [[None], [None]]) == [None]


def test_errors_name_task_and_variable():
    with pytest.raises(ValueError, match="at least one task"):
        ops.gramian([])
    with pytest.raises(ValueError, match=r"task 0 has 1.*Received: 2 for task 1"):
        ops.gramian([[tf.ones(2)], [tf.ones(2), None]])
    with pytest.raises(ValueError, match=r"variable 1: task 0 .* for task 2"):
        ops.gramian([[None, tf.ones(2)], [None, None], [None, tf.ones(3)]])
    with pytest.raises(ValueError, match="variable 0"):
        ops.gramian(
            [[tf.ones([4, 2])], [tf.IndexedSlices(tf.ones([1, 3]), tf.constant([0]))]]
        )
    with pytest.raises(ValueError, match="one weight for each of the 2 tasks"):
        ops.combine(tf.ones(3), [[tf.ones(2)], [tf.ones(2)]])
