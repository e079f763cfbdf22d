"""Outputs that are computed on labelled samples alone train as those of all do."""

from __future__ import annotations

import balancing_cases as cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import mtl_keras
from mtl_keras import balancing
from mtl_keras.errors import InputError

TASKS = ("a", "b", "c")
# It differentiates by the representation of all samples.
NAMES = [name for name in balancing.names() if name != "consmtl"]
QUICK = {"equal", "pcgrad", "nash", "famo", "moco", "samo", "m_config", "uncertainty"}


def data(n=48, shared=4):
    """Samples that have a label of one task each, every `shared`-th of all tasks."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(n, 5)).astype("float32")
    y = {task: rng.normal(size=(n, 2)).astype("float32") for task in TASKS}
    place = np.arange(n)
    weights = {
        task: ((place % 3 == index) | (place % shared == shared - 1)).astype("float32")
        for index, task in enumerate(TASKS)
    }
    return x, y, weights


def batches(**of_data):
    return tf.data.Dataset.from_tensor_slices(data(**of_data)).batch(16)


def build(method="pcgrad", activity=None, **compiling):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,))
    h = keras.layers.Dense(8, "tanh", activity_regularizer=activity)(inputs)
    h = keras.layers.Dense(8, "tanh", kernel_regularizer="l2")(h)
    model = mtl_keras.MultiTaskModel(
        inputs, {task: keras.layers.Dense(2, name=task)(h) for task in TASKS}
    )
    config = dict(cases.CONFIGS.get(method, {}))
    if method in cases.WITH_PRIMARY:
        config["primary"] = "a"
    model.compile(
        keras.optimizers.SGD(0.05),
        loss="mse",
        metrics={task: ["mae"] for task in TASKS},
        balancing={"class_name": method, "config": config},
        **compiling,
    )
    return model


def assert_same(one, other, **tolerance):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in NAMES],
)
def test_every_method_takes_the_same_steps(name):
    logs, models = [], []
    for skips in (False, True):
        model = build(name, skip_unlabelled=skips, jit_compile=False)
        history = model.fit(batches(), epochs=2, shuffle=False, verbose=0)
        logs.append(history.history)
        models.append(model)
    assert_same(*models, rtol=1e-4, atol=1e-5)
    assert logs[0].keys() == logs[1].keys()
    for key in logs[0]:
        np.testing.assert_allclose(*(log[key] for log in logs), rtol=1e-4, atol=1e-5)


class Sizes(keras.layers.Layer):
    """Notes how many samples each call has."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def call(self, inputs):
        self.seen.append(int(inputs.shape[0] or 0))
        return inputs


def of_sizes(weights):
    """Trains one step of 12 samples; returns the sizes of the shared layer's calls."""
    inputs, sizes = keras.Input((5,)), Sizes()
    h = sizes(keras.layers.Dense(4)(inputs))
    model = mtl_keras.MultiTaskModel(
        inputs, {task: keras.layers.Dense(2)(h) for task in TASKS}
    )
    model.compile(
        "sgd", "mse", balancing="pcgrad", run_eagerly=True, skip_unlabelled=True
    )
    x, y, _ = data(12)
    sizes.seen.clear()
    model.train_on_batch(x, y, weights)
    return sizes.seen


def test_shared_layers_see_labelled_samples_alone():
    first = {task: np.zeros(12, "float32") for task in TASKS}
    first["a"][:5] = first["b"][5:7] = 1.0
    # Of a task without a label, one sample stands in.
    assert of_sizes(first)[-3:] == [5, 2, 1]
    # A weight for each element of a label; none at all means that all are labelled.
    elements = np.zeros((12, 2), "float32")
    elements[:4, 1] = 1.0
    assert of_sizes({"a": elements, "b": first["b"]}) == [12, 4, 2]
    # All outputs without weights in one pass.
    assert of_sizes({"b": first["b"]}) == [12, 2]


def test_losses_that_layers_add_are_those_of_all_calls():
    x, y, weights = data(16, shared=100)
    plain, model = build(), build(activity="l2", skip_unlabelled=True)
    # Keras divides an activity's loss by the samples of the call.
    hidden = np.asarray(plain.layers[1](x))
    added = sum(
        0.01 * np.sum(hidden[weights[task] > 0] ** 2) / weights[task].sum()
        for task in TASKS
    )
    losses = [
        one.train_on_batch(x, y, weights, return_dict=True)["loss"]
        for one in (plain, model)
    ]
    np.testing.assert_allclose(losses[1] - losses[0], added, rtol=1e-4)


