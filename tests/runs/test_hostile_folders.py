"""Run folders that someone made to do harm are refused in one line."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import stat
import zipfile

import h5py
import keras
import pytest

from mtl_keras.errors import InputError
from mtl_keras.runs import RunConfig, load_run, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(tiny, eagerly, trained, tmp_path):
    """A copy of a run of the tiny application, to be tampered with."""
    if not trained.exists():
        train(RunConfig("tiny", epochs=1, limit=16), trained)
    return shutil.copytree(trained, tmp_path / "run")


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        load_run(path).model()
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def members(path):
    with zipfile.ZipFile(path / "model.keras") as file:
        return {name: file.read(name) for name in file.namelist()}


def rewrite(path, contents, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path / "model.keras", "w", compression) as file:
        for name, content in contents.items():
            file.writestr(name, content)


def with_layer(path, layer):
    """Inserts a layer into the model's config, between the input and the rest."""
    contents = members(path)
    config = json.loads(contents["config.json"])
    layers = config["config"]["layers"]
    layers.insert(1, {**layers[1], **layer, "name": "more"})
    layers[1]["config"] = {**layer.get("config", {}), "name": "more"}
    contents["config.json"] = json.dumps(config).encode()
    rewrite(path, contents)


def with_weights(path, change):
    contents = members(path)
    weights = io.BytesIO(contents["model.weights.h5"])
    with h5py.File(weights, "a") as file:
        change(file)
    rewrite(path, {**contents, "model.weights.h5": weights.getvalue()})


class Canary:
    """Makes a file wherever it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_folders_of_train_are_accepted(run):
    assert isinstance(load_run(run).model(), keras.Model)


def test_code_is_refused(run, tmp_path):
    whole = members(run)
    layer = keras.layers.Lambda(lambda x: x)
    with_layer(run, keras.saving.serialize_keras_object(layer))
    refused(run, "code to run, in a 'Lambda'")
    for module, name, config in (
        ("os", "system", {}),
        ("subprocess", "Popen", {"args": "true"}),
        ("builtins", "eval", {}),
        ("keras.utils", "get_file", {"origin": "file:///etc/hosts"}),
    ):
        rewrite(run, whole)
        layer = {"module": module, "class_name": name, "config": config}
        with_layer(run, {**layer, "registered_name": None})
        refused(run, "cannot be loaded")


def test_a_pickle_is_not_unpickled(run, tmp_path):
    canary = tmp_path / "canary"
    payload = pickle.dumps(Canary(canary))
    whole = members(run)
    for content in (payload, whole["config.json"]):
        (run / "model.keras").write_bytes(content)
        refused(run, "broken file")
    for name in ("config.json", "model.weights.h5"):
        rewrite(run, {**whole, name: payload})
        refused(run, "cannot be loaded")
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "assets/../../evil", "assets\\..\\evil", "code.py"]
)
def test_paths_out_of_a_model_are_refused(run, name):
    rewrite(run, {**members(run), name: b"evil"})
    refused(run, "a member named")
    assert not list(run.parent.rglob("evil"))


def test_links_are_refused(run, tmp_path):
    whole = members(run)
    link = zipfile.ZipInfo("assets/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    rewrite(run, whole)
    with zipfile.ZipFile(run / "model.keras", "a") as file:
        file.writestr(link, "/etc/passwd")
    refused(run, "a symbolic link")
    rewrite(run, whole)
    for name in ("model.keras", "config.json", "metrics.json"):
        (run / name).rename(tmp_path / name)
        (run / name).symlink_to(tmp_path / name)
        refused(run, "symbolic link")
        (run / name).unlink()
        (tmp_path / name).rename(run / name)
    load_run(run)


def test_files_that_would_take_all_memory_are_refused(run):
    whole = members(run)
    rewrite(run, whole, zipfile.ZIP_DEFLATED)
    refused(run, "a compressed member")
    rewrite(run, {**whole, "config.json": b"[" * 200_000})
    refused(run, "broken file")

    def endless(file):
        file.create_dataset("more", shape=(2**44,), chunks=(2**10,), dtype="float32")

    rewrite(run, whole)
    with_weights(run, endless)
    refused(run, "weights larger than the file")

    def itself(file):
        file["more"] = file["/"]

    rewrite(run, whole)
    with_weights(run, itself)
    refused(run, "weights (that contain themselves|larger than the file)")


def test_weights_out_of_other_files_are_refused(run, tmp_path):
    whole = members(run)
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 64)

    def stored_elsewhere(file):
        file.create_dataset("more", (16,), "float32", external=[(str(secret), 0, 64)])

    def external_link(file):
        file["more"] = h5py.ExternalLink(str(secret), "/")

    def virtual(file):
        layout = h5py.VirtualLayout((16,), "float32")
        layout[:] = h5py.VirtualSource(str(secret), "a", (16,))
        file.create_virtual_dataset("more", layout)

    for change, message in (
        (stored_elsewhere, "weights in another file"),
        (external_link, "a link to other weights"),
        (virtual, "weights in another file"),
    ):
        rewrite(run, whole)
        with_weights(run, change)
        refused(run, message)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"application": ["tiny"]}),
        ("config.json", {"application": "tiny", "epochs": {"a": 1}}),
        ("config.json", {"application": "tiny", "tasks": "way"}),
        ("config.json", {"application": "tiny", "balancing": {
            "class_name": "Dense", "registered_name": "Dense",
            "module": "keras.layers", "config": {"units": 3}}}),
        ("config.json", {"application": "tiny", "sharing": {"class_name": "hard",
            "config": [1]}}),
        ("metrics.json", {"way": {"accuracy": "high"}}),
        ("metrics.json", {"way": 3}),
    ],
    ids=str,
)  # fmt: skip
def test_files_of_other_things_are_refused(run, file, content):
    (run / file).write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        load_run(run).config.validate()
    assert "\n" not in str(caught.value)
