"""Every method trains the vision application, in every way that Keras trains."""

from __future__ import annotations

import functools

import balancing_cases as cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from test_training import mirrored

from mtl_keras import applications, balancing, data
from mtl_keras.data import MultiDigits

NAMES = balancing.names()
BATCH, SAMPLES = 32, 256


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Inputs and labels of the application's own data, as arrays."""
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        config = MultiDigits.builder_configs["digits"]
        for split, count in (("train", SAMPLES), ("validation", 8), ("test", 8)):
            patch.setitem(config.scenes, split, count)
        data.prepare("multi_digits/digits", data_dir=folder)
    vision = applications.get("vision")
    (batch,) = vision.load("train", batch_size=SAMPLES, data_dir=folder)
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), batch)


def build(name, policy="float32", **compile_config):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy(policy)
    try:
        vision = applications.get("vision")
        model = vision.build(backbone="cnn", width=4, depth=2)
    finally:
        keras.config.set_dtype_policy("float32")
    config = dict(cases.CONFIGS.get(name, {}))
    if name == "pcd":
        config["primary"] = "left"
    model.compile(
        keras.optimizers.Adam(2e-3),
        loss=vision.losses(),
        balancing={"class_name": name, "config": config},
        **compile_config,
    )
    return model


def train(model, digits, weights=None, epochs=1):
    x, y = digits
    batches = tf.data.Dataset.from_tensor_slices(
        (x, y) if weights is None else (x, y, weights)
    ).batch(BATCH, drop_remainder=True)
    evaluated = functools.partial(
        model.evaluate, x, y, batch_size=SAMPLES, verbose=0, return_dict=True
    )
    before = evaluated()["loss"]
    history = model.fit(batches, epochs=epochs, verbose=0).history
    for key, values in history.items():
        assert np.isfinite(values).all(), key
    assert all(np.isfinite(value).all() for value in model.get_weights())
    after = evaluated()["loss"]
    assert np.isfinite(after)
    return before, after, history


WAYS = {
    "graph": {},
    "xla": {"jit_compile": True},
    "mixed_float16": {"policy": "mixed_float16"},
    "eager": {"run_eagerly": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_loss_falls(name, way, digits):
    before, after, _ = train(build(name, **WAYS[way]), digits)
    print(f"{name} {way}: {before:.4f} -> {after:.4f}")
    assert after < before


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_loss_falls_with_a_task_absent_from_half_of_the_batches(name, digits):
    _, y = digits
    weights = {task: np.ones(SAMPLES, "float32") for task in y}
    there = np.arange(SAMPLES) // BATCH % 2 == 0
    weights["mask"] = there.astype("float32")
    before, after, history = train(build(name), digits, weights)
    print(f"{name} absent: {before:.4f} -> {after:.4f}")
    assert after < before
    assert history["mask_weight"][0] != 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_replicas_are_one_device_on_vision(name, digits, two_cpus):
    results = []
    for strategy in (
        tf.distribute.get_strategy(),
        mirrored(two_cpus),
    ):
        with strategy.scope():
            model = build(name)
            # Its rounding errors do not grow as Adam's of small gradients do, and
            # masks of dropout are each replica's own.
            model.compile(
                keras.optimizers.SGD(1e-3),
                loss=applications.get("vision").losses(),
                balancing=balancing.serialize(model.balancers[0]),
            )
            for layer in model._flatten_layers():
                if isinstance(layer, keras.layers.Dropout):
                    layer.rate = 0.0
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.trainable = False
        train(model, digits)
        results.append(model.get_weights())
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-4)
