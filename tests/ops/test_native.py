"""The compiled ops against the TensorFlow versions, and on input that is malformed."""

from __future__ import annotations

import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import ops
from mtl_keras.ops import native, solvers

pytestmark = pytest.mark.skipif(
    not ops.native_available(), reason="no compiled ops in this installation"
)


def both(call):
    results = []
    for name in ("native", "tensorflow"):
        with ops.implementation(name):
            results.append(call())
    return results


def orders_of(num_tasks):
    return solvers.random_orders(num_tasks, [3, 4])


def shares_of(num_tasks):
    return 0.5 + tf.range(num_tasks, dtype=tf.float64)


SOLVERS = {
    "min_norm": solvers.min_norm,
    "upgrad": solvers.upgrad,
    "upgrad_exact": functools.partial(solvers.upgrad, reg_eps=0.0),
    "dualproj": solvers.dualproj,
    "cagrad": solvers.cagrad,
    "cagrad_none": functools.partial(solvers.cagrad, c=0.0),
    "nash": solvers.power_root,
    "fairgrad": functools.partial(solvers.power_root, alpha=2.0),
    "power_root": functools.partial(solvers.power_root, alpha=0.7),
    "shares": lambda g: solvers.power_root(g, 2.0, shares=shares_of(g.shape[0])),
    "pcgrad": lambda g: solvers.pcgrad(g, orders_of(g.shape[0])),
    "gradvac": lambda g: solvers.gradvac(
        g, tf.fill(g.shape, tf.constant(0.3, tf.float64)), orders_of(g.shape[0]), 0.1
    ),
    "dual_cone": lambda g: solvers.dual_cone(g, tf.eye(g.shape[0], dtype=tf.float64)),
    "imtl_g": solvers.imtl_g,
    "config": solvers.config,
    "aligned": solvers.aligned,
    "aligned_median": functools.partial(solvers.aligned, scale_mode="median"),
    "aligned_rmse": functools.partial(solvers.aligned, scale_mode="rmse"),
}


def rows_of(kind, num_tasks, seed):
    rng = np.random.default_rng(1000 * num_tasks + seed)
    rows = rng.normal(size=(num_tasks, 2 * num_tasks + 3))
    if kind == "conflict":
        rows -= 0.95 * rows.mean(axis=0)
    if kind == "scales":
        rows *= 10.0 ** rng.uniform(-4, 4, size=(num_tasks, 1))
    if kind == "nearly dependent":
        rows[-1] = rows[0] + 1e-4 * rows[-1]
    if kind == "absent":
        rows[num_tasks // 2] = 0.0
    if kind == "tiny":
        rows *= 1e-9
    return rows


@functools.cache
def traced(name, which):
    # Tracing chooses the implementation, once per number of tasks.
    function = tf.function(SOLVERS[name], autograph=False)

    def call(gram):
        with ops.implementation(which):
            return function(tf.constant(gram))

    return call


# The composed solvers are traced for every number of tasks, most slowly for many.
@pytest.mark.parametrize("num_tasks", [5, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    "kind", ["plain", "conflict", "scales", "nearly dependent", "absent", "tiny"]
)
def test_solvers_agree(name, kind, num_tasks):
    # Eigenvalues beyond float64's digits are rounding errors, and so are the weights of
    # Aligned-MTL; in the update these errors cancel, of eight tasks down to 1e-8.
    of_updates = name.startswith("aligned") and kind == "scales"
    for seed in range(8):
        rows = rows_of(kind, num_tasks, seed)
        gram = rows @ rows.T
        *compiled, first = traced(name, "native")(gram)
        *composed, second = traced(name, "tensorflow")(gram)
        assert bool(first) == bool(second)
        for a, b in zip(compiled, composed, strict=True):
            if of_updates:
                a, b = a.numpy() @ rows, b.numpy() @ rows
            scale = np.abs(b).max(initial=1e-300)
            # Round-off, amplified by an ill-conditioned matrix.
            slack = 1e-6 if kind == "nearly dependent" else 1e-9
            if of_updates and num_tasks == 8:
                slack = 1e-7
            np.testing.assert_allclose(a, b, rtol=slack, atol=slack * scale)


def degenerate():
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(5, 11))
    yield "stationary", np.vstack([rows[:4], -rows[:4].sum(axis=0)])
    yield "rank deficient", rng.normal(size=(5, 2)) @ rng.normal(size=(2, 11))
    yield "duplicates", rows[[0, 1, 1, 1, 2]]
    yield "all the same", rows[[0] * 5]
    yield "opposite", np.vstack([rows[:3], -rows[:2]])
    yield "one zero", rows * [[1], [0], [1], [1], [1]]
    yield "all zero", rows * 0.0
    yield "scaled", rows * 10.0 ** np.array((-12, 0, 12, 0, 0))[:, None]
    yield "underflow", rows * 1e-200
    yield "huge", rows * 1e150
    yield "infinite", rows * [[np.inf], [1], [1], [1], [1]]
    yield "not a number", rows * [[np.nan], [1], [1], [1], [1]]


@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "dual_cone"])
def test_solvers_agree_on_degenerate_gradients(name):
    for case, rows in degenerate():
        with np.errstate(all="ignore"):
            gram = rows @ rows.T
        compiled, *_, first = traced(name, "native")(gram)
        composed, *_, second = traced(name, "tensorflow")(gram)
        assert bool(first) == bool(second), case
        assert np.isfinite(compiled).all(), case
        if not first:
            np.testing.assert_array_equal(compiled, composed, case)
            continue
        # Weights of dependent gradients are not unique; the update is, down to the
        # square root of rounding where its length is minimised.
        one, other = compiled.numpy() @ rows, composed.numpy() @ rows
        parts = np.abs(composed.numpy()) @ np.linalg.norm(rows, axis=1)
        assert np.linalg.norm(one - other) <= 1e-6 * parts, case


