"""TensorBoard pictures of conflicting tasks."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

import mtl_keras
from mtl_keras.callbacks.conflict_images import ConflictImages, heat_map
from mtl_keras.errors import InputError


def build(monitor):
    inputs = keras.Input((3,))
    h = keras.layers.Dense(4)(inputs)
    outputs = {task: keras.layers.Dense(1)(h) for task in ("left", "right")}
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    model.compile(
        "sgd", loss="mse", balancing="pcgrad", monitor=monitor, run_eagerly=True
    )
    return model


def data():
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    return x, {"left": x[:, :1], "right": -x[:, :1]}


def test_writes_cosines_and_weights_each_epoch(tmp_path):
    x, y = data()
    model = build("conflicts")
    fit = {"batch_size": 4, "verbose": 0, "validation_data": (x, y)}
    history = model.fit(
        x, y, epochs=2, callbacks=[ConflictImages(tmp_path)], **fit
    ).history
    log = EventAccumulator(str(tmp_path / "balancing"), size_guidance={"tensors": 0})
    log.Reload()
    (layout,) = log.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tf.make_ndarray(layout.tensor_proto)[()])
    charts = {c.title: c.multiline.tag[0] for c in layout.category[0].chart}
    images = log.Tensors("gradient_cosines")
    assert [event.step for event in images] == [0, 1]
    width, height, encoded = tf.make_ndarray(images[-1].tensor_proto)
    picture = tf.io.decode_png(encoded, channels=4)
    assert picture.shape == (int(height), int(width), 4)
    confidence = model.gradient_conflicts()["confidence"]
    expected = heat_map(model.gradient_cosines(), ["left", "right"], confidence)
    np.testing.assert_array_equal(picture, expected)
    # Two steps do not make a conflict sure, which looks otherwise.
    assert confidence[0, 1] < 0.95
    sure = heat_map(model.gradient_cosines(), ["left", "right"])
    assert np.any(sure != expected)
    one = heat_map(np.eye(2), ["left", "right"], np.zeros((2, 2)))
    np.testing.assert_array_equal(one, heat_map(np.eye(2), ["left", "right"]))
    for task in ("left", "right"):
        own = EventAccumulator(str(tmp_path / "balancing" / task))
        own.Reload()
        for title, name in (
            ("task weights", "{}_weight"),
            ("training losses", "{}_loss"),
            ("validation losses", "val_{}_loss"),
        ):
            tags = own.Tags()["tensors"]
            (tag,) = (tag for tag in tags if re.search(charts[title], tag))
            written = [
                float(tf.make_ndarray(event.tensor_proto)) for event in own.Tensors(tag)
            ]
            np.testing.assert_allclose(written, history[name.format(task)], rtol=1e-6)


def test_validation_leaves_the_cosines_of_the_epoch(tmp_path):
    """Validation resets all metrics before callbacks see the epoch's end."""
    x, y = data()
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(self.model.gradient_cosines())

        def on_epoch_end(self, epoch, logs=None):
            np.testing.assert_array_equal(self.model.gradient_cosines(), seen[-1])

    model = build("conflicts")
    fit = {"batch_size": 4, "verbose": 0, "validation_data": (x, y)}
    model.fit(x, y, epochs=2, callbacks=[Watch(), ConflictImages(tmp_path)], **fit)
    assert abs(seen[1][0, 1]) > 0.01
    np.testing.assert_array_equal(model.gradient_cosines(), seen[-1])
    # The second epoch's mean is over its own steps.
    assert (seen[2] != seen[1]).any()


def test_keras_logs_weights_conflicts_and_fallbacks(tmp_path):
    """Two tasks that want the opposite: all pairs conflict, and no bargain exists."""
    inputs = keras.Input((3,))
    up = keras.layers.Dense(1)(inputs)
    outputs = {"up": up, "down": keras.layers.Rescaling(-1.0)(up)}
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    model.compile("sgd", loss=lambda y, p: p, balancing="nash", monitor="conflicts")
    x, _ = data()
    y = dict.fromkeys(outputs, x[:, :1])
    callback = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    history = model.fit(
        x, y, epochs=2, batch_size=4, verbose=0, callbacks=[callback]
    ).history
    np.testing.assert_allclose(model.gradient_cosines(), [[1, -1], [-1, 1]], 1e-6)
    expected = {
        "conflicts": [1, 1],
        "fallbacks": [2, 4],  # since the start; two steps an epoch
        "up_weight": [1, 1],  # the plain sum
        "down_weight": [1, 1],
    }
    log = EventAccumulator(str(tmp_path / "train"), size_guidance={"tensors": 0})
    log.Reload()
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-6, err_msg=name)
        written = log.Tensors(f"epoch_{name}")
        np.testing.assert_allclose(
            [tf.make_ndarray(event.tensor_proto) for event in written], values, 1e-6
        )


def test_colours_depend_on_the_sign():
    picture = heat_map(np.array([[1.0, -0.5], [-0.5, 1.0]]), ["a", "b"]).astype(int)
    red = (picture[..., 0] > picture[..., 2] + 40).sum()
    blue = (picture[..., 2] > picture[..., 0] + 40).sum()
    assert red > 1000
    assert blue > 1000
    calm = heat_map(np.eye(2), ["a", "b"]).astype(int)
    assert (calm[..., 0] > calm[..., 2] + 40).sum() < red


@pytest.mark.parametrize("kind", ["no monitor", "stock model"])
def test_needs_the_monitor(kind, tmp_path):
    x, y = data()
    model = build(None)
    if kind == "stock model":
        model = keras.Model(model.input, model.output)
        model.compile("sgd", loss="mse")
    with pytest.raises(InputError, match=r"monitor|MultiTaskModel"):
        model.fit(x, y, verbose=0, callbacks=[ConflictImages(tmp_path)])
