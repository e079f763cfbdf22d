"""MultiTaskModel with equal weights is a stock Keras model."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import mtl_keras
from mtl_keras.errors import InputError, NonFiniteError

CLASSES = 5


def network(regularizer="l2"):
    """Two tasks, with BatchNorm, Dropout and a regulariser."""
    inputs = keras.Input((8,), name="x")
    h = keras.layers.Dense(16, "relu", kernel_regularizer=regularizer)(inputs)
    h = keras.layers.BatchNormalization()(h)
    h = keras.layers.Dropout(0.2, seed=7)(h)
    kind = keras.layers.Dense(CLASSES, "softmax", name="kind_head")(h)
    size = keras.layers.Dense(1, name="size_head")(keras.layers.Dense(6, "tanh")(h))
    return inputs, {"size": size, "kind": kind}


def data(n=96, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8)).astype("float32")
    return x, {
        "size": rng.normal(size=(n, 1)).astype("float32"),
        "kind": rng.integers(0, CLASSES, size=(n,)),
    }


# Functions, as metric instances keep their state from one model to the next.
FORMS = {
    "dict": lambda: {
        "loss": {"kind": "sparse_categorical_crossentropy", "size": "mse"},
        "loss_weights": {"kind": 0.3, "size": 2.0},
        "metrics": {"kind": ["accuracy", "acc"], "size": "mae"},
        "weighted_metrics": {"size": ["mae"]},
    },
    "list": lambda: {
        "loss": ["crossentropy", keras.losses.MeanSquaredError()],
        "loss_weights": [0.3, 2.0],
        "metrics": [["accuracy"], [keras.metrics.MeanAbsoluteError("gap")]],
    },
    "instances and callables": lambda: {
        "loss": {
            "kind": keras.losses.SparseCategoricalCrossentropy(),
            "size": lambda y, p: keras.ops.mean(keras.ops.abs(y - p), axis=-1),
        },
        "metrics": {"size": [keras.metrics.mean_squared_error]},
    },
    "one untrained output": lambda: {
        "loss": {"kind": "sparse_categorical_crossentropy", "size": None},
        "metrics": {"kind": ["accuracy"]},
    },
}


def trained(cls, form, epochs=5, batch_size=24, **compile_arguments):
    keras.utils.set_random_seed(3)
    keras.utils.clear_session(free_memory=False)
    model = cls(*network())
    form = {**FORMS[form](), **compile_arguments}
    model.compile(keras.optimizers.Adam(1e-2, gradient_accumulation_steps=None), **form)
    x, y = data()
    weights = {"kind": np.linspace(0.5, 1.5, 96), "size": np.linspace(2.0, 1.0, 96)}
    history = model.fit(
        x,
        y,
        sample_weight=weights,
        batch_size=batch_size,
        epochs=epochs,
        verbose=0,
        shuffle=False,
    )
    results = model.evaluate(x, y, batch_size=48, verbose=0, return_dict=True)
    return model, history.history, results


@functools.cache
def stock_training():
    """Results of stock Keras in a graph, for all that is compared with them."""
    return trained(keras.Model, "dict")


@pytest.mark.parametrize("form", FORMS)
def test_equal_weighting_is_stock_keras_in_every_form_of_compile(form):
    # What a form means is decided before any step: one of them in a graph will do.
    way = (
        {}
        if form == "dict"
        else {
            "epochs": 1,
            "batch_size": 48,
            "run_eagerly": True,
        }
    )
    stock, stock_history, stock_results = (
        trained(keras.Model, form, **way) if way else stock_training()
    )
    ours, our_history, our_results = trained(mtl_keras.MultiTaskModel, form, **way)
    for expected, actual in zip(stock.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
    assert set(our_results) == set(stock_results)
    for name in stock_results:
        np.testing.assert_allclose(our_results[name], stock_results[name], rtol=1e-4)
        np.testing.assert_allclose(our_history[name], stock_history[name], rtol=1e-4)


SATURATED = {
    "binary": (1, "sigmoid", "binary_crossentropy"),
    "focal": (3, "softmax", "categorical_focal_crossentropy"),
    "function": (1, tf.nn.sigmoid, "binary_crossentropy"),
    "labels": (3, "sigmoid", "binary_crossentropy"),
    "one_hot": (3, "softmax", "categorical_crossentropy"),
    "sparse": (3, "softmax", "sparse_categorical_crossentropy"),
}


def test_sure_and_wrong_outputs_learn_from_their_logits_beside_weights():
    """A probability of 0 in float32 has no gradient, and a loss of 16 at most."""
    x, _ = data()
    rng = np.random.default_rng(0)
    y, weights = {}, {}
    for task, (width, _, loss) in SATURATED.items():
        ids = rng.integers(0, max(width, 2), len(x))
        y[task] = ids if "sparse" in loss else np.eye(width)[ids % width]
        if width == 1:
            y[task] = ids[:, np.newaxis].astype("float32")
        weights[task] = rng.uniform(0.5, 2.0, len(x))
    weights["labels"] = rng.uniform(0.5, 2.0, (len(x), 1))
    results = []
    for cls in (keras.Model, mtl_keras.MultiTaskModel):
        keras.utils.set_random_seed(3)
        inputs = keras.Input((8,))
        steep = keras.initializers.RandomNormal(stddev=60.0)
        h = keras.layers.Dense(4)(inputs)
        outputs = {
            task: keras.layers.Dense(width, activation, kernel_initializer=steep)(h)
            for task, (width, activation, _) in SATURATED.items()
        }
        model = cls(inputs, outputs)
        losses = {task: loss for task, (*_, loss) in SATURATED.items()}
        metrics = {"sparse": ["sparse_categorical_crossentropy"]}
        model.compile(keras.optimizers.SGD(0.01), losses, weighted_metrics=metrics)
        logs = model.train_on_batch(x, y, weights, return_dict=True)
        results.append((model.get_weights(), logs))
    (stock, expected), (ours, actual) = results
    assert expected["sparse_loss"] > 20.0
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=1e-6), name
    for one, other in zip(stock, ours, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_float64_is_stock_keras_to_the_bit():
    x, y = data()
    weights = {"kind": np.linspace(0.5, 1.5, 96), "size": np.linspace(2.0, 1.0, 96)}
    keras.config.set_floatx("float64")
    try:
        results = []
        for cls in (keras.Model, mtl_keras.MultiTaskModel):
            keras.utils.set_random_seed(3)
            model = cls(*network())
            model.compile("adam", run_eagerly=True, **FORMS["dict"]())
            for sample_weight in (None, weights):
                model.train_on_batch(x, y, sample_weight)
            results.append(model.get_weights())
    finally:
        keras.config.set_floatx("float32")
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_array_equal(actual, expected)


class Gap(keras.metrics.Mean):
    """A mean whose result is of another type than a tensor of floats."""

    def __init__(self, kind, **kwargs):
        super().__init__(name=kind, **kwargs)
        self.kind = kind

    def update_state(self, y_true, y_pred, sample_weight=None):
        del y_true, sample_weight
        super().update_state(y_pred)

    def result(self):
        mean = super().result()
        return {
            "dict": {"once": mean, "twice": 2.0 * mean},
            "float": 0.5,
            "integer": keras.ops.cast(mean, "int32"),
            "loss": mean,
        }[self.kind]


@pytest.mark.parametrize("weighted", [False, True])
def test_many_tasks_and_regularisers_are_stock_keras_to_the_bit(weighted):
    """Three gradients of one tensor, and more, are added up in Keras's order.

    Eagerly, as in a graph TensorFlow adds them up in an order that may vary.
    """
    x, _ = data(24)
    rng = np.random.default_rng(0)
    # Not in the order of their names.
    tasks = [f"task{index}" for index in (11, 2, 7, 0, 3, 10, 5)]
    y = {task: rng.normal(size=(24, 1)).astype("float32") for task in tasks}
    weights = {task: rng.uniform(0.5, 2.0, 24) for task in tasks[::2]}
    weights |= dict.fromkeys(tasks[1::2])
    results = []
    for cls in (keras.Model, mtl_keras.MultiTaskModel):
        keras.utils.set_random_seed(3)
        inputs, outputs = network(keras.regularizers.L1L2(0.01, 0.01))
        h = keras.layers.ActivityRegularization(0.01, 0.01)(outputs["size"])
        tied = keras.layers.Dense(6, "tanh", kernel_regularizer="l1")
        heads = [keras.layers.Dense(6)(h) for _ in tasks]
        model = cls(
            inputs,
            {
                task: keras.layers.Dense(1, kernel_regularizer="l2")(tied(head))
                for task, head in zip(tasks, heads, strict=True)
            },
        )
        losses = dict.fromkeys(sorted(tasks, reverse=True), "mse")
        losses[tasks[0]] = ["mse", "mae", "huber"]
        model.compile(keras.optimizers.SGD(0.1), losses, run_eagerly=True)
        logs = model.train_on_batch(
            x, y, weights if weighted else None, return_dict=True
        )
        results.append((model.get_weights(), logs["loss"]))
    (stock, expected), (ours, actual) = results
    assert actual == expected
    for one, other in zip(stock, ours, strict=True):
        np.testing.assert_array_equal(other, one)


def test_metrics_with_results_of_any_type_are_stock_keras():
    x, y = data()
    weights = {"kind": np.ones(96), "size": np.zeros(96)}
    results = []
    for cls in (keras.Model, mtl_keras.MultiTaskModel):
        keras.utils.set_random_seed(3)
        model = cls(*network())
        kinds = ("dict", "float", "integer", "loss")
        model.compile(
            loss=FORMS["dict"]()["loss"],
            metrics={"kind": ["accuracy"], "size": [Gap(kind) for kind in kinds]},
            run_eagerly=cls is keras.Model,
        )
        logs = [model.evaluate(x, y, verbose=0, return_dict=True)]
        if cls is mtl_keras.MultiTaskModel:
            logs.append(model.test_on_batch(x, y, weights, return_dict=True))
        results += logs
    expected, actual, without = results
    assert actual == {name: pytest.approx(v, rel=1e-6) for name, v in expected.items()}
    assert np.isfinite(without["kind_accuracy"])
    for name in ("once", "twice", "size_float"):
        assert np.isnan(without[name])


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"run_eagerly": True}, marks=pytest.mark.slow),
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        {"steps_per_execution": 3},
    ],
    ids=str,
)
def test_ways_to_run_a_step_agree_with_stock_keras(arguments):
    # XLA draws other dropout masks.
    under_xla = "jit_compile" in arguments
    _, _, expected = (
        trained(keras.Model, "dict", **arguments) if under_xla else stock_training()
    )
    _, _, actual = trained(mtl_keras.MultiTaskModel, "dict", **arguments)
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-3)


@pytest.mark.parametrize(
    "balancing", ["equal", pytest.param("pcgrad", marks=pytest.mark.slow)]
)
def test_mixed_precision_scales_losses_trains_and_is_saved(balancing, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        keras.utils.set_random_seed(3)
        model = mtl_keras.MultiTaskModel(*network())
        model.compile("adam", balancing=balancing, **FORMS["dict"]())
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    x, y = data()
    losses = model.fit(x, y, epochs=15, batch_size=24, verbose=0).history["loss"]
    assert np.all(np.isfinite(losses))
    assert losses[-1] < 0.9 * losses[0]

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, two in zip(
        model.optimizer.variables, loaded.optimizer.variables, strict=True
    ):
        assert one.path.split("/")[-1] == two.path.split("/")[-1]
        np.testing.assert_array_equal(one, two)


def test_gradient_accumulation_is_stock_keras():
    results = []
    for cls in (keras.Model, mtl_keras.MultiTaskModel):
        keras.utils.set_random_seed(3)
        model = cls(*network())
        model.compile(
            keras.optimizers.SGD(0.05, gradient_accumulation_steps=4),
            **FORMS["dict"](),
            run_eagerly=cls is keras.Model,
        )
        x, y = data()
        model.fit(x, y, batch_size=24, epochs=2, verbose=0, shuffle=False)
        results.append(model.get_weights())
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_a_bare_label_is_that_of_the_only_output_with_a_loss():
    x, y = data(12)
    losses = []
    for cls in (keras.Model, mtl_keras.MultiTaskModel):
        keras.utils.set_random_seed(3)
        model = cls(*network())
        loss = {"kind": "sparse_categorical_crossentropy", "size": None}
        model.compile("sgd", loss=loss, run_eagerly=True)
        logs = [model.train_on_batch(x, y["kind"], return_dict=True) for _ in range(2)]
        losses += [one["loss"] for one in logs]
    np.testing.assert_allclose(losses[2:], losses[:2], rtol=1e-6)


@pytest.mark.parametrize(
    "balancing",
    ["equal", pytest.param("uncertainty", marks=pytest.mark.slow), "pcgrad"],
)
def test_a_step_is_traced_once(balancing):
    traced = []

    class Counting(mtl_keras.MultiTaskModel):
        def compute_metrics(self, *args, **kwargs):
            traced.append(len(traced))
            return super().compute_metrics(*args, **kwargs)

    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, "relu")(inputs)
    outputs = {task: keras.layers.Dense(1, name=task)(hidden) for task in "ab"}
    model = Counting(inputs, outputs)
    model.compile("sgd", "mse", metrics={"a": ["mae"]}, balancing=balancing)
    x, y = np.ones((8, 3)), {task: np.ones((8, 1)) for task in "ab"}
    model.fit(x, y, batch_size=4, epochs=2, validation_data=(x, y), verbose=0)
    assert len(traced) == 2  # The training step, and that of the validation.


def test_a_step_of_a_subclass_may_rearrange_labels():
    class Packed(mtl_keras.MultiTaskModel):
        def train_step(self, data):
            x, y = data
            return super().train_step((x, {"a": y[:, :1], "b": y[:, 1:]}))

    inputs = keras.Input((3,))
    outputs = {task: keras.layers.Dense(1, name=task)(inputs) for task in "ab"}
    model = Packed(inputs, outputs)
    model.compile("sgd", "mse", metrics={"a": ["mae"]}, run_eagerly=True)
    logs = model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0).history
    assert {"a_loss", "b_loss", "a_mae"} <= set(logs)


def test_predict_and_train_on_batch_are_stock_keras():
    outputs = []
    for cls in (keras.Model, mtl_keras.MultiTaskModel):
        keras.utils.set_random_seed(3)
        model = cls(*network())
        model.compile("sgd", **FORMS["dict"](), run_eagerly=cls is keras.Model)
        x, y = data()
        logs = model.train_on_batch(x, y, return_dict=True)
        outputs.append((logs, model.predict(x, verbose=0)))
    (stock_logs, stock), (logs, ours) = outputs
    assert {k: v for k, v in logs.items() if not k.endswith("_weight")} == (
        pytest.approx(stock_logs, rel=1e-5)
    )
    for task in stock:
        np.testing.assert_allclose(ours[task], stock[task], rtol=1e-4, atol=1e-6)


MSE = keras.losses.MeanSquaredError


@pytest.mark.parametrize(
    ("loss", "loss_weights"),
    [
        ({"kind": ["ce", "mse"], "size": "mse"}, None),
        ({"kind": ["ce", ["mse"]], "size": "mse"}, {"kind": [0.5, [3.0]], "size": 2.0}),
        (["ce", ["mae", "mse"]], [0.5, 3.0, 2.0]),
        ({"kind": MSE(reduction="none"), "size": MSE(reduction=None)}, None),
        ({"kind": MSE(reduction="none"), "size": "mae"}, {"kind": 0.5, "size": 2.0}),
        ({"kind": MSE(reduction="sum"), "size": "mae"}, None),
    ],
    ids=["list", "nested", "list_of_lists", "none", "none_and_mean", "sum"],
)
def test_several_losses_and_losses_not_reduced_are_stock_keras(loss, loss_weights):
    results = []
    for cls in (keras.Model, mtl_keras.MultiTaskModel):
        keras.utils.set_random_seed(3)
        # Keras cannot add a scalar to losses that are not reduced.
        model = cls(*network(regularizer=None))
        losses = loss
        if cls is keras.Model and isinstance(loss, list):  # of a dict it takes none
            losses = dict(zip(("kind", "size"), loss, strict=True))
        model.compile(
            keras.optimizers.SGD(0.01),
            loss=losses,
            loss_weights=loss_weights,
            run_eagerly=True,
        )
        x, y = data()
        y["kind"] = np.eye(CLASSES)[y["kind"]]
        fit = {"batch_size": 64, "verbose": 0, "shuffle": False}
        results.append((model.fit(x, y, **fit).history, model.get_weights()))
    (stock_history, stock), (history, ours) = results
    for name, values in stock_history.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)
    for expected, actual in zip(stock, ours, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (["mse", {"kind": "mse", "size": "mse"}], "several outputs together"),
        (["mse", "mse", "mse"], "a loss for each of the outputs"),
        ({"kind": {"x": "mse"}, "size": "mse"}, "list of losses for the output 'kind'"),
        ({"kind": ["mse", None], "size": "mse"}, "list of losses for the output 'kind"),
        ({"kind": "mse", "size": []}, "list of losses for the output 'size'"),
    ],
)
def test_a_loss_of_no_task_is_refused_at_compile(loss, message):
    with pytest.raises(InputError, match=message):
        mtl_keras.MultiTaskModel(*network()).compile("sgd", loss=loss)


class Centralised(keras.optimizers.SGD):
    """Takes the mean off every gradient, where Keras's trainer hands them over."""

    def apply_gradients(self, grads_and_vars):
        return super().apply_gradients(
            [(g - tf.reduce_mean(g), v) for g, v in grads_and_vars]
        )


