"""A resumed training is the same as one that was never interrupted."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

import mtl_keras
from mtl_keras import balancing as balancing_lib
from mtl_keras.errors import InputError


def build(balancing, **compile_arguments):
    keras.utils.set_random_seed(21)
    inputs = keras.Input((6,))
    h = keras.layers.Dense(12, "tanh")(inputs)
    h = keras.layers.Dropout(0.1, seed=3)(h)
    model = mtl_keras.MultiTaskModel(
        inputs, {"a": keras.layers.Dense(3)(h), "b": keras.layers.Dense(1)(h)}
    )
    model.compile("adam", loss="mse", balancing=balancing, **compile_arguments)
    return model


def data():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(64, 6)).astype("float32")
    return x, {
        "a": rng.normal(size=(64, 3)).astype("float32"),
        "b": 3 * rng.normal(size=(64, 1)).astype("float32"),
    }


METHODS = [
    pytest.param("uncertainty", marks=pytest.mark.slow),
    pytest.param("dwa", marks=pytest.mark.slow),
    pytest.param(
        {"class_name": "PCGrad", "config": {"seed": 5, "scale": "mean"}},
        marks=pytest.mark.slow,
    ),
    pytest.param(
        ["uncertainty", {"class_name": "pcgrad", "config": {"seed": 4}}],
        marks=pytest.mark.slow,
    ),
    {"class_name": "nash", "config": {"solve": "running", "update_every": 2}},
]
FIT = {"batch_size": 16, "shuffle": False, "verbose": 0}


def assert_same(model, other):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-7)
    mine, others = model._pipeline.state, other._pipeline.state
    assert mine.keys() == others.keys()
    for key in mine:
        np.testing.assert_allclose(others[key].numpy(), mine[key].numpy(), rtol=1e-6)


@pytest.mark.parametrize("balancing", METHODS, ids=str)
def test_a_saved_model_resumes_like_an_uninterrupted_training(balancing, tmp_path):
    x, y = data()
    whole, path = build(balancing), tmp_path / "model.keras"
    saving = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: epoch == 3 and whole.save(path)
    )
    whole.fit(x, y, epochs=6, callbacks=[saving], **FIT)
    second = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert isinstance(second, mtl_keras.MultiTaskModel)
    second.fit(x, y, epochs=3, **FIT)
    assert_same(whole, second)


@pytest.mark.parametrize("balancing", ["dwa", METHODS[2]], ids=str)
def test_backup_and_restore_resume_like_an_uninterrupted_training(balancing, tmp_path):
    x, y = data()
    whole = build(balancing)
    whole.fit(x, y, epochs=4, **FIT)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    with pytest.raises(KeyboardInterrupt):
        build(balancing).fit(x, y, epochs=4, callbacks=[backup(), Stop()], **FIT)
    again = build(balancing)
    again.fit(x, y, epochs=4, callbacks=[backup()], **FIT)
    assert_same(whole, again)


@pytest.mark.parametrize("name", balancing_lib.names())
def test_configuration_round_trips_through_json(name):
    balancer = balancing_lib.get(name)
    config = json.loads(json.dumps(balancing_lib.serialize(balancer)))
    again = balancing_lib.deserialize(config)
    assert type(again) is type(balancer)
    assert again.get_config() == balancer.get_config()
    assert balancing_lib.serialize(again) == balancing_lib.serialize(balancer)
    simple = {"class_name": name, "config": balancer.get_config()}
    assert balancing_lib.get(simple).get_config() == balancer.get_config()


def test_weights_carry_over_to_another_method(tmp_path):
    x, y = data()
    trained = build("uncertainty", run_eagerly=True)
    trained.fit(x, y, epochs=1, **FIT)
    trained.save_weights(tmp_path / "w.weights.h5")
    other = build("pcgrad")
    other.load_weights(tmp_path / "w.weights.h5")
    for one, two in zip(trained.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_task_weights_are_logged_each_epoch_and_not_in_evaluate(tmp_path):
    x, y = data()
    static = {"class_name": "Static", "config": {"task_weights": [0.2, 3.0]}}
    model = build(static, run_eagerly=True)
    csv = tmp_path / "log.csv"
    fit = {**FIT, "batch_size": 64, "callbacks": [keras.callbacks.CSVLogger(csv)]}
    history = model.fit(x, y, epochs=2, **fit).history
    np.testing.assert_allclose(history["a_weight"], [0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(history["b_weight"], [3.0, 3.0], rtol=1e-6)
    assert "a_weight" in csv.read_text().splitlines()[0]
    assert not any(
        "weight" in k for k in model.evaluate(x, y, return_dict=True, verbose=0)
    )


def stock_twin():
    inputs = keras.Input((6,))
    h = keras.layers.Dense(12, "tanh")(inputs)
    h = keras.layers.Dropout(0.1, seed=3)(h)
    outputs = {"a": keras.layers.Dense(3)(h), "b": keras.layers.Dense(1)(h)}
    return keras.Model(inputs, outputs)


def test_weights_files_pass_between_stock_keras_and_multi_task_models(tmp_path):
    x, y = data()
    model = build("dwa", run_eagerly=True)
    model.fit(x, y, epochs=2, **{**FIT, "batch_size": 64})
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "ours.weights.h5")
    model.save_weights(tmp_path / "ours.weights.json", max_shard_size=1e-6)
    for name in ("ours.weights.h5", "ours.weights.json", "model.keras"):
        stock = stock_twin()
        stock.load_weights(tmp_path / name)
        again = build("dwa")
        again.load_weights(tmp_path / name)
        assert_same(model, again)
        for one, two in zip(model.get_weights(), stock.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)
    stock.save_weights(tmp_path / "stock.weights.h5")
    config = {"gradients_of": "representation"}
    other = build({"class_name": "pcgrad", "config": config})
    other.load_weights(tmp_path / "stock.weights.h5")
    other.save_weights(tmp_path / "other.weights.h5")
    stock.load_weights(tmp_path / "other.weights.h5")
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_arguments_that_keras_resolves_for_a_machine_are_not_saved(
    tmp_path, monkeypatch
):
    model = build("dwa")
    monkeypatch.setattr(type(model), "_resolve_auto_jit_compile", lambda self: True)
    model.compile("sgd", "mse", auto_scale_loss=False)
    assert model.jit_compile
    model.save(tmp_path / "model.keras")
    monkeypatch.undo()
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert not loaded.jit_compile
    config = loaded.get_compile_config()
    assert config["jit_compile"] == "auto"
    assert config["auto_scale_loss"] is False


@pytest.mark.parametrize("save", [lambda m, p: m.save(p), keras.saving.save_model])
def test_a_whole_model_is_not_written_as_hdf5(save, tmp_path):
    with pytest.raises(InputError, match=r"ends in '\.keras'.*balancing.*Received"):
        save(build("dwa"), tmp_path / "model.h5")
