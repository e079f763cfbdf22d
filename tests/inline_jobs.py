"""Jobs of a scheduler without processes of their own."""

from __future__ import annotations

import time

import pytest

from mtl_keras.runs import worker
from mtl_keras.runs.scheduler import Scheduler


def run_here(scheduler, slot, job):
    """Runs a job in this process, where `tiny` is registered, as soon as it starts."""
    started = time.monotonic()
    worker.run(job.folder, job.function)
    scheduler._end(job, time.monotonic() - started)


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(Scheduler, "_start", run_here)
