"""The text application: its data, models, trainings and serving."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from mtl_keras import balancing, data, pareto
from mtl_keras.applications import Text
from mtl_keras.applications.text.decoder import Decoder
from mtl_keras.applications.text.sources import Source, samples
from mtl_keras.applications.text.tokens import tokens
from mtl_keras.compare import Comparison
from mtl_keras.data import GeneratedText
from mtl_keras.errors import InputError
from mtl_keras.evaluation import answer_scores
from mtl_keras.runs import RunConfig, training
from mtl_keras.runs.config import TrainingConfig

TASKS = ["sentiment", "answer", "translation"]
WIDTHS = {"rnn": 6, "mlp": 6, "transformer": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small `generated_text`."""
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        for name, config in GeneratedText.builder_configs.items():
            for split, count in (("train", 160), ("validation", 20), ("test", 40)):
                patch.setitem(config.examples, split, count)
            data.prepare(f"generated_text/{name}", data_dir=folder)
    return folder


@pytest.fixture
def text(folder):
    return Text(data_dir=folder)


def compiled(text, backbone, **arguments):
    model = text.build(backbone=backbone, width=WIDTHS[backbone], depth=1)
    model.compile(
        keras.optimizers.Adam(1e-2),
        loss=text.losses(),
        metrics=text.metrics(),
        **arguments,
    )
    return model


def test_batches_are_of_one_data_set_and_label_its_task(text):
    batches = list(text.load("train", batch_size=16, shuffle=True).as_numpy_iterator())
    assert len(batches) == 30
    seen = dict.fromkeys(TASKS, 0)
    for inputs, labels, weights in batches:
        (task,) = [task for task in TASKS if weights[task].any()]
        seen[task] += len(weights[task])
        assert weights[task].all()
        assert (inputs["question"] != b"").all() == (task == "answer")
        assert (inputs["target"] != b"").all() == (task == "translation")
        assert all(inputs["text"] != b"")
        assert set(labels) == set(TASKS)
    assert seen == dict.fromkeys(TASKS, 160)


def test_accumulated_batches_label_every_task(text):
    """One batch of each source at a time; conflicts between their tasks are seen."""
    load = {"batch_size": 16, "shuffle": True}
    batches = text.load("train", accumulate=True, **load)
    seen = dict.fromkeys(TASKS, 0)
    for _, _, weights in batches.as_numpy_iterator():
        for task in TASKS:
            assert weights[task].sum() == 16
            seen[task] += 16
    assert seen == dict.fromkeys(TASKS, 160)
    model = text.build(backbone="mlp", width=6, depth=1)
    model.compile(
        "adam",
        loss=text.losses(),
        balancing="pcgrad",
        monitor="conflicts",
        run_eagerly=True,
    )
    model.fit(batches.take(3), verbose=0)
    found = model.gradient_conflicts()
    between = ~np.eye(3, dtype=bool)
    np.testing.assert_array_equal(found["steps"], 3.0)
    assert np.all(found["cosines"][between] != 0.0)
    np.testing.assert_array_equal(found["shared_samples"], 16 * np.eye(3))


@pytest.mark.parametrize(("given", "taken"), [(None, True), (False, False)])
def test_comparisons_accumulate_unless_told_otherwise(given, taken):
    base = RunConfig("text", tasks=("sentiment", "answer"), accumulate=given)
    plan = Comparison(base, balancing=("equal",), seeds=1).validate()
    assert all(cell.config.accumulate is taken for cell in plan.cells())
    with pytest.raises(InputError, match="no `accumulate`"):
        RunConfig("vision", accumulate=True).validate()
    # What does not accumulate is the same training as before there was a choice.
    one, other = (
        RunConfig("text", accumulate=value).validate().identity()
        for value in (None, False)
    )
    assert one == other != RunConfig("text", accumulate=True).validate().identity()


@pytest.mark.parametrize(
    ("accumulate", "balancing", "skips"),
    [
        (True, "nash", True),
        (True, {"class_name": "mgda", "config": {"gradients_of": "representation"}}, 0),
        (False, "nash", False),
    ],
)
def test_accumulated_steps_read_each_source_alone(accumulate, balancing, skips, text):
    config = RunConfig(
        "text",
        tasks=("sentiment", "answer"),
        balancing=balancing,
        backbone="mlp",
        width=4,
        accumulate=accumulate,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingConfig, "get_application", lambda _: text)
        model = training.compiled_model(config.validate(), steps=10)
    assert model.get_compile_config()["skip_unlabelled"] == skips


