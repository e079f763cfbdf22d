"""Files with their final name are on the disk, complete, after a loss of power."""

from __future__ import annotations

import os

import pytest
from inline_jobs import inline  # noqa: F401
from tiny_application import eagerly, tiny  # noqa: F401

from mtl_keras import files, serving
from mtl_keras.callbacks import DeltaCheckpoint
from mtl_keras.compare import Comparison, run_comparison
from mtl_keras.runs import RunConfig, checkpoints, load_run


class Disk:
    """Notes what is synced and renamed, in order."""

    def __init__(self):
        self.events = []

    def synced(self, descriptor):
        status = os.fstat(descriptor)
        key = (status.st_dev, status.st_ino)
        self.events.append(("sync", key, (status.st_size, status.st_mtime_ns)))

    def renamed(self, target):
        self.events.append(("rename", os.path.abspath(target), None))

    def check(self, root):
        """Checks every file below a folder; returns their names."""
        files = [path for path in root.rglob("*") if path.name != "log.txt"]
        files = [path for path in files if path.is_file()]
        for path in files:
            self.check_file(path)
        return {path.name for path in files}

    def check_file(self, path):
        """The file was synced after its last change and before it had its name, and
        its folder after that.
        """
        status = path.stat()
        content = (status.st_size, status.st_mtime_ns)
        sync = self.index("sync", (status.st_dev, status.st_ino), content)
        assert sync is not None, f"{path} is not synced"
        # The name of the file itself or of a folder that it is in.
        renames = {self.index("rename", str(n)): n for n in (path, *path.parents)}
        renames.pop(None, None)
        assert renames, f"{path} is written in place"
        last = max(renames)
        assert sync < last, f"{path} is synced after it has its name"
        parent = renames[last].parent.stat()
        folder = self.index("sync", (parent.st_dev, parent.st_ino))
        assert folder is not None, path
        assert folder > last, f"the name of {path} is not synced"

    def index(self, *event):
        """The last such event."""
        for index in range(len(self.events) - 1, -1, -1):
            if self.events[index][: len(event)] == event:
                return index
        return None


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def noting_fsync(descriptor):
        fsync(descriptor)
        disk.synced(descriptor)

    def noting_rename(source, target, **kwargs):
        rename(source, target, **kwargs)
        disk.renamed(target)

    def noting_replace(source, target, **kwargs):
        replace(source, target, **kwargs)
        disk.renamed(target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "rename", noting_rename)
    monkeypatch.setattr(os, "replace", noting_replace)
    return disk


@pytest.mark.slow
def test_runs_comparisons_and_exports_are_synced(
    tiny,  # noqa: F811
    eagerly,  # noqa: F811
    inline,  # noqa: F811
    disk,
    monkeypatch,
    tmp_path,
):
    kept = []
    save, keep = checkpoints.save, DeltaCheckpoint._save

    def saving(folder, *args):
        save(folder, *args)
        kept.extend(disk.check(folder))

    def keeping(self, *args):
        keep(self, *args)
        kept.append(self.filepath.name)
        disk.check_file(self.filepath)

    monkeypatch.setattr(checkpoints, "save", saving)
    monkeypatch.setattr(DeltaCheckpoint, "_save", keeping)
    out = tmp_path / "deep" / "out"
    config = RunConfig("tiny", tasks=("way", "level"), epochs=1, limit=32)
    run_comparison(Comparison(config, ("equal",), seeds=1), out)
    assert {"best.keras", "epoch-000001-step-000000000.npz"} <= set(kept)
    names = disk.check(out)
    assert {"model.keras", "history.csv", "report.html", "record.json"} <= names
    (run,) = out.glob("cells/hard-*/run")
    model = tiny.serving_model(load_run(run).model())
    serving.export(model, tmp_path / "served")
    names = disk.check(tmp_path / "served")
    assert {"saved_model.pb", "tf_serving_warmup_requests", "models.config"} <= names
    # The folders that had to be made, too.
    for path in (out, out.parent, tmp_path / "served"):
        parent = path.parent.stat()
        assert disk.index("sync", (parent.st_dev, parent.st_ino)) is not None


def test_a_file_is_not_replaced_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def fails(descriptor):
        raise OSError("Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with (
        pytest.raises(OSError, match="Input/output"),
        files.atomic_write(path) as temporary,
    ):
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
