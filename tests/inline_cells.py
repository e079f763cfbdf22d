"""Cells of a comparison without processes of their own."""

from __future__ import annotations

import types

import pytest

from mtl_keras.compare import worker


@pytest.fixture
def inline(monkeypatch):
    """Trains cells in this process, where `tiny` is known, as soon as they start."""

    def start(path, slot, jobs, gpus):
        code = 0 if worker.run(path) else 1
        return types.SimpleNamespace(
            poll=lambda: code, returncode=code, terminate=int, wait=int
        )

    monkeypatch.setattr(worker, "start", start)
