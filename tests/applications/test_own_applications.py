"""Applications by name: data files, plugins, own code, and paths without import."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import applications, runs
from mtl_keras.applications import registry
from mtl_keras.compare import Comparison
from mtl_keras.errors import InputError
from mtl_keras.runs.records import FORMAT
from mtl_keras_cli.app import app

CODE = """
import pathlib
import keras
from mtl_keras import MultiTaskModel, applications

pathlib.Path(__file__).with_name("imported").touch()

class Mine(applications.Vision):
    name = "mine"

def compiled(tasks, width):
    x = keras.Input((2,), name="x")
    h = keras.layers.Dense(width, "relu")(x)
    losses = {"a": "mse", "b": keras.losses.BinaryCrossentropy()}
    metrics = {"a": [], "b": ["accuracy", keras.metrics.AUC(name="auc")]}
    tasks = tasks or list(losses)
    model = MultiTaskModel({"x": x}, {
        t: keras.layers.Dense(1, "sigmoid" if t == "b" else None, name=t)(h)
        for t in tasks
    })
    model.compile(
        keras.optimizers.SGD(0.25, momentum=0.5),
        loss={t: losses[t] for t in tasks},
        metrics={t: metrics[t] for t in tasks},
    )
    return model

def datasets(batch_size):
    import numpy as np
    import tensorflow as tf
    def split(rows):
        x = np.random.default_rng(rows).normal(size=(rows, 2)).astype("float32")
        y = {"a": x[:, :1], "b": (x[:, 1:] > 0).astype("float32")}
        return tf.data.Dataset.from_tensor_slices(({"x": x}, y)).batch(batch_size)
    return split(48), split(24)

def build(width):
    x = keras.Input((), name="x")
    h = keras.layers.Dense(width, "relu")(keras.ops.expand_dims(x, -1))
    return MultiTaskModel({"x": x}, {
        "y": keras.layers.Dense(1, name="y")(h),
        "z": keras.layers.Dense(1, "sigmoid", name="z")(h),
    })

def titled(width, column="m2"):
    x = keras.Input((), name=column)
    h = keras.layers.Dense(width, "relu")(keras.ops.expand_dims(x, -1))
    return MultiTaskModel({column: x}, {
        "y (€)": keras.layers.Dense(1)(h), "z": keras.layers.Dense(1, "sigmoid")(h),
    })

def wrong_input(width):
    return titled(width, "m²")
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.setenv(registry.ALLOWED, "")
    monkeypatch.setattr(registry, "_imported", {})
    monkeypatch.setattr(registry, "_registered", {})
    (tmp_path / "own_code.py").write_text(CODE)
    (tmp_path / "t.csv").write_text(
        "x,y,z\n" + "".join(f"{i},{2 * i},{i % 2}\n" for i in range(60))
    )
    (tmp_path / "t.toml").write_text(
        '[data]\nfiles = "t.csv"\n[features]\nx = "number"\n'
        '[tasks]\ny = "number"\nz = "binary"\n'
    )
    return tmp_path / "own_code.py"


def imported(code):
    return code.with_name("imported").exists()


def run_folder(path, application, data="any"):
    """Writes a run folder as one from elsewhere may be."""
    config = runs.RunConfig("vision").validate()
    values = {**vars(config), "application": application, "data": data}
    values["made_with"] = {"format": FORMAT}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(values))
    (path / "metrics.json").write_text("{}")
    (path / "model.keras").write_bytes(b"")
    return path


def test_code_is_imported_only_after_it_was_named(code):
    name = f"{code}:Mine"
    with pytest.raises(InputError, match="imported only if it is named"):
        applications.get(name)
    assert not imported(code)
    assert applications.allow(name) == name
    assert type(applications.get(name)).__name__ == "Mine"
    assert imported(code)
    # As a worker process inherits it.
    assert json.loads(os.environ[registry.ALLOWED]) == {name: name}


