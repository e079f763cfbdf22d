"""Weights that follow the solution by products of the Gram matrix with them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import mtl_keras
from mtl_keras import balancing
from mtl_keras.balancing.pipeline import Pipeline
from mtl_keras.balancing.running import RunningBalancer
from mtl_keras.errors import InputError

layers = keras.layers
RUNNING = [
    balancing.Nash(solve="running"),
    balancing.FairGrad(alpha=2.0, solve="running"),
    balancing.MGDA(solve="running"),
]


def fixed_point(balancer, gramian, steps=150):
    """Returns weights and residual after products with one matrix."""
    balancer.build([str(i) for i in range(len(gramian))])
    present, ones = tf.ones(len(gramian), "bool"), tf.ones(len(gramian))
    sizes, due = tf.ones(len(gramian), "float64"), tf.constant(True)
    gramian = tf.constant(gramian)

    @tf.function
    def step():
        weights = tf.cast(balancer.running_weights(ones, sizes, present), "float64")
        products = tf.linalg.matvec(gramian, weights)
        return balancer.follow(products, ones, sizes, present, due)[0]

    for _ in range(steps):
        residual = step()
    return balancer.running_weights(ones, sizes, present).numpy(), float(residual)


@pytest.mark.parametrize("balancer", RUNNING, ids=lambda b: b.method)
@pytest.mark.parametrize("num_tasks", [2, 12])
def test_a_fixed_matrix_leads_to_its_exact_solution(balancer, num_tasks):
    rng = np.random.default_rng(num_tasks)
    # Conflicts, and norms over four decades.
    rows = rng.normal(size=(num_tasks, 3 * num_tasks))
    rows -= 0.5 * rows.mean(axis=0)
    rows *= 10.0 ** rng.uniform(-2, 2, (num_tasks, 1))
    gramian = rows @ rows.T
    balancer = balancer.fresh_copy()
    weights, residual = fixed_point(balancer, gramian)
    exact = type(balancer)(
        **{**balancer.get_config(), "solve": "exact", "name": None}
    ).weights(tf.constant(gramian))
    assert residual < 1e-3
    np.testing.assert_allclose(weights, exact, rtol=1e-2, atol=1e-4 * max(exact))


@pytest.mark.parametrize("balancer", RUNNING, ids=lambda b: b.method)
def test_sizes_of_gradients_tell_of_the_batch(balancer):
    # Gradients that grow and shrink task by task from batch to batch.
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(4, 40))
    of_batches = np.exp(0.5 * rng.normal(size=(200, 4)))
    exact = type(balancer)(**{**balancer.get_config(), "solve": "exact", "name": None})
    present, ones = tf.ones(4, "bool"), tf.ones(4)
    errors = {}
    for power in (0.0, 1.5):
        follower = balancer.fresh_copy()
        follower.build(list("abcd"))

        @tf.function
        def step(gramian, sizes, follower=follower):
            weights = follower.running_weights(ones, sizes, present)
            wide = tf.cast(weights, "float64")
            products = tf.linalg.matvec(gramian, wide)
            norm = tf.sqrt(tf.tensordot(wide, products, 1))
            factor = follower.running_factor(norm, sizes, present)
            follower.follow(products, ones, sizes, present, tf.constant(True))
            return weights * factor

        errors[power] = []
        for index, sizes in enumerate(of_batches):
            task_rows = rows * sizes[:, None]
            gramian = tf.constant(task_rows @ task_rows.T)
            weights = step(gramian, tf.constant(sizes**power)).numpy()
            if index >= 170:
                best = exact.rescaled(exact.weights(gramian), gramian).numpy()
                update = best @ task_rows
                difference = np.linalg.norm(weights @ task_rows - update)
                errors[power].append(difference / np.linalg.norm(update))
    # 1 for every batch, power 0, says nothing.
    assert np.median(errors[1.5]) < 0.15 < 0.25 < np.median(errors[0.0])


def test_sizes_are_norms_on_own_variables_and_absent_tasks_keep_theirs(monkeypatch):
    seen = []
    follow = RunningBalancer.follow

    def noted(self, products, losses, sizes, present, due):
        seen.append((sizes.numpy(), losses.numpy()))
        return follow(self, products, losses, sizes, present, due)

    monkeypatch.setattr(RunningBalancer, "follow", noted)
    inputs = keras.Input((64,))
    shared = layers.Dense(6, "tanh")(inputs)
    head, *tower = layers.Dense(2), layers.Dense(3), layers.Dense(1)
    outputs = {
        "all": head(shared),
        "one": tower[1](tower[0](shared)),
        "nothing": layers.Activation("linear")(shared[:, :1]),
    }
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    balancer = balancing.Nash(solve="running")
    model.compile(
        keras.optimizers.SGD(0.0),
        loss="mse",
        balancing=balancer,
        columns={"all": ["a", "b"]},
        loss_weights={"one": 3.0},
        missing_labels="nan",
        run_eagerly=True,
    )
    x = np.random.default_rng(0).normal(size=(8, 64)).astype("float32")
    y = {"all": x[:, :2] + 1, "one": x[:, :1], "nothing": x[:, 2:3]}
    model.train_on_batch(x, y)
    with tf.GradientTape(persistent=True) as tape:
        predicted = model(x)
        errors = [
            *tf.unstack(tf.reduce_mean(tf.square(predicted["all"] - y["all"]), 0)),
            3.0 * tf.reduce_mean(tf.square(predicted["one"] - y["one"])),
        ]
    of_head, of_tower = (
        [v.value for layer in own for v in layer.trainable_variables]
        for own in ([head], tower)
    )
    norms = [
        float(tf.linalg.global_norm(tape.gradient(error, variables)))
        for error, variables in zip(errors, [of_head, of_head, of_tower], strict=True)
    ]
    sizes, losses = seen[0]
    np.testing.assert_allclose(sizes, [*norms[:2], losses[2], norms[2]], rtol=1e-5)

    before = balancer.variables["size_moments"].numpy()
    y["all"][:, 1] = np.nan
    model.train_on_batch(x, y)
    moved = (balancer.variables["size_moments"].numpy() != before).any(axis=0)
    assert moved.tolist() == [True, False, True, True]


@pytest.mark.parametrize("balancer", RUNNING[:2], ids=lambda b: b.method)
def test_updates_have_the_length_of_the_solution(balancer):
    model = model_of(lambda x: layers.Dense(16, "tanh")(x))
    balancer = balancer.fresh_copy()
    model.compile(keras.optimizers.SGD(1.0), loss="mse", balancing=balancer)
    # All but the heads'.
    variables = [v for v in model.trainable_variables if v.shape[-1] != 1]
    x, y = data()
    for _ in range(3):
        before = [v.numpy() for v in variables]
        logs = model.train_on_batch(x, y, return_dict=True)
        moves = [v.numpy() - old for v, old in zip(variables, before, strict=True)]
        square = sum(np.sum(np.square(move)) for move in moves)
        alpha = getattr(balancer, "alpha", 1.0)
        weights = np.array([logs[f"t{i}_weight"] for i in range(3)])
        np.testing.assert_allclose(square, sum(weights ** (1 - 1 / alpha)), rtol=1e-3)


def attention(x):
    x = layers.Embedding(20, 8)(x)
    x = layers.MultiHeadAttention(2, 4, dropout=0.2)(x, x)
    return layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))


def convolution(x):
    x = layers.Reshape((8, 8, 1))(x)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, activation="swish")(x))
    x = layers.MaxPooling2D()(x)
    return layers.Flatten()(layers.SeparableConv2D(4, 2, activation="gelu")(x))


def recurrent(x):
    x = layers.Reshape((3, 8))(layers.Dense(24)(x))
    return layers.LSTM(5)(layers.GRU(4, return_sequences=True, dropout=0.1)(x))


class Residual(layers.Layer):
    """u_0 + u u_1 − u_11 of a network's u and its derivatives by the inputs."""

    def __init__(self, network, **kwargs):
        super().__init__(**kwargs)
        self.network = network

    def call(self, x):
        first, second = x[:, :1], x[:, 1:2]
        with tf.GradientTape() as outer:
            outer.watch(second)
            with tf.GradientTape() as inner:
                inner.watch([first, second])
                u = self.network(tf.concat([first, second, x[:, 2:]], axis=1))
            u_0, u_1 = inner.gradient(u, [first, second])
        return u_0 + u * u_1 - outer.gradient(u_1, second)


