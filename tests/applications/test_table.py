"""A table as an application: layers, losses, metrics, models, exports, predictions."""

from __future__ import annotations

import dataclasses
import io
import json

import keras
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import tensorflow as tf
from PIL import Image
from tiny_application import running_eagerly
from typer.testing import CliRunner

import mtl_keras
from mtl_keras import applications, runs, serving, sharing
from mtl_keras.applications.table import layers
from mtl_keras.applications.table.tasks import make_columns
from mtl_keras.applications.table.titled import TitledModel
from mtl_keras.data.tables.description import TaskStats
from mtl_keras.errors import InputError
from mtl_keras.runs.results import score
from mtl_keras.serving.examples import serialize
from mtl_keras.serving.served_model import served_model

ROWS = 120
TITLES = {"Preis (€)": "Preis", "verkauft?": "verkauft", "种类": "column"}


def frame(rows=ROWS):
    rng = np.random.default_rng(0)
    x = rng.normal(size=rows)
    return pd.DataFrame(
        {
            "x": np.where(np.arange(rows) % 9 == 0, np.nan, x),
            "city, town": rng.choice(["Bern", "Roma", ""], rows),
            "notes": rng.choice(["a nice house", "small", ""], rows),
            "Preis (€)": np.where(np.arange(rows) % 5 == 0, np.nan, 1e5 + 1e4 * x),
            "verkauft?": np.where(x > 0, "ja", "nein"),
            "种类": np.where(x > 0.5, "hut", np.where(x < -0.5, "flat", "house")),
        }
    )


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    frame().to_csv(folder / "houses.csv", index=False)
    (folder / "houses.toml").write_text(
        """
        [data]
        files = "houses.csv"
        split = { validation = 0.2, test = 0.3 }
        [features]
        x = "number"
        "city, town" = "category"
        notes = "text"
        [tasks]
        "Preis (€)" = "number"
        "verkauft?" = { kind = "binary", positive = "ja" }
        "种类" = "multiclass"
        """,
        encoding="utf-8",
    )
    return folder / "houses.toml"


@pytest.fixture(scope="module")
def run(data_file):
    config = runs.RunConfig(str(data_file), epochs=1, batch_size=64, width=8, depth=1)
    with running_eagerly():
        runs.train(config, data_file.parent / "run")
    return runs.load_run(data_file.parent / "run")


def test_missing_numbers_are_0_with_an_indicator_and_a_bin_of_their_own():
    x = np.array([[1.0, np.nan], [-9.0, 2.0]], "float32")
    filled = layers.FilledNumbers()(x)
    np.testing.assert_array_equal(filled, [[1, 0, 0, 1], [-5, 2, 0, 0]])
    edges = [0.0, 1.0, 5.0]
    values = np.array([-1, 0, 0.5, 1, 7, np.nan], "float32")
    bins = layers.NumberBins(edges)(values)
    assert bins[:-1].numpy().tolist() == np.digitize(values[:-1], edges).tolist()
    assert bins[-1] == len(edges) + 1


def test_losses_of_numbers_do_not_depend_on_their_unit():
    rng = np.random.default_rng(0)
    y, p = rng.normal(size=(2, 30, 1)).astype("float32")
    stock = {
        "mse": keras.losses.MeanSquaredError(),
        "mae": keras.losses.MeanAbsoluteError(),
        "huber": keras.losses.Huber(),
    }
    for name, loss in stock.items():
        own = layers.StandardisedError(name, 50.0)
        np.testing.assert_allclose(
            own(1e3 + 50 * y, 1e3 + 50 * p), loss(y, p), rtol=1e-3
        )


def test_focal_loss_of_ids_is_that_of_one_hot_labels():
    rng = np.random.default_rng(0)
    p = keras.ops.softmax(rng.normal(size=(20, 4)))
    ids = rng.integers(0, 4, 20)
    stock = keras.losses.CategoricalFocalCrossentropy(alpha=1.0)
    expected = stock(keras.ops.one_hot(ids, 4), p)
    for labels in (ids, ids[:, None]):
        own = layers.SparseFocalCrossentropy()(labels, p)
        np.testing.assert_allclose(own, expected, rtol=1e-6)


