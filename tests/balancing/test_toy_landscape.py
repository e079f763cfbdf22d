"""The two-task toy landscape: the committed run, and the first part of it again."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    path = ROOT / "benchmarks" / "toy_landscape.py"
    spec = importlib.util.spec_from_file_location("toy_landscape", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(ends):
    for end in (ends["mean"][0], ends["mean"][2]):
        assert end[1] > 1  # stuck in the valley
    np.testing.assert_allclose(ends["mean"][0], [-5.05, 2.15], atol=0.1)
    np.testing.assert_allclose(ends["mean"][2], [5.02, 2.31], atol=0.1)
    np.testing.assert_allclose(ends["cagrad"], [[0, -8.355]] * 3, atol=0.01)
    for method in ("mgda", "pcgrad", "nash", "mgda_running", "nash_running"):
        for x1, x2 in ends[method]:
            assert -7.01 <= x1 <= 7.01
            assert abs(x2 + 8.355) < 0.1


def test_committed_end_points(script):
    report = json.loads(script.RESULTS.read_text())
    assert report["protocol"]["steps"] == 100_000
    assert report["protocol"]["starts"] == [list(start) for start in script.STARTS]
    check(report["end_points"])
    assert script.PICTURE.read_bytes().startswith(b"\x89PNG")


def test_in_the_valley_the_mean_stalls_and_cagrad_progresses(script):
    config = {"steps": 1000, "record_every": 1000, "jit_compile": False}
    ends = {
        method: script.trajectories(method, starts=((5.06, 2.34),), **config)[0, -1]
        for method in ("mean", "cagrad")
    }
    assert ends["mean"][1] > 2.25
    assert ends["cagrad"][1] < 2.15


@pytest.mark.slow
def test_end_points_anew(script):
    check({m: script.trajectories(m, 100_000)[:, -1] for m in script.METHODS})
