"""Ways to share, over dense, convolutional and recurrent stages."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

import mtl_keras
from mtl_keras import sharing as sharing_lib
from mtl_keras.model.task_variables import split_variables

TASKS = ["a", "b", "c"]


def dense():
    return keras.Input((6,)), [
        keras.layers.Dense(8, "relu", name="stem"),
        keras.layers.Dense(5, "relu", name="last"),
    ]


def convolutional():
    block = keras.Sequential(
        [
            keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.MaxPooling2D(),
        ],
        name="last",
    )
    return keras.Input((8, 8, 1)), [
        keras.layers.Conv2D(3, 3, padding="same", name="stem"),
        block,
    ]


def recurrent():
    return keras.Input((7, 3)), [
        keras.layers.GRU(4, return_sequences=True, name="stem"),
        keras.layers.Bidirectional(
            keras.layers.LSTM(3, return_sequences=True), name="last"
        ),
    ]


BACKBONES = [dense, convolutional, recurrent]


def model_of(sharing, backbone, **compile_arguments):
    inputs, stages = backbone()
    features = sharing_lib.get(sharing)(inputs, stages, TASKS)
    outputs = {
        task: keras.layers.Dense(1, name=f"{task}_head")(keras.layers.Flatten()(x))
        for task, x in features.items()
    }
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    model.compile("adam", loss="mse", **compile_arguments)
    return model


def batch(model, n=16):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, *model.input_shape[1:])).astype("float32")
    return x, {task: rng.normal(size=(n, 1)).astype("float32") for task in TASKS}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", sharing_lib.names())
def test_trains_every_variable_and_survives_a_file(name, backbone, tmp_path):
    # One backward pass a task through recurrent stages takes long to trace.
    balancing = "equal" if backbone is recurrent else "mgda"
    model = model_of(name, backbone, balancing=balancing)
    x, y = batch(model)
    before = [v.numpy() for v in model.trainable_variables]
    losses = model.fit(x, y, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for old, variable in zip(before, model.trainable_variables, strict=True):
        assert not np.array_equal(old, variable.numpy()), variable.path
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    for task, values in model.predict(x, verbose=0).items():
        np.testing.assert_allclose(
            again.predict(x, verbose=0)[task], values, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", sharing_lib.names())
def test_configuration_round_trips_through_json(name):
    sharing = sharing_lib.get(name)
    config = json.loads(json.dumps(sharing_lib.serialize(sharing)))
    again = sharing_lib.deserialize(config)
    assert sharing_lib.serialize(again) == config
    simple = {"class_name": name, "config": sharing.get_config()}
    assert sharing_lib.get(simple).get_config() == sharing.get_config()


def test_gates_belong_to_their_task_and_experts_to_all():
    model = model_of("mmoe", dense)
    split = split_variables(model, model._reached)
    owners = {v.path.split("/")[0]: "shared" for v in split.shared}
    owners |= {v.path.split("/")[0]: t for t, own in split.own.items() for v in own}
    for task in TASKS:
        assert owners[f"{task}_gate"] == task
    assert {owners[f"expert_{i}"] for i in range(4)} == {"shared"}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mmoe_with_one_expert_is_hard_sharing(backbone):
    hard = model_of("hard", backbone)
    one = model_of({"class_name": "MMoE", "config": {"num_experts": 1}}, backbone)
    source = {"expert_0": "last"}
    for layer in one.layers:
        if layer.get_weights() and not layer.name.endswith("_gate"):
            twin = hard.get_layer(source.get(layer.name, layer.name))
            layer.set_weights(twin.get_weights())
    x, _ = batch(hard)
    for task, values in hard.predict(x, verbose=0).items():
        np.testing.assert_allclose(
            one.predict(x, verbose=0)[task], values, rtol=1e-5, atol=1e-6
        )


def test_mmoe_against_numpy():
    """Dense experts and softmax gates, computed by hand."""
    model = model_of({"class_name": "mmoe", "config": {"num_experts": 3}}, dense)
    x, _ = batch(model)

    def weights(name):
        return model.get_layer(name).get_weights()

    def relu_dense(name, values):
        kernel, bias = weights(name)
        return np.maximum(values @ kernel + bias, 0.0)

    trunk = relu_dense("stem", x)
    experts = np.stack([relu_dense(f"expert_{i}", trunk) for i in range(3)], axis=1)
    predicted = model.predict(x, verbose=0)
    for task in TASKS:
        logits = trunk @ weights(f"{task}_gate")[0]
        gate = np.exp(logits - logits.max(1, keepdims=True))
        gate /= gate.sum(1, keepdims=True)
        kernel, bias = weights(f"{task}_head")
        expected = np.einsum("be,bed->bd", gate, experts) @ kernel + bias
        np.testing.assert_allclose(predicted[task], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("identifier", "named"),
    [
        ("mmeo", "'mmoe'"),
        ({"class_name": "mmoe", "config": {"experts": 2}}, "experts"),
        ({"class_name": "mmoe", "config": {"num_experts": 0}}, "num_experts"),
        (3, "3"),
    ],
)
def test_wrong_sharing_gets_one_clear_line(identifier, named):
    with pytest.raises(ValueError, match=named) as error:
        sharing_lib.get(identifier)
    assert "\n" not in str(error.value)