needs_custom_calls = pytest.mark.skipif(
    not native.custom_calls_available(), reason="built without XLA's headers"
)


@needs_custom_calls
@pytest.mark.parametrize("name", SOLVERS)
def test_custom_calls_under_xla_give_the_bits_of_the_ops(name):
    @tf.function(jit_compile=True, autograph=False)
    def under_xla(gram):
        return SOLVERS[name](gram)

    cases = dict(degenerate())
    cases |= {kind: rows_of(kind, 5, 0) for kind in ("conflict", "scales", "absent")}
    for case, rows in cases.items():
        with np.errstate(all="ignore"):
            gram = tf.constant(rows @ rows.T)
        with ops.implementation("native"):
            expected = SOLVERS[name](gram)
        for a, b in zip(under_xla(gram), expected, strict=True):
            np.testing.assert_array_equal(a, b, case)
    text = under_xla.experimental_get_compiler_ir(gram)(stage="optimized_hlo")
    assert text.count("custom_call_target=") == 1
    assert 'custom_call_target="mtl_keras_' in text
    assert " while(" not in text


@needs_custom_calls
def test_nonnegative_programs_of_several_rows_under_xla():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 9))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    linear = tf.constant(rng.normal(size=(3, 4)))

    def solve():
        return solvers.nonnegative_qp(tf.constant(rows @ rows.T), linear)

    (x, free), solved = tf.function(solve, jit_compile=True, autograph=False)()
    assert solved.numpy().tolist() == [True] * 3
    slopes = linear.numpy() - x.numpy() @ (rows @ rows.T)
    assert (x.numpy() >= 0).all()
    assert (slopes <= 1e-9).all()
    np.testing.assert_allclose(slopes[free.numpy()], 0.0, atol=1e-9)