def derivatives(x):
    network = keras.Sequential([layers.Dense(6, "tanh"), layers.Dense(1)])
    return layers.Concatenate()([Residual(network)(x), network(x)])


def random_graph(seed):
    """Returns a function that makes a graph of random layers with skips."""

    def build(x):
        rng = np.random.default_rng(seed)
        tensors = [layers.Dense(6)(x)]
        kinds = [
            lambda t: layers.Dense(6, "tanh")(t),
            lambda t: layers.Dropout(0.3)(t),
            lambda t: layers.LayerNormalization()(t),
            lambda t: layers.BatchNormalization()(t),
            lambda t: layers.Dense(6, "softmax")(t),
            lambda t: layers.PReLU()(t),
        ]
        for _ in range(5):
            first, second = (tensors[rng.integers(len(tensors))] for _ in range(2))
            both = layers.Add()([first, second]) if rng.random() < 0.5 else first
            tensors.append(kinds[rng.integers(len(kinds))](both))
        return layers.Concatenate()(tensors[-3:])

    return build


BODIES = {
    "attention": attention,
    "convolution": convolution,
    "derivatives": derivatives,
    "recurrent": recurrent,
    **{f"random-{seed}": random_graph(seed) for seed in range(4)},
}


def model_of(body, shape=(64,), dtype="float32", num_tasks=3):
    """Returns a model with shared layers, further ones of two tasks, and heads."""
    keras.utils.set_random_seed(3)
    x = keras.Input(shape, dtype=dtype)
    shared = body(x)
    of_two = layers.Dense(4, "gelu")(shared)
    heads = [shared, of_two, of_two, *[shared] * num_tasks][:num_tasks]
    outputs = {f"t{i}": layers.Dense(1)(h) for i, h in enumerate(heads)}
    return mtl_keras.MultiTaskModel(x, outputs)