def test_metrics_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    ids, p = rng.integers(0, 4, 200), rng.dirichlet(np.ones(5), 200)
    p[:, 4] = 0
    weight = rng.uniform(size=200)
    f1 = layers.MacroF1(5)
    for part in np.array_split(np.arange(200), 3):
        f1.update_state(ids[part], p[part], weight[part])
    expected = sklearn.metrics.f1_score(
        ids, p.argmax(1), average="macro", sample_weight=weight
    )
    np.testing.assert_allclose(f1.result(), expected, rtol=1e-6)
    y = 1e6 + rng.normal(size=(200, 1))
    guess = y + rng.normal(size=(200, 1))
    r2 = layers.R2(1e6, 1.0)
    r2.update_state(y, guess)
    np.testing.assert_allclose(r2.result(), sklearn.metrics.r2_score(y, guess), 1e-1)


def test_titles_are_in_every_output_and_names_in_the_model(run, eagerly):
    assert list(run.config.tasks) == list(TITLES)
    model = run.model()
    assert list(model.output) == list(TITLES.values())
    assert list(run.metrics) == list(TITLES)
    history = (run.path / "history.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "val_Preis (€)_rmse" in history
    assert "种类_macro_f1" in history
    assert "Preis_" not in history
    np.testing.assert_equal(runs.evaluate(run.path), run.metrics)


def test_an_export_gives_the_numbers_of_evaluate_in_the_files_units(run, tmp_path):
    table = applications.Table(run.config.application)
    version = serving.export(
        run.model(),
        tmp_path / "m",
        tasks=("Preis", "column"),
        class_names=table.class_names(),
        missing_values=table.missing_values(),
    )
    served = tf.saved_model.load(str(version))
    (inputs, labels, weights), *others = table.load("test", batch_size=ROWS)
    assert not others
    inputs = {name: value.numpy() for name, value in inputs.items()}
    named = served.signatures["serving_default"](
        **{name: tf.constant(value) for name, value in inputs.items()}
    )
    examples = tf.constant(serialize(inputs))
    parsed = served.signatures["from_examples"](inputs=examples)
    for answer in (named, parsed):
        price = answer["Preis"].numpy()[:, 0].astype("float64")
        known = weights["Preis"].numpy() > 0
        error = price[known] - labels["Preis"].numpy()[known, 0]
        rmse = np.sqrt((error**2).mean())
        np.testing.assert_allclose(rmse, run.metrics["Preis (€)"]["rmse"], rtol=1e-4)
        classes = answer["column"].numpy().argmax(1)
        accuracy = (classes == labels["column"].numpy()).mean()
        np.testing.assert_allclose(accuracy, run.metrics["种类"]["accuracy"], rtol=1e-5)
        assert set(answer["column_label"].numpy()) <= {b"flat", b"house", b"hut"}
    # A number that is left out is missing, as an empty cell is; it is not 0.
    answers = [
        run.model()({**inputs, "x": np.full(len(inputs["x"]), x, "float32")})["Preis"]
        for x in (np.nan, 0.0)
    ]
    del inputs["x"]
    parsed = served.signatures["from_examples"](inputs=tf.constant(serialize(inputs)))
    np.testing.assert_allclose(parsed["Preis"], answers[0], rtol=1e-5)
    assert np.abs(parsed["Preis"] - answers[1]).max() > 1


def test_predictions_stand_beside_the_rows(run, data_file, tmp_path, eagerly):
    from mtl_keras.applications.table.predicting import predict_file

    table = applications.Table(data_file)
    rows = frame().drop(columns="种类")
    rows["id"] = range(ROWS)
    rows.to_csv(tmp_path / "new.csv", index=False)
    count = predict_file(
        run.model(), table, tmp_path / "new.csv", tmp_path / "out.parquet"
    )
    answers = pd.read_parquet(tmp_path / "out.parquet")
    assert count == ROWS
    assert answers["id"].astype(int).tolist() == list(range(ROWS))
    inputs = {
        "x": tf.constant(rows["x"].to_numpy("float32")),
        "city_town": tf.constant(rows["city, town"].to_numpy()),
        "notes": tf.constant(rows["notes"].to_numpy()),
    }
    direct = run.model().predict(inputs, verbose=0)
    np.testing.assert_allclose(
        answers["Preis (€)_prediction"], direct["Preis"][:, 0], rtol=1e-5
    )
    probability = answers["verkauft?_probability"]
    np.testing.assert_allclose(probability, direct["verkauft"][:, 0], rtol=1e-5)
    assert (answers["verkauft?_prediction"] == "ja").equals(probability > 0.5)
    classes = np.array(["flat", "house", "hut"])[direct["column"].argmax(1)]
    assert (answers["种类_prediction"] == classes).all()


@pytest.mark.slow
def test_one_run_answers_at_every_preference(data_file, tmp_path, eagerly):
    from mtl_keras_cli import tables
    from mtl_keras_cli.app import app

    def command(*line):
        result = CliRunner().invoke(app, list(map(str, line)))
        assert result.exit_code == 0, result.stderr or result.exception
        return result.stdout

    out, served = tmp_path / "run", tmp_path / "served"
    settings = ("--width", 8, "--depth", 1, "--epochs", 1, "--learning-rate", 0.1)
    form = "manifold(rank=2, scalarisation=cosmos(strength=0.1))"
    printed = command(
        "train", data_file, *settings, "--preferences", form, "--out", out
    )
    assert f"preferences by {form}" in printed.replace("\n", " ")
    front = json.loads(command("evaluate", out, "--json"))
    uniform, *corners = front["preferences"]
    for task, metrics in runs.load_run(out).metrics.items():
        assert uniform["metrics"][task] == pytest.approx(metrics, rel=1e-4)
    # Named and ordered as the data file has them; the model has others.
    assert [c["preference"] for c in corners] == [
        {title: float(title == task) for title in TITLES} for task in TITLES
    ]
    assert "Preis (€) alone" in command("evaluate", out).replace("\n", " ")

    version = runs.export([out], served)
    assert not serving.check(version, seconds=0).problems
    table = applications.Table(data_file)
    ((inputs, labels, weights),) = table.load("test", batch_size=ROWS)
    call = tf.saved_model.load(str(version)).signatures["serving_default"]
    price, known = labels["Preis"][:, 0], weights["Preis"] > 0
    answers = []
    for task, corner in zip(TITLES, corners, strict=True):
        # The model's own order is by name.
        row = [float(TITLES[task] == name) for name in sorted(TITLES.values())]
        answer = call(preference=tf.constant([row] * len(price)), **inputs)
        error = (answer["Preis"][:, 0] - price)[known]
        rmse = float(tf.sqrt(tf.reduce_mean(error**2)))
        assert corner["metrics"]["Preis (€)"]["rmse"] == pytest.approx(rmse, rel=1e-3)
        answers.append(answer["column"].numpy())
    assert not np.allclose(answers[0], answers[2], atol=1e-3)

    frame().to_csv(tmp_path / "new.csv", index=False)
    file = tmp_path / "one.csv"
    command(
        "predict", out, tmp_path / "new.csv", "--preference", "0,0,2", "--out", file
    )
    command("predict", out, tmp_path / "new.csv")
    predicted = pd.read_csv(file), pd.read_csv(tmp_path / "new.predictions.csv")
    model, x = (
        runs.load_run(out).model(),
        {
            "x": tf.constant(frame()["x"].to_numpy("float32")),
            "city_town": tf.constant(frame()["city, town"].to_numpy()),
            "notes": tf.constant(frame()["notes"].to_numpy()),
        },
    )
    for rows, shares in zip(predicted, ({"column": 1.0}, [1.0] * 3), strict=True):
        expected = model(model.with_preference(x, shares))["column"].numpy().max(1)
        np.testing.assert_allclose(rows["种类_probability"], expected, rtol=1e-4)
    with pytest.raises(InputError, match="one entry per task"):
        tables.predict(
            out, tmp_path / "new.csv", tmp_path / "a", preference=[1.0], console=None
        )


def test_logs_have_titles_whichever_name_begins_as_another(eagerly):
    # Names that a table gives: the title itself where it can be one.
    titles = {"price": "price (€)", "price_max": "price_max", "features_2": "features"}
    inputs = keras.Input((2,), name="x")
    outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in titles}
    renamed = {name: title for name, title in titles.items() if title != name}
    model = TitledModel(inputs, outputs, titles=renamed)
    model.compile("adam", "mse", metrics={name: ["mae"] for name in titles})
    x, y = np.ones((4, 2)), dict.fromkeys(titles, np.ones((4, 1)))
    history = model.fit(x, y, validation_data=(x, y), verbose=0).history
    for title in titles.values():
        for log in ("loss", "mae"):
            assert {f"{title}_{log}", f"val_{title}_{log}"} <= set(history)
    assert not {"price_mae", "features_2_mae", "price (€)_max_mae"} & set(history)
    assert set(model.evaluate(x, y, return_dict=True, verbose=0)) == {
        name.removeprefix("val_") for name in history if name.startswith("val_")
    }


