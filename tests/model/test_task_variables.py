"""Shared and task-specific variables, and their gradients."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import mtl_keras
from mtl_keras import balancing as balancing_lib
from mtl_keras.balancing import GramBalancer
from mtl_keras.balancing.matrix_averaging import AveragingBalancer
from mtl_keras.errors import InputError
from mtl_keras.model.keras_compat import variables_beside
from mtl_keras.model.task_variables import split_variables


def data():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(32, 6)).astype("float32")
    y = {task: rng.normal(size=(32, 1)).astype("float32") for task in "abc"}
    return x, y


def model_with_a_branch(**kwargs):
    """`stem` serves all, `branch` serves a and b, each head one task."""
    inputs = keras.Input((6,))
    stem = keras.layers.Dense(5, "tanh", name="stem")(inputs)
    branch = keras.layers.Dense(4, "tanh", name="branch")(stem)
    model = mtl_keras.MultiTaskModel(
        inputs,
        {
            "a": keras.layers.Dense(1, name="head_a")(branch),
            "b": keras.layers.Dense(1, name="head_b")(branch),
            "c": keras.layers.Dense(1, name="head_c")(stem),
        },
    )
    model.compile(loss="mse", **kwargs)
    return model


def test_the_graph_shows_the_shared_variables():
    model = model_with_a_branch(optimizer="sgd")
    split = split_variables(model, model._reached)
    owners = {v.path: "shared" for v in split.shared}
    owners |= {v.path: task for task, own in split.own.items() for v in own}
    assert {path.split("/")[0]: owner for path, owner in owners.items()} == {
        "stem": "shared",
        "branch": "shared",
        "head_a": "a",
        "head_b": "b",
        "head_c": "c",
    }


def test_a_frozen_layer_is_left_alone():
    model = model_with_a_branch(optimizer="sgd")
    model.get_layer("stem").trainable = False
    model.compile("sgd", loss="mse", balancing="mgda", run_eagerly=True)
    before = model.get_layer("stem").get_weights()[0].copy()
    x, y = data()
    model.fit(x, y, verbose=0)
    np.testing.assert_array_equal(model.get_layer("stem").get_weights()[0], before)


@pytest.mark.parametrize("balancing", ["mgda", "pcgrad"])
def test_heads_follow_their_own_gradient_under_gradient_balancers(balancing):
    """`task_specific="own"`: a head moves as it would without balancing."""
    x, y = data()
    heads = {}
    for name in ("equal", balancing):
        keras.utils.set_random_seed(2)
        model = model_with_a_branch(
            optimizer=keras.optimizers.SGD(0.1), balancing=name, run_eagerly=True
        )
        model.fit(x, y, batch_size=32, verbose=0)
        heads[name] = [model.get_layer(f"head_{t}").get_weights()[0] for t in "abc"]
        stem = model.get_layer("stem").get_weights()[0]
        heads[name + " stem"] = stem
    for own, expected in zip(heads[balancing], heads["equal"], strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-7)
    assert not np.allclose(heads[balancing + " stem"], heads["equal stem"], rtol=1e-4)


@pytest.mark.parametrize(
    "kind", [pytest.param("loss", marks=pytest.mark.slow), "gradient"]
)
@pytest.mark.parametrize("task_specific", ["own", "weighted"])
def test_task_specific_decides_what_trains_the_heads(kind, task_specific):
    """Known weights: a static 0.25, and MGDA's on equal tasks (mean scale: 1/3)."""
    x, y = data()
    y = dict.fromkeys("abc", y["a"])
    config = {"task_specific": task_specific, "scale": "mean"}
    if kind == "loss":
        config["scale"] = "sum"
        config["task_weights"] = {"a": 0.25, "b": 0.25, "c": 0.25}
    balancing = {"class_name": "static" if kind == "loss" else "mgda", "config": config}
    moves = {}
    weights = None
    for name in ("equal", "balanced"):
        keras.utils.set_random_seed(2)
        model = model_with_a_branch(
            optimizer=keras.optimizers.SGD(0.1),
            balancing="equal" if name == "equal" else balancing,
            run_eagerly=True,
        )
        before = model.get_layer("head_a").get_weights()[0].copy()
        history = model.fit(x, y, batch_size=32, verbose=0).history
        moves[name] = model.get_layer("head_a").get_weights()[0] - before
        weights = history["a_weight"][0]
    factor = weights if task_specific == "weighted" else 1.0
    np.testing.assert_allclose(moves["balanced"], factor * moves["equal"], rtol=1e-4)