def test_a_run_folder_imports_no_code(code, capsys):
    name = f"{code}:Mine"
    run = run_folder(code.with_name("run"), name)
    for command in (["evaluate", str(run)], ["export", str(run), "--to", "m"]):
        assert app(command, standalone_mode=False) == 2
        assert "imported only if it is named" in capsys.readouterr().err
    assert not imported(code)
    # Named on the command line it is; then the error is that of the model.
    command = ["evaluate", str(run), "--code", name]
    assert app(command, standalone_mode=False) == 2
    assert "imported only" not in capsys.readouterr().err
    assert imported(code)


@pytest.mark.slow
def test_worker_processes_inherit_the_allowed_code(code):
    name = applications.allow(f"{code}:Mine")
    source = f"from mtl_keras import applications as a; print(a.get({name!r}).name)"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "mine"


def test_paths_mean_the_same_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert applications.canonical("a.toml") == str(tmp_path / "a.toml")
    assert applications.canonical("b.py:C", "sub") == f"{tmp_path / 'sub' / 'b.py'}:C"
    assert applications.canonical("package.module:C") == "package.module:C"
    assert applications.canonical("vision", "sub") == "vision"
    labels = {"/x/Houses.toml": "Houses", "/x/b.py:MyOwn": "myown", "text": "text"}
    assert {name: applications.label(name) for name in labels} == labels


def test_a_registered_name_is_known_in_worker_processes_too(code):
    applications.allow(f"{code}:Mine")
    mine = type(applications.get(f"{code}:Mine"))
    applications.register("my_name", mine)
    assert "my_name" in applications.names()
    assert json.loads(os.environ[registry.ALLOWED])["my_name"] == f"{code}:Mine"
    with pytest.raises(InputError, match="no built-in application"):
        applications.register("vision", mine)
    with pytest.raises(InputError, match="Did you mean 'my_name'"):
        applications.get("my_nam")


def test_named_code_has_to_exist_and_be_an_application(code):
    for name, message in (
        (f"{code}:Min", "Did you mean 'Mine'"),
        (f"{code}:pathlib", "Expected .* to be a subclass"),
        (f"{code.with_name('no.py')}:Mine", "There is no file"),
        ("no_such_package.module:Mine", "which is not found"),
    ):
        applications.allow(name)
        with pytest.raises(InputError, match=message):
            applications.get(name)


def test_installed_packages_offer_applications_by_name(
    code, tmp_path, monkeypatch, capsys
):
    meta = tmp_path / "plug-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(
        "[mtl_keras.applications]\nplugged = own_code:Mine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "plugged" in applications.names()
    # What a run folder names is not imported for that.
    run = run_folder(tmp_path / "run", "plugged")
    assert app(["evaluate", str(run)], standalone_mode=False) == 2
    assert "imported only if it is named" in capsys.readouterr().err
    assert not imported(code)
    assert applications.allow("plugged") == "plugged"
    assert type(applications.get("plugged")).__name__ == "Mine"


def test_a_function_that_builds_a_model_is_trained_on_a_data_file(code, eagerly):
    name = applications.allow(f"{code}:build")
    data = str(code.with_name("t.toml"))
    with pytest.raises(InputError, match="Expected a data file beside the function"):
        runs.RunConfig(name).validate()
    config = runs.RunConfig(name, data=data, width=3, epochs=1, batch_size=16)
    results = runs.train(config, code.with_name("run"))
    assert list(results.metrics) == ["y", "z"]
    model = runs.load_run(results.path).model()
    assert keras.ops.shape(model.layers[-1].kernel) == (3, 1)
    # The table is known by its state, as one that is trained without own code.
    path, table = config.validate().data.split("#")
    assert (path, table) == (data, runs.RunConfig(data).validate().data)
    with code.with_name("t.csv").open("a") as file:
        file.write("60,120,0\n")
    with pytest.raises(InputError, match=f"Expected the data '{table}'. Received"):
        runs.load_run(results.path)