class Accumulating(keras.optimizers.SGD):
    """Applies the sum of the gradients of every second step."""

    def build(self, var_list):
        super().build(var_list)
        self.sums = [self.add_variable_from_reference(v, "sum") for v in var_list]
        self.count = self.add_variable((), dtype="int32", name="count")

    def apply_gradients(self, grads_and_vars):
        gradients, variables = zip(*grads_and_vars, strict=True)
        if not self.built:
            self.build(variables)
        for total, gradient in zip(self.sums, gradients, strict=True):
            total.assign_add(gradient)
        self.count.assign_add(1)

        def apply():
            self.apply([total.value + 0.0 for total in self.sums], variables)
            for total in self.sums:
                total.assign(tf.zeros_like(total.value))
            return True

        tf.cond(tf.equal(self.count % 2, 0), apply, lambda: True)


@pytest.mark.parametrize("optimizer", [Centralised, Accumulating])
def test_an_optimizer_that_overrides_apply_gradients_is_called_by_it(optimizer):
    results = []
    for cls in (keras.Model, mtl_keras.MultiTaskModel):
        keras.utils.set_random_seed(3)
        model = cls(*network())
        model.compile(
            optimizer(0.05), **FORMS["dict"](), run_eagerly=cls is keras.Model
        )
        x, y = data()
        model.fit(x, y, batch_size=24, epochs=1, verbose=0, shuffle=False)
        results.append(model.get_weights())
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def with_loss_of_its_own(cls):
    """A model class that overrides `compute_loss`, as Keras documents it."""

    class OwnLoss(cls):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return super().compute_loss(x, y, y_pred, sample_weight) + tf.reduce_mean(
                tf.abs(y_pred["size"])
            )

    return OwnLoss


