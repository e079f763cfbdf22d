"""The multimodal application: inputs of its tasks, and answers to bad input."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import applications, serving
from mtl_keras.errors import InputError
from mtl_keras.model.task_variables import reached_variables, split_variables

RATE = 8_000
PAIRED = "multimodal/paired_generated"
USES = {
    "digit": {"image", "audio"},
    "even": {"image", "audio"},
    "speaker": {"audio"},
    "sentiment": {"text"},
}


@pytest.fixture(scope="module")
def application(small_multimodal):
    return applications.Multimodal(data_dir=small_multimodal)


@pytest.fixture(scope="module")
def model(application):
    keras.utils.set_random_seed(0)
    return application.build(width=2)


def load(application, split="train", batch_size=16, **kwargs):
    return application.load(
        split, batch_size=batch_size, data_dir=application.data_dir, **kwargs
    )


def batch(seed=0):
    """Three samples with all modalities."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(1, 256, (3, 28, 28, 1)).astype("uint8"),
        "audio": rng.normal(0, 0.2, (3, RATE)).astype("float32"),
        "text": np.array(["a fine film", "dull and long", "so so"][seed:] * 3)[:3],
    }


def hard_input():
    """Samples of every kind that may go wrong, and how many there are."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.2, 3 * RATE).astype("float32")
    waveforms = [
        np.zeros(3 * RATE),  # silence
        np.pad(noise[:3], (0, 3 * RATE - 3)),  # too short
        noise,  # too long
        np.where(np.arange(3 * RATE) % 97, noise, np.nan),  # damaged
        1e30 * noise,  # far too loud
    ]
    texts = ["", " \t\n\u2003", b"\xff\xfe\x00film", "word " * 5_000, "\u202e!?\x85"]
    images = np.zeros((5, 28, 28, 1), "uint8")  # black
    images[4] = 255
    # Every modality at its worst, alone and together.
    count = 5
    return {
        "image": np.concatenate([images, np.zeros_like(images), images]),
        "audio": np.concatenate(
            [np.zeros((5, 3 * RATE)), np.stack(waveforms), np.stack(waveforms)]
        ).astype("float32"),
        "text": np.array([""] * count + texts + texts[::-1], dtype=object),
    }, 3 * count


def test_labels_and_weights(application):
    inputs, labels, weights = zip(*load(application).as_numpy_iterator(), strict=True)
    for task, used in USES.items():
        weight = np.concatenate([w[task] for w in weights])
        present = np.zeros(len(weight), bool)
        for name in used:
            x = [b[name] for b in inputs]
            present |= np.concatenate(
                [
                    np.reshape(p != (b"" if name == "text" else 0), (len(p), -1)).any(1)
                    for p in x
                ]
            )
        np.testing.assert_array_equal(weight > 0, present)
    digit = np.concatenate([w["digit"] for w in weights])
    assert sorted(set(digit.tolist())) == [0.0, 1.0, 4.0]
    for batch_labels in labels:
        for values in batch_labels.values():
            assert values.min() >= 0


def test_samples_without_a_chosen_label_are_left_out(application):
    heard = load(application, tasks=["speaker"])
    batches = list(heard.as_numpy_iterator())
    assert heard.cardinality() == len(batches)
    assert all(x["audio"].any(1).all() for x, _, _ in batches)


def test_a_limit_takes_the_same_samples_whatever_the_tasks(application):
    every = load(application, limit=30).unbatch().as_numpy_iterator()
    recordings = [x["audio"] for x, _, w in every if w["speaker"] > 0]
    heard = load(application, tasks=["speaker"], limit=30).unbatch()
    alone = [x["audio"] for x, _, _ in heard.as_numpy_iterator()]
    assert 0 < len(alone) == len(recordings) < 30
    for one, other in zip(alone, recordings, strict=True):
        length = min(len(one), len(other))
        np.testing.assert_array_equal(one[:length], other[:length])


@pytest.mark.parametrize("task", list(USES))
def test_a_task_depends_on_the_modalities_that_carry_its_label(model, task):
    base, other = batch(), batch(1)
    before = model.predict_on_batch(base)[task]
    for name in base:
        changed = model.predict_on_batch({**base, name: other[name]})[task]
        assert np.array_equal(before, changed) == (name not in USES[task])


def test_encoders_and_trunk_belong_to_the_tasks_they_serve(model):
    split = split_variables(model, reached_variables(model, model.output))
    owner = {v.path: "shared" for v in split.shared}
    owner |= {v.path: task for task, vs in split.own.items() for v in vs}
    assert not split.unused
    for path, name in owner.items():
        part = path.split("/")[0]
        if part == "text_vector" or "text_encoder" in path:
            assert name == "sentiment"
        elif part.startswith(tuple(USES)):
            assert name == part.split("_")[0]
        else:
            assert name == "shared", path


def test_no_boundary_between_shared_layers_and_heads(model, application):
    balancing = {
        "class_name": "upgrad",
        "config": {"gradients_of": "representation"},
    }
    with pytest.raises(InputError, match='use gradients_of="shared"'):
        model.compile("sgd", loss=application.losses(), balancing=balancing)


@pytest.mark.parametrize(
    ("data", "fusion", "sharing", "balancing"),
    [
        (None, "concat", "hard", "equal"),
        pytest.param(None, "concat", "mmoe", "upgrad", marks=pytest.mark.slow),
        pytest.param(PAIRED, "gated", "hard", "equal", marks=pytest.mark.slow),
        pytest.param(
            PAIRED, "cross_attention", "hard", "uncertainty", marks=pytest.mark.slow
        ),
    ],
)
def test_every_fusion_learns(application, data, fusion, sharing, balancing):
    application = application.for_data(data)
    assert ("sentiment" in application.tasks) == (data is None)
    model = application.build(backbone=fusion, sharing=sharing, width=2)
    model.compile(
        keras.optimizers.Adam(1e-2),
        loss=application.losses(),
        metrics=application.metrics(),
        balancing=balancing,
        run_eagerly=True,  # tracing would take most of the time
    )
    train = load(application, batch_size=50)
    history = model.fit(train, epochs=2, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.slow
def test_hard_input_trains_and_is_answered(application, small_multimodal):
    keras.utils.set_random_seed(1)
    model = application.build(width=2)
    inputs, count = hard_input()
    answers = model.predict_on_batch(inputs)
    for values in answers.values():
        assert np.isfinite(values).all()
    # Without content nothing is left to tell samples apart.
    np.testing.assert_array_equal(answers["digit"][0], answers["digit"][1])
    # Only the first second counts.
    cut = {**inputs, "audio": inputs["audio"][:, :RATE]}
    np.testing.assert_allclose(
        model.predict_on_batch(cut)["speaker"], answers["speaker"], atol=1e-6
    )
    # Loudness does not matter, but for rounding.
    louder = {**batch(), "audio": batch()["audio"] * 4}
    np.testing.assert_allclose(
        model.predict_on_batch(louder)["speaker"],
        model.predict_on_batch(batch())["speaker"],
        atol=1e-4,
    )
    model.compile(keras.optimizers.Adam(1e-2), loss=application.losses())
    labels = {
        task: np.zeros((count, 1) if task in ("even", "sentiment") else count)
        for task in application.tasks
    }
    samples = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(count)
    history = model.fit(samples, epochs=2, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    for variable in model.variables:
        assert np.isfinite(variable.numpy()).all(), variable.path


# One of images and sounds, and one of texts.
SERVED = ["digit", "sentiment"]


@pytest.fixture(scope="module")
def loaded(model, application, tmp_path_factory):
    """The model's export, loaded."""
    folder = tmp_path_factory.mktemp("export")
    version = serving.export(
        model, folder, tasks=SERVED, class_names=application.class_names()
    )
    return tf.saved_model.load(str(version))


