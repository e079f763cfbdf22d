"""Summaries and reports of records that are written down; nothing is trained."""

from __future__ import annotations

import dataclasses
import html.parser
import math
import re

import numpy as np
import pytest
from scipy import stats

from mtl_keras import evaluation
from mtl_keras.compare import Comparison
from mtl_keras.compare.cell import CellResult
from mtl_keras.compare.report import write_report
from mtl_keras.compare.summary import summarise
from mtl_keras.decoding import decode
from mtl_keras.evaluation import holm
from mtl_keras.reports.figures import bars, heat, scatter, svg
from mtl_keras.runs import RunConfig
from mtl_keras.runs.records import Record, failure, made_with

MAIN = {"way": "accuracy", "bright": "auc", "level": "mae"}
METHODS = ("equal", {"class_name": "dwa", "config": {"temperature": 1.5}}, "famo")


@pytest.fixture
def compared(tiny):
    """A comparison of three methods and four seeds with made-up records."""
    comparison = Comparison(RunConfig("tiny", epochs=2), METHODS, seeds=4).validate()
    rng = np.random.default_rng(0)
    records = {}
    for cell in comparison.cells():
        tasks = sorted(cell.tasks)
        table = np.clip(
            np.eye(len(tasks)) + rng.normal(0, 0.2, (len(tasks),) * 2), -1, 1
        )
        result = {
            "epoch": 2,
            "validation": dict.fromkeys(tasks, 0.5),
            "validation_delta_m": 1.0,
            "test": {t: {MAIN[t]: rng.uniform(0.5, 0.9), "loss": 1.0} for t in tasks},
            "jobs": 1 + cell.config.seed % 2,
            "step_ms": 5.0,
            "step_cpu_ms": 7.0,
            "peak_memory_mb": 600.0,
            "peak_gpu_memory_mb": None,
            "history": {
                **{f"val_{t}_loss": [2.0, math.nan] for t in tasks},
                **{f"{t}_weight": [1.0, 1.5] for t in tasks},
            },
            "affinity": [
                {"epoch": 0, "cosines": table.tolist(), "affinity": table.tolist()}
            ],
        }
        records[cell.name] = Record(
            "COMPLETED", 3.0, "", "", made_with(), decode(CellResult, result)
        )
    return comparison, records


def names(comparison):
    """`{name without its hash: name}` of all cells."""
    return {cell.name.rpartition("-")[0]: cell.name for cell in comparison.cells()}


def deltas(comparison, records, label):
    """Δm of every seed, from the definition."""
    values = []
    named = names(comparison)
    for seed in range(4):
        gains = []
        for task, metric in MAIN.items():
            value = records[named[f"hard-{label}-seed{seed}"]].result.test[task][metric]
            base = records[named[f"single_{task}-seed{seed}"]].result.test[task][metric]
            gains.append((-1 if task == "level" else 1) * (value / base - 1))
        values.append(100 * np.mean(gains))
    return np.array(values)


def write(summary, path):
    extra = {
        "command": "mtl-keras compare 'x & <y>'",
        "machine": {"cores": 2},
    }
    write_report(path, summary | extra | {"versions": {"keras": "3"}})
    return path.read_text(encoding="utf-8")


def test_tests_are_those_of_scipy_over_the_seeds(compared):
    comparison, records = compared
    summary = summarise(comparison, records)
    labels = {"dwa(temperature=1.5)": "dwa_temperature_1.5", "famo": "famo"}
    equal = deltas(comparison, records, "equal")
    expected = [
        stats.ttest_rel(deltas(comparison, records, label), equal).pvalue
        for label in labels.values()
    ]
    tests = summary["tests"]["against_reference"]["t"]
    assert list(tests) == list(labels)
    assert [t["p"] for t in tests.values()] == pytest.approx(expected)
    assert [t["p_corrected"] for t in tests.values()] == pytest.approx(holm(expected))
    alone = summary["tests"]["against_single"]["t"]["equal"]
    assert alone["p"] == pytest.approx(stats.ttest_1samp(equal, 0).pvalue)
    # The order of the tasks, not that of their names: `way` comes first.
    named = names(comparison)
    table = np.mean(
        [
            records[named[f"hard-equal-seed{s}"]].result.affinity[0].cosines
            for s in range(4)
        ],
        axis=0,
    )
    assert summary["affinity"]["cosines"][0][1] == pytest.approx(table[2, 0])