@pytest.mark.parametrize("by", ["column", "group", "time"])
def test_new_rows_need_no_column_of_the_split(by, tmp_path):
    from mtl_keras.applications.table.predicting import predict_file

    rows = frame(60)[["x", "verkauft?"]]
    folds = ["train", "validation", "test"]
    rows["fold"] = [folds[i % 3] if by == "column" else i for i in range(60)]
    rows.to_csv(tmp_path / "houses.csv", index=False)
    (tmp_path / "houses.toml").write_text(
        f"""
        data = {{ files = "houses.csv", split = {{ {by} = "fold" }} }}
        features.x = "number"
        tasks."verkauft?" = "binary"
        """
    )
    table = applications.Table(tmp_path / "houses.toml")
    rows[["x"]].to_csv(tmp_path / "new.csv", index=False)
    model = table.build(width=4, depth=1)
    new, out = tmp_path / "new.csv", tmp_path / "out.csv"
    assert predict_file(model, table, new, out) == 60
    assert "verkauft?_probability" in pd.read_csv(out)


@pytest.mark.parametrize("out", ["out.csv", "out.csv.gz", "out.parquet"])
def test_predictions_have_the_marks_of_the_table(out, tmp_path, eagerly):
    from mtl_keras.applications.table.predicting import predict_file

    rows = frame(30)[["x", "Preis (€)"]].assign(x=np.arange(30) * 1000.5)
    form = {"sep": ";", "decimal": ",", "index": False}
    rows.to_csv(tmp_path / "houses.csv", **form)
    (tmp_path / "houses.toml").write_text(
        """
        data = { files = "houses.csv", delimiter = ";", decimal = "," }
        features.x = "number"
        tasks."Preis (€)" = "number"
        """,
        encoding="utf-8",
    )
    table = applications.Table(tmp_path / "houses.toml")
    assert table.description.features["x"].high > 20_000
    model = table.build(width=4, depth=1)
    rows[["x"]].to_csv(tmp_path / "new.csv", **form)
    assert predict_file(model, table, tmp_path / "new.csv", tmp_path / out) == 30
    answers = (
        pd.read_parquet(tmp_path / out)
        if out.endswith("parquet")
        else pd.read_csv(tmp_path / out, sep=";", decimal=",")
    )
    inputs = {"x": tf.constant(rows["x"].to_numpy("float32"))}
    direct = model.predict(inputs, verbose=0)["Preis"][:, 0]
    np.testing.assert_allclose(answers["Preis (€)_prediction"], direct, rtol=1e-5)


