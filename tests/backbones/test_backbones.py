"""Backbones: shapes, files, masks, and models cut into stages."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import backbones
from mtl_keras.errors import InputError

SHAPES = {
    "cnn": (9, 9, 12),
    "cnn_rnn": (9, 12),
    "mlp": (6,),
    "resnet": (9, 9, 24),
    "rnn": (36, 12),
    "transformer_encoder": (36, 6),
}


def model_of(stages, inputs):
    x = inputs
    for stage in stages:
        x = stage(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("name", backbones.names())
def test_shapes_gradients_and_files(name, tmp_path):
    model = model_of(backbones.get(name)(6, 3), keras.Input((36, 36, 1)))
    assert model.output_shape[1:] == SHAPES[name]
    x = np.random.default_rng(0).normal(size=(4, 36, 36, 1)).astype("float32")
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