def test_an_overridden_compute_loss_trains_as_in_stock_keras():
    results = []
    for cls in (keras.Model, mtl_keras.MultiTaskModel):
        keras.utils.set_random_seed(3)
        model = with_loss_of_its_own(cls)(*network())
        model.compile(
            keras.optimizers.SGD(0.05),
            **FORMS["dict"](),
            run_eagerly=cls is keras.Model,
        )
        x, y = data()
        logs = model.fit(x, y, batch_size=24, verbose=0, shuffle=False).history
        results.append((model.get_weights(), logs, model.evaluate(x, y, verbose=0)))
    (expected, logs, scores), (actual, our_logs, our_scores) = results
    for one, two in zip(expected, actual, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-7)
    for name in logs:
        np.testing.assert_allclose(our_logs[name], logs[name], rtol=1e-5)
    np.testing.assert_allclose(our_scores, scores, rtol=1e-5)
    with pytest.raises(NonFiniteError):
        model.fit(np.nan * x, y, batch_size=24, verbose=0)


def test_a_step_that_cannot_be_balanced_is_refused():
    model = with_loss_of_its_own(mtl_keras.MultiTaskModel)(*network())
    for arguments in ({"balancing": "pcgrad"}, {"on_nonfinite": "skip_task"}):
        with pytest.raises(InputError, match=r"compute_loss.*Received") as error:
            model.compile("sgd", **FORMS["dict"](), **arguments)
        assert "\n" not in str(error.value)

    class Unbalanced(mtl_keras.MultiTaskModel):
        def train_step(self, data):
            x, y = data
            self(x, training=True)
            return {"loss": tf.reduce_mean(tf.cast(y["size"], "float32"))}

    model = Unbalanced(*network())
    model.compile("sgd", FORMS["dict"]()["loss"], balancing="pcgrad")
    with pytest.raises(InputError, match=r"super\(\)\.train_step"):
        model.fit(*data(), verbose=0)


