"""Losses and gradients that are not finite."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import mtl_keras
from mtl_keras.errors import InputError, NonFiniteError
from mtl_keras.model.nonfinite import finite_gradients

# The test of this warning sees it all the same.
pytestmark = pytest.mark.filterwarnings("ignore:Of the .* steps of this epoch")

TASKS = ("a", "b", "c")
FIT = {"batch_size": 16, "shuffle": False, "verbose": 0}


@keras.saving.register_keras_serializable(package="tests")
def root(y_true, y_pred):
    """Of label 7 the loss is 0 and its gradient is not a number."""
    exact = tf.equal(y_true, 7.0)
    inside = tf.where(exact, 0.0 * y_pred, tf.square(y_true - y_pred) + 1.0)
    return keras.ops.mean(tf.sqrt(inside), axis=-1)


def build(method="equal", statistics=True, optimizer=None, **compile_arguments):
    keras.utils.set_random_seed(21)
    inputs = keras.Input((6,))
    h = keras.layers.Dense(8, "tanh")(inputs)
    if statistics:
        h = keras.layers.BatchNormalization()(h)
    outputs = {task: keras.layers.Dense(1, name=f"head_{task}")(h) for task in TASKS}
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    arguments = {"loss": {"a": "mse", "b": root, "c": "mse"}, "metrics": {"b": "mae"}}
    arguments |= compile_arguments
    model.compile(
        optimizer or keras.optimizers.Adam(0.01), balancing=method, **arguments
    )
    return model


def data(n=64, bad=(), value=np.nan):
    """Batches of 16; `bad` are samples whose label of task b is `value`."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(n, 6)).astype("float32")
    y = {task: rng.normal(size=(n, 1)).astype("float32") for task in TASKS}
    y["b"][list(bad)] = value
    return x, y


def assert_equal_weights(model, other, **tolerance):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(two, one, **tolerance)


def weights_before(model, x, y, batches, **fit):
    """Returns the weights after the first batches alone."""
    n = 16 * batches
    model.fit(x[:n], {task: label[:n] for task, label in y.items()}, **{**FIT, **fit})
    return model


REPRESENTATION = {"class_name": "upgrad", "config": {"gradients_of": "representation"}}
EVERY_SECOND = {"class_name": "upgrad", "config": {"update_every": 2}}
LOSS, GRADIENT = (np.nan, "the loss of 'b'"), (7.0, "the gradient of 'b'")


@pytest.mark.parametrize(
    ("value", "blamed", "method", "arguments"),
    [
        (*LOSS, "equal", {}),
        (*GRADIENT, "equal", {"jit_compile": True}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (*LOSS, "upgrad", {}),
                (*LOSS, "equal", {"steps_per_execution": 8}),
                (*GRADIENT, EVERY_SECOND, {}),
                (*LOSS, "equal", {"jit_compile": True}),
                (*LOSS, REPRESENTATION, {}),
                (*LOSS, EVERY_SECOND, {}),
                (*GRADIENT, "equal", {}),
                (*GRADIENT, "equal", {"steps_per_execution": 8}),
                (*GRADIENT, "upgrad", {}),
                (*GRADIENT, REPRESENTATION, {}),
            )
        ),
    ],
    ids=str,
)
def test_an_error_names_task_step_and_batch(value, blamed, method, arguments):
    x, y = data(96, bad=[40], value=value)
    model = build(method, statistics=False, **arguments)
    with pytest.raises(NonFiniteError) as raised:
        model.fit(x, y, epochs=3, initial_epoch=1, **FIT)
    assert "step 3 (batch 3 of epoch 2" in str(raised.value)
    assert blamed in str(raised.value)
    # Nothing of the failed step or those after it is in the weights.
    before = build(method, statistics=False, run_eagerly=True)
    before = weights_before(before, x, y, batches=2)
    assert_equal_weights(before, model, rtol=1e-4, atol=1e-6)
    # The model trains on.
    model.fit(x[:32], {task: label[:32] for task, label in y.items()}, **FIT)


