"""Requests as clients send them: messages, examples, and a thousand wrong ones."""

from __future__ import annotations

import json
import re
import types

import numpy as np
import pytest
import tensorflow as tf
from shop_model import CLASS_NAMES, shop_inputs
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from mtl_keras import serving
from mtl_keras.serving import examples


def example(**features):
    """Serializes one example, by TensorFlow's own messages."""
    kinds = {bytes: "bytes_list", int: "int64_list", float: "float_list"}
    made = tf.train.Example()
    for name, values in features.items():
        field = getattr(made.features.feature[name], kinds[type(values[0])])
        field.value.extend(values)
    return made.SerializeToString()


def assert_same(answer, expected):
    assert set(answer) == set(expected)
    for name, wanted in expected.items():
        if wanted.dtype.kind == "f":
            np.testing.assert_allclose(answer[name], wanted, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(answer[name], wanted)


def serve(runtime, serialized):
    """Answers a PredictRequest by a PredictResponse, both as bytes on the wire."""
    request = predict_pb2.PredictRequest.FromString(serialized)
    inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
    response = predict_pb2.PredictResponse(model_spec=request.model_spec)
    name = request.model_spec.signature_name
    for key, value in runtime.predict(name, inputs).items():
        response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
    return response.SerializeToString()


def test_messages_of_tensorflow_serving_carry_the_same_answers(shop):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "shop"
    request.model_spec.signature_name = "serving_default"
    for name, value in shop.inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    response = predict_pb2.PredictResponse.FromString(
        serve(shop.runtime, request.SerializeToString())
    )
    answer = {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
    predicted = shop.model.predict_on_batch(shop.inputs)
    assert_same({task: answer[task] for task in predicted}, predicted)
    names = [CLASS_NAMES["kind"][i].encode() for i in predicted["kind"].argmax(-1)]
    assert answer["kind_label"].tolist() == names


def test_warm_up_records_have_the_format_of_the_server(shop):
    file = shop.version / "assets.extra" / "tf_serving_warmup_requests"
    seen = {}
    for data in tf.data.TFRecordDataset(str(file)):
        log = prediction_log_pb2.PredictionLog.FromString(data.numpy())
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == "shop"
        inputs = {name: tf.make_ndarray(p) for name, p in request.inputs.items()}
        sizes = {len(value) for value in inputs.values()}
        seen.setdefault(request.model_spec.signature_name, set()).update(sizes)
        shop.runtime.predict(request.model_spec.signature_name, inputs)
    assert seen == {name: {1, 8, 32} for name in shop.runtime.signatures}


def test_examples_answer_as_raw_inputs_do(shop):
    rows = [
        example(
            image=shop.inputs["image"][i].ravel().tolist(),
            title=[shop.inputs["title"][i]],
            price=shop.inputs["price"][i].tolist(),
            history=shop.inputs["history"][i].tolist(),
        )
        for i in range(4)
    ]
    inputs = {name: value[:4] for name, value in shop.inputs.items()}
    expected = shop.runtime.predict("serving_default", inputs)
    requested = {"inputs": np.array(rows, object)}
    assert_same(shop.runtime.predict("from_examples", requested), expected)
    ours = {"inputs": examples.serialize(inputs)}
    assert_same(shop.runtime.predict("from_examples", ours), expected)

    kind = shop.runtime.predict("classify_kind", requested)
    np.testing.assert_allclose(kind["scores"], expected["kind"], rtol=1e-5)
    assert kind["classes"].tolist() == [[b"tool", b"toy", b"book"]] * 4
    sold = shop.runtime.predict("classify_sold", requested)
    both = np.concatenate([1 - expected["sold"], expected["sold"]], axis=1)
    np.testing.assert_allclose(sold["scores"], both, rtol=1e-5, atol=1e-7)
    assert sold["classes"].tolist() == [[b"no", b"yes"]] * 4


def test_a_feature_left_out_counts_as_zeros_or_empty(shop):
    rows = [
        example(price=[2.5], history=[3, 4, 5]),
        example(title=[b"red"], history=[7]),
        b"",
        # Pixels beyond uint8 become the nearest.
        example(image=[-5] * 18 + [999] * 18),
    ]
    image = np.zeros((4, 6, 6, 1), "uint8")
    image[3, 3:] = 255
    expected = shop.runtime.predict(
        "serving_default",
        {
            "image": image,
            "title": np.array([b"", b"red", b"", b""], object),
            "price": np.array([[2.5], [0], [0], [0]], "float32"),
            "history": np.array([[3, 4, 5], [7, 0, 0], [0] * 3, [0] * 3]),
        },
    )
    requested = {"inputs": np.array(rows, object)}
    assert_same(shop.runtime.predict("from_examples", requested), expected)


def test_requests_of_the_model_card_work(shop, monkeypatch):
    card = (shop.version / "MODEL_CARD.md").read_text()
    assert "accuracy 0.7500" in card
    for name in shop.runtime.signatures:
        assert f"| `{name}` |" in card
    first, rest, grpc = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {}
    exec(first, names)
    expected = shop.runtime.predict(
        "serving_default",
        {
            k: v.astype(object) if v.dtype.kind == "U" else v
            for k, v in names["inputs"].items()
        },
    )

    def post(url, json):
        assert url == "http://localhost:8501/v1/models/shop:predict"
        sent = json_of(json)
        types_ = shop.runtime.signatures[sent["signature_name"]].inputs
        inputs = {
            name: np.array(value, tf.dtypes.as_dtype(types_[name].dtype).as_numpy_dtype)
            for name, value in sent["inputs"].items()
        }
        answer = shop.runtime.predict(sent["signature_name"], inputs)
        return types.SimpleNamespace(json=lambda: {"outputs": answer})

    def json_of(value):
        return json.loads(json.dumps(value))

    import requests

    monkeypatch.setattr(requests, "post", post)
    exec(rest, names)
    assert_same(names["answer"], expected)

    class Stub:
        def __init__(self, channel):
            pass

        def Predict(self, request, timeout):  # noqa: N802
            return predict_pb2.PredictResponse.FromString(
                serve(shop.runtime, request.SerializeToString())
            )

    monkeypatch.setattr(prediction_service_pb2_grpc, "PredictionServiceStub", Stub)
    names.pop("answer")
    exec(grpc, names)
    assert_same(names["answer"], expected)


def malformed(rng, number):
    """Draws a signature and inputs of which something is wrong."""
    good = shop_inputs(int(rng.integers(1, 6)), seed=number)
    name = str(rng.choice(sorted(good)))
    value = good[name]
    kind = number % 12
    if kind == 0:
        good[name] = value.astype("float64") if name != "title" else value.size
    elif kind == 1:
        good[name] = value[..., None] if rng.random() < 0.5 else value.ravel()[0]
    elif kind == 2:
        del good[name]
    elif kind == 3:
        good[name.upper()] = good.pop(name)
    elif kind == 4:
        good["more"] = value
    elif kind == 5:
        good = {key: array[:0] for key, array in good.items()}
    elif kind == 6:
        good["price"][:] = rng.choice([np.nan, np.inf, -np.inf])
    elif kind == 7:
        good["history"] = rng.integers(-(2**62), 2**62, (len(good["price"]), 3))
    elif kind == 8:
        good[name] = np.concatenate([value] * 2)
    elif kind == 9:
        shape = list(value.shape)
        shape[int(rng.integers(len(shape)))] = int(rng.choice([0, 3, 10_000]))
        good[name] = np.resize(value, shape)
    elif kind == 10:
        good["title"] = np.array([rng.bytes(100_000)] * len(good["price"]), object)
    else:
        return "from_examples", {"inputs": malformed_examples(rng)}
    signature = str(rng.choice(["serving_default", "amount", "kind", "features", "no"]))
    if signature in ("kind", "features"):
        good.pop("history", None)
    return signature, good


def malformed_examples(rng):
    whole = example(image=[1] * 36, title=[b"red"], price=[0.5], history=[1, 2])
    options = [
        rng.bytes(int(rng.integers(1, 200))),
        whole[: int(rng.integers(len(whole)))],
        example(image=[1] * 35),
        example(image=[1.0] * 36),
        example(title=[3]),
        example(title=[b"a", b"b"]),
        example(price=[b"1"]),
        example(history=[10**15]),
        example(unknown=[b"x" * 100_000]),
    ]
    rows = np.empty(int(rng.integers(0, 4)), object)
    for index in range(len(rows)):
        rows[index] = options[rng.integers(len(options))]
    return rows if rng.random() < 0.9 else np.array(rows.tolist() or [b""])[None]


def test_a_thousand_malformed_requests_do_no_harm(shop):
    rng = np.random.default_rng(11)
    before = shop.runtime.predict("serving_default", shop.inputs)
    refused = answered = 0
    shortest = 1000
    for number in range(1000):
        signature, inputs = malformed(rng, number)
        inputs = {name: np.asarray(value) for name, value in inputs.items()}
        try:
            answer = shop.runtime.predict(signature, inputs)
        except serving.RefusedError as error:
            refused += 1
            shortest = min(shortest, len(str(error)))
        else:
            answered += 1
            sizes = {len(value) for value in inputs.values()}
            assert {len(value) for value in answer.values()} == sizes
    # Empty batches, infinite prices, long titles and well-formed remains answer.
    assert refused > 500
    assert shortest > 20
    assert answered > 150
    assert_same(shop.runtime.predict("serving_default", shop.inputs), before)


def test_a_huge_batch_is_answered(shop):
    inputs = {name: value.repeat(2000, axis=0) for name, value in shop.inputs.items()}
    answer = shop.runtime.predict("serving_default", inputs)
    assert answer["kind"].shape == (24_000, 3)
    assert_same(
        {name: value[::2000] for name, value in answer.items()},
        shop.runtime.predict("serving_default", shop.inputs),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"price": np.zeros((2, 1))}, "float"),
        ({"price": np.zeros((2, 2), "float32")}, r"\[2,2\].*\[\?,1\]"),
        ({"price": np.zeros((2, 1, 1), "float32")}, r"\[2,1,1\].*\[\?,1\]"),
        ({"prize": np.zeros((2, 1), "float32")}, "inputs.*'prize'"),
        ({"history": np.full((2, 1), 10)}, "not in"),
    ],
)
def test_malformed_requests_are_refused_with_the_cause(shop, changes, message):
    inputs = {**shop_inputs(2), **changes}
    with pytest.raises(serving.RefusedError, match=message):
        shop.runtime.predict("serving_default", inputs)