def test_a_callback_list_serves_one_fit_and_keeps_its_callbacks():
    model = mtl_keras.MultiTaskModel(*network())
    model.compile("sgd", **FORMS["dict"](), run_eagerly=True)
    history = keras.callbacks.History()
    callbacks = keras.callbacks.CallbackList([history], model=model, epochs=1)
    model.fit(*data(), callbacks=callbacks, verbose=0)
    assert callbacks.callbacks == [history]
    assert "kind_loss" in history.history


@pytest.mark.parametrize(
    ("monitored", "mode"),
    [("val_kind_accuracy", "max"), ("size_mae", "min"), ("val_size_loss", "min")],
)
def test_the_direction_of_one_tasks_metric_is_inferred(monitored, mode):
    model = mtl_keras.MultiTaskModel(*network())
    model.compile("sgd", **FORMS["dict"](), run_eagerly=True)
    callback = keras.callbacks.EarlyStopping(monitored)
    fit = {"batch_size": 48, "validation_split": 0.5, "verbose": 0}
    model.fit(*data(), callbacks=[callback], **fit)
    assert callback.mode == mode


@pytest.mark.parametrize("name", ["my task", "größe", "a:b"])
def test_a_name_that_tensorflow_does_not_take_is_refused_by_compile(name):
    inputs = keras.Input((8,))
    outputs = {task: keras.layers.Dense(1)(inputs) for task in (name, "b")}
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    with pytest.raises(InputError, match=f"task names .* '{name}'"):
        model.compile("sgd", "mse")


