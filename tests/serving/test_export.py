"""Files in and beside an export, parts that stay out, and its check."""

from __future__ import annotations

import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from keras import layers
from shop_model import CLASS_NAMES, shop_inputs, shop_model
from tensorflow_serving.config import model_server_config_pb2

from mtl_keras import serving
from mtl_keras.errors import InputError
from mtl_keras.runs import RunConfig, compiled_model
from mtl_keras.serving.check import compare
from mtl_keras.serving.warmup import read_records


def test_parts_for_training_alone_stay_out(shop, tiny, tmp_path):
    model = compiled_model(RunConfig("tiny", balancing="uncertainty").validate(), 6)
    model.fit(tiny.load("train", batch_size=16), epochs=1, verbose=0, shuffle=False)
    version = serving.export(model, tmp_path)
    stored = dict(tf.train.list_variables(version / "variables/variables"))
    shapes = sorted(
        tuple(shape) for name, shape in stored.items() if "served_variables" in name
    )
    assert shapes == sorted(tuple(v.shape) for v in model.weights)
    # Nothing but the weights, the table of words' indices and the saver's own entry.
    stored = dict(tf.train.list_variables(shop.version / "variables/variables"))
    others = [name for name in stored if "served_variables" not in name]
    assert others == ["_CHECKPOINTABLE_OBJECT_GRAPH"]
    assert len(stored) - 1 == len(shop.model.weights)


def test_class_names_and_server_files_lie_beside(shop):
    assets = shop.version / "assets"
    assert (assets / "kind.classes").read_text().split() == CLASS_NAMES["kind"]
    names = {a.filename for a in shop.runtime.meta_graph.asset_file_def}
    assert {"kind.classes", "sold.classes"} <= names
    folder = shop.version.parent
    config = text_format.Parse(
        (folder / "models.config").read_text(),
        model_server_config_pb2.ModelServerConfig(),
    )
    (entry,) = config.model_config_list.config
    assert (entry.name, entry.model_platform) == ("shop", "tensorflow")
    assert pathlib.Path(entry.base_path) == folder
    batching = (folder / "batching.config").read_text()
    # The largest allowed size has to be the largest that there is.
    assert "max_batch_size { value: 32 }" in batching
    assert re.findall(r"allowed_batch_sizes: (\d+)", batching) == ["1", "8", "32"]
    # The server's own padding repeats a request's first value: a wrong answer.
    assert "pad_variable_length_inputs" not in batching


@pytest.mark.parametrize("weights", ["float16", "int8"])
@pytest.mark.slow
def test_smaller_weights_answer_nearly_the_same(shop, tmp_path, weights):
    small = serving.compress(shop.model, weights)
    version = serving.export(small, tmp_path, samples=shop.inputs)
    assert serving.check(version, seconds=0).problems == []
    with serving.Runtime(version) as runtime:
        answer = runtime.predict("serving_default", shop.inputs)
    whole = shop.model.predict_on_batch(shop.inputs)
    worst = max(float(np.max(np.abs(answer[t] - whole[t]))) for t in whole)
    assert 0 < worst < {"float16": 0.01, "int8": 0.2}[weights]
    stored = tf.train.load_checkpoint(str(version / "variables/variables"))
    kinds = {dtype.name for dtype in stored.get_variable_to_dtype_map().values()}
    kinds -= {"string"}
    assert kinds == {"float16": {"float16"}, "int8": {"int8", "float32"}}[weights]
    # The model itself is as it was.
    again = shop.model.predict_on_batch(shop.inputs)
    for task in whole:
        np.testing.assert_array_equal(again[task], whole[task])


def test_half_storage_is_the_model_of_rounded_weights():
    model = shop_model()
    small = serving.compress(model, "float16")
    rounded = [w.astype("float16").astype("float32") for w in model.get_weights()]
    model.set_weights(rounded)
    inputs = {name: tf.constant(v) for name, v in shop_inputs(6).items()}
    expected, answer = model(inputs), small(inputs)
    for task in expected:
        np.testing.assert_allclose(answer[task], expected[task], rtol=1e-6, atol=1e-6)
    with pytest.raises(InputError, match="Did you mean 'int8'"):
        serving.compress(model, "int")


