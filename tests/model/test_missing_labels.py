"""A sample weight of 0 is an absent label."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import mtl_keras


def build(balancing, image=False):
    inputs = keras.Input((6,))
    h = keras.layers.Dense(12, "tanh")(inputs)
    outputs = {
        "kind": keras.layers.Dense(4, "softmax")(h),
        "size": keras.layers.Dense(1)(h),
    }
    if image:
        pixels = keras.layers.Dense(12, "relu")(h)
        pixels = keras.layers.Reshape((2, 2, 3))(pixels)
        outputs["mask"] = keras.layers.Softmax()(pixels)
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    loss = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    metrics = {"kind": ["accuracy"], "size": ["mae"]}
    if image:
        loss["mask"] = "sparse_categorical_crossentropy"
        metrics["mask"] = [
            keras.metrics.MeanIoU(3, sparse_y_pred=False, name="iou"),
            "accuracy",
        ]
    model.compile(
        keras.optimizers.Adam(0.01),
        loss=loss,
        metrics=metrics,
        weighted_metrics={"size": [keras.metrics.MeanAbsoluteError("weighted")]},
        balancing=balancing,
    )
    return model


def data(n=100):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(n, 6)).astype("float32")
    y = {
        "kind": rng.integers(0, 4, n),
        "size": rng.normal(size=(n, 1)).astype("float32"),
    }
    return x, y


def not_finite(logs):
    return {name for name, value in logs.items() if not np.isfinite(value)}


@pytest.mark.parametrize("filler", [-1, 0])
def test_loss_and_metrics_are_those_of_the_labelled_samples(filler):
    model = build("equal", image=True)
    x, y = data()
    rng = np.random.default_rng(0)
    y["mask"] = rng.integers(0, 3, (100, 2, 2))
    labelled = rng.permutation(100)[:10]
    weight = np.zeros(100)
    weight[labelled] = rng.uniform(0.5, 2.0, 10)
    everywhere = np.ones(100)
    with_filler = {
        **y,
        "kind": np.full(100, filler),
        "mask": np.full((100, 2, 2), filler),
    }
    with_filler["kind"][labelled] = y["kind"][labelled]
    with_filler["mask"][labelled] = y["mask"][labelled]

    actual = model.evaluate(
        x,
        with_filler,
        sample_weight={"kind": weight, "mask": weight, "size": everywhere},
        batch_size=32,
        verbose=0,
        return_dict=True,
    )
    # The same samples alone, by stock Keras, in one batch.
    stock = keras.Model(model.input, model.output)
    stock.compile(
        loss={
            "kind": "sparse_categorical_crossentropy",
            "mask": "sparse_categorical_crossentropy",
            "size": "mse",
        },
        metrics={
            "kind": ["accuracy"],
            "mask": [
                keras.metrics.MeanIoU(3, sparse_y_pred=False, name="iou"),
                "accuracy",
            ],
        },
    )
    alone = {task: values[labelled] for task, values in y.items()}
    w = weight[labelled]
    expected = stock.evaluate(
        x[labelled],
        alone,
        sample_weight={
            "kind": w,
            "mask": w[:, None, None] * np.ones((1, 2, 2)),
            "size": w,
        },
        verbose=0,
        return_dict=True,
    )
    for name in expected:
        if name != "loss" and not name.startswith("size"):
            assert actual[name] == pytest.approx(expected[name], rel=1e-4), name


@pytest.mark.parametrize("balancing", ["equal", "uncertainty", "dwa", "pcgrad", "mgda"])
def test_a_task_absent_from_the_batch_moves_nothing(balancing):
    model = build(balancing)
    x, y = data()
    present = {"kind": np.ones(100), "size": np.ones(100)}
    model.fit(x, y, sample_weight=present, epochs=2, verbose=0)  # build all state
    head = model.layers[-1] if model.layers[-1].units == 1 else model.layers[-2]
    assert head.units == 1
    before = [w.copy() for w in head.get_weights()]
    state = {k: v.numpy() for k, v in model._pipeline.state.items()}
    absent = {"kind": np.ones(100), "size": np.zeros(100)}
    y["size"][:] = np.nan
    # Without momentum left over, only a gradient can move the head.
    for variable in model.optimizer.variables:
        if "momentum" in variable.path or "velocity" in variable.path:
            variable.assign(np.zeros(variable.shape))
    logs = model.train_on_batch(x, y, sample_weight=absent, return_dict=True)
    for old, new in zip(before, head.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    # What was not computed is logged as NaN, and only that.
    assert not_finite(logs) == {"size_loss", "size_mae", "size_weighted"}
    assert logs["size_weight"] == 0.0
    index = model.tasks.index("size")
    for key, variable in model._pipeline.state.items():
        if variable.shape == (2,):
            np.testing.assert_array_equal(variable.numpy()[index], state[key][index])
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())


def test_nothing_labelled_at_all_makes_no_nan():
    model = build("mgda")
    x, y = data()
    before = [w.copy() for w in model.get_weights()]
    nothing = {"kind": np.zeros(100), "size": np.zeros(100)}
    logs = model.train_on_batch(x, y, sample_weight=nothing, return_dict=True)
    assert {*logs} - not_finite(logs) == {"loss", "kind_weight", "size_weight"}
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_label_counts_are_summed_over_replicas(mirrored):
    """Labels on one replica only: the same step as on one device."""
    x, y = data(40)
    weight = {"kind": np.r_[np.ones(13), np.zeros(27)], "size": np.ones(40)}
    results = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        keras.utils.set_random_seed(11)
        with strategy.scope():
            model = build("pcgrad")
        model.fit(
            x,
            y,
            sample_weight=weight,
            batch_size=40,
            epochs=3,
            shuffle=False,
            verbose=0,
        )
        results.append(model.get_weights())
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)