@needs_custom_calls
def test_what_is_wrong_with_the_operands_of_a_custom_call():
    orders = tf.constant([[1, 2], [0, 2], [0, 7]])
    solve = tf.function(solvers.pcgrad, jit_compile=True, autograph=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Received: 7 for task 2"):
        solve(tf.eye(3, dtype=tf.float64), orders)


LATE = """
import tensorflow as tf
@tf.function(jit_compile=True)
def early(x):
    return x + 1.0
early(tf.constant(1.0))
from mtl_keras.ops import native, solvers
@tf.function(jit_compile=True, autograph=False)
def solve(gram):
    return solvers.upgrad(gram)
print(solve(tf.eye(2, dtype=tf.float64))[0].numpy().tolist())
text = solve.experimental_get_compiler_ir(tf.eye(2, dtype=tf.float64))(stage="hlo")
print("mtl_keras_UpGrad" in text)
"""


@pytest.mark.slow
@needs_custom_calls
def test_custom_calls_of_a_library_that_is_loaded_after_xla():
    environment = os.environ | {"MTL_KERAS_OPS": "auto"}
    done = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "[0.5, 0.5]\nTrue\n", done.stderr[-2000:]


SHAPES = [(), (5,), (300, 7), (1,), (0, 3), (40_000,)]


def gradients_of(dtypes, missing=0.2, seed=0):
    rng = np.random.default_rng(seed)
    return [
        [
            None
            if rng.uniform() < missing
            else tf.cast(tf.constant(rng.normal(size=shape)), dtype)
            for shape in SHAPES
        ]
        for dtype in dtypes
    ]


@pytest.mark.parametrize(
    "dtypes",
    [
        ["float32"] * 5,
        ["float64"] * 3,
        ["float16"] * 4,
        ["bfloat16"] * 2,
        ["float32", "float64", "float32"],
    ],
    ids=lambda dtypes: "-".join(sorted(set(dtypes))),
)
def test_dense_gramian_and_combination_agree(dtypes):
    gradients = gradients_of(dtypes)
    compiled, composed = both(lambda: ops.gramian(gradients))
    scale = np.sqrt(np.outer(np.diag(composed), np.diag(composed)))
    np.testing.assert_allclose(compiled / scale, composed / scale, atol=1e-12)

    weights = np.random.default_rng(1).normal(size=len(dtypes))
    narrow = {"float16": 2e-3, "bfloat16": 2e-2}.get(dtypes[0], 1e-6)
    for a, b in zip(*both(lambda: ops.combine(weights, gradients)), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            a, b = tf.cast(a, tf.float64), tf.cast(b, tf.float64)
            np.testing.assert_allclose(a, b, rtol=narrow, atol=narrow)


@pytest.mark.parametrize("index_dtype", ["int32", "int64"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sparse_gramian_and_combination_agree(index_dtype, dtype):
    rng = np.random.default_rng(0)

    def sparse(rows):
        return tf.IndexedSlices(
            tf.constant(rng.normal(size=(rows, 3, 5)), dtype),
            tf.constant(rng.integers(0, 50, rows), index_dtype),
            tf.constant([50, 3, 5], index_dtype),
        )

    def dense():
        return tf.constant(rng.normal(size=(50, 3, 5)), dtype)

    gradients = [
        [sparse(70), dense(), sparse(10)],
        [sparse(0), dense(), dense()],
        [sparse(700), None, None],
        [None, None, sparse(30)],
    ]
    compiled, composed = both(lambda: ops.gramian(gradients))
    np.testing.assert_allclose(compiled, composed, rtol=1e-9, atol=1e-9)
    one, other = both(lambda: ops.combine([0.5, 1.0, -2.0, 3.0], gradients))
    assert len(np.unique(one[0].indices)) == len(one[0].indices)
    for a, b in zip(one, other, strict=True):
        assert isinstance(a, tf.IndexedSlices) == isinstance(b, tf.IndexedSlices)
        a = tf.cast(tf.convert_to_tensor(a), tf.float32)
        b = tf.cast(tf.convert_to_tensor(b), tf.float32)
        slack = 1e-5 if dtype == "float32" else 0.1
        np.testing.assert_allclose(a, b, rtol=slack, atol=slack)


def test_compiled_under_xla_all_the_same():
    gradients = gradients_of(["float32"] * 3, missing=0.0)

    def step():
        assert ops.native_in_use() is (not xla or native.custom_calls_available())
        assert (native.in_use() is None) is xla
        weights, _ = solvers.upgrad(ops.gramian(gradients))
        return ops.combine(weights, gradients)

    results = []
    with ops.implementation("auto"):
        for xla in (False, True):
            results.append(tf.function(step, jit_compile=xla, autograph=False)())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


_COUNT_THREADS = """
import sys
import numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
from mtl_keras import ops
rng = np.random.default_rng(0)
rows = [[tf.constant(rng.normal(size=n), tf.float32) for n in (3, 400_000, 77_777)]
        for _ in range(5)]
for row in rows:
    row.append(tf.IndexedSlices(tf.constant(rng.normal(size=(5000, 9)), tf.float32),
                                tf.constant(rng.integers(0, 3000, 5000))))
with ops.implementation("native"):
    print(ops.gramian(rows).numpy().tobytes().hex())
"""


@pytest.mark.slow
def test_same_bits_for_any_number_of_threads():
    printed = {
        subprocess.run(
            [sys.executable, "-c", _COUNT_THREADS, threads],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "5")
    }
    assert len(printed) == 1


# Lets the address space grow by less than the op's threads need.
SHORT_OF_MEMORY = """
import resource
import tensorflow as tf
from mtl_keras import ops

gradients = [
    [tf.IndexedSlices(tf.ones((1, 2)), tf.constant([task]), (800, 2))]
    for task in range(800)
]
with ops.implementation("native"):
    expected = ops.gramian(gradients[:9])
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + 25_000_000, unlimited[1]))
    try:
        ops.gramian(gradients)
    except tf.errors.ResourceExhaustedError as error:
        message = str(error)
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
    assert "scratch space of MtlKeras>SparseTaskGramian" in message, message
    again = ops.gramian(gradients)
tf.debugging.assert_equal(again, 2 * tf.eye(800, dtype=tf.float64))
tf.debugging.assert_equal(expected, 2 * tf.eye(9, dtype=tf.float64))
print("survived")
"""


@pytest.mark.slow
def test_want_of_memory_is_an_error_of_the_op():
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True
    )
    assert done.stdout == "survived\n", done.stderr[-2000:]


@pytest.mark.parametrize("tasks", [257, 300])
def test_gramian_of_more_tasks_than_are_multiplied_at_once(tasks):
    rng = np.random.default_rng(tasks)
    rows = rng.normal(size=(tasks, 40)).astype("float32")
    gradients = [
        [tf.constant(row[:30]), tf.constant(row[30:]) if task % 3 else None]
        for task, row in enumerate(rows)
    ]
    rows[::3, 30:] = 0
    with ops.implementation("native"):
        gram = ops.gramian(gradients)
    exact = rows.astype("float64") @ rows.astype("float64").T
    np.testing.assert_allclose(gram, exact, atol=1e-12)


def test_a_gradient_that_is_not_finite():
    rows = [[tf.ones(3), tf.ones(2)], [tf.ones(3), tf.constant([1.0, np.nan])]]
    sparse = [
        [tf.ones(2), tf.IndexedSlices(tf.ones([1, 2]), tf.constant([4]))],
        [None, tf.IndexedSlices(tf.constant([[1.0, np.inf]]), tf.constant([4]))],
    ]
    for gradients in (rows, sparse):
        for name in ("native", "tensorflow"):
            with ops.implementation(name):
                gram = ops.gramian(gradients)
                assert not np.isfinite(gram).all()
                weights, converged = solvers.min_norm(gram)
                assert not converged
                np.testing.assert_allclose(weights, [0.5, 0.5])
                with pytest.raises(
                    tf.errors.InvalidArgumentError, match="variable 1, task 1"
                ):
                    ops.gramian(gradients, check_finite=True)


def test_shapes_that_turn_out_to_differ():
    unknown = [tf.TensorSpec(None)] * 2

    @tf.function(input_signature=unknown)
    def gram(a, b):
        return ops.gramian([[None, a], [None, b]])

    @tf.function(input_signature=unknown)
    def update(a, b):
        return ops.combine([1.0, 1.0], [[None, a], [None, b]])[1]

    @tf.function(input_signature=[*unknown, tf.TensorSpec(None, tf.int64)])
    def sparse(a, b, ids):
        return ops.gramian([[tf.IndexedSlices(a, ids)], [tf.IndexedSlices(b, ids)]])

    def fails(function, *arguments, match):
        with (
            ops.implementation("native"),
            pytest.raises(tf.errors.InvalidArgumentError, match=match),
        ):
            function(*arguments)

    for function in (gram, update):
        match = r"variable 1: task 0 has \[2\].*for task 1"
        fails(function, tf.ones(2), tf.ones(3), match=match)
    ids = tf.constant([1, 2], tf.int64)
    match = r"variable 0: task 0 has \[3\].*for task 1"
    fails(sparse, tf.ones([2, 3]), tf.ones([2, 4]), ids, match=match)
    match = r"one row of values per index.*task 1"
    fails(sparse, tf.ones([2, 3]), tf.ones([1, 3]), ids, match=match)


def test_choosing_the_implementation():
    with ops.implementation("tensorflow"):
        assert not ops.native_in_use()
        with ops.implementation("native"):
            assert ops.native_in_use()
        assert not ops.native_in_use()
    with (
        pytest.raises(ValueError, match="implementation of the ops in"),
        ops.implementation("fast"),
    ):
        pass


def test_a_library_for_another_tensorflow_is_not_opened(tmp_path, monkeypatch, caplog):
    content = native._find().read_bytes()
    version = b"built for TensorFlow " + tf.__version__.encode()
    assert version in content
    path = tmp_path / "libmtl_keras_ops.so"
    path.write_bytes(content.replace(version, b"built for TensorFlow 1.99.0"))
    monkeypatch.setattr(native, "_find", lambda: path)
    assert native.library.__wrapped__() is None
    assert len(caplog.messages) == 1
    assert "1.99.0" in caplog.text


def stamped(content, folder):
    """A library as if built from the sources in a folder, or before they were named."""
    pattern = rb" from sources \w+"
    assert len(re.findall(pattern, content)) == 1
    stamp = f" from sources {native.sources_digest(folder)}" if folder else ""
    return re.sub(pattern, stamp.encode(), content)


def test_a_library_from_other_sources_is_not_opened(tmp_path, monkeypatch, caplog):
    content = native._find().read_bytes()
    sources = pathlib.Path(native.__file__).parents[2] / "csrc"
    changed = tmp_path / "csrc"
    if sources.exists():
        assert stamped(content, sources) == content
        shutil.copytree(sources, changed)
        header = next(iter(sorted(changed.glob("solvers/*.h"))))
        header.write_text(header.read_text() + "// changed\n")
    path = tmp_path / "libmtl_keras_ops.so"
    monkeypatch.setattr(native, "_find", lambda: path)
    for folder in [None, *([changed] if changed.exists() else [])]:
        caplog.clear()
        path.write_bytes(stamped(content, folder))
        assert native.library.__wrapped__() is None
        (line,) = caplog.messages
        assert "from other sources" in line
        assert "Reinstall mtl_keras" in line