def test_more_tasks_than_can_be_grouped_have_no_suggestion(
    compared, monkeypatch, tmp_path
):
    whole = summarise(*compared)
    assert "Suggested groups" in write(whole, tmp_path / "grouped.html")
    monkeypatch.setattr(evaluation.affinity, "MOST_TASKS", 2)
    summary = summarise(*compared)
    assert summary["affinity"] == {**whole["affinity"], "groups": {}}
    page = write(summary, tmp_path / "report.html")
    assert "Suggested groups" not in page
    assert page.endswith("</html>\n")
    assert page.count("<svg") == (tmp_path / "grouped.html").read_text().count("<svg")


def test_missing_values_are_shown_as_dashes(compared, tmp_path):
    comparison, records = compared
    named = names(comparison)
    failed = failure("E: <script>x</script>", jobs=1)
    records[named["hard-famo-seed2"]].result.test["way"]["accuracy"] = math.nan
    never_met = np.where(np.eye(3), 1.0, np.nan).tolist()
    for seed in range(4):
        (measured,) = records[named[f"hard-famo-seed{seed}"]].result.affinity
        measured.cosines[:] = never_met
    # Of other seeds the training went on.
    stopped = records[named["hard-famo-seed3"]].result.history
    stopped |= {key: values[:1] for key, values in stopped.items()}
    records[named["hard-equal-seed0"]] = failed
    # Trained again, and failed, after the combinations of its seed had finished.
    records[named["single_level-seed1"]] = failed
    summary = summarise(comparison, records)
    # Each method lacks one seed's Δm: there is nothing to rank or to test.
    assert summary["methods"]["famo"]["rank"]["mean"] is None
    assert summary["tests"]["against_single"]["t"] == {}
    assert summary["methods"]["famo"]["cosines"] is None
    assert summary["methods"]["famo"]["history"]["way_weight"] == [1.0, 1.5]
    deltas_of = summary["methods"]["dwa(temperature=1.5)"]["delta_m"]["values"]
    assert np.isnan(deltas_of).tolist() == [False, True, False, False]
    page = write(summary, tmp_path / "report.html")
    assert "E: &lt;script&gt;x&lt;/script&gt;" in page
    assert "<td>–</td>" in page
    assert "nan" not in re.sub(r"<style>.*</style>", "", page, flags=re.DOTALL)


@pytest.mark.parametrize("zero", [0.0, 1e-9, math.nan])
@pytest.mark.slow
def test_a_task_with_a_baseline_of_0_is_excluded_from_every_delta(
    compared, zero, tmp_path
):
    comparison, records = compared
    comparison = dataclasses.replace(comparison, pairs=True)
    named = names(comparison)
    for cell in comparison.cells():
        if cell.kind == "pair":
            alike = records[named[f"hard-equal-seed{cell.config.seed}"]]
            test = {task: alike.result.test[task] for task in cell.tasks}
            result = dataclasses.replace(alike.result, test=test, affinity=None)
            records[cell.name] = dataclasses.replace(alike, result=result)
    records[named["single_level-seed1"]].result.test["level"]["mae"] = zero
    summary = summarise(comparison, records)
    assert summary["excluded"] == ["level"]
    # For all seeds alike: Δm is the mean over the other two tasks.
    for seed, value in enumerate(summary["methods"]["famo"]["delta_m"]["values"]):
        gains = [
            records[named[f"hard-famo-seed{seed}"]].result.test[task][MAIN[task]]
            / records[named[f"single_{task}-seed{seed}"]].result.test[task][MAIN[task]]
            - 1
            for task in ("way", "bright")
        ]
        assert value == pytest.approx(100 * np.mean(gains))
    assert len(summary["tests"]["against_single"]["t"]) == 3
    pairs = np.array(summary["affinity"]["pairs"])
    assert np.isfinite(pairs).all()  # level over the other seeds
    page = write(summary, tmp_path / "report.html")
    assert "Δm excludes level" in page
    for task in ("way", "bright"):
        records[named[f"single_{task}-seed0"]].result.test[task][MAIN[task]] = zero
    summary = summarise(comparison, records)
    assert np.isnan(summary["methods"]["famo"]["delta_m"]["mean"])
    assert summary["tests"]["against_single"]["t"] == {}
    write(summary, tmp_path / "report.html")


