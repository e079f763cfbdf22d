"""Preparing and loading data sets by name, and their errors."""

from __future__ import annotations

import os
import pathlib
import socket
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mtl_keras import data
from mtl_keras.data import catalog, generated
from mtl_keras.errors import InputError

DOWNLOADS = os.environ.get("MTL_KERAS_TEST_DOWNLOADS", "")
MNIST_FILES = (
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
)


def leftovers(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_names_and_info(tmp_path):
    assert data.names() == sorted(data.names())
    assert {"mnist", "behaviour/small", "multimodal/unpaired"} <= set(data.names())
    info = data.info("multi_digits/mnist", data_dir=tmp_path)
    assert not info.prepared
    assert info.needs_downloads
    assert info.splits == {}
    assert not data.info("multi_digits/digits", data_dir=tmp_path).needs_downloads


@pytest.mark.parametrize(("name", "cls"), generated.BUILDERS.items())
def test_names_of_generated_data_sets_are_those_of_their_builders(name, cls):
    builder = getattr(data, cls)
    assert builder.name == name
    names = {f"{name}/{config.name}" for config in builder.BUILDER_CONFIGS}
    assert names == {known for known in data.names() if known.startswith(f"{name}/")}
    if catalog.full_name(name) != name:
        assert catalog.full_name(name) == f"{name}/{builder.DEFAULT_CONFIG_NAME}"
    for config in builder.BUILDER_CONFIGS:
        description = catalog.find(f"{name}/{config.name}").description
        # Of multimodal, numbers of samples are by modality and not described.
        for field in {"behaviour": ["samples"], "mmoe_synthetic": ["correlation"]}.get(
            name, []
        ):
            assert f"{getattr(config, field):,}" in description


def test_load_prepares_data_sets_that_need_no_files(
    tmp_path, few_scenes, no_network, capfd, monkeypatch
):
    monkeypatch.setenv("MTL_KERAS_DATA_DIR", str(tmp_path))
    prepare = tfds.core.DatasetBuilder.download_and_prepare

    def other_thread(self, **kwargs):
        print("said meanwhile by another thread")
        print("and on standard error", file=sys.stderr)
        prepare(self, **kwargs)

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", other_thread)
    dataset = data.load("multi_digits", "train[:100]")
    assert len(dataset) == 100
    assert dataset.element_spec["image"].shape == (36, 36, 1)
    captured = capfd.readouterr()
    assert set(captured.out.splitlines()) == {"said meanwhile by another thread"}
    assert set(captured.err.splitlines()) == {"and on standard error"}
    info = data.info("multi_digits/digits")
    assert info.prepared
    assert tmp_path in info.path.parents
    assert not [p for p in tmp_path.rglob("*") if "incomplete" in p.name]
    with pytest.raises(InputError, match=r"train, validation, test.*'tset'"):
        data.load("multi_digits/digits", "tset")


@pytest.mark.parametrize("call", ["prepare", "load"])
def test_without_files_the_command_is_named(tmp_path, no_network, call):
    arguments = ("train",) if call == "load" else ()
    command = "mtl-keras datasets prepare multi_digits/mnist --downloads DIR"
    with pytest.raises(InputError, match=command):
        getattr(data, call)("multi_digits/mnist", *arguments, data_dir=tmp_path)
    assert leftovers(tmp_path) == []


def test_unknown_data_set_gives_near_names(tmp_path):
    with pytest.raises(InputError, match="Did you mean 'multi_digits/digits'"):
        data.prepare("multi_digit/digits", data_dir=tmp_path)


def test_missing_and_altered_files_are_named(tmp_path, no_network):
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with pytest.raises(InputError, match=f"{MNIST_FILES[0]}.*no such file"):
        data.prepare("mnist", downloads=downloads, data_dir=tmp_path / "data")
    for name in MNIST_FILES:
        (downloads / name).write_bytes(b"not the original")
    with pytest.raises(InputError, match=f"{MNIST_FILES[0]}.*SHA-256"):
        data.prepare("multi_digits/mnist", downloads=downloads, data_dir=tmp_path)
    assert len(leftovers(tmp_path)) == len(MNIST_FILES)


def test_data_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="MTL_KERAS_DATA_DIR"):
        data.prepare("multi_digits/digits", data_dir=tmp_path / "file" / "data")


def test_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("mtl_keras.data.generated.scenes.compose", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.prepare("multi_digits/digits", data_dir=tmp_path)
    monkeypatch.undo()
    assert not data.info("multi_digits/digits", data_dir=tmp_path).prepared
    assert not [path for path in leftovers(tmp_path) if "record" in path.name]


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not DOWNLOADS, reason="MTL_KERAS_TEST_DOWNLOADS is not set")
def test_mnist_from_files(tmp_path, no_network):
    data.prepare("multi_digits/mnist", downloads=DOWNLOADS, data_dir=tmp_path)
    assert data.info("multi_digits/mnist", tmp_path).splits == {
        "train": 40_000,
        "validation": 5_000,
        "test": 10_000,
    }
    assert not [p for p in tmp_path.rglob("*") if "idx3" in p.name]
    scenes = data.load("multi_digits/mnist", "test[:500]", data_dir=tmp_path)
    batch = next(iter(tfds.as_numpy(scenes.batch(500))))
    assert set(batch["left"]) == set(range(10))
    sums = batch["left"] + batch["right"]
    np.testing.assert_array_equal(batch["even_sum"], sums % 2 == 0)