def test_without_samples_and_without_examples(tmp_path):
    x = keras.Input((None, None, 2), name="x")
    y = layers.Dense(2, name="y")(layers.GlobalMaxPooling2D()(x))
    model = keras.Model(x, {"y": y})
    with pytest.raises(InputError, match="examples=False"):
        serving.export(model, tmp_path)
    version = serving.export(model, tmp_path, examples=False)
    report = serving.check(tmp_path, seconds=0)
    assert report.version == version
    assert set(report.signatures) == {"serving_default", "y"}
    assert report.problems == []


def two_inputs():
    x = {
        "size": keras.Input((2,), name="size"),
        "room": keras.Input((1,), dtype="int32", name="room"),
    }
    room = layers.Flatten()(layers.Embedding(9, 2)(x["room"]))
    y = layers.Dense(1, name="y")(layers.Concatenate()([x["size"], room]))
    return keras.Model(x, {"y": y})


@pytest.mark.parametrize(
    "samples",
    [
        {"size": np.ones((3, 2)), "room": np.array([[1.0], [2.0], [8.0]])},  # float64
        {"size": [[1, 2], [3, 4]], "room": [3, 4]},
        {"size": np.ones((2, 2), "float16"), "room": tf.constant([[1], [2]], "uint8")},
        {"size": np.ones((2, 2, 1), bool), "room": np.ones((2, 1)), "price": None},
        {"size": tf.ones((2, 2), "bfloat16"), "room": tf.ones((2,), tf.int64)},
    ],
)
def test_samples_are_cast_as_fit_casts_them(tmp_path, samples):
    model = two_inputs()
    version = serving.export(model, tmp_path, samples=samples)
    # The server's own loader refuses a record of another dtype or rank.
    assert serving.check(version, seconds=0).problems == []
    # The first record holds Keras's answer to the same samples.
    first = read_records(version)[0]
    inputs = {name: np.asarray(samples[name]) for name in ("size", "room")}
    model.compile("sgd", "mse")
    answer = model.predict({k: v[:1] for k, v in inputs.items()}, verbose=0)["y"]
    stored = tf.make_ndarray(first.response.outputs["y"])
    np.testing.assert_allclose(stored, answer, rtol=1e-5)


SIZE = np.ones((2, 2))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"size": SIZE}, r"none of \['room'\]"),
        (SIZE, "samples by input"),
        ([SIZE, [1, 2]], "samples by input"),
        ({"size": SIZE, "room": [1]}, "1 of room, 2 of size"),
        ({"size": SIZE[:0], "room": []}, "0 of room, 0 of size"),
        ({"size": np.ones((2, 3)), "room": [1, 2]}, r"'size' of shape \(None, 2\)"),
        ({"size": np.ones((2, 2, 2)), "room": [1, 2]}, r"shape \(2, 2, 2\)"),
        ({"size": [1, 2], "room": [1, 2]}, r"shape \(2,\)"),
        ({"size": [[1, 2], [3]], "room": [1, 2]}, "inhomogeneous"),
        ({"size": tf.ragged.constant([[1.0], [1, 2]]), "room": [1, 2]}, "RaggedTensor"),
        ({"size": tf.sparse.eye(2), "room": [1, 2]}, "SparseTensor"),
        ({"size": [["a", "b"]], "room": [1]}, "'size' .* that casts to float32"),
        ({"size": [[None, 1]], "room": [1]}, "dtype object"),
        ({"size": SIZE, "room": 1}, r"shape \(\)"),
    ],
)
def test_samples_that_fit_no_input_are_refused_before_anything_is_written(
    tmp_path, samples, message
):
    with pytest.raises(InputError, match=message) as caught:
        serving.export(two_inputs(), tmp_path / "served", samples=samples)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "served").exists()


def test_inputs_and_tasks_that_no_argument_of_python_can_be_called(tmp_path):
    names = ["weight.kg", "age-group", "1st", "args", "training", "name", "inputs"]
    x = {name: keras.Input((1,), name=name) for name in names}
    joined = layers.Concatenate()(list(x.values()))
    model = keras.Model(x, {"class": layers.Dense(1, name="class")(joined)})
    samples = {name: np.full((3, 1), i, "float32") for i, name in enumerate(names)}
    version = serving.export(model, tmp_path / "served", samples=samples)
    report = serving.check(version, seconds=0)
    assert report.problems == []
    assert set(report.signatures) == {"serving_default", "class", "from_examples"}
    for name in names:
        assert f"`{name}`" in (version / "MODEL_CARD.md").read_text()

    for name in ("class", "self"):
        x = keras.Input((1,), name=name)
        model = keras.Model(x, {"y": layers.Dense(1, name="y")(x)})
        with pytest.raises(InputError, match=f"Expected names of inputs.*'{name}'"):
            serving.export(model, tmp_path / "refused", examples=False)