def test_a_mean_over_tasks_does_not_depend_on_the_unit_of_a_target(data_file, tmp_path):
    rows = frame()
    rows["Preis (€)"] *= 1000
    rows.to_csv(tmp_path / "houses.csv", index=False)
    (tmp_path / "houses.toml").write_text(data_file.read_text("utf-8"), "utf-8")
    main = {"Preis (€)": 5000.0, "verkauft?": 0.9, "种类": 0.6}
    mean = score(main, applications.Table(data_file))
    other = applications.Table(tmp_path / "houses.toml")
    assert mean == pytest.approx(score(main | {"Preis (€)": 5e6}, other), rel=1e-5)
    table = applications.Table(data_file)
    unlabelled = main | {"Preis (€)": np.nan}
    assert score(unlabelled, table) == pytest.approx((0.9 + 0.6) / 2)
    assert np.isnan(score(dict.fromkeys(main, np.nan), table))
    # Prices deviate by 10,000.
    assert mean == pytest.approx((0.9 + 0.6 - 0.5) / 3, rel=0.1)


def test_a_changed_table_is_another_one(data_file, tmp_path):
    for file in data_file.parent.glob("houses.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = runs.RunConfig(str(tmp_path / "houses.toml")).validate()
    assert config.data == runs.RunConfig(str(data_file)).validate().data
    with (tmp_path / "houses.csv").open("a") as file:
        file.write("1,Bern,small,,ja,hut\n")
    with pytest.raises(InputError, match=r"have changed since\. Train anew"):
        config.get_application()


@pytest.mark.parametrize(
    "way", sorted(set(sharing.names()) - {"aitm", "branching", "esmm"})
)
def test_columns_may_be_called_as_layers_are(way):
    table = frame(40)
    names = ["features", "mlp_stage_0", "experts", "cells", "y_hidden", "y_mixture"]
    names += ["y_stitch_0", "table", "y", "gate", "dense", "y_mlp_stage_0"]
    columns = {name: table["x"].fillna(0) for name in names}
    columns |= {"y": table["x"].fillna(0), "z": table["verkauft?"]}
    own = applications.Table(
        pd.DataFrame(columns), tasks={"y": "number", "z": "binary"}
    )
    model = own.build(sharing=way, width=4, depth=1)
    assert set(model.output) == {"y", "z"}
    assert len(model.input) == len(names) - 1


def test_texts_images_and_vectors_are_fused_and_may_be_missing(tmp_path):
    rng = np.random.default_rng(0)
    rows = 30
    for index in range(rows):
        pixels = rng.integers(0, 255, (12 + index % 3, 9, 3), "uint8")
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    table = pd.DataFrame(
        {
            "photo": [f"{i}.png" if i % 4 else None for i in range(rows)],
            "notes": [f"word{i % 5} and more" if i % 3 else None for i in range(rows)],
            "print": [
                rng.normal(size=5).tolist() if i % 5 else None for i in range(rows)
            ],
            "n": rng.normal(size=rows),
            "y": rng.normal(size=rows),
            "z": rng.integers(0, 2, rows),
        }
    )
    table.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.toml").write_text(
        """
        data.files = "t.parquet"
        model.fusion = "gated"
        features.photo = { kind = "image", size = 16 }
        features.notes = "text"
        features.print = "vector"
        features.n = "number"
        tasks.y = "number"
        tasks.z = "binary"
        """
    )
    own = applications.Table(tmp_path / "t.toml")
    assert own.backbones == ("mlp", "cnn", "rnn", "transformer")
    batch = next(iter(own.load("train", batch_size=rows)))
    png = {(tmp_path / f"{i}.png").read_bytes() for i in range(rows)} | {b""}
    assert set(batch[0]["photo"].numpy()) <= png
    for backbone in own.backbones:
        model = own.build(backbone=backbone, width=8, depth=1)
        answer = model(batch[0])
        assert all(np.isfinite(y).all() for y in answer.values())
    # The photo takes part where there is one.
    one = {name: value[:1] for name, value in batch[0].items()}
    white = io.BytesIO()
    Image.new("RGB", (16, 16), "white").save(white, "png")
    answers = [
        model({**one, "photo": tf.constant([photo])})["y"].numpy()
        for photo in (b"", white.getvalue())
    ]
    assert answers[0] != answers[1]