def test_exported_tasks_take_the_inputs_that_they_use(model, loaded):
    inputs, _ = hard_input()
    inputs = {name: np.concatenate([x[:3], x]) for name, x in inputs.items()}
    inputs = {name: tf.constant(x) for name, x in inputs.items()}
    expected = model.predict_on_batch(inputs)
    for task in SERVED:
        used = USES[task]
        signature = loaded.signatures[task]
        assert set(signature.structured_input_signature[1]) == used
        answer = signature(**{name: inputs[name] for name in used})
        np.testing.assert_allclose(answer[task], expected[task], atol=1e-5)


def test_a_request_may_leave_modalities_out(model, loaded):
    ask = loaded.signatures["from_examples"]
    x = batch()
    audio = tf.train.FloatList(value=x["audio"][0])
    example = tf.train.Example(
        features=tf.train.Features(
            feature={"audio": tf.train.Feature(float_list=audio)}
        )
    )
    answer = ask(inputs=tf.constant([example.SerializeToString()]))
    expected = model.predict_on_batch(
        {
            "image": np.zeros((1, 28, 28, 1), "uint8"),
            "audio": x["audio"][:1],
            "text": np.array([""]),
        }
    )
    for task in SERVED:
        np.testing.assert_allclose(answer[task], expected[task], atol=1e-5)


def test_saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    inputs, _ = hard_input()
    expected = model.predict_on_batch(inputs)
    for task, values in loaded.predict_on_batch(inputs).items():
        np.testing.assert_array_equal(values, expected[task])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a.for_data("multimodal/pared"), "Did you mean 'multimodal/paired'"),
        (lambda a: load(a, split="tests"), "Did you mean 'test'"),
        (lambda a: load(a, split="test_complete"), "Expected one of: test, train"),
        (lambda a: a.build(backbone="gate"), "Did you mean 'gated'"),
        (lambda a: a.for_data(PAIRED).build(tasks=["sentiment"]), "'sentiment'"),
    ],
)
def test_errors_name_the_way_out(application, call, message):
    with pytest.raises(InputError, match=message):
        call(application)