def test_shared_gradients_alone_name_their_task():
    inputs = keras.Input((6,))
    h = keras.layers.Dense(3)(inputs)
    # Without variables of their own only the Gram matrix tells of the gradient.
    outputs = {
        task: keras.layers.Lambda(lambda x, i=i: x[:, i : i + 1])(h)
        for i, task in enumerate(TASKS)
    }
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    loss = {"a": "mse", "b": root, "c": "mse"}
    model.compile("sgd", loss, balancing="upgrad", run_eagerly=True)
    with pytest.raises(NonFiniteError, match="the gradient of 'b'"):
        model.train_on_batch(*data(16, bad=[3], value=7.0))


def test_gradients_of_any_sizes_are_checked():
    rng = np.random.default_rng(0)
    shapes = [[(3,), (2, 2)], [(4,), (200, 100), (1,)], [], [None, (0, 3), (), (4,)]]
    for trial in range(20):
        groups, finite = [], []
        for group in shapes:
            arrays = [np.ones(s, "float32") for s in group if s is not None]
            if trial:
                chosen = [a for a in arrays if a.size and rng.uniform() < 0.3]
                for array in chosen:
                    array.flat[rng.integers(array.size)] = rng.choice([np.inf, np.nan])
            finite.append(all(np.isfinite(array).all() for array in arrays))
            dtypes = [tf.float16 if a.ndim == 0 else tf.float32 for a in arrays]
            given = [tf.constant(*pair) for pair in zip(arrays, dtypes, strict=True)]
            # As an embedding's gradient is.
            given = [tf.IndexedSlices(g, [0]) if g.ndim == 2 else g for g in given]
            groups.append([*given, None] if None in group else given)
        np.testing.assert_array_equal(finite_gradients(groups), finite)


def test_the_step_of_train_on_batch_raises_at_once():
    x, y = data(16, bad=[3], value=np.inf)
    model = build()
    with pytest.raises(NonFiniteError, match=r"step 1 \(batch 1, all.*loss of 'b'"):
        model.train_on_batch(x, y)


def test_a_regularisation_loss_is_no_tasks_fault():
    model = build(statistics=False, run_eagerly=True)
    model.layers[1].kernel.regularizer = lambda w: tf.reduce_sum(tf.sqrt(0.0 * w))
    with pytest.raises(NonFiniteError, match="regularisation loss, with all losses"):
        model.fit(*data(16), **FIT)


SKIPPING = [
    "dwa",
    REPRESENTATION,
    *(
        pytest.param(method, marks=pytest.mark.slow)
        for method in (
            "equal",
            "uncertainty",
            "gradnorm",
            "famo",
            "upgrad",
            "gradvac",
            "db_mtl",
            "modo",
            ["dwa", {"class_name": "pcgrad", "config": {"seed": 4}}],
            EVERY_SECOND,
        )
    ),
]