def test_equal_differences_of_all_seeds_are_reported_as_not_testable(
    compared, tmp_path
):
    comparison, records = compared
    named = names(comparison)
    for seed in range(4):
        for task, metric in MAIN.items():
            for cell, value in (("single_" + task, 0.5), ("hard-equal", 0.6)):
                record = records[named[f"{cell}-seed{seed}"]]
                record.result.test[task][metric] = value
    summary = summarise(comparison, records)
    page = write(summary, tmp_path / "report.html")
    assert "Different from the single tasks at 5%: none" in page
    assert "Not testable against the single tasks: equal (no variance" in page
    assert "nan" not in re.sub(r"<style>.*</style>", "", page, flags=re.DOTALL)


class Checker(html.parser.HTMLParser):
    """Notes open tags and all that would load something."""

    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "link", "img", "iframe", "object"):
            self.loads.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Nothing stays open."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_title_names_an_own_application_without_its_folder(compared, tmp_path):
    summary = summarise(*compared)
    base = {**summary["comparison"]["base"], "application": "/home/me/work.py:Digits"}
    summary["comparison"] = {**summary["comparison"], "base": base}
    page = write(summary, tmp_path / "report.html")
    assert "<title>digits: 3 methods</title>" in page


def test_the_page_is_whole_and_loads_nothing(compared, tmp_path):
    page = write(summarise(*compared), tmp_path / "report.html")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.loads == []
    # Markers and clip paths are referred to within the page.
    assert not re.search(r"https?:|url\((?!#)|href=\"(?!#)|@import", page)
    referred = set(re.findall(r'(?:url\(|href=")#(\w+)', page))
    assert referred <= set(re.findall(r' id="(\w+)"', page))
    assert "width=device-width" in page
    assert "prefers-color-scheme: dark" in page
    assert "&#39;x</span> <span>&amp;</span> <span>&lt;y&gt;&#39;<" in page
    # Two of the four seeds were timed with two jobs side by side.
    assert page.count("<td>1–2</td><td>5.0</td>") == len(METHODS)
    assert page.count('<svg role="img"') == 4 + 3 + 3 + 3 + 3 + 2
    # Keys of the lines of methods, and of tasks.
    assert page.count('<svg aria-hidden="true"') == len(METHODS) + 3


def test_bars_and_points_are_where_their_values_are():
    figure = bars(
        [("a", {"mean": 2.0, "std": 0.5}, ""), ("b", {"mean": -4.0, "std": None}, "")],
        "%",
    )
    first, second = figure.axes[0].patches
    assert (first.get_x(), first.get_width()) == (0.0, 2.0)
    assert (second.get_x(), second.get_width()) == (0.0, -4.0)
    assert first.get_facecolor() != second.get_facecolor()
    points = [(0.0, 0.0), (1.0, 2.0), (0.5, math.nan)]
    figure = scatter(points, [1], "x", "y")
    numbers = {text.get_text(): text.xy for text in figure.axes[0].texts}
    assert {n: tuple(xy) for n, xy in numbers.items()} == {"1": (0, 0), "2": (1, 2)}


def test_numbers_of_points_close_together_do_not_cover_each_other():
    far = [(0.0, 0.0)]
    close = [(1.0 + 0.001 * n, 1.0 - 0.001 * n) for n in range(8)]
    figure = scatter(far + close, [], "x", "y")
    figure.draw_without_rendering()
    texts = figure.axes[0].texts
    places = figure.axes[0].transData.transform([text.xy for text in texts])
    places *= 72 / figure.dpi
    marks = places + [text.xyann for text in texts]
    gaps = np.linalg.norm(marks[:, None] - marks, axis=-1) + 99 * np.eye(len(marks))
    assert len(marks) == 9
    assert gaps.min() > 18
    # What stands aside is tied to its place, which no other number covers.
    aside = [text.arrow_patch is not None for text in texts]
    assert aside == [False, False] + [True] * 7
    assert np.linalg.norm(places[2:, None] - marks[2:], axis=-1).min() > 9


def test_names_in_figures_are_text_and_not_markup():
    names = ["<b>&", "$a_b$", "城市"]
    drawn = svg(heat(np.eye(3), names, 1.0), 'x"y')
    for name in ("&lt;b&gt;&amp;", "$a_b$", "城市"):
        assert f">{name}<" in drawn
    assert "<b>" not in drawn
    assert 'aria-label="x&quot;y"' in drawn