def test_sources_read_apart_give_the_same_steps(text):
    """Padded to another source's texts or not; dropout would draw other masks."""
    batches = text.load("train", batch_size=8, shuffle=True, accumulate=True)
    batches = list(batches.take(2))
    models = []
    for skips in (False, True):
        keras.utils.set_random_seed(4)
        model = text.build(backbone="rnn", width=6, depth=1)
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
            if isinstance(layer, Decoder):
                layer.dropout.rate = 0.0
        model.compile(
            keras.optimizers.SGD(0.1),
            loss=text.losses(),
            balancing="pcgrad",
            skip_unlabelled=skips,
        )
        for x, y, sample_weight in batches:
            model.train_on_batch(x, y, sample_weight)
        models.append(model)
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_span_labels_are_the_answers_tokens(text):
    (inputs, labels, _) = next(
        iter(text.load("test", tasks=["answer"], batch_size=40).as_numpy_iterator())
    )
    raw = data.load("generated_text/answer", "test", data_dir=text.data_dir)
    answers = [row["answers"]["text"][0] for row in tfds.as_numpy(raw)]
    words = tokens(tf.constant(inputs["text"]), lowercase=False)
    for row, (first, last), answer in zip(
        words.to_list(), labels["answer"], answers, strict=True
    ):
        assert b" ".join(row[first : last + 1]) == answer


@pytest.mark.parametrize("place", [0, 130, 390])
def test_training_contexts_are_cut_around_the_answer(place, monkeypatch):
    words = [f"w{number}" for number in range(400)]
    words[place : place + 2] = ["Ärzte,", "(here)"]
    context = " ".join(words)
    answer = "Ärzte, (here"
    rows = tf.data.Dataset.from_tensors(
        {
            "context": context,
            "question": "where ?",
            "answers": {
                "text": [answer],
                "answer_start": [context.index(answer)],
            },
        }
    )
    monkeypatch.setattr(
        "mtl_keras.applications.text.sources.examples", lambda *args: rows
    )
    source = Source("squad", "answer", {"train": "train"})
    for crop in (False, True):
        ((inputs, labels),) = samples(
            source, "train", limit=None, crop=crop, data_dir=None
        ).as_numpy_iterator()
        (row,) = tokens(tf.constant([inputs["text"]]), lowercase=False).to_list()
        first, last = labels["answer"]
        assert [word.decode() for word in row[first : last + 1]] == [
            *("Ärzte", ",", "(", "here")
        ]
        assert len(row) == (150 if crop else 403)


def test_long_reviews_keep_both_ends(monkeypatch):
    words = [f"w{number}" for number in range(500)]
    rows = tf.data.Dataset.from_tensors({"text": " ".join(words), "label": 1})
    monkeypatch.setattr(
        "mtl_keras.applications.text.sources.examples", lambda *args: rows
    )
    source = Source("imdb", "sentiment", {"train": "train"})
    ((inputs, labels),) = samples(
        source, "train", limit=None, crop=True, data_dir=None
    ).as_numpy_iterator()
    assert inputs["text"].decode().split() == words[:100] + words[-100:]
    assert labels["sentiment"] == [1.0]


@pytest.mark.parametrize(
    ("backbone", "balancing"),
    [("mlp", "upgrad"), pytest.param("rnn", "equal", marks=pytest.mark.slow)],
)
def test_the_model_learns_saves_and_serves(text, tmp_path, backbone, balancing):
    """Each batch is of one data set: two tasks are absent from it."""
    # A step an epoch for each task, which is not worth a graph.
    model = compiled(text, backbone, balancing=balancing, run_eagerly=True)
    train = text.load("train", batch_size=160, shuffle=True)
    history = model.fit(train, epochs=4, verbose=0, shuffle=False).history
    for task in TASKS:
        assert history[f"{task}_loss"][-1] < history[f"{task}_loss"][0]
        assert f"{task}_{text.tasks[task].objective}" in history
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    (inputs, _, _) = next(iter(text.load("test", batch_size=20)))
    expected = model(inputs, training=False)
    for task, value in loaded(inputs, training=False).items():
        np.testing.assert_allclose(value, expected[task], atol=1e-5)
    serving = text.serving_model(loaded)
    serving.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(tmp_path / "exported").signatures["serving_default"]
    asked = {"text": inputs["text"], "question": inputs["question"]}
    answers = served(**asked)
    for task, value in serving(asked, training=False).items():
        if value.dtype == tf.string:
            np.testing.assert_array_equal(answers[task], value)
        else:
            np.testing.assert_allclose(answers[task], value, atol=1e-5)
    # Two texts alone are answered as within a batch of longer ones.
    alone = served(**{name: value[:2] for name, value in asked.items()})
    np.testing.assert_array_equal(alone["answer"], answers["answer"][:2])
    np.testing.assert_array_equal(alone["translation"], answers["translation"][:2])


@pytest.mark.parametrize("backbone", WIDTHS)
def test_every_backbone_builds(text, backbone):
    model = text.build(backbone=backbone, width=WIDTHS[backbone], depth=2)
    (inputs, _, _) = next(iter(text.load("test", batch_size=4)))
    outputs = model(inputs, training=False)
    assert {task: tuple(value.shape) for task, value in outputs.items()} == {
        "sentiment": (4, 1),
        "answer": (4, 2, 512),
        "translation": (4, 3),
    }
    assert all(np.isfinite(value).all() for value in outputs.values())