def products_of_a_step(monkeypatch, model, balancer, x, steps=2, **options):
    """Returns G w from a running step, and the same step's Gram matrix times w."""
    seen = {}
    follow = RunningBalancer.follow

    def noted(self, products, losses, sizes, present, due):
        seen["weights"] = self.running_weights(losses, sizes, present)
        seen["products"] = products
        return follow(self, products, losses, sizes, present, due)

    monkeypatch.setattr(RunningBalancer, "follow", noted)
    monkeypatch.setattr(
        Pipeline, "watch", lambda self, step: seen.update(gramian=step.gramian)
    )
    model.compile(
        keras.optimizers.SGD(0.1),
        loss="mse",
        balancing=balancer,
        monitor="conflicts",
        run_eagerly=True,
        **options,
    )
    rng = np.random.default_rng(1)
    y = {task: 10 * rng.normal(size=(len(x), 1)) for task in model.tasks}
    for _ in range(steps):  # the first has equal weights
        model.train_on_batch(x, {t: v.astype("float32") for t, v in y.items()})
    weights = tf.cast(seen["weights"], "float64")
    return seen["products"].numpy(), tf.linalg.matvec(seen["gramian"], weights).numpy()


@pytest.mark.parametrize("name", BODIES)
def test_products_are_those_of_the_gram_matrix(name, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 64)).astype("float32")
    model = model_of(BODIES[name])
    if name == "attention":
        x = rng.integers(0, 20, (8, 7))
        model = model_of(BODIES[name], (7,), "int32")
    balancer = balancing.Nash(solve="running")
    products, exact = products_of_a_step(monkeypatch, model, balancer, x)
    np.testing.assert_allclose(products, exact, rtol=1e-4, atol=1e-5 * max(abs(exact)))


def test_a_difference_quotient_is_near_the_products(monkeypatch):
    x = np.random.default_rng(0).normal(size=(8, 64)).astype("float32")
    balancer = balancing.Nash(solve="running_difference")
    model = model_of(lambda x: layers.Dropout(0.3)(layers.Dense(16, "tanh")(x)))
    products, exact = products_of_a_step(monkeypatch, model, balancer, x)
    np.testing.assert_allclose(products, exact, rtol=0.03, atol=0.01 * max(abs(exact)))


def test_loss_weights_and_absent_tasks_enter_the_products(monkeypatch):
    x = np.random.default_rng(0).normal(size=(8, 64)).astype("float32")
    model = model_of(lambda x: layers.Dense(16, "tanh")(x))
    model.stop_tasks(["t2"])
    method = [balancing.get("uncertainty"), balancing.MGDA("loss", solve="running")]
    options = {"loss_weights": {"t0": 3.0}}
    products, exact = products_of_a_step(monkeypatch, model, method, x, **options)
    np.testing.assert_allclose(products, exact, rtol=1e-4)


def data(size=16):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(size, 64)).astype("float32")
    return x, {f"t{i}": x[:, i : i + 1] * 10.0**i + 1 for i in range(3)}


def compiled(dropout=0.0, **options):
    """Returns a model that follows FairGrad's weights, and its balancer."""
    model = model_of(lambda x: layers.Dropout(dropout)(layers.Dense(16, "tanh")(x)))
    balancer = balancing.FairGrad(solve="running")
    model.compile(loss="mse", balancing=balancer, **options)
    return model, balancer


def state_of(model):
    return [*model.get_weights(), *(v.numpy() for v in model._pipeline.state.values())]


