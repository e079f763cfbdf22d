"""Applications by name: data files, plugins, own code, and paths without import."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import keras
import pytest

from mtl_keras import applications, runs
from mtl_keras.applications import registry
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

def build(width):
    x = keras.Input((), name="x")
    h = keras.layers.Dense(width, "relu")(keras.ops.expand_dims(x, -1))
    return MultiTaskModel({"x": x}, {
        "y": keras.layers.Dense(1, name="y")(h),
        "z": keras.layers.Dense(1, "sigmoid", name="z")(h),
    })
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


def test_installed_packages_offer_applications_by_name(code, tmp_path, monkeypatch):
    meta = tmp_path / "plug-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(
        "[mtl_keras.applications]\nplugged = own_code:Mine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "plugged" in applications.names()
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