def test_a_name_that_keras_takes_trains():
    inputs = keras.Input((8,))
    tasks = ("_a", "a/b", "a.b", "1-a")
    outputs = {task: keras.layers.Dense(1)(inputs) for task in tasks}
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    model.compile("sgd", "mse", run_eagerly=True)
    x, y = data()
    logs = model.fit(x, dict.fromkeys(tasks, y["size"]), verbose=0).history
    assert {f"{task}_loss" for task in tasks} <= logs.keys()


def labels_of_classes():
    """Class ids, one-hot vectors and truth values, with weights of their classes."""
    rng = np.random.default_rng(2)
    ids = rng.integers(0, CLASSES, size=(96,))
    y = {
        "id": ids,
        "one_hot": np.eye(CLASSES, dtype="float32")[ids],
        "sold": rng.integers(0, 2, (96, 1)).astype("float32"),
    }
    class_weight = {
        "id": {0: 2.0, 3: 0.25, np.int64(4): 0.0},
        "one_hot": {1: 3.0},
        "sold": {0: 1, 1: 9.0},
    }
    by_hand = {
        "id": np.array([2.0, 1.0, 1.0, 0.25, 0.0], "float32")[ids],
        "one_hot": np.array([1.0, 3.0, 1.0, 1.0, 1.0], "float32")[ids],
        "sold": np.array([1.0, 9.0], "float32")[y["sold"][:, 0].astype(int)],
    }
    return rng.normal(size=(96, 8)).astype("float32"), y, class_weight, by_hand


