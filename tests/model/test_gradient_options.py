"""Options of task gradients: their place, `update_every` and monitors."""

from __future__ import annotations

import functools
import threading

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import mtl_keras
from mtl_keras.balancing import GradientStep, GramBalancer
from mtl_keras.balancing.conflicts import ConflictMonitor


class Alternating(GramBalancer):
    """Known weights that change at every solve: 1/T, then 2/T, then 1/T, …"""

    method = "alternating"

    def build_state(self, num_tasks):
        super().build_state(num_tasks)
        self.solves = self.add_variable("solves", (), 0, dtype="int64")

    def weights(self, gramian):
        self.solves.assign_add(1)
        factor = tf.cast(2 - self.solves % 2, "float64")
        return factor * tf.ones((gramian.shape[0],), "float64") / gramian.shape[0]


class Mean(GramBalancer):
    method = "plain_mean"

    def weights(self, gramian):
        return tf.ones((gramian.shape[0],), "float64") / gramian.shape[0]


class Sum(GramBalancer):
    method = "plain_sum"
    natural_scale = "sum"

    def weights(self, gramian):
        return tf.ones((gramian.shape[0],), "float64")


def build(balancing, optimizer=None, **compile_arguments):
    """A stem for all, a branch for two, a head that reads a raw input as well."""
    keras.utils.set_random_seed(2)
    first, second = keras.Input((6,)), keras.Input((2,))
    stem = keras.layers.Dense(5, "tanh", kernel_regularizer="l2")(first)
    stem = keras.layers.BatchNormalization()(stem)
    stem = keras.layers.Dropout(0.2, seed=1)(stem)
    branch = keras.layers.Dense(4, "tanh")(stem)
    outputs = {
        "a": keras.layers.Dense(1)(branch),
        "b": keras.layers.Dense(1)(branch),
        "c": keras.layers.Dense(1)(keras.layers.Concatenate()([stem, second])),
    }
    model = mtl_keras.MultiTaskModel([first, second], outputs)
    optimizer = optimizer or keras.optimizers.SGD(0.05)
    model.compile(optimizer, loss="mse", balancing=balancing, **compile_arguments)
    return model


def data(n=64):
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(n, 6)), rng.normal(size=(n, 2))]
    return x, {task: rng.normal(size=(n, 1)) for task in "abc"}