def test_a_model_of_ones_own_may_call_its_outputs_as_the_table_does(code, eagerly):
    rows = "".join(f"{i},{2 * i},{i % 2}\n" for i in range(60))
    code.with_name("t.csv").write_text("m²,y (€),z\n" + rows, encoding="utf-8")
    data = code.with_name("t.toml")
    data.write_text(
        'data.files = "t.csv"\nfeatures."m²" = "number"\n'
        'tasks = { "y (€)" = "number", z = "binary" }\n',
        encoding="utf-8",
    )
    config = runs.RunConfig(
        applications.allow(f"{code}:titled"),
        data=str(data),
        width=3,
        epochs=1,
        batch_size=16,
    )
    results = runs.train(config, code.with_name("run"))
    assert set(results.metrics["y (€)"]) == {"mae", "rmse", "r2", "loss"}
    history = (results.path / "history.csv").read_text(encoding="utf-8")
    assert "val_y (€)_rmse" in history.splitlines()[0]
    table = config.validate().get_application().table
    x, y, *_ = next(iter(table.load("test", batch_size=60)))
    (name,) = (task.name for task in table.tasks.values() if task.kind == "number")
    answer = runs.load_run(results.path).model().predict(x, verbose=0)[name]
    error = np.abs(answer - y[name].numpy()).mean()
    np.testing.assert_allclose(results.metrics["y (€)"]["mae"], error, rtol=1e-5)
    wrong = dataclasses.replace(
        config, application=applications.allow(f"{code}:wrong_input")
    )
    with pytest.raises(InputError, match=r"Expected the input 'm2' .* column 'm²'"):
        wrong.validate().get_application().build()


def test_a_compiled_model_is_trained_on_data_sets_of_ones_own(code, eagerly):
    named = {
        key: f"{code}:{name}"
        for key, name in (("build", "compiled"), ("data", "datasets"))
    }
    comparison = Comparison(balancing=("equal", "pcgrad"), seeds=1, **named)
    plan = comparison.validate()
    assert plan.tasks == ("a", "b")
    base = plan.base
    assert (base.application, base.data) == (named["build"], named["data"])
    assert base.learning_rate == 0.25
    application = base.get_application()
    tasks = application.tasks
    assert [(t.objective, t.direction) for t in tasks.values()] == [
        ("loss", "min"),
        ("accuracy", "max"),
    ]
    config = runs.RunConfig(
        named["build"], data=named["data"], epochs=1, batch_size=16, width=3
    )
    results = runs.train(config, code.with_name("run"))
    assert set(results.metrics["b"]) == {"accuracy", "auc", "loss"}
    model = runs.load_run(results.path).model()
    assert type(model.optimizer).__name__ == "SGD"
    assert model.optimizer.momentum == 0.5
    # Without a test split it is the one for validation that is tested on.
    _, validation = registry.load_code(named["data"])(24)
    x, y = next(iter(validation))
    answer = model.predict(x, verbose=0)
    error = np.mean((answer["a"] - y["a"].numpy()) ** 2)
    np.testing.assert_allclose(results.metrics["a"]["loss"], error, rtol=1e-5)
    right = (answer["b"] > 0.5) == y["b"].numpy()
    np.testing.assert_allclose(results.metrics["b"]["accuracy"], right.mean())


def test_what_no_other_process_can_import_is_refused(code):
    name = applications.allow(f"{code}:build")
    function = registry.load_code(name)
    assert applications.allow(function) == name
    data = str(code.with_name("t.toml"))
    plan = Comparison(build=function, data=data, balancing=("equal",)).validate()
    assert (plan.base.application, plan.base.data.split("#")[0]) == (name, data)
    nested = type("Nested", (), {"build": lambda: None}).build
    sets = tf.data.Dataset.range(3)
    for given in ({"build": nested}, {"build": name, "data": (sets, sets)}):
        with pytest.raises(InputError, match=r"to which no data sets go.* Received"):
            Comparison(**given).validate()
    with pytest.raises(InputError, match="or `build`"):
        Comparison(data=data).validate()
