"""The recommendation application: its inputs, models and trainings."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import applications, data
from mtl_keras.applications import features
from mtl_keras.data import Behaviour, CensusIncome, columns
from mtl_keras.data.columns import Column
from mtl_keras.embeddings import LazyAdam
from mtl_keras.errors import InputError
from mtl_keras.runs import RunConfig, evaluate, train

TASKS = ["click", "conversion", "click_and_conversion", "watch_time"]


@pytest.fixture(scope="session")
def small_behaviour(tmp_path_factory):
    """A folder with a small `behaviour/small`."""
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Behaviour.builder_configs["small"], "samples", 900)
        data.prepare("behaviour", data_dir=folder)
    return folder


@pytest.fixture
def behaviour(small_behaviour, monkeypatch):
    monkeypatch.setenv("MTL_KERAS_DATA_DIR", str(small_behaviour))
    return applications.get("recommendation")


def test_labels_are_absent_where_nobody_clicked(behaviour):
    table = data.read_table("behaviour", "train")
    batch = next(iter(behaviour.load("train", batch_size=10_000)))
    inputs, labels, weights = batch
    assert list(labels) == TASKS
    assert set(inputs) == set(behaviour.columns())
    assert not {"click_probability", "click", "conversion_if_clicked"} & set(inputs)
    clicked = table["click"] == 1
    np.testing.assert_array_equal(weights["conversion"], clicked)
    np.testing.assert_array_equal(weights["watch_time"], clicked)
    assert (weights["click"].numpy() == 1).all()
    seconds = np.expm1(labels["watch_time"][:, 0])[clicked]
    np.testing.assert_allclose(seconds, table["watch_time"][clicked], rtol=1e-4)
    # Without a task that lacks labels there are no weights.
    assert len(behaviour.load("test", batch_size=8, tasks=["click"]).element_spec) == 2


def test_shuffling_keeps_rows_together(behaviour):
    plain, mixed = (
        next(iter(behaviour.load("test", batch_size=500, shuffle=shuffle, seed=4)))
        for shuffle in (False, True)
    )

    def rows(batch):
        x, y, _ = batch
        columns = (x["user_id"], x["item_id"], y["click"])
        return list(zip(*(values.numpy().ravel() for values in columns), strict=True))

    assert rows(plain) != rows(mixed)
    assert sorted(rows(plain)) == sorted(rows(mixed))
    limited = behaviour.load("train", batch_size=500, limit=7)
    assert sum(len(x["price"]) for x, *_ in limited) == 7


@pytest.mark.parametrize(
    ("backbone", "sharing"),
    [("mlp", "esmm"), pytest.param("rnn", "hard", marks=pytest.mark.slow)],
)
def test_a_run_trains_saves_and_comes_back(
    behaviour, eagerly, tmp_path, backbone, sharing
):
    config = RunConfig(
        "recommendation",
        backbone=backbone,
        sharing=sharing,
        tasks=("click", "conversion", "click_and_conversion"),
        width=8,
        depth=1,
        epochs=1,
    )
    results = train(config, tmp_path / "run")
    again = evaluate(tmp_path / "run")
    for task in TASKS[:3]:
        assert results.metrics[task]["auc"] == pytest.approx(again[task]["auc"])
        assert {"log_loss", "calibration_error"} <= set(again[task])
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert isinstance(model.optimizer, LazyAdam)
    x, *_ = next(iter(behaviour.load("test", batch_size=50)))
    outputs = model(x)
    if sharing == "esmm":
        product = outputs["click"] * outputs["conversion"]
        np.testing.assert_allclose(outputs["click_and_conversion"], product, rtol=1e-5)


@pytest.mark.parametrize("kind", ["attention", "gru"])
def test_history_is_read_in_its_order_and_padding_is_not(kind):
    described = {
        "item": Column("category", "int64", vocabulary=tuple(range(1, 9))),
        "past": Column("category", "int64", length=4, same_as="item"),
        "stars": Column("number", "float32", length=4),
    }
    raw = features.inputs(described)
    model = keras.Model(raw, features.encode(raw, described, kind, width=6))

    def encode(past, stars):
        return model(
            {
                "item": tf.constant([3], "int64"),
                "past": tf.constant([past], "int64"),
                "stars": tf.constant([stars], "float32"),
            }
        ).numpy()

    base = encode([0, 5, 6, 7], [0, 1, 2, 3])
    assert np.abs(base - encode([0, 6, 5, 7], [0, 2, 1, 3])).max() > 1e-5
    np.testing.assert_allclose(base, encode([0, 5, 6, 7], [9, 1, 2, 3]), atol=1e-6)
    assert np.isfinite(encode([0, 0, 0, 0], [0, 0, 0, 0])).all()


def test_unknown_values_and_numbers_far_away_are_read_too():
    described = {
        "city": Column("category", "string", vocabulary=("a", "b")),
        "gain": columns.number(np.array([0.0] * 9 + [100.0])),
        "user": Column("hashed", "int64", buckets=50),
    }
    raw = features.inputs(described)
    model = keras.Model(raw, features.encode(raw, described, "attention", width=6))
    outputs = model(
        {
            "city": tf.constant(["a", "b", "z", "y"]),
            "gain": tf.constant([0.0, 0.0, 1e9, 1e12]),
            "user": tf.constant([7, 7, 8, 8], "int64"),
        }
    ).numpy()
    assert np.isfinite(outputs).all()
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-6  # another city
    np.testing.assert_array_equal(outputs[2], outputs[3])  # both unknown, both far


def test_fields_have_rows_of_their_own():
    layer = features.FieldIndices([3, 5, 2])
    rows = layer([tf.constant([0, 2]), tf.constant([0, 4]), tf.constant([0, 1])])
    np.testing.assert_array_equal(rows, [[0, 3, 8], [2, 7, 9]])
    assert features.FieldIndices.from_config(layer.get_config()).sizes == [3, 5, 2]


def test_a_census_model_never_reads_the_source_of_its_labels(tmp_path, monkeypatch):
    """On made-up rows: the application asks the metadata alone."""
    builder = CensusIncome(data_dir=tmp_path)
    names = [n for n in builder.info.features if n not in ("income", "college")]
    described = {
        name: Column("category", "string", vocabulary=("x",)).to_dict()
        for name in names
        if name != "never_married"
    }
    application = applications.get("recommendation").for_data("census_income")
    monkeypatch.setattr(
        application,
        "_described",
        lambda: columns.from_metadata({"columns": described}),
    )
    income = set(application.columns(["income", "never_married"]))
    assert "education" in income
    assert not {"marital_status", "income"} & income
    education = set(application.columns(["college", "never_married"]))
    assert not {"marital_status", "education", "income"} & education
    model = application.build(tasks=["college"], width=4, depth=1, sharing="hard")
    assert "education" not in model.input
    assert "marital_status" in model.input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a.for_data("behavior/small"), "Did you mean 'behaviour/small'"),
        (lambda a: a.load("tset", batch_size=1), "Did you mean 'test'"),
        (lambda a: a.select(["clik"]), "Did you mean 'click'"),
        (lambda a: a.build(backbone="cnn"), "mlp, rnn"),
        (
            lambda a: RunConfig("recommendation", tasks=("rating",)).validate(),
            "Expected one of: click",
        ),
    ],
)
def test_unknown_names_give_the_nearest(behaviour, call, message):
    with pytest.raises(InputError, match=message):
        call(behaviour)