def test_a_model_of_ones_own_learns_from_a_data_frame():
    table = frame(200)
    data = mtl_keras.data.from_dataframe(
        table,
        features={"x": "number"},
        tasks={"Preis (€)": "number", "verkauft?": "binary"},
    )
    own = applications.Table(
        table, features={"x": "number"}, tasks={"Preis (€)": "number"}
    )
    model = own.build(width=8, depth=1)
    model.compile(loss=own.losses(), metrics=own.metrics())
    assert own.summary().startswith("200 rows: 160 train, 20 validation, 20 test.")
    price = data.train.map(lambda x, y, w: (x, {"Preis": y["Preis"]}))
    logs = model.evaluate(price.take(1), return_dict=True, verbose=0)
    # Before training the head answers about the mean, in the table's unit.
    assert 3_000 < logs["rmse"] < 60_000


def test_settings_of_a_run_name_tasks_as_the_table_does(data_file):
    config = runs.RunConfig(
        str(data_file), tasks=("种类", "Preis (€)"), loss_weights={"种类": 2.0}
    ).validate()
    from mtl_keras.runs.training import compiled_model

    model = compiled_model(config, 10)
    assert set(model.output) == {"column", "Preis"}
    assert json.loads(model.to_json())["config"]["titles"] == {
        "Preis": "Preis (€)",
        "column": "种类",
    }


