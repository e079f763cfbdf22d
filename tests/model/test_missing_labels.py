"""A sample weight of 0 is an absent label."""

from __future__ import annotations

import collections
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import mtl_keras
from mtl_keras.errors import InputError


def build(balancing, image=False, run_eagerly=True):
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
        keras.optimizers.SGD(0.05, momentum=0.9),
        loss=loss,
        metrics=metrics,
        weighted_metrics={"size": [keras.metrics.MeanAbsoluteError("weighted")]},
        balancing=balancing,
        run_eagerly=run_eagerly,
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
        run_eagerly=True,
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
    model = build(balancing, run_eagerly=balancing != "mgda")
    x, y = data()
    present = {"kind": np.ones(100), "size": np.ones(100)}
    fit = {"batch_size": 50, "epochs": 2, "verbose": 0}
    model.fit(x, y, sample_weight=present, **fit)  # build all state
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


class Triplet(keras.losses.Loss):
    """The mean distance to the samples of the same class."""

    compares_samples = True

    def call(self, y_true, y_pred):
        gaps = keras.ops.sum((y_pred[:, None] - y_pred[None]) ** 2, axis=-1)
        of_class = keras.ops.cast(y_true[:, None] == y_true[None], gaps.dtype)
        return keras.ops.sum(gaps * of_class, axis=1) / keras.ops.sum(of_class, axis=1)


@pytest.mark.parametrize("loss", [keras.losses.Circle, Triplet])
def test_a_loss_between_samples_sees_the_labelled_ones_alone(loss):
    model = build("equal")
    model.compile(loss={"kind": loss(), "size": "mse"}, run_eagerly=True)
    x, y = data()
    labelled = np.arange(100) % 3 > 0
    weights = dict.fromkeys(y, labelled.astype("float32"))
    with_absent = {"kind": np.where(labelled, y["kind"], 0), "size": y["size"]}
    alone = {task: label[labelled] for task, label in y.items()}
    actual = model.test_on_batch(x, with_absent, weights, return_dict=True)
    model.reset_metrics()
    expected = model.test_on_batch(x[labelled], alone, return_dict=True)
    assert actual["kind_loss"] == pytest.approx(expected["kind_loss"], rel=1e-5)


def test_a_metric_over_the_batch_sees_the_labelled_samples_alone():
    model = build("equal")
    metrics = [
        keras.metrics.PearsonCorrelation(axis=0),
        keras.metrics.CosineSimilarity(axis=0),
    ]
    model.compile(
        loss={"kind": None, "size": "mse"},
        metrics={"size": metrics},
        run_eagerly=True,
    )
    x, y = data()
    labelled = np.arange(100) % 3 > 0
    guess = model.predict(x, verbose=0)["size"][labelled, 0]
    size = y["size"][labelled, 0]
    y["size"][~labelled] = 1e3
    weights = {"size": labelled.astype("float32")}
    logs = model.test_on_batch(x, {"size": y["size"]}, weights, return_dict=True)
    correlation = np.corrcoef(guess, size)[0, 1]
    cosine = guess @ size / np.linalg.norm(guess) / np.linalg.norm(size)
    assert logs["size_pearson_correlation"] == pytest.approx(correlation, abs=1e-5)
    assert logs["size_cosine_similarity"] == pytest.approx(cosine, abs=1e-5)


def test_weights_may_be_a_mask_of_bools():
    x, y = data()
    labelled = np.arange(100) % 3 > 0
    results = []
    for dtype in ("float32", "bool", "uint8"):
        keras.utils.set_random_seed(0)
        model = build("equal")
        weights = {"kind": labelled.astype(dtype), "size": np.ones(100, dtype)}
        results.append(model.train_on_batch(x, y, weights, return_dict=True))
    assert results[1] == results[2] == results[0]