@pytest.mark.parametrize("missing", [None, "nan"])
def test_an_absent_task_stays_absent(missing):
    x, y, weights = data()
    weights["c"][:16] = 0.0
    y["b"][3] = np.nan if missing else 0.0
    models, logs = [], []
    for skips in (False, True):
        model = build(skip_unlabelled=skips, missing_labels=missing, jit_compile=False)
        logs.append(
            model.train_on_batch(x[:16], cut(y), cut(weights), return_dict=True)
        )
        models.append(model)
    assert_same(*models, rtol=1e-5, atol=1e-6)
    assert np.isnan(logs[0]["c_loss"])
    for key in logs[0]:
        np.testing.assert_allclose(*(log[key] for log in logs), rtol=1e-5)


def cut(by_task):
    return {task: array[:16] for task, array in by_task.items()}


def test_masks_and_logits_of_outputs_stay():
    """Sequences with padding under crossentropies, which Keras takes of logits."""
    rng = np.random.default_rng(4)
    x = rng.integers(1, 9, (24, 6)) * (np.arange(6) < rng.integers(2, 7, (24, 1)))
    y = {"tag": rng.integers(0, 3, (24, 6)), "kind": rng.integers(0, 2, (24, 1))}
    weights = {"tag": np.arange(24) % 2.0, "kind": 1.0 - np.arange(24) % 2}
    models = []
    for skips in (False, True):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((6,), dtype="int32")
        h = keras.layers.Embedding(9, 8, mask_zero=True)(inputs)
        h = keras.layers.GRU(8, return_sequences=True)(h)
        outputs = {
            # Far from 0: of the probabilities, gradients would vanish.
            "tag": keras.layers.Dense(3, "softmax", kernel_initializer=far(60))(h),
            "kind": keras.layers.Dense(1, "sigmoid", kernel_initializer=far(60))(
                h[:, 0]
            ),
        }
        model = mtl_keras.MultiTaskModel(inputs, outputs)
        model.compile(
            keras.optimizers.SGD(0.1),
            loss={
                "tag": "sparse_categorical_crossentropy",
                "kind": "binary_crossentropy",
            },
            balancing="equal",
            jit_compile=False,
            skip_unlabelled=skips,
        )
        model.train_on_batch(x, y, weights)
        models.append(model)
    assert_same(*models, rtol=1e-5, atol=1e-6)


def far(scale):
    return keras.initializers.RandomNormal(stddev=scale, seed=2)


def test_two_replicas_are_one_device(mirrored):
    models = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            model = build(skip_unlabelled=True)
        model.fit(batches(), epochs=2, shuffle=False, verbose=0)
        models.append(model)
    assert_same(*models, rtol=1e-4, atol=1e-5)


def test_a_saved_model_skips_again(tmp_path):
    model = build(skip_unlabelled=True)
    model.fit(batches(), epochs=1, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_compile_config()["skip_unlabelled"] is True
    for one in (model, again):
        one.fit(batches(), epochs=1, shuffle=False, verbose=0)
    assert_same(model, again, rtol=1e-6, atol=1e-7)


def test_a_preference_serves_all_samples():
    models = []
    for skips in (False, True):
        model = mtl_keras.pareto.manifold(build())
        model.compile(
            keras.optimizers.SGD(0.05),
            loss="mse",
            balancing=mtl_keras.pareto.SampledPreference(seed=1),
            jit_compile=False,
            skip_unlabelled=skips,
        )
        model.fit(batches(), epochs=2, shuffle=False, verbose=0)
        models.append(model)
    assert_same(*models, rtol=1e-4, atol=1e-5)


class OwnCall(mtl_keras.MultiTaskModel):
    def call(self, inputs, training=False, mask=None):
        return super().call(inputs, training=training, mask=mask)


@pytest.mark.parametrize(
    ("cls", "compiling"),
    [
        (mtl_keras.MultiTaskModel, {"jit_compile": True}),
        (mtl_keras.MultiTaskModel, {"balancing": "consmtl"}),
        (
            mtl_keras.MultiTaskModel,
            {"balancing": balancing.MGDA(gradients_of="representation")},
        ),
        (OwnCall, {}),
    ],
)
def test_what_cannot_skip_is_refused(cls, compiling):
    inputs = keras.Input((5,))
    h = keras.layers.Dense(4)(inputs)
    model = cls(inputs, {task: keras.layers.Dense(2)(h) for task in TASKS})
    with pytest.raises(InputError, match="skip_unlabelled=True"):
        model.compile("sgd", "mse", skip_unlabelled=True, **compiling)