def test_arguments_of_methods_name_tasks_as_the_table_does(tmp_path):
    from mtl_keras.runs.training import compiled_model

    rng = np.random.default_rng(0)
    clicks, buys = rng.integers(0, 2, (2, 60))
    rows = {"x": rng.normal(size=60), "klick?": clicks, "kauf?": buys}
    pd.DataFrame({**rows, "klick & kauf": clicks * buys}).to_csv(
        tmp_path / "t.csv", index=False
    )
    tasks = ["klick?", "kauf?", "klick & kauf"]
    kinds = "\n".join(f'"{task}" = "binary"' for task in tasks)
    (tmp_path / "t.toml").write_text(
        f'data.files = "t.csv"\nfeatures.x = "number"\n[tasks]\n{kinds}\n'
    )
    names = dict(
        zip(("click", "conversion", "click_and_conversion"), tasks, strict=True)
    )
    config = runs.RunConfig(
        str(tmp_path / "t.toml"),
        width=4,
        sharing={"class_name": "esmm", "config": names},
        balancing={"class_name": "pcd", "config": {"primary": "klick & kauf"}},
    ).validate()
    model = compiled_model(config, 10)
    outputs = [config.get_application().tasks[task].name for task in tasks]
    assert set(model.output) == set(outputs)
    assert model.balancers[0].primary == outputs[2]
    click, conversion, both = (
        model({"x": np.ones(2, "float32")})[name] for name in outputs
    )
    np.testing.assert_allclose(both, click * conversion, rtol=1e-6)

    def hard(task):
        own = {"class_name": "hard", "config": {"own_stages": {task: 1}}}
        table = str(tmp_path / "t.toml")
        return runs.RunConfig(table, width=4, depth=2, sharing=own).validate()

    layer_tasks = compiled_model(hard("kauf?"), 10).layer_tasks()
    assert layer_tasks[f"{outputs[1]}_mlp_stage_1"] == [outputs[1]]
    with pytest.raises(InputError, match=r"Did you mean 'kauf\?'.*Received: 'kauf'"):
        hard("kauf")


def test_many_tasks_are_refused_before_training_where_outputs_connect(tmp_path):
    from mtl_keras.search import StudySettings

    rng = np.random.default_rng(0)
    rows = {f"t{i}": rng.integers(0, 2, 60) for i in range(34)}
    pd.DataFrame({"x": rng.normal(size=60), **rows}).to_csv(
        tmp_path / "t.csv", index=False
    )
    kinds = "\n".join(f'{task} = "binary"' for task in rows)
    (tmp_path / "t.toml").write_text(
        f'data.files = "t.csv"\nfeatures.x = "number"\n[tasks]\n{kinds}\n'
    )
    some = list(rows)[:3]
    names = dict(
        zip(("click", "conversion", "click_and_conversion"), some, strict=True)
    )
    esmm = {"class_name": "esmm", "config": names}
    config = runs.RunConfig(str(tmp_path / "t.toml"))
    for way in ("aitm", esmm):
        with pytest.raises(InputError, match=r"at most 32 tasks .* \(--tasks\)"):
            dataclasses.replace(config, sharing=way).validate()
        dataclasses.replace(config, sharing=way, tasks=some).validate()
    study = {"trials": 1, "epochs": 1, "space": {"sharing": ["hard", "aitm"]}}
    with pytest.raises(InputError, match="'aitm', which connects outputs"):
        StudySettings(config.application, **study).validate()


def schools(rows=700, tasks=35):
    """Returns numbers of 35 schools, whose names no layer can have."""
    rng = np.random.default_rng(0)
    x, index = rng.normal(size=rows), np.arange(rows) % tasks
    return pd.DataFrame(
        {"x": x, "école": [f"é {i}" for i in index], "y": 50 + index + 5 * x}
    )


