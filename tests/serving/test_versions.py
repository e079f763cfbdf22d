"""A version appears whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from shop_model import shop_model

from mtl_keras import serving
from mtl_keras.errors import InputError
from mtl_keras.serving.versions import write_version


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def forked(work):
    """Runs `work` in a process of its own; returns its id."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return child


CHUNK = 1 << 14


def bit_by_bit(source, told=None):
    """Copies an export in chunks, as a saver writes; tells of each on a pipe."""

    def write(version):
        for path, data in sorted(files(source).items()):
            (version / path).parent.mkdir(parents=True, exist_ok=True)
            with (version / path).open("wb") as file:
                for start in range(0, len(data), CHUNK):
                    file.write(data[start : start + CHUNK])
                    file.flush()
                    if told is not None:
                        os.write(told, b".")

    return write


def test_a_kill_at_any_moment_leaves_no_partial_version(shop, tmp_path):
    whole = files(shop.version)
    chunks = sum(-(-len(data) // CHUNK) for data in whole.values())
    rng = np.random.default_rng(3)
    killed_within = 0
    for _ in range(40):
        told, tell = os.pipe()
        write = bit_by_bit(shop.version, tell)

        def work(write=write):
            while True:
                write_version(tmp_path, write)

        child = forked(work)
        for _ in range(int(rng.integers(1, 2 * chunks))):
            os.read(told, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        os.close(tell)
        for entry in tmp_path.glob(".partial-*"):
            killed_within += 1
            shutil.rmtree(entry)
    assert killed_within > 10
    numbers = serving.versions(tmp_path)
    assert len(numbers) > 10
    assert numbers == list(range(1, len(numbers) + 1))
    for number in numbers:
        assert files(tmp_path / str(number)) == whole


def test_exports_at_the_same_time_get_versions_of_their_own(shop, tmp_path):
    children = [
        forked(lambda: write_version(tmp_path, bit_by_bit(shop.version)))
        for _ in range(12)
    ]
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    assert serving.versions(tmp_path) == list(range(1, 13))
    assert len(list(tmp_path.iterdir())) == 12


_EXPORT = """
import sys
from shop_model import shop_model
from mtl_keras import serving
model = shop_model()
print("ready", flush=True)
serving.export(model, sys.argv[1])
"""


@pytest.mark.slow
def test_an_export_of_a_model_killed_leaves_nothing_or_all(tmp_path):
    model = shop_model()
    start = time.monotonic()
    whole = set(files(serving.export(model, tmp_path / "whole")))
    takes = time.monotonic() - start
    for fraction in (0.1, 0.3, 0.5, 0.7, 0.9, 1.1):
        to = tmp_path / str(fraction)
        child = subprocess.Popen(
            [sys.executable, "-c", _EXPORT, str(to)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert child.stdout.readline() == b"ready\n"
        time.sleep(fraction * takes)
        child.kill()
        child.wait()
        for number in serving.versions(to):
            assert set(files(to / str(number))) == whole
            assert serving.check(to / str(number), seconds=0).problems == []
        # The leftovers have no name that a server takes for a version.
        left = {path.name for path in to.iterdir()} if to.exists() else set()
        left -= {"1", "models.config", "batching.config"}
        assert all(name.startswith(".partial-") for name in left)


def test_leftovers_of_a_killed_export_are_removed_a_day_later(tmp_path):
    old, new = tmp_path / ".partial-old", tmp_path / ".partial-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "file").write_text("")
    a_day_ago = time.time() - 25 * 3600
    os.utime(old, (a_day_ago, a_day_ago))
    write_version(tmp_path, lambda version: version.mkdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".partial-new", "1"]


def small_model():
    x = keras.Input((64,), name="x")
    return keras.Model(x, {"y": keras.layers.Dense(200, name="y")(x)})


@contextlib.contextmanager
def no_file_beyond(size):
    """Lets writing fail beyond a size, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [10, 3_000, 40_000])
def test_a_disk_without_space_is_one_line_and_leaves_nothing(tmp_path, size):
    model = small_model()
    with no_file_beyond(size), pytest.raises(InputError, match="no version") as caught:
        serving.export(model, tmp_path / "served")
    assert "\n" not in str(caught.value)
    assert "File too large" in str(caught.value)
    assert list((tmp_path / "served").iterdir()) == []
    assert serving.export(model, tmp_path / "served").name == "1"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    # No permission stops the superuser, but the kernel's own folders do.
    locked = pathlib.Path("/proc/sys") if os.geteuid() == 0 else closed
    for path in (tmp_path / "file", locked / "served"):
        with pytest.raises(InputError, match="cannot be written") as caught:
            serving.export(small_model(), path)
        assert "\n" not in str(caught.value)


def test_versions_count_up_past_other_files(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "models.config").write_text("mine")
    version = serving.export(small_model(), tmp_path, source={"run": "a"})
    assert version == tmp_path / "8"
    assert (version / "source.json").read_text() == '{\n  "run": "a"\n}\n'
    assert serving.latest_version(tmp_path) == version
    # Files changed for a server stay.
    assert (tmp_path / "models.config").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("7", "8", "batching.config", "models.config", "notes")
    ]
