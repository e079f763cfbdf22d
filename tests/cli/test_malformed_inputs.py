"""Damaged files and odd command lines end in one line, in every reader."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import pytest

from mtl_keras.reports import figures

ROOT = pathlib.Path(__file__).parents[2]

# `model_config` loads models, `originals` and `prepared` make data sets: slower each.
CASES = {
    "study": 60,
    "study_folder": 15,
    "comparison": 15,
    "callback": 30,
    "run": 60,
    "metrics": 20,
    "model": 40,
    "model_config": 6,
    "checkpoint": 40,
    "recording": 40,
    "records": 30,
    "originals": 6,
    "command": 60,
    "table": 8,
}


@pytest.fixture(scope="module")
def script():
    path = ROOT / "benchmarks" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(script, tmp_path_factory):
    return script.Place(tmp_path_factory.mktemp("fuzz"))


def test_whole_inputs_are_read(script, place):
    script.check_whole(place)


@pytest.mark.parametrize("part", [2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", CASES)
def test_damaged_inputs_are_read_or_refused(script, place, kind, part, monkeypatch):
    # Reports are written, but not drawn, which takes the longest.
    monkeypatch.setattr(figures, "svg", lambda figure, about: "<svg></svg>")
    count = min(CASES[kind], max(8, CASES[kind] // part))
    outcomes = [script.outcome(kind, n, 12, place) for n in range(count)]
    assert set(outcomes) <= {"read", "refused"}, outcomes
    assert "refused" in outcomes


def test_the_committed_run_found_nothing(script):
    results = json.loads((script.RESULTS / "fuzz.json").read_text(encoding="utf-8"))
    assert results["cases"] >= 10_000
    assert results["defects"] == []
    assert set(results["by_kind"]) == set(script.CASES)
    for process in results["processes"]:
        assert process["code"] == 2, process