def test_many_tasks_are_the_columns_of_one_output(tmp_path, eagerly):
    schools().to_csv(tmp_path / "schools.csv", index=False)
    (tmp_path / "schools.toml").write_text(
        """
        data.files = "schools.csv"
        features.x = "number"
        tasks = { by = "école", label = "y", kind = "number" }
        """,
        encoding="utf-8",
    )
    config = runs.RunConfig(
        str(tmp_path / "schools.toml"),
        epochs=1,
        width=8,
        depth=1,
        loss_weights={"é 3": 0.5},
    )
    results = runs.train(config, tmp_path / "run")
    assert results.metrics == runs.evaluate(tmp_path / "run")
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert np.isfinite(history["val_rmse"]).all()
    table = applications.Table(tmp_path / "schools.toml")
    model = runs.load_run(tmp_path / "run").model()
    assert list(model.columns) == list(model.output) == ["tasks"]
    by_school = [history[f"val_{title}_rmse"] for title in table.tasks]
    np.testing.assert_allclose(np.mean(by_school, 0), history["val_rmse"], rtol=1e-5)
    # What the head makes of shared features belongs to its tasks.
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    shared = [tuple(v.shape) for v in model.shared_variables]
    assert [s for s in shapes if s not in shared] == [(8, 35), (35,)]
    names = [task.name for task in table.tasks.values()]
    kept = keras.saving.deserialize_keras_object(model.get_compile_config())
    halved = [table.tasks["é 3"].name == name for name in names]
    np.testing.assert_array_equal(
        kept["loss_weights"]["tasks"], np.where(halved, 0.5, 1.0)
    )

    # Predictions and metrics by task, in the table's unit, by pandas.
    test = next(iter(table.load("test", batch_size=700)))
    names = [f"é {i}" for i in sorted(range(35), key=lambda i: f"é {i}")]
    assert sorted(table.tasks) == names
    rows = pd.DataFrame({"x": test[0]["x"].numpy()})
    weight = test[2]["tasks"].numpy()
    assert (weight.sum(1) == 1).all()
    titles = np.array(list(table.tasks))[weight.argmax(1)]
    rows.to_csv(tmp_path / "new.csv", index=False)
    from mtl_keras.applications.table.predicting import predict_file

    predict_file(model, table, tmp_path / "new.csv", tmp_path / "out.csv")
    answers = pd.read_csv(tmp_path / "out.csv")
    labels = test[1]["tasks"].numpy().sum(1)
    number = np.array([int(title.removeprefix("é ")) for title in titles])
    np.testing.assert_allclose(labels, 50 + number + 5 * rows["x"], rtol=1e-5)
    for title in names[:3]:
        own = titles == title
        error = answers[f"{title}_prediction"][own] - labels[own]
        expected = {"mae": error.abs().mean(), "rmse": np.sqrt((error**2).mean())}
        for metric, value in expected.items():
            np.testing.assert_allclose(results.metrics[title][metric], value, rtol=1e-4)

    # Served whole, with the names beside it, or each task that is asked for.
    version = serving.export(model, tmp_path / "whole", examples=False)
    stated = (version / "assets" / "tasks.columns").read_text().split()
    assert stated == [task.name for task in table.tasks.values()]
    card = (version / "MODEL_CARD.md").read_text()
    assert f"| `{stated[7]}` | `tasks[:, 7]` of float32 [batch, 35] |" in card
    some = [table.tasks[title].name for title in ("é 3", "é 20")]
    served = served_model(model, tasks=some)
    answer = served.part(served.outputs)({"x": rows["x"].to_numpy()})
    assert set(answer) == set(some)
    assert served.columns == {}
    np.testing.assert_allclose(
        answer[some[0]].numpy()[:, 0], answers["é 3_prediction"], rtol=1e-5
    )


def test_many_columns_have_weights_by_class_and_by_what_is_missing():
    rng = np.random.default_rng(0)
    values = np.where(rng.random((60, 40)) < 0.3, np.nan, rng.random((60, 40)) < 0.3)
    columns = pd.DataFrame(values, columns=[f"t{i}" for i in range(40)])
    table = pd.DataFrame(
        {"x": rng.normal(size=60), "part": ["train"] * 40 + ["validation", "test"] * 10}
    ).join(columns)
    tasks = dict.fromkeys(columns, "binary")
    tasks["t7"] = {"kind": "binary", "class_weight": "balanced"}
    own = applications.Table(
        table, features={"x": "number"}, tasks=tasks, split={"column": "part"}
    )
    _, labels, weights = next(iter(own.load("train", batch_size=40)))
    train = values[:40]
    np.testing.assert_array_equal(labels["tasks"], np.nan_to_num(train))
    expected = (~np.isnan(train)).astype("float32")
    for value in (0, 1):
        rows = train[:, 7] == value
        expected[rows, 7] = (~np.isnan(train[:, 7])).sum() / (2 * rows.sum())
    np.testing.assert_allclose(weights["tasks"], expected, rtol=1e-6)
    # Fewer tasks have an output each.
    assert own.columns_of([f"t{i}" for i in range(32)]) == {}
    assert list(own.outputs_of(["t3", "t5"])) == ["t3", "t5"]
    assert len(own.columns_of()["tasks"]) == 40
    with pytest.raises(InputError, match="which connects outputs"):
        own.build(sharing="aitm")