def test_one_input_takes_an_array_alone_and_strings_of_any_type(tmp_path):
    title = keras.Input((), dtype="string", name="title")
    tokens = layers.TextVectorization(vocabulary=["red"], output_sequence_length=2)
    x = layers.Embedding(4, 2)(tokens(title))
    model = keras.Model(title, {"y": layers.GlobalAveragePooling1D(name="y")(x)})
    for samples in (["red", "größer"], np.array([["red"]]), tf.constant(["red"])):
        version = serving.export(model, tmp_path, samples=samples)
        assert serving.check(version, seconds=0).problems == []
    for samples in ([1, 2], ["red", None]):
        with pytest.raises(InputError, match="strings"):
            serving.export(model, tmp_path, samples=samples)


def test_check_measures_each_signature_and_batch_size(shop):
    report = serving.check(shop.version, seconds=0.001)
    assert report.problems == []
    for name, signature in report.signatures.items():
        assert [timing.batch_size for timing in signature.timings] == [1, 8, 32], name
        for timing in signature.timings:
            assert 0 < timing.median_ms <= timing.p95_ms
            assert timing.samples_per_second > 0
    assert max(signature.difference for signature in report.signatures.values()) < 1e-5


def test_check_sees_other_weights_and_lost_records(shop, tmp_path):
    other = tmp_path / "1"
    shutil.copytree(shop.version, other)
    keras.utils.set_random_seed(8)
    different = serving.export(shop_model(), tmp_path / "different")
    shutil.rmtree(other / "variables")
    shutil.copytree(different / "variables", other / "variables")
    problems = serving.check(other, seconds=0).problems
    for name in shop.runtime.signatures:
        assert any(problem.startswith(f"{name}: ") for problem in problems), name

    lost = tmp_path / "2"
    shutil.copytree(shop.version, lost)
    records = lost / "assets.extra" / "tf_serving_warmup_requests"
    few = list(tf.data.TFRecordDataset(str(records)).take(3).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(records)) as writer:
        writer.write(few[0])
    problems = serving.check(lost, seconds=0).problems
    assert "kind: no warm-up record" in problems
    records.write_bytes(records.read_bytes()[:-3])
    with pytest.raises(InputError, match="broken"):
        serving.check(lost)
    with tf.io.TFRecordWriter(str(records)) as writer:
        writer.write(b"no message")
    with pytest.raises(InputError, match="broken"):
        serving.check(lost)
    records.unlink()
    with pytest.raises(InputError, match="no warm-up records"):
        serving.check(lost)


def test_check_without_an_export_is_one_line(shop, tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match="export"):
            serving.check(path)
    broken = tmp_path / "3"
    shutil.copytree(shop.version, broken)
    (broken / "saved_model.pb").write_bytes(b"not a model")
    with pytest.raises(InputError, match="loader") as caught:
        serving.check(broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "differs"),
    [
        ({"y": np.array([1.0, np.nan, 1e6])}, False),
        ({"y": np.array([1.0 + 1e-6, np.nan, 1e6 + 5])}, False),
        ({"y": np.array([1.0, np.nan, 1e6 + 20])}, True),
        ({"y": np.array([1.0, 2.0, 1e6])}, True),
        ({"y": np.array([1.0, np.nan, np.nan])}, True),
        ({"y": np.array([1.0, np.nan])}, True),
        ({"y": np.array([1, 0, 10**6])}, True),
        ({"z": np.array([1.0, np.nan, 1e6])}, True),
    ],
)
def test_comparison(answer, differs):
    problems, _ = compare(answer, {"y": np.array([1.0, np.nan, 1e6])}, 1e-5)
    assert bool(problems) == differs
    texts = {"t": np.array([b"a", b"b"], object)}
    assert compare(texts, {"t": np.array([b"a", b"b"], object)}, 0) == ([], 0)
    assert compare(texts, {"t": np.array([b"a", b"c"], object)}, 0)[0]
