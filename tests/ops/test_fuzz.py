"""Arbitrary input to the compiled ops: the right result or a clear error, no crash."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtl_keras import ops
from mtl_keras.ops import native, solvers

pytestmark = pytest.mark.skipif(
    not ops.native_available(), reason="no compiled ops in this installation"
)
fuzz = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

DTYPES = ["float16", "bfloat16", "float32", "float64"]
NUMBERS = [0.0, 1.0, -2.0, 1e-30, 1e30, 1e200, np.nan, np.inf, -np.inf]
ERRORS = (tf.errors.InvalidArgumentError, ValueError)
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 9]), max_size=3)


@st.composite
def tensors(draw, dtype=None, shape=None):
    """A small tensor of any shape, dtype and value."""
    shape = draw(shapes) if shape is None else shape
    dtype = dtype or draw(st.sampled_from(DTYPES))
    count = int(np.prod(shape))
    values = draw(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=4))
    values = np.resize(np.array(values), count).reshape(shape)
    with np.errstate(over="ignore"):
        return tf.cast(tf.constant(values), dtype)


@st.composite
def slices(draw):
    """Values and ids that may not belong together; ids may be negative."""
    values = draw(tensors("float32"))
    ids = draw(
        st.lists(st.sampled_from([-(2**62), -1, 0, 1, 5, 2**62]), max_size=4).map(
            lambda n: tf.constant(n, tf.int64)
        )
    )
    return values, ids


integers = st.lists(st.integers(-2, 3), max_size=4)


@st.composite
def places(draw, count):
    """Attributes, right for some of the lists of gradients and wrong for others."""
    tasks = list(range(count))
    return {
        "num_tasks": draw(st.sampled_from([-1, 0, count, count, count + 1])),
        "tasks": draw(st.sampled_from([tasks, tasks, tasks[::-1]]) | integers),
        "variables": draw(
            st.sampled_from([[0] * count, [0] * count, tasks]) | integers
        ),
        "names": draw(st.sampled_from([[7], [7], tasks]) | integers),
    }


def attempt(call):
    """Returns the result, or None after one of the errors that are allowed."""
    try:
        return call()
    except ERRORS:
        return None


@fuzz
@given(st.data())
def test_dense_ops(data):
    library = native.library()
    same = data.draw(shapes)
    kind = data.draw(st.sampled_from(["any", "one shape"]))
    gradients = data.draw(
        st.lists(
            tensors(shape=same if kind == "one shape" else None),
            min_size=1,
            max_size=4,
        )
    )
    attributes = data.draw(places(len(gradients)))
    gram = attempt(
        lambda: library.mtl_keras_task_gramian(
            gradients, check_finite=data.draw(st.booleans()), **attributes
        )
    )
    if gram is not None:
        assert gram.shape == [attributes["num_tasks"]] * 2
    outs = data.draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3))
    weights = data.draw(tensors("float64", [len(gradients)]) | tensors("float64"))
    attempt(
        lambda: library.mtl_keras_combine_task_gradients(
            weights, gradients, Tout=outs, **attributes
        )
    )


@fuzz
@given(st.data())
def test_sparse_ops(data):
    library = native.library()
    pairs = data.draw(st.lists(slices(), min_size=1, max_size=3))
    values, ids = [list(x) for x in zip(*pairs, strict=True)]
    attributes = data.draw(places(len(pairs)))
    attempt(
        lambda: library.mtl_keras_sparse_task_gramian(
            values, ids, check_finite=data.draw(st.booleans()), **attributes
        )
    )
    count = data.draw(st.integers(1, 3))
    weights = data.draw(tensors("float64", [len(pairs)]) | tensors("float64"))
    attempt(
        lambda: library.mtl_keras_combine_sparse_task_gradients(
            weights, values, ids, Tout=["float32"] * count, V=count, **attributes
        )
    )


@fuzz
@given(st.data())
def test_solvers(data):
    library = native.library()
    size = data.draw(st.sampled_from([0, 1, 2, 3, 9]))
    number = tensors("float64", []) | tensors("float64")
    gram = data.draw(tensors("float64", [size, size]) | tensors("float64"))
    if data.draw(st.booleans()) and gram.shape.rank == 2:
        gram = tf.matmul(gram, gram, transpose_b=True)
    vector = data.draw(tensors("float64", [size]) | tensors("float64"))
    square = data.draw(tensors("float64", [size, size]) | tensors("float64"))
    orders = tf.constant(
        data.draw(st.lists(st.integers(-1, 9), min_size=9 * 8, max_size=9 * 8))
    )
    orders = tf.reshape(orders[: size * (size - 1)], [size, max(size - 1, 0)])
    precision = data.draw(st.just(tf.constant(1e-7, "float64")) | number)
    calls = [
        lambda: library.mtl_keras_min_norm(gram),
        lambda: library.mtl_keras_dual_cone(gram, data.draw(number), precision),
        lambda: library.mtl_keras_dual_cone(gram, square, precision),
        lambda: library.mtl_keras_up_grad(gram, vector, data.draw(number), precision),
        lambda: library.mtl_keras_dual_proj(gram, vector, data.draw(number), precision),
        lambda: library.mtl_keras_ca_grad(gram, data.draw(number), precision),
        lambda: library.mtl_keras_power_root(
            gram, data.draw(number), vector, precision
        ),
        lambda: library.mtl_keras_pc_grad(gram, orders),
        lambda: library.mtl_keras_grad_vac(
            gram, square, orders, data.draw(number), precision
        ),
        lambda: library.mtl_keras_imtl_g(gram, precision),
        lambda: library.mtl_keras_config(gram, precision),
        lambda: library.mtl_keras_aligned(
            gram, data.draw(st.integers(-1, 3)), precision
        ),
        lambda: library.mtl_keras_nonnegative_qp(gram, square, data.draw(number)),
    ]
    for call in calls:
        result = attempt(call)
        # Whatever the matrix, weights are finite; bounds and averages may not be.
        if result is not None and call is calls[0]:
            assert np.isfinite(result[0]).all()


@fuzz
@given(st.data())
def test_errors_of_the_public_ops_name_task_and_variable(data):
    num_tasks = data.draw(st.integers(2, 4))
    bad_task = data.draw(st.integers(1, num_tasks - 1))
    bad_variable = data.draw(st.integers(0, 2))
    kind = data.draw(st.sampled_from(["shape", "not finite"]))
    sparse = data.draw(st.booleans())
    rows = [[tf.ones([4, 2]) for _ in range(3)] for _ in range(num_tasks)]
    value = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    bad = tf.ones([4, 3]) if kind == "shape" else tf.fill([4, 2], np.float32(value))
    rows[bad_task][bad_variable] = bad
    if sparse:
        for row in rows:
            row[bad_variable] = tf.IndexedSlices(row[bad_variable], tf.range(4))
    with (
        ops.implementation("native"),
        pytest.raises(ERRORS, match=rf"variable {bad_variable}\b.* task {bad_task}\b"),
    ):
        ops.gramian(rows, check_finite=True)


@fuzz
@given(st.data())
def test_weights_are_always_finite(data):
    size = data.draw(st.integers(1, 5))
    gram = data.draw(tensors("float64", [size, size]))
    gram = (gram + tf.transpose(gram)) / 2
    orders = solvers.random_orders(size, [1, 2])
    with ops.implementation("native"):
        for solve in (
            solvers.min_norm,
            solvers.upgrad,
            solvers.dualproj,
            solvers.cagrad,
            solvers.power_root,
            lambda g: solvers.power_root(g, 2.0),
            lambda g: solvers.pcgrad(g, orders),
        ):
            weights, converged = solve(gram)
            assert np.isfinite(weights).all()
            if not np.isfinite(gram).all():
                assert not converged
