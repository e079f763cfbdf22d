"""`WherePresent` against the layer inside, run on the present samples by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import MultiTaskModel, fusion

layers = keras.layers


def encoder():
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(3, 3),
            layers.BatchNormalization(name="norm"),
            layers.Flatten(),
            layers.Dense(4, "tanh"),
        ]
    )


def images(present):
    x = np.random.default_rng(0).normal(1.0, 1.0, (len(present), 6, 6, 1))
    return (x * np.reshape(present, (-1, 1, 1, 1))).astype("float32")


def statistics(layer):
    return [v.numpy() for v in layer.get_layer("norm").non_trainable_variables]


@pytest.mark.parametrize("compiled", [False, True])
def test_as_if_the_present_samples_were_the_batch(compiled):
    present = np.array([1, 0, 1, 1, 0, 0, 1], bool)
    x = images(present)
    plain = encoder()
    inside = keras.models.clone_model(plain)
    inside.set_weights(plain.get_weights())
    layer = fusion.WherePresent(inside)
    has_content = fusion.HasContent()

    def step():
        with tf.GradientTape() as tape:
            y = layer(x, has_content(x), training=True)
            loss = tf.reduce_sum(y**2)
        return y, tape.gradient(loss, inside.trainable_variables)

    y, gradients = (tf.function(step) if compiled else step)()
    with tf.GradientTape() as tape:
        expected = plain(x[present], training=True)
        loss = tf.reduce_sum(expected**2)
    np.testing.assert_allclose(y.numpy()[present], expected, atol=1e-6)
    assert not np.any(y.numpy()[~present])
    for got, want in zip(
        gradients, tape.gradient(loss, plain.trainable_variables), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-5)
    for got, want in zip(statistics(inside), statistics(plain), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
        assert np.any(want != np.round(want))


def two_modalities():
    """A model of two tasks on one modality with batch statistics and dropout."""
    x, other = keras.Input((6, 6, 1), name="x"), keras.Input((4,), name="other")
    inside = encoder()
    inside.add(layers.Dropout(0.5))
    has_x, has_other = fusion.HasContent()(x), fusion.HasContent()(other)
    y = fusion.WherePresent(inside, name="encoder")(x, has_x)
    z = fusion.Concat(5)([y, other], [has_x, has_other])
    model = MultiTaskModel(
        {"x": x, "other": other},
        {task: layers.Dense(1, name=task)(z) for task in ("a", "b")},
    )
    return model, inside


@pytest.mark.parametrize("balancing", ["equal", "pcgrad", "famo"])
def test_an_absent_modality_moves_nothing_of_its_encoder(balancing):
    model, inside = two_modalities()
    model.compile("sgd", "mse", balancing=balancing)
    batch = {"x": images([0] * 6), "other": np.ones((6, 4), "float32")}
    y = {task: np.ones((6, 1)) for task in ("a", "b")}
    before = [v.numpy() for v in inside.variables]
    logs = model.fit(batch, y, batch_size=6, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    for value, variable in zip(before, inside.variables, strict=True):
        np.testing.assert_array_equal(value, variable)
    model.fit({**batch, "x": images([1] * 6)}, y, batch_size=6, verbose=0)
    for value, variable in zip(before, inside.variables, strict=True):
        assert np.any(value != variable.numpy()), variable.path


def test_under_a_distribution_strategy(mirrored):
    """Each replica's statistics are of its own samples, as always in Keras."""
    with mirrored.scope():
        model, inside = two_modalities()
        model.compile("sgd", "mse")
    x = images([1, 1, 0, 0, 0, 0, 0, 0])
    mean = keras.ops.mean(inside.layers[0](x[:2]), axis=(0, 1, 2))
    batch = {"x": x, "other": np.ones((8, 4), "float32")}
    y = {task: np.ones((8, 1)) for task in ("a", "b")}
    model.fit(batch, y, batch_size=8, shuffle=False, verbose=0)
    of_replicas = inside.get_layer("norm").moving_mean.value.values
    np.testing.assert_allclose(of_replicas[0], 0.01 * mean, rtol=1e-4)
    assert not np.any(of_replicas[1])  # it had nothing but absent samples


def test_saved_and_loaded(tmp_path):
    model, inside = two_modalities()
    inside.get_layer("norm").moving_mean.assign([1.0, 2.0, 3.0])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    batch = {"x": images([1, 0, 1]), "other": np.ones((3, 4), "float32")}
    expected = model.predict(batch, verbose=0)
    for task, value in loaded.predict(batch, verbose=0).items():
        np.testing.assert_array_equal(value, expected[task])


def test_mixed_precision_keeps_statistics_exact():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model, inside = two_modalities()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    exact = np.float32(1 / 3)
    inside.layers[0].kernel.assign(np.full((3, 3, 1, 3), exact))
    inside.get_layer("norm").moving_mean.assign([exact] * 3)
    model.compile("sgd", "mse")
    batch = {"x": images([0] * 4), "other": np.ones((4, 4), "float32")}
    y = {task: np.ones((4, 1)) for task in ("a", "b")}
    model.fit(batch, y, verbose=0)
    np.testing.assert_array_equal(statistics(inside)[0], [exact] * 3)
    assert model.get_layer("encoder").compute_dtype == "float16"
