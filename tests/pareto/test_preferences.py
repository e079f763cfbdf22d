"""Models whose trade-off is an input: conditioning, training, fronts."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import tensorflow as tf
from keras import layers

import mtl_keras
from mtl_keras import pareto
from mtl_keras.balancing import COSMOS
from mtl_keras.errors import InputError
from mtl_keras.pareto.front import lattice
from mtl_keras.pareto.sampling import dirichlet

IN_GRAPH_AND_XLA = [
    pytest.param(False, id="graph"),
    pytest.param(True, id="xla", marks=pytest.mark.slow),
]
TARGETS = {"a": np.array([1.0, -1.0]), "b": np.array([-1.0, 0.5])}
SPAN = ((TARGETS["a"] - TARGETS["b"]) ** 2).mean()
"""Either task's loss at the other one's target."""


def quadratic():
    """Returns a model with the losses ‖θ − target‖² / 2, and a data set for it.

    θ is the kernel of a `Dense` on an input of ones.
    """
    inputs = keras.Input((1,), name="x")
    theta = layers.Dense(2, use_bias=False)(inputs)
    outputs = {task: layers.Identity(name=task)(theta) for task in TARGETS}
    y = {task: np.array([target]) for task, target in TARGETS.items()}
    data = tf.data.Dataset.from_tensors((np.ones((1, 1), "float32"), y))
    return mtl_keras.MultiTaskModel(inputs, outputs), data


def shared(inputs=4):
    """Returns a small model of two tasks, and 32 samples."""
    x = keras.Input((inputs,), name="x")
    features = layers.Dense(6, "tanh", name="trunk")(x)
    outputs = {task: layers.Dense(1, name=task)(features) for task in "ab"}
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(32, inputs)).astype("float32")
    y = {"a": samples[:, :1] ** 2, "b": samples[:, 1:2] - 1.0}
    return mtl_keras.MultiTaskModel(x, outputs), samples, y


def shaken(model, seed=0):
    """Gives all weights random values, so that changes of kernels have an effect."""
    rng = np.random.default_rng(seed)
    model.set_weights([0.3 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def gradients_of(tape, loss, model):
    """Returns the gradients of a loss, zeros for weights that it does not reach."""
    variables = [v.value for v in model.trainable_variables]
    return tape.gradient(loss, variables, unconnected_gradients="zero")


def linear_way(r):
    return r[1]


def tchebycheff_way(r):
    """Minimises μ log Σ exp(T r_i L_i / μ) at μ = 1."""
    result = scipy.optimize.minimize_scalar(
        lambda t: np.logaddexp(2 * r[0] * SPAN * t**2, 2 * r[1] * SPAN * (1 - t) ** 2),
        bounds=(0.0, 1.0),
        method="bounded",
    )
    return result.x


def alike_way(r):
    """Has r_a t² and r_b (1 − t)² alike."""
    return 1.0 / (1.0 + np.sqrt(r[0] / r[1]))


@pytest.mark.parametrize(
    ("condition", "scalarisation", "way", "tolerance"),
    [
        pytest.param(
            lambda m: pareto.manifold(m, None),
            "linear",
            linear_way,
            1e-3,
            id="members",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda m: pareto.manifold(m, 1), "linear", linear_way, 1e-3, id="low_rank"
        ),
        pytest.param(
            pareto.hypernetwork,
            "linear",
            linear_way,
            0.02,
            id="hypernetwork",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            pareto.hypernetwork,
            "smooth_tchebycheff",
            tchebycheff_way,
            0.03,
            id="tchebycheff",
        ),
        pytest.param(
            pareto.hypernetwork,
            "epo_like",
            alike_way,
            0.03,
            id="epo_like",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_losses_lie_on_the_front_of_two_quadratics(
    condition, scalarisation, way, tolerance
):
    model, data = quadratic()
    model = condition(model)
    rate = keras.optimizers.schedules.CosineDecay(0.05, 400)
    model.compile(
        keras.optimizers.Adam(rate),
        loss="mse",
        balancing=pareto.SampledPreference(scalarisation, seed=0),
    )
    model.fit(data.repeat(400), verbose=0)
    firsts = np.array([0.8, 0.65, 0.5, 0.35, 0.2])
    preferences = np.stack([firsts, 1.0 - firsts], axis=1)
    front = pareto.front(model, data, preferences)
    # At the share t of the way from one target to the other.
    shares = np.array([way(r) for r in preferences])
    expected = SPAN * np.stack([shares**2, (1 - shares) ** 2], axis=1)
    assert np.abs(front.points() - expected).max() < tolerance * SPAN
    by_hand = mtl_keras.evaluation.hypervolume(expected, [SPAN, SPAN], ["min", "min"])
    assert front.hypervolume([SPAN, SPAN]) == pytest.approx(by_hand, rel=3 * tolerance)


@pytest.mark.parametrize("scalarisation", ["linear", "smooth_tchebycheff", "epo_like"])
def test_at_a_corner_the_step_is_that_of_one_task(scalarisation):
    model, x, y = shared()
    model = shaken(pareto.hypernetwork(model, [5]))
    balancer = pareto.SampledPreference(scalarisation, scale="mean", seed=0)
    sgd = keras.optimizers.SGD(1.0)
    model.compile(sgd, loss="mse", balancing=balancer, run_eagerly=True)
    (balancer,) = model.balancers
    for index, task in enumerate(model.tasks):
        corner = np.eye(2)[index]
        balancer.preference.assign(corner)
        with tf.GradientTape() as tape:
            outputs = model(model.with_preference(x, corner))
            loss = model.task_losses(y, outputs)[task]
            factor = {
                "linear": 1.0,
                # λ = 2 there, and softmax((2 L, 0) / μ) is the weight of the maximum.
                "smooth_tchebycheff": 2.0 * tf.sigmoid(2.0 * loss),
                # Where 0 counts as e^(−1/λ) of the mean, the loss is 2 − e^(−1/λ).
                "epo_like": 1.0 + 10.0 * math.log(2.0 - math.exp(-0.1)),
            }[scalarisation]
        gradients = gradients_of(tape, loss, model)
        before = [v.numpy() for v in model.trainable_variables]
        model.train_on_batch(x, y)
        for variable, old, gradient in zip(
            model.trainable_variables, before, gradients, strict=True
        ):
            expected = old - factor * gradient
            np.testing.assert_allclose(variable.numpy(), expected, atol=1e-5)
        model.set_weights(before)
        # A new preference was drawn.
        assert 0.0 < balancer.preference.numpy()[0] < 1.0


@pytest.mark.parametrize("jit_compile", IN_GRAPH_AND_XLA)
def test_draws_follow_the_dirichlet_distribution(jit_compile):
    alpha = [0.3, 1.0, 2.5]

    # XLA's numbers of the same seed are others.
    @tf.function(jit_compile=jit_compile)
    def draws():
        seeds = tf.stack([tf.zeros(1000, "int64"), tf.range(1000, dtype="int64")], 1)
        return tf.vectorized_map(lambda seed: dirichlet(alpha, seed), seeds)

    values = draws().numpy()
    np.testing.assert_allclose(values.sum(axis=1), 1.0, rtol=1e-5)
    for column, own in zip(values.T, alpha, strict=True):
        marginal = scipy.stats.beta(own, sum(alpha) - own)
        assert scipy.stats.kstest(column, marginal.cdf).pvalue > 1e-3
    # Far below the range of a gamma variable in float32.
    tiny = dirichlet([1e-3] * 3, tf.constant([0, 1], "int64")).numpy()
    assert tiny.sum() == pytest.approx(1.0)


def images_and_rows():
    """A model of convolutions, nested models and a mask, and its inputs."""
    image = keras.Input((6, 6, 2), name="z_image")
    words = keras.Input((5,), dtype="int32", name="words")
    x = layers.Conv2D(4, 3, strides=2, activation="relu", name="conv")(image)
    block = keras.Sequential(
        [layers.Conv2D(4, 2, groups=2, name="grouped"), layers.Flatten()], name="block"
    )
    tokens = layers.Embedding(9, 3, mask_zero=True)(words)
    tokens = layers.Dense(3, "tanh", name="per_token")(tokens)
    tokens = layers.Conv1D(3, 2, padding="causal", name="causal")(tokens)
    x = layers.Concatenate()([block(x), layers.Flatten()(tokens)])
    head = keras.Sequential(
        [layers.Dense(7, "relu"), layers.Dense(3, "softmax", name="last")], name="head"
    )
    outputs = {"kind": head(x), "size": layers.Dense(1, name="size")(x)}
    rng = np.random.default_rng(1)
    batch = [rng.normal(size=(6, 6, 6, 2)), rng.integers(0, 9, (6, 5))]
    return mtl_keras.MultiTaskModel([image, words], outputs), batch


@pytest.mark.parametrize(
    "condition",
    [
        lambda m: pareto.hypernetwork(m, [9, 9], layers="heads"),
        lambda m: pareto.hypernetwork(m, [9], rank=1),
        lambda m: pareto.manifold(m, None),
        lambda m: pareto.manifold(m, 2),
    ],
    ids=["heads", "low_rank_hypernetwork", "members", "low_rank"],
)
def test_conditioned_models_start_as_the_model_and_are_saved(condition, tmp_path):
    model, x = images_and_rows()
    expected = model(x)
    conditioned = condition(model)
    assert conditioned.input["preference"].shape == (None, 2)
    for preference in ([0.9, 0.1], {"kind": 3.0}):
        outputs = conditioned(conditioned.with_preference(x, preference))
        for task, value in expected.items():
            np.testing.assert_allclose(outputs[task], value, atol=1e-6)
    shaken(conditioned)
    rows = conditioned(conditioned.with_preference(x, [0.8, 0.2]))
    uniform = conditioned(x)
    weights = [
        [v.value for v in variables]
        for variables in (
            conditioned.trainable_variables,
            conditioned.non_trainable_variables,
        )
    ]
    stateless, _ = conditioned.stateless_call(*weights, x)
    by_name = conditioned.with_preference(x, [0.0, 0.0 + 1.0])
    # The same preference as one row for the batch; sums do not matter.
    by_name["preference"] = tf.constant([[4.0, 1.0]])
    row = conditioned(by_name)
    for task in expected:
        np.testing.assert_allclose(row[task], rows[task], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(stateless[task], uniform[task])
        assert not np.allclose(uniform[task], rows[task], atol=1e-3)
    conditioned.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = loaded(loaded.with_preference(x, [0.8, 0.2]))
    for task in expected:
        np.testing.assert_array_equal(again[task], rows[task])


def changed(model):
    """Returns the names of conditioned layers, those of nested models too."""
    names = set()
    for layer in model.layers:
        if type(layer).__name__ == "Conditioned":
            names.add(layer.name)
        names |= changed(layer) if isinstance(layer, keras.Model) else set()
    return names


def test_layers_are_chosen_by_name_or_as_heads():
    model, _ = images_and_rows()
    heads = pareto.hypernetwork(model, layers="heads")
    assert changed(heads) == {"last", "size"}
    some = pareto.manifold(model, layers=["grouped", "conv"])
    assert changed(some) == {"grouped", "conv"}


@pytest.mark.parametrize("jit_compile", IN_GRAPH_AND_XLA)
def test_a_training_resumes_to_the_bit(jit_compile, tmp_path):
    keras.utils.set_random_seed(5)
    whole, x, y = shared()
    whole = pareto.manifold(whole, 2)
    balancer = pareto.SampledPreference(COSMOS(strength=2.0), alpha=0.5, seed=3)
    whole.compile("adam", loss="mse", balancing=balancer, jit_compile=jit_compile)
    saving = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: (
            epoch == 2 and whole.save(tmp_path / "half.keras")
        )
    )
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    whole.fit(x, y, epochs=4, callbacks=[saving], **options)
    loaded = keras.models.load_model(tmp_path / "half.keras")
    assert loaded.balancers[0].get_config() == whole.balancers[0].get_config()
    loaded.fit(x, y, epochs=2, **options)
    for one, other in zip(whole.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    drawn = [m.balancers[0].preference.numpy() for m in (whole, loaded)]
    np.testing.assert_array_equal(*drawn)
    # Each epoch has preferences of its own.
    weights = whole.history.history["a_weight"] if whole.history else []
    assert len(set(weights)) == 4


def test_an_absent_task_leaves_the_scalarisation():
    model, x, y = shared()
    model = shaken(pareto.manifold(model, 2))
    balancer = pareto.SampledPreference("linear", scale="mean", seed=0)
    sgd = keras.optimizers.SGD(1.0)
    model.compile(sgd, loss="mse", balancing=balancer, run_eagerly=True)
    (balancer,) = model.balancers
    drawn = balancer.preference.numpy()
    with tf.GradientTape() as tape:
        outputs = model(model.with_preference(x, drawn.tolist()))
        loss = model.task_losses(y, outputs)["a"]
    gradients = gradients_of(tape, loss, model)
    before = [v.numpy() for v in model.trainable_variables]
    absent = {"a": np.ones(32), "b": np.zeros(32)}
    y = {**y, "b": np.full((32, 1), np.nan)}
    model.train_on_batch(x, y, sample_weight=absent)
    for variable, old, gradient in zip(
        model.trainable_variables, before, gradients, strict=True
    ):
        np.testing.assert_allclose(variable.numpy(), old - gradient, atol=1e-5)


@pytest.mark.slow
def test_replicas_train_as_one_process_does(mirrored):
    def trained(run_eagerly):
        keras.utils.set_random_seed(5)
        model, x, y = shared()
        model = pareto.hypernetwork(model, [4])
        balancer = pareto.SampledPreference("cosmos", seed=3)
        sgd = keras.optimizers.SGD(0.1)
        model.compile(sgd, loss="mse", balancing=balancer, run_eagerly=run_eagerly)
        model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    expected = trained(run_eagerly=True)
    with mirrored.scope():
        result = trained(run_eagerly=False)
    for one, other in zip(expected, result, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_served_request_chooses_the_trade_off(tmp_path):
    model, x, _ = shared()
    model = shaken(pareto.manifold(model, 2))
    samples = model.with_preference(x, [0.9, 0.1])
    version = mtl_keras.serving.export(model, tmp_path, samples=samples)
    assert not mtl_keras.serving.check(version, seconds=0).problems
    answers = []
    with mtl_keras.serving.Runtime(version) as runtime:
        for preference in ([0.9, 0.1], [0.1, 0.9]):
            request = model.with_preference(x, preference)
            request = {name: np.asarray(value) for name, value in request.items()}
            answer = runtime.predict("serving_default", request)
            expected = model(request)
            for task in "ab":
                np.testing.assert_allclose(answer[task], expected[task], atol=1e-5)
            answers.append(answer["a"])
        assert not np.allclose(*answers, atol=1e-3)
        zeros = {**request, "preference": np.zeros((32, 2), "float32")}
        answer = runtime.predict("serving_default", zeros)
    np.testing.assert_allclose(answer["a"], model(x)["a"], atol=1e-5)


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_smaller_weights_are_those_of_conditioned_layers_too(weights):
    model, x, _ = shared()
    model = shaken(pareto.manifold(model, rank=None))
    small = mtl_keras.serving.compress(model, weights)
    kinds = {keras.backend.standardize_dtype(w.dtype) for w in small.weights}
    assert kinds == {"float16": {"float16"}, "int8": {"int8", "float32"}}[weights]
    whole, answer = (
        m(model.with_preference(x, {"a": 0.8, "b": 0.2})) for m in (model, small)
    )
    difference = np.abs(whole["a"] - answer["a"]).max()
    assert 0 < difference < {"float16": 2e-3, "int8": 0.05}[weights]


def test_a_lattice_has_all_multiples():
    model, x, y = shared()
    model = pareto.manifold(model)
    model.compile("sgd", loss="mse")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    front = pareto.front(model, data, 5)
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    np.testing.assert_allclose(front.preferences[:, 1], shares)
    results = model.evaluate(x, y, batch_size=16, return_dict=True, verbose=0)
    assert front.results[2] == pytest.approx(results)
    rows = lattice(3, 4)
    assert len({tuple(row) for row in rows}) == math.comb(6, 2)
    np.testing.assert_allclose(rows.sum(axis=1), 1.0)
    assert rows.min() == 0.0


def test_what_cannot_be_conditioned_or_trained_is_refused():
    model, x, y = shared()
    with pytest.raises(InputError, match="Did you mean 'trunk'"):
        pareto.manifold(model, layers=["trunc"])
    inputs = keras.Input((4,), name="x")
    features = layers.Dense(2)(inputs)
    bare = keras.Model(inputs, {"a": features, "b": layers.ReLU()(features)})
    with pytest.raises(InputError, match="'a' alone"):
        pareto.hypernetwork(bare, layers="heads")
    conditioned = pareto.manifold(model)
    with pytest.raises(InputError, match="input 'preference'"):
        pareto.manifold(conditioned)
    with pytest.raises(InputError, match="to be a SampledPreference"):
        conditioned.compile("sgd", loss="mse", balancing="cosmos")
    with pytest.raises(InputError, match="`scalarisation`"):
        pareto.SampledPreference("tchebycheff")
    with pytest.raises(InputError, match="an entry for each task"):
        pareto.manifold(model, num_tasks=3).compile("sgd", loss="mse")
    conditioned.compile("sgd", loss="mse")
    with pytest.raises(InputError, match="training data without 'preference'"):
        conditioned.train_on_batch(conditioned.with_preference(x, [1.0, 0.0]), y)
    with pytest.raises(InputError, match="non-negative"):
        conditioned.with_preference(x, [-1.0, 2.0])
    data = tf.data.Dataset.from_tensors((x, y))
    with pytest.raises(InputError, match=r"shape \[N, 2\]"):
        pareto.front(conditioned, data, [[1.0, 1.0, 1.0]])