@pytest.mark.parametrize("value", [np.nan, pytest.param(7.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", SKIPPING, ids=str)
def test_a_skipped_task_is_an_absent_task(method, value):
    """The same weights as where a sample weight of 0 says that b has no label."""
    bad = [3, 17, 18, 40]  # in three of four batches
    x, y = data(bad=bad, value=value)

    def built():
        sgd = keras.optimizers.SGD(0.05, momentum=0.9)
        return build(method, True, sgd, on_nonfinite="skip_task", run_eagerly=True)

    skipping = built()
    history = skipping.fit(x, y, epochs=2, **FIT).history
    clean = {**y, "b": np.where(np.isin(y["b"], [7.0]) | np.isnan(y["b"]), 0, y["b"])}
    present = {task: np.ones(64) for task in TASKS}
    present["b"] = np.repeat([0.0, 0.0, 0.0, 1.0], 16)
    absent = built()
    expected = absent.fit(x, clean, sample_weight=present, epochs=2, **FIT).history
    assert_equal_weights(absent, skipping, rtol=1e-4, atol=1e-6)
    for key, variable in absent._pipeline.state.items():
        np.testing.assert_allclose(
            skipping._pipeline.state[key], variable, rtol=1e-4, atol=1e-6, err_msg=key
        )
    assert history["b_nonfinite"] == [3.0, 3.0]
    assert history["a_nonfinite"] == history["skipped_steps"] == [0.0, 0.0]
    assert all(np.isfinite(values).all() for values in history.values())
    # A loss that is finite is logged, even if its gradient is not.
    compared = set(expected) - {"b_nonfinite"}
    if value == 7.0:
        compared -= {"loss", "b_loss"}
    for name in compared:
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-3)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        {"steps_per_execution": 3},
        pytest.param({}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "policy", ["skip_task", pytest.param("skip_step", marks=pytest.mark.slow)]
)
def test_ways_to_run_a_step_skip_the_same(policy, arguments):
    x, y = data(bad=[3, 40])
    models = []
    for way in ({"run_eagerly": True}, arguments):
        model = build("dwa", on_nonfinite=policy, **way)
        history = model.fit(x, y, **FIT).history
        models.append(model)
        assert history["b_nonfinite"] == [2.0]
        assert history["skipped_steps"] == [2.0 if policy == "skip_step" else 0.0]
    assert_equal_weights(*models, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        "db_mtl",
        pytest.param("uncertainty", marks=pytest.mark.slow),
        pytest.param("equal", marks=pytest.mark.slow),
        pytest.param("gradvac", marks=pytest.mark.slow),
    ],
)
def test_a_skipped_step_leaves_weights_and_balancing_as_they_were(method):
    x, y = data(bad=[40])
    model = build(method, statistics=False, on_nonfinite="skip_step")
    history = model.fit(x[:48], {t: v[:48] for t, v in y.items()}, **FIT).history
    expected = weights_before(build(method, statistics=False), x, y, batches=2)
    assert_equal_weights(expected, model, rtol=1e-5, atol=1e-7)
    for key, variable in expected._pipeline.state.items():
        if not key.endswith(("draws", "fallbacks")):  # These count all steps.
            np.testing.assert_allclose(
                model._pipeline.state[key], variable, err_msg=key
            )
    assert history["skipped_steps"] == [1.0]
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("policy", ["skip_task", "skip_step"])
def test_a_bad_sample_spoils_no_batch_statistics(policy):
    x, y = data()
    x[40] = np.nan
    model = build("pcgrad", on_nonfinite=policy, run_eagerly=True)
    history = model.fit(x, y, epochs=1, **FIT).history
    assert history["skipped_steps"] == [1.0]
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert all(np.isfinite(values).all() for values in history.values())


def test_other_finite_numbers_are_left_to_the_usual_step():
    """Without bad numbers the policies train as stock Keras does."""
    x, y = data()
    keras.utils.set_random_seed(21)
    trained = [
        build(on_nonfinite=policy, run_eagerly=policy != "skip_step")
        for policy in ("raise", "skip_task", "skip_step")
    ]
    stock = build()
    stock = keras.Model(stock.input, stock.output)
    stock.compile(
        keras.optimizers.Adam(0.01),
        loss={"a": "mse", "b": root, "c": "mse"},
        run_eagerly=True,
    )
    for model in (*trained, stock):
        model.fit(x, y, **FIT)
    for model in trained:
        assert_equal_weights(stock, model, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "method", [pytest.param("equal", marks=pytest.mark.slow), "pcgrad"]
)
@pytest.mark.parametrize("policy", ["raise", "skip_task", "skip_step"])
def test_an_overflow_of_float16_is_the_loss_scalers(method, policy):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        sgd = keras.optimizers.SGD(0.02, momentum=0.9)
        model = build(method, False, sgd, on_nonfinite=policy)
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = data()
    model.optimizer.initial_scale = 2.0**30  # overflows until it has been halved
    history = model.fit(x, y, epochs=6, **FIT).history
    assert model.optimizer.dynamic_scale.numpy() < 2.0**29
    assert history["loss"][-1] < history["loss"][0]
    if policy != "raise":
        assert history["b_nonfinite"] == [0.0] * 6
    y["b"][20] = np.inf  # a loss is not scaled
    if policy == "raise":
        with pytest.raises(NonFiniteError, match="loss of 'b'"):
            model.fit(x, y, **FIT)
    else:
        scale = model.optimizer.dynamic_scale.numpy()
        history = model.fit(x, y, **FIT).history
        assert history["b_nonfinite"] == [1.0]
        assert model.optimizer.dynamic_scale.numpy() == scale
        assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.parametrize("policy", ["skip_task", "skip_step"])
def test_gradient_accumulation_adds_up_the_good_steps(policy):
    x, y = data(bad=[20])  # the second of four batches
    model = build(
        statistics=False,
        on_nonfinite=policy,
        optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=3),
    )
    model.fit(x, y, **FIT)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    if policy == "skip_step":
        good = np.r_[:16, 32:64]
        expected = build(
            statistics=False,
            optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=3),
            run_eagerly=True,
        )
        expected.fit(x[good], {t: v[good] for t, v in y.items()}, **FIT)
        assert_equal_weights(expected, model, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "method", [pytest.param("equal", marks=pytest.mark.slow), "upgrad"]
)
def test_replicas_skip_together(method, mirrored):
    """A bad number on one of two replicas: the same steps as on one device."""
    x, y = data(bad=[3, 40])
    results = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            model = build(
                method,
                statistics=False,
                optimizer=keras.optimizers.SGD(0.05),
                on_nonfinite="skip_task",
                run_eagerly=strategy is not mirrored,
            )
        history = model.fit(x, y, **FIT).history
        assert history["b_nonfinite"] == [2.0]
        results.append(model)
    assert_equal_weights(*results, rtol=1e-4, atol=1e-6)
    with mirrored.scope():
        model = build(method, statistics=False, optimizer=keras.optimizers.SGD(0.05))
    with pytest.raises(NonFiniteError, match=r"step 1 .*loss of 'b'"):
        model.fit(x, y, **FIT)


