"""Backbones: shapes, files, masks, and models cut into stages."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import mtl_keras
from mtl_keras import backbones, sharing
from mtl_keras.errors import InputError

SHAPES = {
    "cnn": (3, 3, 12),
    "cnn_rnn": (3, 12),
    "mlp": (6,),
    "resnet": (3, 3, 24),
    "rnn": (12, 12),
    "transformer_encoder": (12, 6),
}


def model_of(stages, inputs):
    x = inputs
    for stage in stages:
        x = stage(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("name", backbones.names())
def test_shapes_gradients_and_files(name, tmp_path):
    model = model_of(backbones.get(name)(6, 3), keras.Input((12, 12, 1)))
    assert model.output_shape[1:] == SHAPES[name]
    x = np.random.default_rng(0).normal(size=(4, 12, 12, 1)).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x, training=True) - 0.3) ** 2)
    variables = model.trainable_variables
    gradients = tape.gradient(loss, [v.value for v in variables])
    assert all(np.any(gradient) for gradient in gradients)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(again(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "stages",
    [
        lambda: backbones.rnn(4, 2),
        lambda: backbones.rnn(4, 2, cell="lstm", bidirectional=False),
        lambda: backbones.transformer_encoder(4, 2),
    ],
)
def test_masked_steps_change_nothing(stages):
    inputs = keras.Input((None, 3))
    x = keras.layers.Masking()(inputs)
    for stage in stages():
        x = stage(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(x))
    sequences = np.random.default_rng(0).normal(size=(2, 7, 3)).astype("float32")
    sequences[:, 4:] = 0.0
    np.testing.assert_allclose(
        model(sequences), model(sequences[:, :4]), rtol=1e-4, atol=1e-6
    )


def test_resnet_18_has_the_published_size():
    model = model_of(backbones.resnet(64, 4), keras.Input((32, 32, 3)))
    convolutions = [w for w in model.trainable_variables if len(w.shape) == 4]
    # 11,166,912 weights in ResNet-18's convolutions, 9,408 of them in its 7x7
    # beginning, which here has 3x3.
    expected = 11_166_912 - 7 * 7 * 3 * 64 + 3 * 3 * 3 * 64
    assert sum(int(np.prod(w.shape)) for w in convolutions) == expected


def test_a_keras_application_is_a_list_of_stages():
    model = keras.applications.MobileNetV3Small(
        (64, 64, 3), include_top=False, weights=None, include_preprocessing=False
    )
    stages = backbones.stages_of(model)
    assert len(stages) >= 4
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    y = x
    for stage in stages:
        y = stage(y)
    np.testing.assert_allclose(y, model(x), rtol=1e-4, atol=1e-5)
    named = backbones.stages_of(model, at=["expanded_conv_project_bn"])
    np.testing.assert_allclose(named[1](named[0](x)), model(x), rtol=1e-4, atol=1e-5)


def test_a_cut_that_connections_pass_by_is_named():
    inputs = keras.Input((3,))
    x = keras.layers.Dense(3, name="a")(inputs)
    y = keras.layers.Dense(3, name="b")(x)
    model = keras.Model(inputs, keras.layers.Add()([x, y]))
    assert len(backbones.stages_of(model, at=["a"])) == 2
    with pytest.raises(InputError, match="'b'"):
        backbones.stages_of(model, at=["b"])
    with pytest.raises(InputError, match="'c'"):
        backbones.stages_of(model, at=["c"])


def encoder():
    """A text encoder of token ids and a padding mask, out of plain Keras layers."""
    ids = keras.Input((7,), dtype="int32", name="ids")
    mask = keras.Input((7,), dtype="int32", name="mask")
    x = keras.layers.Embedding(20, 8, name="tokens")(ids)
    kept = keras.layers.Reshape((1, 7), name="kept")(mask)
    for index in range(3):
        attention = keras.layers.MultiHeadAttention(2, 4, name=f"attention_{index}")
        x = keras.layers.Add()([x, attention(x, x, attention_mask=kept)])
        x = keras.layers.LayerNormalization(name=f"norm_{index}")(x)
    x = keras.layers.Multiply()([x, keras.layers.Reshape((7, 1))(mask)])
    return keras.Model({"ids": ids, "mask": mask}, x)


ENDS = ["tokens", "norm_0", "norm_1"]


def tokens():
    rng = np.random.default_rng(0)
    mask = (np.arange(7) < rng.integers(2, 7, (4, 1))).astype("int32")
    return {"ids": rng.integers(0, 20, (4, 7)), "mask": mask}


def test_a_backbone_of_several_inputs_is_a_list_of_stages():
    model, x = encoder(), tokens()
    stages = backbones.stages_of(model, at=ENDS)
    names = [[tensor.name for tensor in stage.inputs] for stage in stages]
    assert [n[-1] for n in names] == ["ids", "mask", "mask", "mask"]
    y = stages[0](x["ids"])
    for stage in stages[1:]:
        y = stage([y, tf.constant(x["mask"])])
    np.testing.assert_allclose(y, model(x), rtol=1e-5, atol=1e-6)
    weights = [id(w) for stage in stages for w in stage.weights]
    assert sorted(weights) == sorted(id(w) for w in model.weights)
    with pytest.raises(InputError, match=r"'attention_0'.* number 1 is passed by"):
        backbones.stages_of(model, at=["tokens", "attention_0"])


def with_heads(method, tasks=("a", "b")):
    """Returns the stages, the features and a model of a way to share."""
    model = encoder()
    stages = backbones.stages_of(model, at=ENDS)
    features = method(model.input, stages, list(tasks))
    outputs = {
        task: keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(y))
        for task, y in features.items()
    }
    mtl = mtl_keras.MultiTaskModel(model.input, outputs)
    return model, stages, keras.Model(model.input, features), mtl


def check_training_and_files(mtl, path):
    x = tokens()
    mtl.compile("sgd", "mse", balancing="pcgrad", run_eagerly=True)
    mtl.fit(x, {task: np.ones((4, 1)) for task in "ab"}, verbose=0)
    mtl.save(path)
    again = keras.models.load_model(path)
    for task, y in again(x).items():
        np.testing.assert_allclose(y, mtl(x)[task], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["cross_stitch", "branching", "mtan"])
def test_masked_inputs_change_nothing_for_any_task(name):
    _, _, _, mtl = with_heads(sharing.get(name))
    x = tokens()
    other = x | {"ids": np.where(x["mask"], x["ids"], (x["ids"] + 1) % 20)}
    for one, two in zip(mtl(x).values(), mtl(other).values(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "experts"),
    [
        (sharing.MMoE(1), ["experts"]),
        pytest.param(
            sharing.PLE(1, 0, num_levels=2),
            ["shared_experts_0", "shared_experts_1"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["mmoe", "ple"],
)
def test_a_single_expert_with_the_weights_of_its_stage_is_the_backbone(
    method, experts, tmp_path
):
    model, stages, features, mtl = with_heads(method)
    for name, stage in zip(experts, stages[-len(experts) :], strict=True):
        mtl.get_layer(name).copies[0].set_weights(stage.get_weights())
    x = tokens()
    for y in features(x).values():
        np.testing.assert_allclose(y, model(x), rtol=1e-4, atol=1e-5)
    check_training_and_files(mtl, tmp_path / "model.keras")


def test_inputs_that_a_stage_lacks_are_named():
    model = encoder()
    stages = backbones.stages_of(model, at=ENDS)
    ids = keras.Input((7,), dtype="int32", name="ids")
    with pytest.raises(InputError, match=r"inputs with the name 'mask', which"):
        sharing.get("mmoe")({"ids": ids}, stages, ["a", "b"])
    with pytest.raises(InputError, match=r"Received: inputs of the model, \['ids', "):
        sharing.get("mmoe")(model.input, backbones.stages_of(model), ["a", "b"])