def test_regularisation_is_not_balanced():
    """A regulariser's pull is the same whatever the task weights."""
    x, y = data()
    y = dict.fromkeys("ab", np.zeros((32, 1), "float32"))
    x = np.zeros_like(x)
    results = []
    for balancing in ("equal", "mgda", "pcgrad"):
        keras.utils.set_random_seed(2)
        inputs = keras.Input((6,))
        h = keras.layers.Dense(5, kernel_regularizer="l2", use_bias=False)(inputs)
        outputs = {t: keras.layers.Dense(1, use_bias=False)(h) for t in "ab"}
        model = mtl_keras.MultiTaskModel(inputs, outputs)
        model.compile(
            keras.optimizers.SGD(0.5),
            loss="mse",
            balancing=balancing,
            run_eagerly=True,
        )
        model.fit(x, y, verbose=0)  # The tasks' gradients are zero.
        results.append(model.get_weights()[0])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-6)


def test_embeddings_keep_their_gradients_sparse_and_train():
    inputs = keras.Input((3,), dtype="int32")
    h = keras.layers.Flatten()(keras.layers.Embedding(50, 4)(inputs))
    model = mtl_keras.MultiTaskModel(
        inputs, {t: keras.layers.Dense(1)(h) for t in "ab"}
    )
    adam = keras.optimizers.Adam(0.05)
    model.compile(adam, loss="mse", balancing="pcgrad")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 50, (64, 3))
    y = {"a": x.sum(1, keepdims=True) / 75.0, "b": (x[:, :1] > 25) * 1.0}
    losses = model.fit(x, y, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


class Ones(GramBalancer):
    """A gradient balancer that adds the task gradients up, as stock Keras does."""

    method = "ones"

    def weights(self, gramian):
        return tf.ones((gramian.shape[0],), "float64") / gramian.shape[0]


class ScaledError(keras.losses.Loss):
    """A squared error with a trainable scale."""

    def __init__(self):
        super().__init__()
        self.log_variance = keras.Variable(0.5, name="log_variance")

    def call(self, y_true, y_pred):
        error = keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)
        return error * keras.ops.exp(-self.log_variance) + self.log_variance


def network(case):
    """Inputs, outputs and losses of two tasks; the last are new ones in each call."""
    inputs = keras.Input((6,))
    h = keras.layers.Dense(5, "tanh", name="stem")(inputs)
    head_a, head_b = (keras.layers.Dense(1, name=f"head_{t}") for t in "ab")
    a, losses = head_a(h), {"a": "mse", "b": "mse"}
    if case == "lambda":
        b = keras.layers.Lambda(
            lambda t: 2.0 * keras.ops.matmul(t, head_a.kernel), output_shape=(1,)
        )(h)
    elif case == "operation":
        b = 2.0 * keras.ops.matmul(h, head_a.kernel)
    else:
        b = head_b(h)
    if case == "loss":
        losses["a"] = ScaledError()
    elif case == "one loss for both":
        losses = dict.fromkeys("ab", ScaledError())
    return inputs, {"a": a, "b": b}, losses


def trained(cls, case, epochs=2, optimizer=None, **arguments):
    """The trainable variables before and after training."""
    keras.utils.set_random_seed(2)
    inputs, outputs, losses = network(case)
    model = cls(inputs, outputs)
    if isinstance(losses["a"], ScaledError):
        model.log_variance = losses["a"].log_variance
    model.compile(optimizer or keras.optimizers.SGD(0.1), losses, **arguments)
    if case == "lora":
        model.get_layer("stem").enable_lora(2)
        model.get_layer("head_a").enable_lora(2)
    before = [v.numpy() for v in model.trainable_variables]
    x, y = data()
    y = {t: y[t] for t in "ab"}
    model.fit(x, y, batch_size=32, epochs=epochs, shuffle=False, verbose=0)
    return before, [v.numpy() for v in model.trainable_variables], model


# The first steps show these to be shared.
REFUSED = {"lambda": "head_a/kernel", "one loss for both": "log_variance"}
HIDDEN = ("lambda", "operation", "loss", "one loss for both", "lora")