def test_nothing_labelled_at_all_makes_no_nan():
    model = build("mgda")
    x, y = data()
    before = [w.copy() for w in model.get_weights()]
    nothing = {"kind": np.zeros(100), "size": np.zeros(100)}
    logs = model.train_on_batch(x, y, sample_weight=nothing, return_dict=True)
    assert {*logs} - not_finite(logs) == {"loss", "kind_weight", "size_weight"}
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize(
    "balancing",
    [
        pytest.param("pcgrad", marks=pytest.mark.slow),
        {
            "class_name": "trimmed_mean",
            "config": {"trim": 0, "gradients_of": "representation", "scale": "mean"},
        },
    ],
    ids=["shared", "representation"],
)
def test_label_counts_are_summed_over_replicas(balancing, mirrored):
    """Labels on one replica only: the same step as on one device."""
    x, y = data(40)
    weight = {"kind": np.r_[np.ones(13), np.zeros(27)], "size": np.ones(40)}
    results = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        keras.utils.set_random_seed(11)
        with strategy.scope():
            model = build(balancing, run_eagerly=strategy is not mirrored)
        model.fit(
            x,
            y,
            sample_weight=weight,
            batch_size=40,
            epochs=2,
            shuffle=False,
            verbose=0,
        )
        results.append(model.get_weights())
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)


LENGTHS = [6, 4, 2, 5, 3, 1, 6, 2, 1, 5, 6, 6, 2, 3, 4, 1]
TOKENS = np.arange(6) < np.array(LENGTHS)[:, None]


def sequences(masked=True, policy="raise", optimizer=None, **arguments):
    """A class for each token, and a number for each sequence."""
    keras.utils.set_random_seed(7)
    inputs = keras.Input((6,), dtype="int32")
    h = keras.layers.Embedding(9, 4, mask_zero=masked)(inputs)
    h = keras.layers.Dense(5, "tanh")(h)
    outputs = {
        "kind": keras.layers.Dense(3, "softmax")(h),
        "size": keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(h)),
    }
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    arguments = {
        "loss": {"kind": "sparse_categorical_crossentropy", "size": "mse"},
        "metrics": {"kind": ["accuracy"]},
        "weighted_metrics": {"kind": [keras.metrics.SparseCategoricalAccuracy("w")]},
        **arguments,
    }
    model.compile(
        optimizer or keras.optimizers.SGD(0.0), on_nonfinite=policy, **arguments
    )
    return model


def tokens():
    rng = np.random.default_rng(2)
    x = np.where(TOKENS, rng.integers(1, 9, (16, 6)), 0)
    return x, {"kind": rng.integers(0, 3, (16, 6)), "size": rng.normal(size=(16, 1))}


def by_hand(p, y, weight, mask, parts):
    """Loss, accuracy and weighted accuracy over what is labelled and not masked."""
    w = (
        np.ones(y.shape)
        if weight is None
        else weight.reshape(16, -1) * np.ones(y.shape)
    )
    losses = -np.log(np.take_along_axis(p, y[..., None], -1)[..., 0]) * w
    right, kept = p.argmax(-1) == y, mask & (w != 0)
    loss = losses[kept].mean()
    if weight is None:  # Keras: the mean over batches and replicas.
        loss = np.mean([losses[part][mask[part]].mean() for part in parts])
    return loss, right[kept].mean(), (right * w)[mask].sum() / w[mask].sum()


# Every two values meet in these; all combinations, in graphs too, are slow.
QUICK = {
    (True, "raise", 2),
    (False, "raise", 1),
    (False, "skip_task", 2),
    (True, "skip_task", 1),
    (True, "skip_step", 1),
}