def classifier(cls=mtl_keras.MultiTaskModel, tasks=None, run_eagerly=True, **arguments):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8,))
    h = keras.layers.Dense(6, "tanh")(inputs)
    losses = {
        "id": "sparse_categorical_crossentropy",
        "one_hot": "categorical_crossentropy",
        "sold": "binary_crossentropy",
    }
    units = {"id": (CLASSES, "softmax"), "one_hot": (CLASSES, "softmax")}
    units["sold"] = (1, "sigmoid")
    tasks = tasks or list(losses)
    model = cls(inputs, {task: keras.layers.Dense(*units[task])(h) for task in tasks})
    model.compile(
        keras.optimizers.SGD(0.1),
        loss={task: losses[task] for task in tasks},
        weighted_metrics={task: ["accuracy"] for task in tasks},
        run_eagerly=run_eagerly,
        **arguments,
    )
    return model


@pytest.mark.parametrize(
    ("source", "run_eagerly"),
    [("arrays", True), pytest.param("dataset", False, marks=pytest.mark.slow)],
)
def test_class_weights_by_output_are_sample_weights_to_the_bit(source, run_eagerly):
    x, y, class_weight, by_hand = labels_of_classes()
    outcomes = []
    for weight, by_class in ((None, class_weight), (by_hand, None)):
        model = classifier(balancing="pcgrad", run_eagerly=run_eagerly)
        arguments = {"x": x, "y": y, "sample_weight": weight, "batch_size": 64}
        if source == "dataset":
            data = (x, y) if weight is None else (x, y, weight)
            arguments = {"x": tf.data.Dataset.from_tensor_slices(data).batch(64)}
        logs = model.fit(
            **arguments,
            validation_data=(x, y),
            class_weight=by_class,
            shuffle=False,
            verbose=0,
        ).history
        batch = model.train_on_batch(
            x, y, sample_weight=weight, class_weight=by_class, return_dict=True
        )
        # Without them the step is made anew.
        model.fit(x, y, batch_size=96, shuffle=False, verbose=0)
        outcomes.append((logs, batch, model.get_weights()))
    np.testing.assert_equal(outcomes[0], outcomes[1])