WAYS = {
    "graph": lambda: {"balancing": Ones()},
    "eager": lambda: {"balancing": Ones(), "run_eagerly": True},
    "skip_task": lambda: {"balancing": "equal", "on_nonfinite": "skip_task"},
    "clipped": lambda: {"balancing": "equal", "task_clipnorm": 1e6},
    "kept": lambda: {"balancing": Ones(update_every=2)},
    "kept, eager": lambda: {"balancing": Ones(update_every=2), "run_eagerly": True},
    "XLA": lambda: {"balancing": ["equal", Ones()], "jit_compile": True},
}
QUICK = (
    ("lambda", "graph"),
    ("lambda", "eager"),
    ("loss", "skip_task"),
    ("one loss for both", "eager"),
    ("lora", "graph"),
)


@pytest.mark.parametrize(
    ("case", "way"),
    [
        pytest.param(case, way, marks=() if (case, way) in QUICK else pytest.mark.slow)
        for case in HIDDEN
        for way in WAYS
    ],
)
def test_variables_that_the_graph_does_not_show_train_as_in_stock_keras(case, way):
    before, expected, _ = trained(keras.Model, case, run_eagerly=True)
    _, actual, model = trained(mtl_keras.MultiTaskModel, case, **WAYS[way]())
    for old, one, two in zip(before, expected, actual, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)
        assert not np.array_equal(old, two)
    shared = {v.path.rpartition("/")[2] for v in model.shared_variables}
    assert ("log_variance" in shared) == (case == "one loss for both")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=() if name in ("moco", "uncertainty") else pytest.mark.slow,
        )
        for name in balancing_lib.names()
        if name != "krum"  # Needs three tasks.
    ],
)
def test_every_method_moves_hidden_variables_or_names_them(name):
    # With a large λ tasks of small losses have weight 0.
    configs = {"trimmed_mean": {"trim": 0}, "epo_like": {"strength": 0.3}}
    method = {"class_name": name, "config": configs.get(name, {})}
    averages = isinstance(balancing_lib.get(method), AveragingBalancer)
    refused = REFUSED if averages else {}
    if name == "consmtl":  # Which needs heads that share nothing, seen or not.
        refused = {**REFUSED, "operation": "head_a/kernel"}
    for case in HIDDEN:
        arguments = {"balancing": method, "run_eagerly": True, "epochs": 1}
        if case in refused:
            with pytest.raises(InputError, match=refused[case]):
                trained(mtl_keras.MultiTaskModel, case, **arguments)
            continue
        before, after, model = trained(mtl_keras.MultiTaskModel, case, **arguments)
        for old, new, variable in zip(
            before, after, model.trainable_variables, strict=True
        ):
            # Only one of the two factors of LoRA starts at zero.
            if "lora_kernel_a" not in variable.path:
                assert not np.array_equal(old, new), (case, variable.path)


@pytest.mark.parametrize(
    ("case", "run_eagerly"),
    [
        ("lambda", False),
        ("one loss for both", True),
        *(
            pytest.param(case, run_eagerly, marks=pytest.mark.slow)
            for case, run_eagerly in (
                ("lambda", True),
                ("operation", False),
                ("operation", True),
                ("loss", False),
                ("loss", True),
                ("one loss for both", False),
            )
        ),
    ],
)
def test_a_representation_is_refused_where_heads_share_hidden_variables(
    case, run_eagerly
):
    method = Ones(gradients_of="representation")
    arguments = {"balancing": method, "run_eagerly": run_eagerly, "epochs": 1}
    if case == "loss":  # of one task
        _, expected, _ = trained(keras.Model, case, run_eagerly=True, epochs=1)
        _, actual, _ = trained(mtl_keras.MultiTaskModel, case, **arguments)
        for one, two in zip(expected, actual, strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)
        return
    with pytest.raises(InputError, match=REFUSED.get(case, "head_a/kernel")):
        trained(mtl_keras.MultiTaskModel, case, **arguments)


def nested_network(form):
    """A stem with two heads, flat or as one layer of the model."""
    inputs = keras.Input((6,))
    h = keras.layers.Dense(5, "tanh", name="stem")(inputs)
    outputs = {t: keras.layers.Dense(1, name=f"head_{t}")(h) for t in "ab"}
    if form == "flat":
        return inputs, outputs
    outer = keras.Input((6,))
    if form == "functional":
        inner = keras.Model(inputs, list(outputs.values()))
        return outer, dict(zip("ab", inner(outer), strict=True))
    if form == "twice":
        inner = keras.Model(keras.Model(inputs, outputs).input, outputs)
        again = keras.Input((6,))
        return outer, keras.Model(again, inner(again))(outer)

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = keras.Model(inputs, outputs)

        def call(self, inputs):
            return self.inner(inputs)

    return outer, Subclassed()(outer)