@pytest.mark.parametrize(
    ("masked", "policy", "replicas", "eagerly"),
    [
        pytest.param(*case, eagerly, marks=() if quick else pytest.mark.slow)
        for case in itertools.product(
            (True, False), ("raise", "skip_task", "skip_step"), (1, 2)
        )
        for eagerly in (True, False)
        for quick in [eagerly and case in QUICK]
    ],
)
def test_tokens_that_are_labelled_and_not_masked(
    masked, policy, replicas, eagerly, mirrored
):
    strategy = mirrored if replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        model = sequences(masked, policy, run_eagerly=eagerly)
    x, y = tokens()
    p = np.array(model(x)["kind"])
    mask = TOKENS if masked else np.ones((16, 6), bool)
    rng = np.random.default_rng(3)
    weights = {
        "none": None,
        "samples": np.array([1, 0, 2, 0.5] * 2 + [0, 0, 0, 1] + [1, 0, 0, 0]),
        "tokens": rng.choice([0.0, 0.0, 1.0, 2.0], (16, 6)),
    }
    # Two batches, or one of which each replica has a half.
    parts = np.split(np.arange(16), 2)
    for name, weight in weights.items():
        data = (x, y)
        if weight is not None:
            data = (x, y, {"kind": weight, "size": np.ones(16)})
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(8 * replicas)
        # Keras traces weights of several ranks as of an unknown one, and fails.
        model.make_train_function(force=True)
        model.make_test_function(force=True)
        if policy == "raise" and replicas == 1:
            logs = model.evaluate(dataset, verbose=0, return_dict=True)
        else:
            logs = {k: v[0] for k, v in model.fit(dataset, verbose=0).history.items()}
        expected = by_hand(p, y["kind"], weight, mask, parts)
        actual = [logs[f"kind_{name}"] for name in ("loss", "accuracy", "w")]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, err_msg=name)


def test_logged_losses_are_means_over_samples_and_not_over_batches():
    """Beside weights, with a smaller last batch; stock Keras weighs batches alike."""
    x, y = data(5)
    weight = np.linspace(0.5, 2.5, 5)
    logs = {}
    for cls in (keras.Model, mtl_keras.MultiTaskModel):
        sgd = keras.optimizers.SGD(0.0)
        # In a graph, where Keras does not know the size of a batch.
        model = heads("mse", dense(1), cls, optimizer=sgd, run_eagerly=False)
        labels = {"a": y["size"], "b": y["size"]}
        options = {"sample_weight": dict.fromkeys("ab", weight), "batch_size": 4}
        history = model.fit(x, labels, shuffle=False, verbose=0, **options)
        logs[cls] = history.history["a_loss"][0]
        error = np.array(model(x)["a"]) - y["size"]
    of_samples = weight * np.square(error).mean(axis=1)
    stock = np.mean([of_samples[:4].mean(), of_samples[4]])
    assert logs[mtl_keras.MultiTaskModel] == pytest.approx(of_samples.mean(), rel=1e-5)
    assert logs[keras.Model] == pytest.approx(stock, rel=1e-5)
    assert abs(stock - of_samples.mean()) > 0.01


@pytest.mark.parametrize("masked", [True, False])
def test_absent_samples_train_as_if_left_out(masked):
    x, y = tokens()
    labelled = np.array(LENGTHS) > 2
    everywhere = {"size": np.zeros(16), "kind": labelled.astype("float32")}
    results = []
    for rows, weights in ((np.arange(16), everywhere), (labelled, None)):
        model = sequences(masked, optimizer=keras.optimizers.SGD(1.0), run_eagerly=True)
        if weights is None:
            stock = keras.Model(model.input, model.output)
            stock.compile(
                model.optimizer, loss={"kind": model.loss["kind"]}, run_eagerly=True
            )
            stock.train_on_batch(x[rows], {"kind": y["kind"][rows]})
        else:
            model.train_on_batch(x, y, sample_weight=weights)
        results.append(model.get_weights())
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length", [1, 6])
def test_unlabelled_sequences_do_not_change_the_loss_whatever_their_length(length):
    x, y = tokens()
    x[2:] = np.where(np.arange(6) < length, 1, 0)
    weight = {"kind": np.r_[1.0, 1.0, np.zeros(14)], "size": np.ones(16)}
    model = sequences(run_eagerly=True)
    p = np.array(model(x)["kind"])
    kept = TOKENS & (np.arange(16) < 2)[:, None]
    expected = -np.log(np.take_along_axis(p, y["kind"][..., None], -1)[..., 0])[kept]
    logs = model.test_on_batch(x, y, sample_weight=weight, return_dict=True)
    assert logs["kind_loss"] == pytest.approx(expected.mean(), rel=1e-5)