def weights_after(model, epochs=2):
    x, y = data()
    model.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0)
    return model.get_weights()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradients_of": "representation"},
        pytest.param({"update_every": 3}, marks=pytest.mark.slow),
        pytest.param(
            {"gradients_of": "representation", "update_every": 2},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_equal_weights_by_any_route_are_stock_training(options):
    """The chain rule: constant weights give the same update wherever they are set."""
    # A graph and a step that is not traced are to agree too.
    stock = weights_after(build("equal", run_eagerly=True))
    for expected, actual in zip(
        stock, weights_after(build(Mean(**options))), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_update_every_keeps_the_weights_between_solves():
    balancer = Alternating(update_every=3)
    model = build(balancer)
    x, y = data(16)
    logged = [
        model.train_on_batch(x, y, return_dict=True)["a_weight"] for _ in range(8)
    ]
    np.testing.assert_allclose(logged, [1, 1, 1, 2, 2, 2, 1, 1])
    assert balancer.variables["solves"].numpy() == 3


def alternating(steps=8):
    """Yields batches that have labels for one task each, in turn."""
    x, y = data(16)
    for step in range(steps):
        present = "abc"[step % 3]
        yield x, y, {task: np.full(16, float(task == present)) for task in "abc"}


ALTERNATING = [
    ("mgda", {"update_every": 3}),
    ("mgda", {"update_every": 2, "gradients_of": "representation"}),
    pytest.param(
        "cr_mogm", {"update_every": 4, "scale": "mean"}, marks=pytest.mark.slow
    ),
]


@functools.cache
def stock_training_on_tasks_in_turn():
    stock = build("equal", run_eagerly=True)
    for batch in alternating():
        stock.train_on_batch(*batch)
    return stock.get_weights()


@pytest.mark.parametrize(("name", "config"), ALTERNATING, ids=str)
def test_tasks_absent_from_a_solve_train_between_solves(name, config):
    """A task alone in the batch has weight 1: that is stock training."""
    method = {"class_name": name, "config": config}
    model = build(method, run_eagerly=True)
    for batch in alternating():
        model.train_on_batch(*batch)
    stock = stock_training_on_tasks_in_turn()
    for expected, actual in zip(stock, model.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_step_solves_when_one_of_its_tasks_is_due():
    balancer = Alternating(update_every=3)
    model = build(balancer, run_eagerly=True)
    x, y = data(16)
    solves = []
    for present in ("a", "b", "abc", "ab", "ab", "c", "c", "ab", "ab"):
        weight = {task: np.full(16, float(task in present)) for task in "abc"}
        model.train_on_batch(x, y, weight)
        solves.append(int(balancer.variables["solves"].numpy()))
    assert solves == [1, 2, 3, 3, 3, 3, 3, 4, 4]


AVERAGING = [
    "db_mtl",
    pytest.param("excess_mtl", marks=pytest.mark.slow),
    "moco",
]


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "thawed"])
@pytest.mark.parametrize("name", AVERAGING)
def test_layers_frozen_or_thawed_after_compile_are_as_before_it(name, trainable):
    x, y = data(16)
    results = []
    for compile_again in (True, False):
        model = build(name, run_eagerly=True)
        branch = [layer for layer in model.layers if hasattr(layer, "units")][1]
        branch.trainable = not trainable
        model.compile("sgd", loss="mse", balancing=name, run_eagerly=True)
        branch.trainable = trainable
        if compile_again:
            model.compile("sgd", loss="mse", balancing=name, run_eagerly=True)
        for _ in range(2):
            model.train_on_batch(x, y)
        results.append((model.get_weights(), model._pipeline.state))
    (expected, state), (actual, same) = results
    for one, two in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(two, one)
    assert {key: v.shape for key, v in state.items()} == {
        key: v.shape for key, v in same.items()
    }


@pytest.mark.parametrize("name", AVERAGING)
def test_compiling_again_starts_the_method_anew(name):
    x, y = data(16)
    balancer = mtl_keras.balancing.get(name)
    results = []
    for again in (balancer, name):
        model = build(balancer, run_eagerly=True)
        model.train_on_batch(x, y)
        model.layers[2].trainable = False
        model.compile("sgd", loss="mse", balancing=again, run_eagerly=True)
        model.train_on_batch(x, y)
        results.append(model.get_weights())
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(two, one)


@pytest.mark.parametrize("name", ["moco", "cr_mogm"])
def test_two_models_share_no_state(name):
    x, y = data(16)
    balancer = mtl_keras.balancing.get(name)
    first = build(balancer, run_eagerly=True)
    first.train_on_batch(x, y)
    second = build(balancer, run_eagerly=True)
    second.train_on_batch(x, y)
    assert first.balancers[0] is balancer
    for one, two in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(two, one)
    mine, others = first._pipeline.state, second._pipeline.state
    for key in mine:
        assert mine[key] is not others[key]
        np.testing.assert_array_equal(others[key], mine[key], err_msg=key)


def test_representation_gradients_need_heads_without_shared_variables():
    inputs = keras.Input((4,))
    head = keras.layers.Dense(1)
    stem = keras.layers.Dense(4)(inputs)
    outputs = {
        "a": head(keras.layers.Dense(3)(stem)),
        "b": head(keras.layers.Dense(3)(stem)),
    }
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    options = {"gradients_of": "representation"}
    with pytest.raises(ValueError, match="heads share"):
        model.compile(
            "sgd", loss="mse", balancing={"class_name": "mgda", "config": options}
        )


@pytest.mark.parametrize("balancing", ["equal", "mgda"])
def test_monitored_cosines_are_those_of_the_task_gradients(balancing):
    model = build(balancing, monitor="conflicts", run_eagerly=True)
    x, y = data()
    rows = []
    # The same dropout mask and batch statistics, by a stateless call.
    state = [tf.identity(v.value) for v in model.non_trainable_variables]
    shared = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(shared)
        inputs = [tf.constant(values, "float32") for values in x]
        y_pred, _ = model.stateless_call(shared, state, inputs, training=True)
        losses = {t: tf.reduce_mean(tf.square(y_pred[t] - y[t])) for t in "abc"}
    names = [v.path for v in model.trainable_variables]
    stem_and_branch = [i for i, n in enumerate(names) if "head" not in n][:6]
    for task in "abc":
        gradients = tape.gradient(losses[task], [shared[i] for i in stem_and_branch])
        rows.append(
            np.concatenate(
                [
                    np.zeros(shared[i].shape).ravel()
                    if g is None
                    else g.numpy().ravel()
                    for i, g in zip(stem_and_branch, gradients, strict=True)
                ]
            )
        )
    unit = [row / np.linalg.norm(row) for row in rows]
    expected = np.array([[u @ v for v in unit] for u in unit])
    logs = model.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(model.gradient_cosines(), expected, atol=1e-4)
    share = np.mean(expected[np.triu_indices(3, 1)] < 0)
    assert logs["conflicts"] == pytest.approx(share)
    # Validation resets the metrics before anybody has read the epoch's.
    model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(model.gradient_cosines(), expected, atol=1e-4)
    model.train_on_batch(x, {task: -labels for task, labels in y.items()})
    assert not np.allclose(model.gradient_cosines(), expected, atol=1e-4)


def test_confidence_in_a_conflict_is_a_t_test_over_the_steps():
    monitor, rng = ConflictMonitor(3), np.random.default_rng(0)
    cosines, shared = [], []
    for step in range(12):
        rows = rng.normal(size=(3, 5))
        rows[1] -= 0.7 * rows[0]  # a conflict, up to noise
        rows[2] *= step % 3 > 0  # absent from every third
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
        cosines.append(unit @ unit.T)
        shared.append(rng.integers(1, 9, (3, 3)))
        monitor.update_state(
            tf.constant(rows @ rows.T), tf.constant(shared[-1], tf.float32)
        )
    for _ in range(2):
        found = monitor.tables()
        for i, j in ((0, 1), (0, 2), (1, 2)):
            met = [k for k in range(12) if 2 not in (i, j) or k % 3]
            values = [cosines[k][i, j] for k in met]
            test = scipy.stats.ttest_1samp(values, 0.0, alternative="less")
            assert found["confidence"][i, j] == pytest.approx(1 - test.pvalue, abs=1e-6)
            assert found["cosines"][i, j] == pytest.approx(np.mean(values), abs=1e-6)
            assert found["steps"][i, j] == len(met)
            mean = np.mean([shared[k][i, j] for k in met])
            assert found["shared_samples"][i, j] == pytest.approx(mean)
        assert found["confidence"][0, 1] > 0.9
        monitor.reset_state()  # keeps them until the next step
    monitor.update_state(tf.constant(rows @ rows.T))
    assert np.isnan(monitor.tables()["confidence"]).all()
    monitor.update_state(tf.constant(rows @ rows.T))  # twice the same
    assert monitor.tables()["confidence"][0, 0] == 0.0


def test_replicas_that_see_the_same_conflict_count_it_once(mirrored):
    rng = np.random.default_rng(2)
    rows = [tf.constant(rng.normal(size=(3, 4))) for _ in range(4)]
    found = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            monitor = ConflictMonitor(3)
        for matrix in rows:
            gramian = tf.matmul(matrix, matrix, transpose_b=True)
            strategy.run(monitor.update_state, args=(gramian, tf.ones((3, 3))))
        for _ in range(2):
            found.append(monitor.tables())
            monitor.reset_state()  # keeps them until the next step
    assert (found[0]["steps"] == 4).all()
    for other in found[1:]:
        for key, expected in found[0].items():
            np.testing.assert_allclose(other[key], expected, rtol=1e-6)


@pytest.mark.parametrize("balancing", ["equal", "mgda"])
def test_monitored_pairs_tell_how_many_samples_they_share(balancing):
    model = build(balancing, monitor="conflicts", run_eagerly=True)
    x, y = data()
    count = len(y["a"])
    rng = np.random.default_rng(1)
    weights = {task: rng.integers(0, 2, count).astype("float32") for task in "ab"}
    weights["c"] = np.ones(count, "float32")
    model.fit(x, y, sample_weight=weights, batch_size=count, verbose=0)
    labelled = np.stack([weights["a"] > 0, weights["b"] > 0, np.ones(count)], axis=1)
    expected = labelled.T.astype(float) @ labelled
    found = model.gradient_conflicts()["shared_samples"]
    assert 0 < expected[0, 1] < expected[0, 2] < count
    met = model.gradient_conflicts()["steps"] > 0  # "c" has a branch with one of them
    np.testing.assert_array_equal(found, np.where(met, expected, 0.0))
    assert met.sum() > 3


def test_a_loss_and_a_gradient_balancer_combine():
    """Static weights first: the same as those weights in `loss_weights`."""
    static = {"class_name": "static", "config": {"task_weights": [0.5, 2.0, 1.0]}}
    loss_weights = {"a": 0.5, "b": 2.0, "c": 1.0}
    combined = weights_after(build([static, "mgda"]))
    inside = weights_after(build("mgda", loss_weights=loss_weights, run_eagerly=True))
    for expected, actual in zip(inside, combined, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_single_task_trains_under_any_kind_of_method():
    x, y = data()
    results = []
    for balancing in ("equal", "mgda", "graddrop"):
        keras.utils.set_random_seed(4)
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(4)(inputs)
        model = mtl_keras.MultiTaskModel(inputs, {"a": keras.layers.Dense(1)(hidden)})
        model.compile("sgd", loss="mse", balancing=balancing, run_eagerly=True)
        model.fit(x[0], y["a"], shuffle=False, verbose=0)
        results.append(model.get_weights())
    for other in results[1:]:
        for expected, actual in zip(results[0], other, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-6)


P, Q = (np.random.default_rng(i).normal(size=(16, 4)).astype("float32") for i in (0, 1))


def inputs_p_and_q():
    return [keras.Input((4,), name=name) for name in "pq"]


# Symbolic inputs made of two, and a batch for them.
STRUCTURES = {
    "dict for a list": (lambda p, q: [q, p], {"p": P, "q": Q}),
    "more than is read": (lambda p, q: [q, p], {"p": P, "q": Q, "r": Q}),
    "other keys": (lambda p, q: {"z": p, "y": q}, {"z": P, "y": Q}),
    "nested list": (lambda p, q: [q, [p]], [Q, [P]]),
    "nested dict": (lambda p, q: {"u": q, "a": (p,)}, {"u": Q, "a": (P,)}),
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_representation_is_read_from_inputs_in_any_structure(structure):
    make, batch = STRUCTURES[structure]
    y = {task: np.ones((16, 1)) for task in "ab"}
    results = []
    for method in ("equal", Mean(gradients_of="representation")):
        keras.utils.set_random_seed(2)
        p, q = inputs_p_and_q()
        stem = keras.layers.Concatenate()([keras.layers.Dense(3)(p), q])
        outputs = {
            "a": keras.layers.Dense(1)(stem),
            "b": keras.layers.Dense(1)(keras.layers.Concatenate()([stem, q])),
        }
        model = mtl_keras.MultiTaskModel(make(p, q), outputs)
        model.compile("sgd", "mse", balancing=method, run_eagerly=True)
        loss = model.fit(batch, y, batch_size=16, verbose=0).history["a_loss"]
        results.append([loss, *model.get_weights()])
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_a_representation_may_be_an_output_and_an_input_too():
    """Two tasks with one output, and an output that is an input: as summed losses."""
    y = {task: np.ones((16, 4)) for task in "abcd"}
    results = []
    for method in ("equal", Sum(gradients_of="representation")):
        keras.utils.set_random_seed(2)
        p, q = inputs_p_and_q()
        stem = keras.layers.Dense(4)(p)
        outputs = {"a": stem, "b": stem, "c": q, "d": keras.layers.Dense(4)(stem)}
        for chosen in ("ab", "abcd"):
            inputs = [p, q] if "c" in chosen else p
            model = mtl_keras.MultiTaskModel(inputs, {t: outputs[t] for t in chosen})
            model.compile("sgd", "mse", balancing=method, run_eagerly=True)
            batch = [P, Q] if "c" in chosen else P
            model.fit(batch, {t: y[t] for t in chosen}, verbose=0)
        results.append(model.get_weights())
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_replicas_wait_for_each_other_without_a_lock(mirrored, monkeypatch):
    """A Gram matrix is made on all replicas at once; none may keep the others out."""
    both = threading.Barrier(2, timeout=10)
    original = mtl_keras.ops.gramian

    def gramian(gradients):
        both.wait()
        return original(gradients)

    monkeypatch.setattr("mtl_keras.balancing.base.ops.gramian", gramian)
    results = []

    def read(value):
        step = GradientStep([[tf.constant([value])]], None, None, tf.ones(()))
        results.append(step.gramian.numpy().item())

    threads = [threading.Thread(target=read, args=(v,)) for v in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [1.0, 4.0]
    monkeypatch.undo()

    with mirrored.scope():
        method = {"class_name": "pcgrad", "config": {"gradients_of": "representation"}}
        model = build(method)
    x, y = data(32)
    fit = threading.Thread(
        target=model.fit,
        args=(x, y),
        kwargs={"batch_size": 16, "verbose": 0},
        daemon=True,
    )
    fit.start()
    fit.join(timeout=120)
    assert not fit.is_alive()
    assert model.optimizer.iterations == 2