def test_many_tasks_of_several_kinds_are_a_group_for_each(
    tmp_path, eagerly, monkeypatch
):
    monkeypatch.setattr("mtl_keras.applications.table.application.MANY_TASKS", 3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=240)
    table = pd.DataFrame({"x": x, "part": ["train", "validation", "test"] * 80})
    for name in "abc":
        table[name] = np.where(rng.random(240) < 0.3, np.nan, x > rng.normal())
    for name, scale in (("preis (€)", 1e4), ("größe", 0.1)):
        table[name] = scale * (3 + x + rng.normal(size=240))
    table["sort"] = np.where(x > 0, "é", "è")
    table.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "t.toml").write_text(
        """
        data = { files = "t.csv", split = { column = "part" } }
        features.x = "number"
        [tasks]
        a = "binary"
        b = "binary"
        c = { kind = "binary", loss = "focal" }
        "preis (€)" = "number"
        "größe" = "number"
        sort = "multiclass"
        """,
        encoding="utf-8",
    )
    config = runs.RunConfig(
        str(tmp_path / "t.toml"),
        epochs=1,
        width=4,
        depth=1,
        batch_size=40,
        balancing="pcgrad",
        loss_weights={"größe": 0.5, "sort": 2.0},
    )
    results = runs.train(config, tmp_path / "run")
    own = applications.Table(tmp_path / "t.toml")
    model = runs.load_run(tmp_path / "run").model()
    names = {title: task.name for title, task in own.tasks.items()}
    assert model.columns == {
        "binary_tasks": (names["a"], names["b"]),
        "number_tasks": (names["preis (€)"], names["größe"]),
    }
    assert set(model.output) == {*model.columns, names["c"], names["sort"]}
    kept = keras.saving.deserialize_keras_object(model.get_compile_config())
    weights = dict(kept["loss_weights"])
    np.testing.assert_array_equal(weights.pop("binary_tasks"), [1, 1])
    np.testing.assert_array_equal(weights.pop("number_tasks"), [1, 0.5])
    assert weights == {names["c"]: 1.0, names["sort"]: 2.0}

    # Metrics and predictions of every task, by pandas.
    from mtl_keras.applications.table.predicting import predict_file

    test = table[table["part"] == "test"].reset_index()
    test[["x"]].to_csv(tmp_path / "new.csv", index=False)
    predict_file(model, own, tmp_path / "new.csv", tmp_path / "out.csv")
    answers = pd.read_csv(tmp_path / "out.csv")
    assert results.metrics == runs.evaluate(tmp_path / "run")
    for title in ("preis (€)", "größe"):
        error = (answers[f"{title}_prediction"] - test[title]).abs().mean()
        np.testing.assert_allclose(results.metrics[title]["mae"], error, rtol=1e-4)
    for title in "abc":
        labelled = test[title].notna()
        sure = answers[f"{title}_probability"][labelled] > 0.5
        right = (sure == test[title][labelled]).mean()
        np.testing.assert_allclose(results.metrics[title]["accuracy"], right)
    right = (answers["sort_prediction"] == test["sort"]).mean()
    np.testing.assert_allclose(results.metrics["sort"]["accuracy"], right)
    served = served_model(model, tasks=list(names.values()))
    answer = served.part(served.outputs)({"x": test["x"].to_numpy("float32")})
    for title in ("preis (€)", "größe"):
        np.testing.assert_allclose(
            answer[names[title]].numpy()[:, 0],
            answers[f"{title}_prediction"],
            rtol=1e-4,
        )


def test_columns_of_features_of_their_own_read_these_alone():
    stats = [
        TaskStats(f"t{i}", f"t{i}", "number", "mae", {}, mean=10.0 * i, deviation=i + 1)
        for i in range(3)
    ]
    features = {s.name: keras.Input((2,), name=s.name) for s in stats}
    model = keras.Model(features, make_columns("tasks", stats, features))
    x = {name: np.ones((1, 2), "float32") for name in features}
    before = model.predict(x, verbose=0)
    x["t1"] = 2 * x["t1"]
    change = model.predict(x, verbose=0) - before
    assert (change != 0).tolist() == [[False, True, False]]
    # The loss of a column is that of its task alone, in its own deviations.
    rng = np.random.default_rng(0)
    y, p = rng.normal(size=(2, 8, 3, 1)).astype("float32")
    group = layers.StandardisedError("mae", [1.0, 2.0, 3.0]).call(y, p)
    for i in range(3):
        alone = layers.StandardisedError("mae", i + 1.0).call(y[:, i], p[:, i])
        np.testing.assert_allclose(group[:, i], alone, rtol=1e-6)