def heads(losses, head, cls=mtl_keras.MultiTaskModel, **arguments):
    """A task "a" with the head that is to be tried, and a plain task "b"."""
    keras.utils.set_random_seed(9)
    inputs = keras.Input((6,))
    h = keras.layers.Dense(8, "tanh")(inputs)
    model = cls(inputs, {"a": head(h), "b": keras.layers.Dense(1, name="b")(h)})
    arguments.setdefault("run_eagerly", True)
    arguments.setdefault("optimizer", keras.optimizers.SGD(0.05))
    model.compile(loss={"a": losses, "b": "mse"}, **arguments)
    return model


def dense(units, activation=None):
    return lambda h: keras.layers.Dense(units, activation, name="a")(h)


def number(h):
    return keras.layers.Reshape((), name="a")(keras.layers.Dense(1)(h))


def one_number(y, p):
    return keras.ops.mean(keras.ops.abs(y - p))


class Counting(keras.metrics.Metric):
    """The mean error of what it sees; it knows no sample weights."""

    def __init__(self):
        super().__init__(name="counting")
        self.total = self.add_variable((), "zeros")
        self.seen = self.add_variable((), "zeros")

    def update_state(self, y_true, y_pred):
        self.total.assign_add(keras.ops.sum(keras.ops.abs(y_true - y_pred)))
        self.seen.assign_add(keras.ops.cast(keras.ops.size(y_true), "float32"))

    def result(self):
        return self.total / self.seen


