"""Properties of every way to share, over three kinds of backbone."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from sharing_cases import (
    BACKBONES,
    SPECS,
    TASKS,
    assert_same,
    batch,
    convolutional,
    dense,
    functional,
    model_of,
    outputs_of,
    recurrent,
)

from mtl_keras import serving
from mtl_keras import sharing as sharing_lib

NAMES = sharing_lib.names()

# Of those with layers or channels of their own for images.
CONVOLUTIONAL = ("mmoe", "mtan", "sluice")


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        pytest.param(
            name,
            b,
            marks=()
            if b is dense or (b is convolutional and name in CONVOLUTIONAL)
            else pytest.mark.slow,
        )
        for name in NAMES
        for b in BACKBONES
    ],
)
def test_gradients_reach_every_variable_and_a_file_keeps_all(name, backbone, tmp_path):
    model = functional(name, *backbone())
    x, y = batch(model)
    with tf.GradientTape() as tape:
        outputs = model(x, training=True)
        assert {t: o.shape for t, o in outputs.items()} == dict.fromkeys(TASKS, (16, 1))
        loss = tf.add_n([tf.reduce_sum((outputs[t] - y[t]) ** 2) for t in TASKS])
        loss += tf.add_n(model.losses) if model.losses else 0.0
    variables = model.trainable_variables
    for variable, gradient in zip(
        variables, tape.gradient(loss, [v.value for v in variables]), strict=True
    ):
        assert gradient is not None, variable.path
        assert np.any(gradient.numpy()), variable.path
        assert np.all(np.isfinite(gradient.numpy())), variable.path
        variable.assign_sub(0.01 * gradient)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert_same(outputs_of(model, x), outputs_of(again, x))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", NAMES)
def test_trains_under_xla_in_mixed_precision_and_is_exported(name, backbone, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = model_of(name, backbone, jit_compile=True)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    x, y = batch(model)
    losses = model.fit(x, y, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    samples = {"input": np.asarray(x)}
    version = serving.export(model, tmp_path, samples=samples, examples=False)
    # Four roundings of float16, as XLA and the graph sum in different orders.
    assert serving.check(version, tolerance=2.0**-8, seconds=0).problems == []
    # It has to run where the compiled ops are not.
    assert b"MtlKeras>" not in (version / "saved_model.pb").read_bytes()


@pytest.mark.parametrize("length", [None, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_embedded_before_gates_read_them(name, length):
    inputs = keras.Input((length,), dtype="int32")
    embedding = keras.layers.Embedding(20, 6, name="embedding")
    recurrent = keras.layers.GRU(4, return_sequences=True, name="recurrent")
    model = functional(name, inputs, [embedding, recurrent])
    tokens = np.random.default_rng(0).integers(0, 20, (3, 7))
    outputs = outputs_of(model, tokens)
    assert all(np.isfinite(value).all() for value in outputs.values())
    if name in ("mmoe", "omoe", "cgc", "ple"):
        both = keras.Sequential([embedding, recurrent], name="both")
        with pytest.raises(ValueError, match=rf"gates of {name}.*'both'.*int32"):
            functional(name, inputs, [both])


@pytest.mark.parametrize("floatx", ["float64", "bfloat16"])
@pytest.mark.slow
def test_any_floatx_trains(floatx):
    default = keras.config.floatx()
    keras.config.set_floatx(floatx)
    try:
        for name in NAMES:
            model = model_of(name, dense, run_eagerly=True)
            x, y = batch(model)
            assert np.isfinite(float(model.train_on_batch(x, y)[0])), name
            dtypes = {v.dtype for v in model.trainable_variables}
            assert floatx in dtypes, name
    finally:
        keras.config.set_floatx(default)


@pytest.mark.parametrize("name", NAMES)
def test_configuration_round_trips_through_json(name):
    sharing = sharing_lib.get(SPECS[name])
    config = json.loads(json.dumps(sharing_lib.serialize(sharing)))
    again = sharing_lib.deserialize(config)
    assert sharing_lib.serialize(again) == config
    simple = {"class_name": name, "config": sharing.get_config()}
    assert sharing_lib.get(simple).get_config() == sharing.get_config()


# One of each kind: gates over experts, columns, attention, choices.
BY_KIND = ("hard", "mmoe", "ple", "cross_stitch", "aitm", "mtan", "branching")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in BY_KIND else pytest.mark.slow) for n in NAMES],
)
def test_masked_steps_change_nothing(name):
    _, stages = recurrent()
    inputs = keras.Input((None, 3))
    model = functional(name, inputs, stages, source=keras.layers.Masking()(inputs))
    x = np.random.default_rng(0).normal(size=(3, 7, 3)).astype("float32")
    x[:, 4:] = 0.0
    assert_same(outputs_of(model, x), outputs_of(model, x[:, :4]))


@pytest.mark.parametrize(
    ("identifier", "named"),
    [
        ("mmeo", "'mmoe'"),
        ({"class_name": "mmoe", "config": {"experts": 2}}, "experts"),
        ({"class_name": "mmoe", "config": {"num_experts": 0}}, "num_experts"),
        ({"class_name": "dselect_k", "config": {"k": 5}}, "num_experts=4"),
        ({"class_name": "cross_stitch", "config": {"own_weight": 2}}, "own_weight"),
        (
            {"class_name": "hard", "config": {"own_stages": {"a": -1}}},
            r"own_stages\['a",
        ),
        ({"class_name": "esmm", "config": {"click": "conversion"}}, "different"),
        (3, "3"),
    ],
)
def test_wrong_sharing_gets_one_clear_line(identifier, named):
    with pytest.raises(ValueError, match=named) as error:
        sharing_lib.get(identifier)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("identifier", "named"),
    [
        ("esmm", "click_and_conversion"),
        ({"class_name": "ple", "config": {"num_levels": 3}}, "2 stages"),
        ({"class_name": "aitm", "config": {"chain": ["a", "d"]}}, "'d'"),
        ({"class_name": "sluice", "config": {"subspaces": 3}}, "8 channels"),
    ],
)
def test_a_backbone_or_tasks_that_do_not_fit_are_named(identifier, named):
    with pytest.raises(ValueError, match=named):
        sharing_lib.get(identifier)(*dense(), TASKS)
