"""LazyAdam against Keras's dense Adam and a plain NumPy Adam."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import MultiTaskModel
from mtl_keras.embeddings import LazyAdam, SparseEmbedding
from mtl_keras.errors import InputError

ROWS, WIDTH = 7, 3


def table():
    values = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype("float32")
    return keras.Variable(values, name="table")


def slices(indices, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(indices), WIDTH)).astype("float32")
    return tf.IndexedSlices(tf.constant(values), tf.constant(indices), (ROWS, WIDTH))


def train(optimizer, variable, gradients, compiled=True):
    optimizer.build([variable])
    step = tf.function(
        lambda values, indices: optimizer.apply(
            [tf.IndexedSlices(values, indices, (ROWS, WIDTH))], [variable]
        ),
        jit_compile=compiled,
        reduce_retracing=True,
    )
    for gradient in gradients:
        step(gradient.values, gradient.indices)
    return variable.numpy()


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_rows_touched_in_every_step_are_those_of_dense_adam(compiled):
    """With repeated rows, and rows that no step touches."""
    gradients = [slices([1, 4, 1, 6, 4, 4], seed) for seed in range(6)]
    lazy = train(LazyAdam(0.05), table(), gradients, compiled)
    adam = keras.optimizers.Adam(0.05)
    dense = table()
    adam.build([dense])
    for gradient in gradients:
        adam.apply([tf.convert_to_tensor(gradient)], [dense])
    touched = [1, 4, 6]
    np.testing.assert_allclose(lazy[touched], dense.numpy()[touched], atol=1e-6)
    untouched = [0, 2, 3, 5]
    np.testing.assert_array_equal(lazy[untouched], table().numpy()[untouched])


def test_rows_touched_now_and_then_follow_the_formula():
    """Moments of a row stand still in between; the step count does not."""
    steps = [[0, 3], [3], [0, 0, 5], [3, 5]]
    gradients = [slices(indices, seed) for seed, indices in enumerate(steps)]
    expected = table().numpy().astype("float64")
    m, v = np.zeros_like(expected), np.zeros_like(expected)
    for step, gradient in enumerate(gradients, 1):
        total = np.zeros_like(expected)
        np.add.at(total, gradient.indices.numpy(), gradient.values.numpy())
        rows = sorted(set(gradient.indices.numpy()))
        m[rows] = 0.9 * m[rows] + 0.1 * total[rows]
        v[rows] = 0.999 * v[rows] + 0.001 * total[rows] ** 2
        corrected = m[rows] / (1 - 0.9**step)
        spread = np.sqrt(v[rows] / (1 - 0.999**step))
        expected[rows] -= 0.05 * corrected / (spread + 1e-7)
    actual = train(LazyAdam(0.05), table(), gradients, compiled=False)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_dense_variables_are_adams():
    gradients = [np.random.default_rng(s).normal(size=(ROWS, WIDTH)) for s in range(3)]
    results = []
    for optimizer in (LazyAdam(0.01), keras.optimizers.Adam(0.01)):
        variable = table()
        optimizer.build([variable])
        for gradient in gradients:
            optimizer.apply([tf.constant(gradient, "float32")], [variable])
        results.append(variable.numpy())
    np.testing.assert_array_equal(*results)


def test_options_that_touch_whole_tables_are_refused():
    with pytest.raises(InputError, match=r"weight_decay=0\.1"):
        LazyAdam(weight_decay=0.1)
    with pytest.raises(InputError, match="global_clipnorm"):
        LazyAdam(global_clipnorm=1.0)


def test_a_saved_model_with_it_resumes(tmp_path):
    """Moments and step count come back with the file, so that training agrees."""
    model = keras.Sequential(
        [keras.Input((2,), dtype="int32"), keras.layers.Embedding(ROWS, WIDTH)]
    )
    model.compile(LazyAdam(0.1), "mse")
    x, y = np.array([[0, 2], [2, 5]]), np.ones((2, 2, WIDTH))
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, LazyAdam)
    for each in (model, loaded):
        each.fit(x, y, epochs=2, verbose=0)
    np.testing.assert_allclose(model.get_weights()[0], loaded.get_weights()[0])


def test_lookup_is_keras_own_with_a_sparse_gradient():
    ids = tf.constant([[0, 5, 5], [2, 0, 6]])
    stock, ours = (
        cls(ROWS, WIDTH, embeddings_initializer=keras.initializers.RandomNormal(seed=1))
        for cls in (keras.layers.Embedding, SparseEmbedding)
    )
    np.testing.assert_array_equal(stock(ids), ours(ids))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(ours(ids) ** 2)
    gradient = tape.gradient(loss, ours.embeddings.value)
    assert isinstance(gradient, tf.IndexedSlices)
    assert gradient.values.shape == (6, WIDTH)
    copy = SparseEmbedding.from_config(ours.get_config())
    assert copy.get_config() == ours.get_config()


def all_operations(graph):
    """Those of a graph and of the functions that it calls, as branches are."""
    operations = list(graph.get_operations())
    for function in graph._functions.values():
        operations += all_operations(function.graph)
    return operations


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    ("balancing", "policy"),
    [
        pytest.param("pcgrad", "float32", marks=pytest.mark.slow),
        ("upgrad", "float32"),
        ("upgrad", "mixed_float16"),
    ],
    indirect=["policy"],
)
@pytest.mark.usefixtures("policy")
def test_no_operation_of_a_step_touches_the_whole_table(balancing):
    """Neither reads nor writes: every tensor of the step is smaller than the table."""
    rows = 100_000
    ids = keras.Input((4,), dtype="int32")
    x = keras.layers.Flatten()(SparseEmbedding(rows, WIDTH)(ids))
    outputs = {
        task: keras.layers.Dense(1, "sigmoid", name=task, dtype="float32")(x)
        for task in ("a", "b")
    }
    model = MultiTaskModel(ids, outputs)
    model.compile(LazyAdam(), "binary_crossentropy", balancing=balancing)
    labels = {task: np.ones((2, 1)) for task in outputs}
    data = (np.array([[1, 2, 3, 4], [9, 9, 9, 70_000]]), labels)
    model.train_on_batch(*data)

    step = tf.function(lambda: model.train_step(data))
    operations = all_operations(step.get_concrete_function().graph)
    whole = [
        op.name
        for op in operations
        for tensor in op.outputs
        if tensor.dtype != tf.resource and tensor.shape.rank and tensor.shape[0] == rows
    ]
    assert whole == []
    kinds = {op.type for op in operations}
    assert {"ResourceGather", "ResourceScatterUpdate"} <= kinds


@pytest.mark.parametrize(
    "balancing", [pytest.param("equal", marks=pytest.mark.slow), "upgrad"]
)
def test_gradients_stay_sparse_over_replicas_and_under_loss_scaling(
    balancing, mirrored
):
    """And the model is, to rounding, that of one device in float32."""
    kinds = []

    class Watched(LazyAdam):
        def update_step(self, gradient, variable, learning_rate):
            kinds.append(isinstance(gradient, tf.IndexedSlices))
            super().update_step(gradient, variable, learning_rate)

    def trained(run_eagerly=False):
        keras.utils.set_random_seed(0)
        ids = keras.Input((4,), dtype="int32")
        x = keras.layers.Flatten()(SparseEmbedding(50, WIDTH)(ids))
        outputs = {
            task: keras.layers.Dense(1, "sigmoid", name=task, dtype="float32")(x)
            for task in ("a", "b")
        }
        model = MultiTaskModel(ids, outputs)
        model.compile(
            Watched(0.05),
            "binary_crossentropy",
            balancing=balancing,
            run_eagerly=run_eagerly,
        )
        kinds.clear()
        model.fit(inputs, labels, batch_size=16, shuffle=False, verbose=0)
        assert sum(kinds) * 5 == len(kinds)  # the table, of five variables
        return model.get_weights()

    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 40, (64, 4))
    labels = {task: rng.integers(0, 2, (64, 1)) for task in ("a", "b")}
    expected = trained(run_eagerly=True)
    with mirrored.scope():
        replicas = trained()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        scaled = trained()
    finally:
        keras.config.set_dtype_policy("float32")
    for values, replica, half in zip(expected, replicas, scaled, strict=True):
        np.testing.assert_allclose(replica, values, atol=1e-6)
        np.testing.assert_allclose(half, values, atol=2e-3)