@pytest.mark.parametrize(
    "form",
    [
        "functional",
        pytest.param("subclassed", marks=pytest.mark.slow),
        pytest.param("twice", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("gradients_of", ["shared", "representation"])
def test_nested_models_balance_as_flat_ones(form, gradients_of):
    if form == "subclassed" and gradients_of == "representation":
        pytest.skip("Only functional models can be cut.")
    x, y = data()
    y = {t: y[t] for t in "ab"}
    results = []
    for this in ("flat", form):
        keras.utils.set_random_seed(2)
        model = mtl_keras.MultiTaskModel(*nested_network(this))
        method = balancing_lib.MGDA(gradients_of=gradients_of)
        model.compile(
            keras.optimizers.SGD(0.1), loss="mse", balancing=method, run_eagerly=True
        )
        model.fit(x, y, epochs=2, shuffle=False, verbose=0)
        names = {v.path.rpartition("/")[0][-6:] for v in model.shared_variables}
        assert {name.rpartition("/")[2] for name in names} == {"stem"}
        results.append(model.get_weights())
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_the_last_shared_layer_is_not_another_of_its_name():
    """Layers of nested models have the same name, and their variables one path."""
    inputs, blocks = keras.Input((4,)), []
    h = inputs
    for _ in range(2):
        features = keras.Input((4,))
        blocks.append(keras.layers.Dense(4, name="dense"))
        h = keras.Model(features, blocks[-1](features))(h)
    outputs = {task: keras.layers.Dense(1)(h) for task in "ab"}
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    assert blocks[0].kernel.path == blocks[1].kernel.path
    for block in blocks:
        beside = variables_beside(model, block.bias)
        assert [id(v) for v in beside] == [id(block.kernel), id(block.bias)]


BAD = {
    "unknown method": ({"balancing": "pcgard"}, "'pcgrad'"),
    "unknown argument": (
        {"balancing": {"class_name": "dwa", "config": {"temp": 1}}},
        "temp",
    ),
    "bad scale": (
        {"balancing": {"class_name": "dwa", "config": {"scale": "median"}}},
        "median",
    ),
    "two of a kind": ({"balancing": ["dwa", "uncertainty"]}, "dwa"),
    "two of a name": (
        {
            "balancing": [
                {"class_name": name, "config": {"name": "mine", "seed": 1}}
                for name in ("random", "pcgrad")
            ]
        },
        r"different names.*\['mine', 'mine'\]",
    ),
    "weighted losses beside baselines": (
        {
            "balancing": [
                "uncertainty",
                {"class_name": "pivrg", "config": {"baselines": [1.0, 1.0, 1.0]}},
            ]
        },
        r"baselines.*\['uncertainty', 'pivrg'\]",
    ),
    "no loss": ({"loss": None}, "loss"),
    "output without loss": ({"loss": {"a": "mse", "b": "mse"}}, "'c'"),
    "loss for no output": (
        {"loss": {"a": "mse", "b": "mse", "c": "mse", "d": "mse"}},
        "'d'",
    ),
    "metric for no output": ({"metrics": {"heada": ["mae"]}}, "heada"),
    "weight for no task": (
        {"balancing": {"class_name": "static", "config": {"task_weights": {"x": 1}}}},
        "'x'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_compile_arguments_get_one_clear_line(case):
    arguments, named = BAD[case]
    model = model_with_a_branch(optimizer="sgd")
    with pytest.raises(ValueError, match=named) as error:
        model.compile("sgd", **{"loss": "mse", **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["weight", "nonfinite"])
def test_a_metric_may_not_take_the_name_of_a_log(name):
    model = model_with_a_branch(optimizer="sgd")
    metric = keras.metrics.MeanAbsoluteError(name=name)
    model.compile(
        "sgd",
        loss="mse",
        metrics={"b": [metric]},
        on_nonfinite="skip_task",
        run_eagerly=True,
    )
    with pytest.raises(InputError, match=f"'b_{name}'"):
        model.train_on_batch(*data())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda y: {**y, "d": y["a"]}, "'d'"),
        (lambda y: {"a": y["a"], "b": y["b"]}, "'c'"),
    ],
)
def test_labels_that_fit_no_output_get_one_clear_line(change, named):
    model = model_with_a_branch(optimizer="sgd")
    x, y = data()
    with pytest.raises(ValueError, match=named):
        model.fit(x, change(y), verbose=0)