@pytest.mark.slow
def test_nothing_is_traced_after_the_first_epoch(text, monkeypatch):
    traces = []
    call = Decoder.call

    def counted(self, *args, **kwargs):
        traces.append(tf.inside_function())
        return call(self, *args, **kwargs)

    model = compiled(text, "mlp")
    monkeypatch.setattr(Decoder, "call", counted)
    # 160 samples of each are no whole number of batches, and lengths differ.
    train = text.load("train", batch_size=48, shuffle=True)
    model.fit(train, epochs=1, verbose=0, shuffle=False)
    first = len(traces)
    assert first >= 1
    assert all(traces)
    model.fit(train, epochs=2, verbose=0, shuffle=False)
    assert len(traces) == first


@pytest.mark.slow
def test_measured_texts_are_those_of_the_serving_model(text):
    model = compiled(text, "mlp")
    scores = text.measure(model, "test", batch_size=16)
    rows = list(
        tfds.as_numpy(
            data.load("generated_text/answer", "test", data_dir=text.data_dir)
        )
    )
    asked = {
        "text": tf.constant([row["context"] for row in rows]),
        "question": tf.constant([row["question"] for row in rows]),
    }
    answers = text.serving_model(model)(asked)["answer"].numpy()
    expected = answer_scores(
        [answer.decode() for answer in answers],
        [[text.decode() for text in row["answers"]["text"]] for row in rows],
    )
    assert scores["answer"] == pytest.approx(expected)
    assert 0 <= scores["translation"]["bleu"] <= 100
    assert set(scores) == {"answer", "translation"}


def test_a_conditioned_model_is_served_with_its_preference(text):
    model = pareto.manifold(text.build(backbone="mlp", width=4))
    rng = np.random.default_rng(0)
    # Changes of kernels start at 0.
    for variable in model.trainable_variables:
        variable.assign_add(0.1 * rng.normal(size=variable.shape))
    serving = text.serving_model(model)
    assert set(serving.input) == {"text", "question", "preference"}
    assert set(serving.output) == set(TASKS)
    (inputs, _, _) = next(iter(text.load("test", batch_size=4)))
    asked = model.with_preference(inputs, [1.0, 0.0, 3.0])
    expected = model(asked)["sentiment"]
    del asked["target"]
    answer = keras.Model(serving.input, serving.output["sentiment"])(asked)
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    assert np.abs(expected - model(inputs)["sentiment"]).max() > 1e-4


def test_one_data_set_alone_gives_its_task(folder):
    text = Text("generated_text/answer", folder)
    assert list(text.tasks) == ["answer"]
    model = text.build(backbone="mlp", width=4)
    assert model.tasks == ["answer"]
    assert set(text.serving_model(model).output) == {"answer"}
    (_, labels, _), *_ = text.load("test", batch_size=4)
    assert set(labels) == {"answer"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.for_data("generated_txt"), "Did you mean 'generated_text'"),
        (lambda t: t.for_data("squad/v1.1,squad/v1.1"), "one data set for 'answer'"),
        (lambda t: t.load("tset", batch_size=1), "Did you mean 'test'"),
        (lambda t: t.build(backbone="rn"), "Did you mean 'rnn'"),
        (lambda t: t.build(tasks=["anser"]), "Did you mean 'answer'"),
    ],
)
def test_wrong_names_give_the_nearest(text, call, message):
    with pytest.raises(InputError, match=message):
        call(text)


def train_with(text, name, batches):
    """Trains with a balancing method; returns losses by task, by epoch."""
    keras.utils.set_random_seed(3)
    config = {"krum": {"n_byzantine": 0}, "pcd": {"primary": "answer"}}.get(name, {})
    model = text.build(backbone="mlp", width=6)
    model.compile(
        keras.optimizers.Adam(5e-3),
        loss=text.losses(),
        balancing={"class_name": name, "config": config},
    )
    before = model.evaluate(batches, verbose=0, return_dict=True)
    history = model.fit(batches, epochs=3, verbose=0, shuffle=False).history
    after = model.evaluate(batches, verbose=0, return_dict=True)
    for key, values in history.items():
        assert np.isfinite(values).all(), key
    assert all(np.isfinite(value).all() for value in model.get_weights()[:-1])
    return before, after


GRAM_BASED = [
    name
    for name in balancing.names()
    if isinstance(balancing.get(name), balancing.GramBalancer)
]


@pytest.mark.slow
@pytest.mark.parametrize("name", balancing.names())
def test_every_method_trains_with_two_tasks_absent_from_each_batch(text, name):
    batches = text.load("train", batch_size=32)
    before, after = train_with(text, name, batches)
    print(name, {t: (before[f"{t}_loss"], after[f"{t}_loss"]) for t in TASKS})
    if name in GRAM_BASED:
        for task in TASKS:
            assert after[f"{task}_loss"] < before[f"{task}_loss"], task