def test_a_resumed_training_is_the_same_to_the_bit(tmp_path):
    x, y = data()
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    whole, balancer = compiled(0.2, optimizer="adam")
    path = tmp_path / "model.keras"
    saving = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: epoch == 1 and whole.save(path)
    )
    whole.fit(x, y, epochs=2, callbacks=[saving], **options)
    second = keras.models.load_model(path)
    second.fit(x, y, epochs=1, **options)
    assert np.ptp(balancer.variables["log_weights"]) > 0.1
    for one, two in zip(state_of(whole), state_of(second), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("policy", "solve", "error"),
    [
        ("mixed_float16", "running", 0.01),
        pytest.param("mixed_bfloat16", "running", 0.05, marks=pytest.mark.slow),
        ("mixed_float16", "running_difference", 0.2),
        ("float64", "running_difference", 0.03),
    ],
)
def test_products_in_any_precision(policy, solve, error, monkeypatch):
    x = np.random.default_rng(0).normal(size=(8, 64)).astype("float32")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = model_of(lambda x: layers.Dense(16, "tanh")(x))
        method = balancing.MGDA(solve=solve)
        # As many steps as bring the loss's scale down to where float16 holds it.
        steps = 2 if policy == "float64" else 12
        products, exact = products_of_a_step(monkeypatch, model, method, x, steps)
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_allclose(products, exact, rtol=error, atol=error * max(exact))


@pytest.mark.parametrize("policy", ["bfloat16", "mixed_bfloat16"])
def test_bfloat16_has_no_difference_quotient(policy):
    body = layers.Dense(16, "tanh", dtype=policy)
    method = balancing.Nash(solve="running_difference")
    with pytest.raises(InputError, match="bfloat16"):
        model_of(body).compile("sgd", loss="mse", balancing=method)


def test_xla_takes_the_same_steps():
    x, y = data()
    states = []
    for xla in (False, True):
        model, balancer = compiled(
            optimizer=keras.optimizers.SGD(1e-3), jit_compile=xla
        )
        for _ in range(4):
            model.train_on_batch(x, y)
        states.append(balancer.variables["log_weights"].numpy())
    assert np.ptp(states[0]) > 0.1
    np.testing.assert_allclose(states[1], states[0], rtol=1e-4, atol=1e-4)


def test_running_weights_move_every_kth_step_and_residuals_are_logged():
    model = model_of(lambda x: layers.Dense(16, "tanh")(x))
    balancer = balancing.Nash(solve="running", update_every=3, max_norm=1.0)
    model.compile(
        keras.optimizers.SGD(0.0),
        loss="mse",
        balancing=balancer,
        monitor="residual",
        run_eagerly=True,
    )
    x, y = data()
    before, moved, residuals = balancer.variables["log_weights"].numpy(), [], []
    for _ in range(7):
        logs = model.train_on_batch(x, y, return_dict=True)
        after = balancer.variables["log_weights"].numpy()
        moved.append(bool((after != before).any()))
        before = after
        residuals.append(logs["residual"])
    assert moved == [True, False, False, True, False, False, True]
    assert residuals[0] > residuals[-1] > 0  # a mean over the steps so far
    assert logs["fallbacks"] == 0


def test_a_step_that_is_skipped_leaves_the_weights():
    model = model_of(lambda x: layers.Dense(16, "tanh")(x))
    balancer = balancing.FairGrad(solve="running")
    model.compile(
        "sgd",
        loss="mse",
        balancing=balancer,
        on_nonfinite="skip_step",
        run_eagerly=True,
    )
    x, y = data()
    model.train_on_batch(x, y)
    before = balancer.variables["log_weights"].numpy()
    weights = model.get_weights()
    y["t1"][3] = np.nan
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["skipped_steps"] == 1
    np.testing.assert_array_equal(balancer.variables["log_weights"], before)
    for one, two in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: balancing.PCGrad(solve="running"), "whole Gram matrix"),
        (lambda: balancing.Nash(solve="sometimes"), "'running_difference'"),
        (lambda: balancing.MGDA("l2", solve="running"), "normalization='none'"),
        (
            lambda: balancing.CRMOGM(balancing.Nash(solve="running")),
            "solved exactly",
        ),
        (
            lambda: balancing.Nash(
                solve="running_difference", gradients_of="representation"
            ),
            "gradients_of='shared'",
        ),
    ],
)
def test_options_that_running_solves_do_not_support_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_compile_names_options_that_running_solves_do_not_support():
    def resized(x):
        x = layers.Conv2D(2, 3)(layers.Reshape((8, 8, 1))(x))
        x = layers.UpSampling2D(interpolation="bilinear", name="enlarged")(x)
        return layers.Flatten()(x)

    model = model_of(resized)
    with pytest.raises(InputError, match=r"'enlarged'.*running_difference"):
        model.compile("sgd", loss="mse", balancing=balancing.Nash(solve="running"))
    model.compile(
        "sgd", loss="mse", balancing=balancing.Nash(solve="running_difference")
    )
    model = model_of(lambda x: layers.Dense(4)(x))
    with pytest.raises(InputError, match="task_clipnorm=None"):
        model.compile(
            "sgd",
            loss="mse",
            balancing=balancing.Nash(solve="running"),
            task_clipnorm=1.0,
        )
    with pytest.raises(InputError, match='solve="running" for monitor="residual"'):
        model.compile("sgd", loss="mse", balancing="nash", monitor="residual")
