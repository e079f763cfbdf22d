"""Shared and task-specific variables, and what trains them."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import mtl_keras
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


def test_the_graph_tells_what_is_shared():
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
    model.compile("sgd", loss="mse", balancing="mgda")
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
        model = model_with_a_branch(optimizer=keras.optimizers.SGD(0.1), balancing=name)
        model.fit(x, y, batch_size=32, verbose=0)
        heads[name] = [model.get_layer(f"head_{t}").get_weights()[0] for t in "abc"]
        stem = model.get_layer("stem").get_weights()[0]
        heads[name + " stem"] = stem
    for own, expected in zip(heads[balancing], heads["equal"], strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-7)
    assert not np.allclose(heads[balancing + " stem"], heads["equal stem"], rtol=1e-4)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
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
        model.compile(keras.optimizers.SGD(0.5), loss="mse", balancing=balancing)
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
