"""Every method trains the vision application, in every way to compile a step."""

from __future__ import annotations

import balancing_cases as cases
import keras
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import applications, balancing, data
from mtl_keras.data import MultiDigits

pytestmark = pytest.mark.slow

NAMES = balancing.names()
VISION = applications.get("vision")
BATCH, SAMPLES = 32, 256


@pytest.fixture(scope="module")
def third(tmp_path_factory):
    """A third of the application's own training split, as arrays."""
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        config = MultiDigits.builder_configs["digits"]
        for split, scenes in {"train": 20_000, "validation": 8, "test": 8}.items():
            patch.setitem(config.scenes, split, scenes)
        data.prepare("multi_digits/digits", data_dir=folder)
    (batch,) = VISION.load("train", batch_size=1_000_000, data_dir=folder)
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), batch)


@pytest.fixture(scope="module")
def few(third):
    """A few batches of it."""
    return tf.nest.map_structure(lambda array: array[:SAMPLES], third)


def build(name, optimizer=None, policy="float32", **compile_config):
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy(policy)
    try:
        model = VISION.build(backbone="cnn", width=2, depth=2)
    finally:
        keras.config.set_dtype_policy("float32")
    config = dict(cases.CONFIGS.get(name, {}))
    if name == "uw_so":  # about the inverse of the smallest loss, that of the boxes
        config["temperature"] = 20.0
    if name in cases.WITH_PRIMARY:
        config["primary"] = "left"
    model.compile(
        optimizer or keras.optimizers.Adam(2e-3),
        loss=VISION.losses(),
        balancing={"class_name": name, "config": config},
        **compile_config,
    )
    return model


def train(model, samples, weights=None, batch_size=BATCH, epochs=2):
    """Trains, and returns the mean losses of the epochs, which are finite."""
    x, y = samples
    arrays = (x, y) if weights is None else (x, y, weights)
    batches = tf.data.Dataset.from_tensor_slices(arrays)
    batches = batches.batch(batch_size, drop_remainder=True)
    history = model.fit(batches, epochs=epochs, verbose=0).history
    for key, values in history.items():
        assert np.isfinite(values).all(), key
    assert all(np.isfinite(value).all() for value in model.get_weights())
    return history


@pytest.mark.parametrize("name", NAMES)
def test_a_third_of_an_epoch_brings_the_loss_down(name, third):
    model = build(name)
    before = model.evaluate(*third, batch_size=1000, verbose=0, return_dict=True)
    train(model, third, batch_size=100, epochs=1)
    after = model.evaluate(*third, batch_size=1000, verbose=0, return_dict=True)
    print(f"{name}: {before['loss']:.3f} -> {after['loss']:.3f}")
    assert after["loss"] < 0.8 * before["loss"]


WAYS = {
    "xla": {"jit_compile": True},
    "mixed_float16": {"policy": "mixed_float16"},
}


# Fits of every method are compiled in test_training.py.
UNDER_XLA = ("uncertainty", "famo", "upgrad", "graddrop", "moco", "consmtl")


@pytest.mark.parametrize(
    ("name", "way"),
    [(name, "xla") for name in UNDER_XLA] + [(name, "mixed_float16") for name in NAMES],
)
def test_loss_falls(name, way, few):
    first, last = train(build(name, **WAYS[way]), few)["loss"]
    print(f"{name} {way}: {first:.3f} -> {last:.3f}")
    assert last < first


@pytest.mark.parametrize("name", NAMES)
def test_loss_falls_with_a_task_absent_from_half_of_the_batches(name, few):
    weights = {task: np.ones(SAMPLES, "float32") for task in VISION.tasks}
    weights["mask"] *= np.arange(SAMPLES) // BATCH % 2 == 0
    history = train(build(name), few, weights)
    first, last = history["loss"]
    print(f"{name} absent: {first:.3f} -> {last:.3f}")
    assert last < first
    # Only an auxiliary task that pulls against the main one takes part in PCD, and only
    # tasks with a loss near the largest in EPO-like scalarisation.
    if name not in ("pcd", "epo_like"):
        assert history["mask_weight"][0] != 0


@pytest.mark.parametrize("name", NAMES)
def test_two_replicas_are_one_device(name, few, mirrored):
    results = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            # Rounding errors do not grow under SGD as Adam's of small gradients do.
            model = build(name, keras.optimizers.SGD(0.01))
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0  # Masks are each replica's own.
        before = model.get_weights()
        train(model, few, epochs=1)
        results.append(model.get_weights())
    moved = max(np.abs(a - b).max() for a, b in zip(before, results[0], strict=True))
    print(f"{name} moved: {moved:.4f}")
    assert moved > 0.01
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-4)