@pytest.mark.parametrize(
    "jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("head", [number, dense(1)], ids=["batch", "batch_1"])
def test_one_number_for_a_batch_is_that_of_the_labelled_samples(head, jit_compile):
    if head is number and jit_compile:
        pytest.skip("the same mechanism")
    x = np.random.default_rng(0).normal(size=(22, 6))
    y = {"a": np.full((22, 1), 10.0), "b": np.zeros((22, 1))}
    if head is number:
        y["a"] = y["a"][:, 0]
    weight = np.array([1.0, 0.0] * 8 + [0.0] * 6)
    y["a"][weight == 0] = -7.0
    model = heads(
        one_number,
        head,
        metrics={"a": [one_number, "mae", Counting()]},
        weighted_metrics={"a": [keras.metrics.MeanAbsoluteError("weighted")]},
        jit_compile=jit_compile,
        run_eagerly=head is number,
    )
    weight *= np.linspace(0.5, 1.5, 22)
    errors = np.abs(10.0 - np.reshape(model(x)["a"], -1))
    # The last batch has no label at all.
    arguments = {
        "sample_weight": {"a": weight, "b": np.ones(22)},
        "batch_size": 8,
        "verbose": 0,
    }
    logs = model.evaluate(x, y, **arguments, return_dict=True)
    mean = errors[weight != 0].mean()
    assert logs["a_one_number"] == pytest.approx(mean, rel=1e-5)
    assert logs["a_mae"] == pytest.approx(mean, rel=1e-5)
    assert logs["a_counting"] == pytest.approx(mean, rel=1e-5)
    weighted = (errors * weight).sum() / weight.sum()
    assert logs["a_weighted"] == pytest.approx(weighted, rel=1e-5)
    # Of the batch's loss Keras takes the mean weight.
    of_batches = [
        errors[:16][rows][::2].mean() * weight[:16][rows][::2].mean()
        for rows in (slice(0, 8), slice(8, 16))
    ]
    assert logs["a_loss"] == pytest.approx(np.mean(of_batches), rel=1e-5)
    if not jit_compile:
        model.fit(x, y, **arguments, epochs=3 if head is number else 30)
        # Away from the fillers.
        assert np.mean(model(x)["a"]) > (0.2 if head is number else 4.0)
        assert all(np.isfinite(w).all() for w in model.get_weights())


ELEMENTWISE = {
    "numbers": (dense(5), "mse", ["mae", keras.metrics.R2Score]),
    "labels": (
        dense(5, "sigmoid"),
        "binary_crossentropy",
        [keras.metrics.BinaryAccuracy, keras.metrics.AUC, keras.metrics.Precision],
    ),
    "pixels": (
        lambda h: keras.layers.Softmax(name="a")(
            keras.layers.Reshape((2, 3, 4))(keras.layers.Dense(24)(h))
        ),
        "categorical_crossentropy",
        [
            "accuracy",
            lambda: keras.metrics.OneHotMeanIoU(4, name="iou"),
            lambda: keras.metrics.SensitivityAtSpecificity(0.5, name="at"),
        ],
    ),
}


@pytest.mark.parametrize("per_element", [True, False])
@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_elements_with_a_weight_of_zero_are_left_out(kind, per_element):
    head, loss, metrics = ELEMENTWISE[kind]
    metrics = [m if isinstance(m, str) else m() for m in metrics]
    rng = np.random.default_rng(4)
    x = rng.normal(size=(20, 6))
    shape = {"pixels": (20, 2, 3)}.get(kind, (20, 5))
    if kind == "numbers":
        label = rng.normal(size=shape)
    elif kind == "labels":
        label = rng.integers(0, 2, shape).astype("float32")
    else:
        label = np.eye(4)[rng.integers(0, 4, shape)]
    weight = rng.choice([0.0, 0.0, 1.0], shape)
    if not per_element:
        weight = weight[(slice(None), *[0] * (weight.ndim - 1))]
    model = heads(loss, head, metrics={"a": metrics})
    p = np.array(model(x)["a"])
    logs = model.evaluate(
        x,
        {"a": label, "b": np.zeros((20, 1))},
        sample_weight={"a": weight, "b": np.ones(20)},
        batch_size=8,
        verbose=0,
        return_dict=True,
    )
    # Stock metrics of the labelled elements alone, as samples.
    kept = weight.reshape(20, *[1] * (len(shape) - weight.ndim), *weight.shape[1:]) > 0
    if not per_element:
        kept = weight.reshape(20, *[1] * (len(shape) - 1)) > 0
    kept = np.broadcast_to(kept, shape)
    if per_element or kind == "pixels":
        label, p = label[kept], p[kept]
    else:
        label, p = label[weight > 0], p[weight > 0]
    for metric in metrics:
        name = metric if isinstance(metric, str) else metric.name
        if name == "r2_score" and per_element:
            continue  # by column
        stock = {"mae": keras.metrics.MeanAbsoluteError}.get(name)
        stock = stock or {"accuracy": keras.metrics.CategoricalAccuracy}.get(name)
        stock = stock() if stock else type(metric).from_config(metric.get_config())
        values = (label, p)
        if label.ndim == 1:
            values = (label[:, None], p[:, None])
        stock.update_state(*values)
        assert logs[f"a_{name}"] == pytest.approx(float(stock.result()), rel=1e-4), name
    loss = keras.losses.get(loss)
    expected = loss(*((label[:, None], p[:, None]) if label.ndim == 1 else (label, p)))
    assert logs["a_loss"] == pytest.approx(float(np.mean(expected)), rel=1e-5)


def relative(y, p):
    return keras.ops.mean(keras.ops.abs(y - p) / y, axis=-1)


@pytest.mark.parametrize(
    ("loss", "head", "dtype", "fillers"),
    [
        (relative, dense(1), "float32", [1.5, 0.0, -1.0, np.nan]),
        ("sparse_categorical_crossentropy", dense(4, "softmax"), "int64", [1, -1, 255]),
        ("sparse_categorical_crossentropy", dense(4, "softmax"), "float32", [np.nan]),
    ],
    ids=["relative", "ids", "float_ids"],
)
def test_no_filler_changes_anything(loss, head, dtype, fillers):
    rng = np.random.default_rng(6)
    x = rng.normal(size=(16, 6))
    label = rng.integers(1, 4, (16, 1)).astype(dtype)
    absent = np.arange(16) % 2 == 0
    results = []
    for filler in [2, *fillers]:
        y = {"a": np.where(absent[:, None], filler, label), "b": np.ones((16, 1))}
        model = heads(loss, head, metrics={"a": [loss]})
        history = model.fit(
            x,
            {**y, "a": y["a"].astype(dtype)},
            sample_weight={"a": (~absent).astype("float32"), "b": np.ones(16)},
            shuffle=False,
            verbose=0,
        ).history
        results.append((model.get_weights(), history))
    (weights, history), *others = results
    for filled, of_filler in others:
        assert of_filler == history
        for one, two in zip(weights, filled, strict=True):
            np.testing.assert_array_equal(two, one)


def test_a_usable_filler_reaches_the_loss():
    seen = []

    def loss(y, p):
        seen.append(np.array(y))
        return keras.ops.mean(keras.ops.square(y - p), axis=-1)

    y = {"a": np.array([[3.0], [-1.0], [np.nan]]), "b": np.ones((3, 1))}
    weight = {"a": np.array([1.0, 0.0, 0.0]), "b": np.ones(3)}
    heads(loss, dense(1)).test_on_batch(np.ones((3, 6)), y, sample_weight=weight)
    np.testing.assert_array_equal(seen[-1], [[3.0], [-1.0], [0.0]])


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize(
    ("label", "weight", "message"),
    [
        (-1, None, "'a' take. Received a label value of -1 which is outside"),
        (0, -0.5, "'a' take. Expected sample weights of at least 0"),
    ],
)
def test_labels_and_weights_that_cannot_be_name_the_task(
    label, weight, message, run_eagerly
):
    loss = "sparse_categorical_crossentropy"
    model = heads(loss, dense(4, "softmax"), run_eagerly=run_eagerly)
    y = {"a": np.array([1, label, 2, 0]), "b": np.ones((4, 1))}
    if weight is not None:
        weight = {"a": np.array([1, weight, 1, 1]), "b": np.ones(4)}
    for call in (model.fit, model.evaluate):
        with pytest.raises(InputError, match=message) as raised:
            call(np.ones((4, 6)), y, sample_weight=weight, verbose=0)
        assert "\n" not in str(raised.value)


def test_losses_that_xla_cannot_check_are_not_finite():
    loss = "sparse_categorical_crossentropy"
    model = heads(loss, dense(4, "softmax"), run_eagerly=False, jit_compile=True)
    for label, weight, fits in ((0, 0.5, True), (0, -0.5, False), (4, 0.5, False)):
        y = {"a": np.array([1, label, 2, 0]), "b": np.ones((4, 1))}
        weights = {"a": np.array([1, weight, 1, 1]), "b": np.ones(4)}
        logs = model.test_on_batch(np.ones((4, 6)), y, weights, return_dict=True)
        assert np.isfinite(logs["a_loss"]) == np.isfinite(logs["loss"]) == fits
        assert np.isfinite(logs["b_loss"])


def test_weights_with_more_axes_than_the_losses_are_refused():
    model = heads("categorical_crossentropy", dense(4, "softmax"))
    y = {"a": np.eye(4), "b": np.ones((4, 1))}
    weight = {"a": np.ones((4, 4)), "b": np.ones(4)}
    with pytest.raises(InputError, match=r"loss of 'a' that gives a value for each"):
        model.evaluate(np.ones((4, 6)), y, sample_weight=weight, verbose=0)


def test_weights_that_do_not_fit_the_labels_are_refused():
    model = heads("mse", dense(1))
    y = {"a": np.ones((4, 1)), "b": np.ones((4, 1))}
    weight = {"a": np.ones((4, 3)), "b": np.ones(4)}
    with pytest.raises(InputError, match=r"weights of 'a' with the first axes of its"):
        model.evaluate(np.ones((4, 6)), y, sample_weight=weight, verbose=0)


def test_named_tuples_are_taken_only_in_the_order_of_the_outputs():
    x, y = np.ones((4, 6)), np.ones((4, 1))
    model = heads("mse", dense(1))
    Named = collections.namedtuple("Named", ["a", "b"])
    Swapped = collections.namedtuple("Swapped", ["b", "a"])
    assert model.evaluate(x, Named(y, 2 * y), verbose=0, return_dict=True) == (
        model.evaluate(x, {"a": y, "b": 2 * y}, verbose=0, return_dict=True)
    )
    with pytest.raises(InputError, match=r"named tuple with the fields \['b', 'a'\]"):
        model.evaluate(x, Swapped(2 * y, y), verbose=0)


def with_nan(seed=8, n=22):
    """Labels of every kind, NaN where absent, with the weights that say the same."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype("float32")
    y = {
        "id": rng.integers(0, 4, n).astype("float32"),
        "labels": rng.integers(0, 2, (n, 3)).astype("float32"),
        "one_hot": np.eye(4, dtype="float32")[rng.integers(0, 4, n)],
        "size": rng.normal(size=(n, 1)).astype("float32"),
        "whole": rng.integers(0, 4, n).astype("float32"),
    }
    absent = {
        "id": rng.random(n) < 0.4,
        "labels": rng.random((n, 3)) < 0.4,
        "one_hot": rng.random(n) < 0.4,
        "size": rng.random((n, 1)) < 0.4,
    }
    absent["size"][:8] = True  # No label in the first batch.
    weights = {task: (~flags).astype("float32") for task, flags in absent.items()}
    filled = {task: label.copy() for task, label in y.items()}
    for task, flags in absent.items():
        filled[task][flags] = 0.0
        y[task][flags] = np.nan
    y["one_hot"][absent["one_hot"], 1:] = 0.0
    filled["one_hot"][absent["one_hot"], 0] = 1.0
    return x, y, filled, weights | {"whole": np.ones(n, "float32")}


def kinds(missing_labels, **arguments):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    h = keras.layers.Dropout(0.2, seed=1)(keras.layers.Dense(8, "tanh")(inputs))
    model = mtl_keras.MultiTaskModel(
        inputs,
        {
            "id": keras.layers.Dense(4, "softmax")(h),
            "labels": keras.layers.Dense(3, "sigmoid")(h),
            "one_hot": keras.layers.Dense(4, "softmax")(h),
            "size": keras.layers.Dense(1)(h),
            "whole": keras.layers.Dense(4, "softmax")(h),
        },
    )
    model.compile(
        "sgd",
        loss={
            "id": "sparse_categorical_crossentropy",
            "labels": "binary_crossentropy",
            "one_hot": "categorical_crossentropy",
            "size": ["mse", "mae"],
            "whole": "sparse_categorical_crossentropy",
        },
        metrics={
            "id": ["accuracy"],
            "labels": [keras.metrics.AUC(20, name="auc")],
            "one_hot": ["accuracy"],
            "size": ["mae"],
        },
        weighted_metrics={"size": [keras.metrics.MeanSquaredError("weighted")]},
        missing_labels=missing_labels,
        **arguments,
    )
    return model


def trained(model, x, y, sample_weight, directory):
    """All that a model's training and evaluation give, through a file in between."""
    validation = (x, y) if sample_weight is None else (x, y, sample_weight)
    arguments = {"shuffle": False, "batch_size": 8, "verbose": 0}
    history = model.fit(
        x,
        y,
        sample_weight=sample_weight,
        validation_data=validation,
        epochs=1 if model.run_eagerly else 2,
        **arguments,
    ).history
    model.save(directory / "model.keras")
    model = keras.models.load_model(directory / "model.keras")
    arguments = {"sample_weight": sample_weight, "return_dict": True}
    results = [
        history,
        model.train_on_batch(x, y, **arguments),
        model.test_on_batch(x, y, **arguments),
        model.evaluate(x, y, verbose=0, **arguments),
    ]
    return results, model.get_weights()


@pytest.mark.parametrize(
    ("arguments", "replicas"),
    [
        ({"balancing": "pcgrad", "run_eagerly": True}, 1),
        pytest.param({"balancing": "pcgrad"}, 1, marks=pytest.mark.slow),
        pytest.param({"balancing": "auto_lambda"}, 1, marks=pytest.mark.slow),
        pytest.param({"balancing": "uncertainty"}, 2, marks=pytest.mark.slow),
        pytest.param({"jit_compile": True}, 1, marks=pytest.mark.slow),
        pytest.param({"on_nonfinite": "skip_task"}, 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_nan_is_a_sample_weight_of_zero(arguments, replicas, mirrored, tmp_path):
    x, y, filled, weights = with_nan()
    strategy = mirrored if replicas == 2 else tf.distribute.get_strategy()
    outcomes = []
    for missing, labels, weight in (("nan", y, None), (None, filled, weights)):
        with strategy.scope():
            model = kinds(missing, **arguments)
        outcomes.append(trained(model, x, labels, weight, tmp_path))
    one, two = map(keras.tree.flatten, outcomes)
    if arguments.get("run_eagerly"):
        np.testing.assert_equal(one, two)
    for first, second in zip(one, two, strict=True):
        # A graph's optimiser may order a sum in another way.
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    assert np.isfinite(outcomes[0][0][0]["size_loss"]).all()


def test_nan_is_absent_beside_sample_weights():
    x, y, filled, weights = with_nan()
    sample_weights = {
        task: np.linspace(0.5, 1.5, len(x), dtype="float32") for task in y
    }
    sample_weights["labels"] = sample_weights["labels"][:, None] * np.ones(
        (1, 3), "float32"
    )
    fitted = sample_weights | {
        task: weight.reshape(sample_weights[task].shape) * sample_weights[task]
        for task, weight in weights.items()
    }
    arguments = {"verbose": 0, "return_dict": True}
    results = [
        kinds(missing, run_eagerly=True).evaluate(
            x, labels, sample_weight=weight, **arguments
        )
        for missing, labels, weight in (
            ("nan", y, sample_weights),
            (None, filled, fitted),
        )
    ]
    np.testing.assert_equal(*results)


def test_without_nan_in_the_labels_training_is_that_of_stock_keras():
    x, _, filled, _ = with_nan()
    filled["whole"] = filled["whole"].astype("int64")  # Nothing can be missing.
    outcomes = []
    for missing in ("nan", None):
        model = kinds(missing, run_eagerly=True)
        if missing is None:
            loss = model.loss
            model = keras.Model(model.input, model.output)
            model.compile("sgd", loss=loss, run_eagerly=True)
        model.fit(x, filled, epochs=2, shuffle=False, verbose=0)
        outcomes.append(model.get_weights())
    for one, two in zip(*outcomes, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


def test_nan_is_not_finite_where_missing_labels_is_not_asked_for():
    x, y, filled, _ = with_nan()
    with pytest.raises(mtl_keras.errors.NonFiniteError, match="'size'"):
        kinds(None, run_eagerly=True).fit(x, filled | {"size": y["size"]}, verbose=0)
    with pytest.raises(InputError, match=r"to be None or 'nan'. Received: missing_la"):
        kinds("none")
