"""Inputs, layers and answers of each signature."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import mtl_keras
from mtl_keras import applications, ops, serving
from mtl_keras.errors import InputError
from mtl_keras.serving.served_model import merge, served_model
from mtl_keras.serving.signatures import signatures


def forms(tensors):
    return {
        name: (
            tf.dtypes.as_dtype(info.dtype).name,
            [dim.size for dim in info.tensor_shape.dim],
        )
        for name, info in tensors.items()
    }


def test_names_dtypes_and_shapes_are_the_model_s_own(shop):
    by_name = shop.runtime.signatures
    assert set(by_name) == {
        *("serving_default", "kind", "sold", "amount", "features"),
        *("from_examples", "classify_kind", "classify_sold"),
    }
    trunk_inputs = {
        "image": ("uint8", [-1, 6, 6, 1]),
        "title": ("string", [-1]),
        "price": ("float32", [-1, 1]),
    }
    everything = {**trunk_inputs, "history": ("int64", [-1, -1])}
    assert forms(by_name["serving_default"].inputs) == everything
    for name in ("kind", "sold", "features"):
        assert forms(by_name[name].inputs) == trunk_inputs, name
    assert forms(by_name["amount"].inputs) == everything
    assert forms(by_name["features"].outputs) == {"features": ("float32", [-1, 8])}
    kind = {"kind": ("float32", [-1, 3]), "kind_label": ("string", [-1])}
    assert forms(by_name["kind"].outputs) == kind
    assert forms(by_name["serving_default"].outputs) == {
        **kind,
        "sold": ("float32", [-1, 1]),
        "sold_label": ("string", [-1]),
        "amount": ("float32", [-1, 1]),
    }
    for name in ("from_examples", "classify_kind"):
        assert forms(by_name[name].inputs) == {"inputs": ("string", [-1])}
    assert forms(by_name["classify_kind"].outputs) == {
        "scores": ("float32", [-1, 3]),
        "classes": ("string", [-1, 3]),
    }


def test_answers_are_those_of_predict_with_the_likeliest_names(shop):
    expected = shop.model.predict_on_batch(shop.inputs)
    answer = shop.runtime.predict("serving_default", shop.inputs)
    for task, value in expected.items():
        np.testing.assert_allclose(answer[task], value, rtol=1e-5, atol=1e-6)
    kinds = np.array([b"tool", b"toy", b"book"])[expected["kind"].argmax(-1)]
    assert answer["kind_label"].tolist() == kinds.tolist()
    sold = np.where(expected["sold"][:, 0] > 0.5, b"yes", b"no")
    assert answer["sold_label"].tolist() == sold.tolist()
    assert len(set(kinds)) > 1
    features = keras.Model(shop.model.inputs, shop.model.get_layer("trunk").output)
    needed = {k: v for k, v in shop.inputs.items() if k != "history"}
    np.testing.assert_allclose(
        shop.runtime.predict("features", needed)["features"],
        features.predict_on_batch(shop.inputs),
        rtol=1e-5,
        atol=1e-6,
    )


def test_one_task_of_five_costs_its_own_layers_only():
    model = applications.get("vision").build(width=4, sharing="hard")
    heads = {
        task: {
            layer.name
            for layer in keras.Model(model.inputs, output).layers
            if layer.name.split("_")[0] == task.split("_")[0]
        }
        for task, output in model.output.items()
    }
    functions = {s.name: s.function() for s in signatures(served_model(model))}
    count = {}
    for task in model.tasks:
        graph = functions[task].graph
        # TensorFlow numbers scopes that it has seen before.
        scopes = {
            re.sub(r"_\d+$", "", part)
            for operation in graph.get_operations()
            for part in operation.name.split("/")
        }
        assert task in scopes & heads[task]
        for other in model.tasks:
            if other != task:
                assert not heads[other] & scopes, (task, other)
        # Exactly the variables on the way to the output, found by Keras.
        part = keras.Model(model.inputs, model.output[task])
        read = {variable.name for variable in functions[task].variables}
        assert len(functions[task].variables) == len(part.weights)
        assert len(read) == len(part.weights)
        count[task] = len(graph.get_operations())
    features = len(functions["features"].graph.get_operations())
    whole = len(functions["serving_default"].graph.get_operations())
    # Each costs the shared layers and its own: what is saved are the other heads.
    own = {task: total - features for task, total in count.items()}
    assert whole == pytest.approx(features + sum(own.values()), abs=5 * len(own))
    assert all(total < 0.6 * whole for total in count.values())


def test_features_of_several_tensors_bear_the_names_of_their_layers():
    x = keras.Input((4,), name="x")
    stages = [layers.Dense(5, name="trunk"), layers.Dense(3, name="last")]
    features = mtl_keras.sharing.get("mmoe")(x, stages, ["a", "b"])
    outputs = {t: layers.Dense(1, name=t)(features[t]) for t in ("a", "b")}
    served = served_model(mtl_keras.MultiTaskModel(x, outputs))
    (signature,) = [s for s in signatures(served) if s.name == "features"]
    answer = signature.function()(x=tf.eye(4))
    assert {name: value.shape.as_list() for name, value in answer.items()} == {
        "features_trunk": [4, 5],
        "features_experts": [4, 4, 3],
    }
    np.testing.assert_allclose(answer["features_trunk"], stages[0](np.eye(4)), 1e-5)


class Choose(layers.Layer):
    """Trains on the mean of its inputs; serves the second."""

    def call(self, first, second):
        return (first + second) / 2

    def serving_call(self, first, second):
        return second


def test_layers_are_served_by_their_serving_call(tmp_path):
    teacher, x = keras.Input((2,), name="teacher"), keras.Input((2,), name="x")
    first = layers.Dense(3, name="first")(teacher)
    second = layers.Dense(3, name="second")(x)
    chosen = Choose()(first, second)
    model = mtl_keras.MultiTaskModel(
        {"teacher": teacher, "x": x},
        {"a": layers.Dense(1, name="a")(chosen), "b": layers.Dense(2, name="b")(x)},
    )
    version = serving.export(model, tmp_path)
    value = np.array([[1, 2], [3, 4.5]], "float32")
    with serving.Runtime(version) as runtime:
        assert set(runtime.signatures["serving_default"].inputs) == {"x"}
        answer = runtime.predict("a", {"x": value})["a"]
    expected = model.get_layer("a")(model.get_layer("second")(value))
    np.testing.assert_allclose(answer, expected, rtol=1e-5)
    names = [
        name for name, _ in tf.train.list_variables(version / "variables/variables")
    ]
    stored = [name for name in names if "served_variables" in name]
    # `first` is not needed any more.
    assert len(stored) == 6


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (keras.losses.BinaryCrossentropy(from_logits=True), "sigmoid"),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), "softmax"),
        (keras.losses.SparseCategoricalCrossentropy(), "linear"),
        ("mse", "linear"),
    ],
)
def test_logits_become_probabilities(loss, expected):
    x = keras.Input((3,), name="x")
    model = keras.Model(x, {"y": layers.Dense(4, name="y")(x)})
    model.compile("sgd", loss={"y": loss})
    inputs = {"x": np.eye(3, dtype="float32")}
    served = signatures(served_model(model))[0].keras_answer(inputs)["y"]
    raw = model(inputs["x"])["y"]
    np.testing.assert_allclose(
        served, getattr(keras.activations, expected)(raw), rtol=1e-5
    )


def test_inputs_without_names_get_stable_ones():
    for _ in range(2):
        keras.Input((1,))
        one = keras.Input((2,))
        model = keras.Model(one, {"y": layers.Dense(1)(one)})
        assert list(served_model(model).inputs) == ["input"]
    two = [keras.Input((2,)), keras.Input((2,), name="named"), keras.Input((2,))]
    model = keras.Model(two, {"y": layers.Add()(two)})
    assert list(served_model(model).inputs) == ["input_0", "named", "input_1"]


def test_mixed_precision_answers_in_float32():
    x = keras.Input((3,), name="x")
    half = layers.Dense(4, dtype="mixed_float16", name="y")(x)
    function = signatures(served_model(keras.Model(x, {"y": half})))[0].function()
    assert function.structured_outputs["y"].dtype == tf.float32


def test_an_output_may_be_an_input_or_that_of_another_task(tmp_path):
    x = keras.Input((2,), name="x")
    y = layers.Dense(3, name="y")(x)
    model = keras.Model(x, {"one": y, "two": y, "same": x})
    value = np.array([[1, 2], [3, 4.5]], "float32")
    with serving.Runtime(serving.export(model, tmp_path)) as runtime:
        for task, expected in model(value).items():
            for signature in ("serving_default", task):
                answer = runtime.predict(signature, {"x": value})[task]
                np.testing.assert_allclose(answer, expected, rtol=1e-5)


def test_several_models_are_served_as_one():
    def one(task, units, dtype="float32"):
        x = keras.Input((3,), dtype=dtype, name="x")
        y = layers.Dense(units, name=task)(layers.Dense(4, name="hidden")(x))
        return keras.Model(x, {task: y})

    left, right = one("left", 2), one("right", 3)
    joined = {s.name: s for s in signatures(merge([*map(served_model, (left, right))]))}
    x = np.eye(3, dtype="float32")
    answer = joined["serving_default"].function()(x=tf.constant(x))
    assert set(answer) == {"left", "right"}
    assert "features" not in joined
    for task, model in (("left", left), ("right", right)):
        np.testing.assert_allclose(answer[task], model(x)[task], rtol=1e-5)
        function = joined[task].function()
        assert len(function.variables) == len(model.weights)
    with pytest.raises(InputError, match="'left'"):
        merge([*map(served_model, (left, one("left", 2)))])
    with pytest.raises(InputError, match="'x'"):
        merge([*map(served_model, (left, one("right", 2, "int32")))])


@keras.saving.register_keras_serializable(package="tests")
class Foreign(layers.Layer):
    """Uses an operation that a server lacks, within a loop."""

    def __init__(self, callback, **kwargs):
        super().__init__(**kwargs)
        self.callback = callback

    def call(self, x):
        return tf.while_loop(
            lambda i, _: i < 2,
            lambda i, y: (i + 1, tf.reshape(self.callback(y), tf.shape(y))),
            (0, x),
        )[1]

    def compute_output_shape(self, shape):
        return shape


def call_python(x):
    return tf.numpy_function(lambda value: value, [x], x.dtype)


def own_operation(x):
    return tf.cast(ops.gramian([[x], [x]])[0, 0], x.dtype) + x


@pytest.mark.parametrize(
    ("callback", "operation"),
    [(call_python, "PyFunc"), (own_operation, "MtlKeras")],
)
def test_a_layer_that_needs_more_than_tensorflow_is_named(
    tmp_path, callback, operation
):
    if callback is own_operation and not ops.native_available():
        pytest.skip("needs the compiled ops")
    x = keras.Input((3,), name="x")
    bad = Foreign(callback, name="strange")(layers.Dense(3, name="fine")(x))
    outputs = {"a": layers.Dense(1, name="a")(x), "b": layers.Dense(1, name="b")(bad)}
    model = keras.Model(x, outputs)
    with pytest.raises(InputError, match=rf"'strange'.*{operation}"):
        serving.export(model, tmp_path / "served")
    assert not (tmp_path / "served").exists()
    # The other task alone can be served.
    assert serving.export(model, tmp_path / "served", tasks=["a"]).is_dir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: (keras.Model(x, y), {}), "outputs are a dict"),
        (lambda x, y: (keras.Model(x, {"a b": y}), {}), "'a b'"),
        (lambda x, y: (keras.Model(x, {"features": y}), {}), "'features'"),
        (lambda x, y: (keras.Model(x, {"y": y}), {"tasks": ["z"]}), "'z'"),
        (lambda x, y: (keras.Model(x, {"y": y}), {"tasks": []}), "at least one"),
        (
            lambda x, y: (keras.Model(x, {"y": y}), {"class_names": {"y": ["a"] * 3}}),
            "2 class names",
        ),
        (
            lambda x, y: (
                keras.Model(x, {"y": y, "y_label": layers.Dense(2)(x)}),
                {"class_names": {"y": ["a", "b"]}},
            ),
            "'y_label'",
        ),
        (lambda x, y: (keras.Model(x, {"y": y}), {"samples": {"z": 1}}), "samples"),
    ],
)
def test_models_that_cannot_be_served_are_one_line(tmp_path, make, message):
    x = keras.Input((2,), name="x")
    model, options = make(x, layers.Dense(2, name="y")(x))
    with pytest.raises(InputError, match=message) as caught:
        serving.export(model, tmp_path / "served", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "served").exists()