@pytest.mark.parametrize("policy", ["skip_task", "skip_step"])
def test_skipped_epochs_warn_and_log_no_zero(policy):
    x, y = data(bad=range(64))
    model = build(on_nonfinite=policy, run_eagerly=True)
    warning = "those of task 'b'" if policy == "skip_task" else "all tasks' \\(4\\)"
    with pytest.warns(
        UserWarning, match=f"4 steps of this epoch.*{warning}.*weight of 0"
    ):
        history = model.fit(x, y, **FIT).history
    assert np.isnan([history["b_loss"], history["b_mae"]]).all()
    assert np.isfinite(history["a_loss"]).all()
    assert np.isfinite(history["loss"]).all() == (policy == "skip_task")
    evaluated = model.evaluate(x, y, verbose=0, return_dict=True)
    assert np.isnan([evaluated["loss"], evaluated["b_loss"]]).all()
    assert np.isfinite(evaluated["a_loss"])


def test_the_error_points_to_weights_for_labels_that_are_missing():
    with pytest.raises(NonFiniteError, match="as NaN, needs a sample weight of 0"):
        build(run_eagerly=True).fit(*data(16, bad=[3]), **FIT)


def test_arguments_are_checked_and_saved(tmp_path):
    with pytest.raises(InputError, match="on_nonfinite"):
        build(on_nonfinite="ignore")
    with pytest.raises(InputError, match="task_clipnorm"):
        build(task_clipnorm=-1.0)
    options = {"on_nonfinite": "skip_task", "task_clipnorm": 0.5}
    model = build("pcgrad", run_eagerly=True, **options)
    model.fit(*data(16), **FIT)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    config = again.get_compile_config()
    assert (config["on_nonfinite"], config["task_clipnorm"]) == ("skip_task", 0.5)