@pytest.mark.parametrize("task", ["id", "one_hot", "sold"])
def test_class_weights_of_one_output_are_those_of_stock_keras(task):
    x, y, class_weight, _ = labels_of_classes()
    class_weight["id"].pop(4)  # Keras divides by absent labels too.
    weights = []
    for cls, by_class in (
        (keras.Model, class_weight[task]),
        (mtl_keras.MultiTaskModel, {task: class_weight[task]}),
    ):
        model = classifier(cls, [task])
        labels = y[task] if cls is keras.Model else {task: y[task]}
        model.fit(x, labels, class_weight=by_class, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ({0: 1.0, 1: 2.0}, "only supported for Models with a single output"),
        ({"solt": {0: 1.0}}, r"output in `class_weight`. Did you mean 'sold'\?"),
        ({"sold": [1.0, 9.0]}, r"output 'sold' as a dict from .* \[1.0, 9.0\]"),
        ({"sold": {-1: 1.0}}, "integers of at least 0"),
        ({"sold": {0: -1.0}}, "numbers of at least 0"),
        ({"sold": {0: float("nan")}}, "numbers of at least 0"),
        ({"sold": {0: 1.0}, 1: {0: 1.0}}, "Unknown output in `class_weight`"),
    ],
)
def test_class_weights_that_cannot_be_are_refused(class_weight, message):
    x, y, _, _ = labels_of_classes()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(24)
    with pytest.raises(ValueError, match=message):
        classifier().fit(dataset, class_weight=class_weight, verbose=0)


def test_class_weights_beside_sample_weights_are_refused_as_in_keras():
    x, y, class_weight, by_hand = labels_of_classes()
    model = classifier()
    for call in (model.fit, model.train_on_batch):
        with pytest.raises(ValueError, match=r"same time. Received both of 'id'"):
            call(x, y, sample_weight=by_hand, class_weight=class_weight)

    class Own(mtl_keras.MultiTaskModel):
        def train_step(self, data):
            x, y = data
            return self.compute_metrics(x, y, self(x, training=True))

    with pytest.raises(InputError, match=r"to call super\(\).train_step"):
        classifier(Own).fit(x, y, class_weight=class_weight, verbose=0)
