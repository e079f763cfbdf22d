"""Trainings of a comparison, their results, and its resumption."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from rich.console import Console

from mtl_keras.compare import Comparison, run_comparison
from mtl_keras.encoding import encode
from mtl_keras.errors import InputError
from mtl_keras.runs import RunConfig, evaluate, scheduler
from mtl_keras.runs.training import load_split

MAIN = {"way": "accuracy", "level": "mae"}
TWO_TASKS = RunConfig("tiny", tasks=tuple(MAIN), epochs=2, limit=32)


def comparison(**changes):
    settings = {"balancing": ("equal", "pcgrad"), "seeds": 2, "pairs": True}
    return Comparison(TWO_TASKS, **{**settings, **changes})


def label(name):
    """The readable part of a cell's name, without the hash."""
    return name.rpartition("-")[0]


def records(out):
    return {
        label(path.parent.name): json.loads(path.read_text())["result"]
        for path in sorted((out / "cells").glob("*/record.json"))
    }


def main(record):
    return {task: values[MAIN[task]] for task, values in record["test"].items()}


@pytest.fixture
def trainings(monkeypatch):
    """Counts the trainings."""
    fits = []
    fit = keras.Model.fit

    def counted(self, *args, **kwargs):
        fits.append(self)
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "fit", counted)
    return fits


def test_results_follow_from_the_cells(
    tiny, eagerly, inline, undrawn, trainings, tmp_path
):
    out = tmp_path / "comparison"
    console = Console(record=True, width=160, file=io.StringIO())
    summary = run_comparison(
        comparison(), out, console=console, command="mtl-keras <b>"
    )
    trained = records(out)
    assert len(trained) == len(trainings) == 2 * (2 + 2 + 1)
    assert "about" in console.export_text()

    # The chosen epoch is the best on validation, and its model was tested and kept.
    record = trained["hard-pcgrad-seed1"]
    history = record["history"]
    alone = [trained[f"single_{task}-seed1"]["validation"][task] for task in MAIN]
    gains = [
        np.mean(
            [
                (-1 if task == "level" else 1)
                * (history[f"val_{task}_{MAIN[task]}"][epoch] / base - 1)
                for task, base in zip(MAIN, alone, strict=True)
            ]
        )
        for epoch in range(2)
    ]
    assert record["epoch"] == 1 + int(np.argmax(gains))
    assert record["validation_delta_m"] == pytest.approx(100 * max(gains))
    (folder,) = (out / "cells").glob("hard-pcgrad-seed1-*")
    again = evaluate(folder / "run")
    for task, name in MAIN.items():
        assert again[task][name] == pytest.approx(record["test"][task][name], rel=1e-5)
        key = f"val_{task}_{name}"
        assert record["validation"][task] == history[key][record["epoch"] - 1]

    # Δm is against the single tasks of the same seed, on test.
    method = summary["methods"]["pcgrad"]
    for seed in range(2):
        tested = main(trained[f"hard-pcgrad-seed{seed}"])
        by_task = []
        for task in MAIN:
            base = main(trained[f"single_{task}-seed{seed}"])[task]
            by_task.append((-1 if task == "level" else 1) * (tested[task] / base - 1))
        assert method["delta_m"]["values"][seed] == pytest.approx(
            100 * np.mean(by_task)
        )
    values = method["test"]["level"]["values"]
    assert method["test"]["level"]["mean"] == pytest.approx(np.mean(values))
    assert method["test"]["level"]["std"] == pytest.approx(np.std(values, ddof=1))

    # In two methods the ranks of each seed are 1 and 2, or both 1.5.
    ranks = np.array(
        [summary["methods"][m]["rank"]["values"] for m in ("equal", "pcgrad")]
    )
    np.testing.assert_allclose(ranks.sum(axis=0), 3.0)

    # Row: who helps. The pair's value of `level` against `level` alone.
    pair = [main(trained[f"pair_way_level-seed{seed}"])["level"] for seed in range(2)]
    base = [main(trained[f"single_level-seed{seed}"])["level"] for seed in range(2)]
    gain = summary["affinity"]["pairs"][0][1]
    assert gain == pytest.approx(
        np.mean([100 * (1 - p / b) for p, b in zip(pair, base, strict=True)])
    )

    with (out / "summary.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert float(rows["pcgrad"]["delta_m_percent_mean"]) == method["delta_m"]["mean"]
    with (out / "cells.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "mae"]
    assert {label(row["cell"]) for row in rows} == {
        n for n in trained if "level" in n or "hard" in n
    }
    assert json.loads((out / "results.json").read_text())["methods"]["equal"][
        "seeds"
    ] == [0, 1]
    page = (out / "report.html").read_text()
    assert "<span>&lt;b&gt;</span>" in page

    # Again, with one method more: only that is trained.
    del trainings[:]
    more = comparison(balancing=("equal", "pcgrad", "dwa"))
    summary = run_comparison(more, out, jobs=2)
    assert len(trainings) == 2
    assert list(summary["methods"]) == ["equal", "pcgrad", "dwa"]
    assert summary["methods"]["pcgrad"]["jobs"] == [1, 1]
    assert summary["methods"]["dwa"]["jobs"] == [2, 2]
    assert summary["methods"]["pcgrad"]["delta_m"] == method["delta_m"]


def test_cells_of_a_seed_differ_in_nothing_but_what_is_compared(tiny):
    cells = comparison(sharing=("hard", "mmoe")).validate().cells()
    assert len({cell.name for cell in cells}) == len(cells) == 2 * (2 + 4 + 1)
    configs = [encode(cell.config) for cell in cells if cell.config.seed == 1]
    for key in set(configs[0]) - {"tasks", "sharing", "balancing"}:
        assert len({str(config[key]) for config in configs}) == 1, key
    orders = [
        np.concatenate([x["image"] for x, _ in load_split(cell.config, "train")])
        for cell in cells
        if label(cell.name)
        in ("single_way-seed1", "mmoe-pcgrad-seed1", "single_way-seed0")
    ]
    np.testing.assert_array_equal(orders[1], orders[2])
    assert (orders[0] != orders[1]).any()


def spec(name, **config):
    return {"class_name": name, "config": config}


def test_trainings_with_other_settings_have_other_folders(tiny):
    balancing = (
        spec("uncertainty", initial_log_variance=-1.0),
        spec("uncertainty", initial_log_variance=1.0),
        spec("famo", lower_bound=1e-05),
        spec("famo", lower_bound=1e05),
        spec("static", task_weights={"way": 1, "level": 12}),
        spec("static", task_weights={"way": 11, "level": 2}),
        [spec("dwa", temperature=2.5), "pcgrad"],
        [spec("dwa", temperature=25), "pcgrad"],
        spec("static", task_weights={f"way{'y' * 300}": 1}),
    )
    pairs = ("equal", "pcgrad")
    cells = [
        cell
        for ways in (balancing, pairs)
        for cell in comparison(balancing=ways, sharing=("hard",)).validate().cells()
        if ways == balancing or cell.kind == "pair" or cell.method == "equal"
    ]
    names = {cell.name.lower() for cell in cells}
    assert len(names) == len({(c.kind, c.method, c.config.seed) for c in cells})
    assert max(len(name.encode()) for name in names) < 100


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("dwa", "DWA"),
        ("dwa", spec("dwa", temperature=2)),
        (spec("dwa", temperature=0.1), spec("DWA", temperature=1e-1)),
        (spec("pcgrad", seed=None), "pcgrad"),
        (["dwa", "pcgrad"], [spec("dwa", temperature=2.0), "pcgrad"]),
        (spec("cr_mogm", balancer="pcgrad"), spec("CRMOGM", balancer=spec("PCGrad"))),
        (
            spec("static", task_weights={"way": 1, "level": 2.0}),
            spec("static", task_weights={"level": 2, "way": 1.0}),
        ),
    ],
)
def test_one_training_written_in_two_ways_has_one_identity(tiny, first, second):
    identities = {
        dataclasses.replace(TWO_TASKS, balancing=way).validate().identity()
        for way in (first, first, second)
    }
    assert len(identities) == 1
    with pytest.raises(InputError, match="same twice"):
        comparison(balancing=(first, second)).validate()


def test_a_fixed_seed_counts(tiny):
    ways = ("pcgrad", spec("pcgrad", seed=1), spec("pcgrad", seed=2))
    assert len({c.name for c in comparison(balancing=ways).validate().cells()}) == 12


@pytest.mark.slow
def test_a_single_task_without_a_baseline_leaves_the_others(
    tiny, eagerly, inline, monkeypatch, tmp_path
):
    """Its metric is 0; then it fails when it is trained again."""
    one = comparison(seeds=1, pairs=False)
    run_comparison(one, tmp_path / "out")
    (single,) = (tmp_path / "out/cells").glob("single_level-*/record.json")
    record = json.loads(single.read_text())
    result = record["result"]
    result["validation"]["level"] = result["test"]["level"]["mae"] = 0.0
    single.write_text(json.dumps(record))
    (other,) = (tmp_path / "out/cells").glob("hard-pcgrad-*/record.json")
    other.unlink()
    console = Console(record=True, width=160, file=io.StringIO())
    with pytest.warns(UserWarning, match=r"excludes .* level \(0.0\)"):
        summary = run_comparison(one, tmp_path / "out", console=console)
    assert "without level, whose baseline on validation is 0" in console.export_text()
    assert summary["failed"] == {}
    method = summary["methods"]["pcgrad"]
    assert method["delta_m"]["values"] == method["gain"]["way"]["values"]

    single.unlink()
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: 1 / 0)
    summary = run_comparison(one, tmp_path / "out")
    assert [label(name) for name in summary["failed"]] == ["single_level-seed0"]
    method = summary["methods"]["pcgrad"]
    assert np.isnan(method["delta_m"]["mean"])
    assert np.isfinite(method["gain"]["way"]["mean"])
    assert np.isfinite(method["test"]["level"]["mean"])


def test_a_failed_cell_is_recorded_and_tried_again(
    tiny, eagerly, inline, undrawn, monkeypatch, tmp_path
):
    fit = keras.Model.fit

    def diverging(self, *args, **kwargs):
        if self.tasks == ["level"]:
            self.set_weights([w + np.nan for w in self.get_weights()])
        return fit(self, *args, **kwargs)

    def failing(self, *args, **kwargs):
        if self.balancers[0].method == "pcgrad":
            raise MemoryError("no room for <this>")
        return fit(self, *args, **kwargs)

    out = tmp_path / "out"
    base = dataclasses.replace(TWO_TASKS, limit=None)
    one = dataclasses.replace(comparison(seeds=1, pairs=False), base=base)
    monkeypatch.setattr(keras.Model, "fit", diverging)
    failed = run_comparison(one, out)["failed"]
    failed = {label(name): message for name, message in failed.items()}
    assert set(failed) == {
        "single_level-seed0",
        "hard-equal-seed0",
        "hard-pcgrad-seed0",
    }
    assert "NaN or infinity" in failed["single_level-seed0"]
    assert "training 'level' alone with seed 0 failed" in failed["hard-equal-seed0"]

    monkeypatch.setattr(keras.Model, "fit", failing)
    summary = run_comparison(one, out)
    ((name, message),) = summary["failed"].items()
    assert label(name) == "hard-pcgrad-seed0"
    assert "out of memory" in message
    assert "no room for <this>" in message
    assert summary["methods"]["equal"]["seeds"] == [0]
    assert "no room for &lt;this&gt;" in (out / "report.html").read_text()

    monkeypatch.setattr(keras.Model, "fit", fit)
    summary = run_comparison(one, out)
    assert summary["failed"] == {}
    # One seed: a mean, but neither spread nor tests.
    assert summary["methods"]["pcgrad"]["seeds"] == [0]
    assert summary["methods"]["pcgrad"]["delta_m"]["std"] is None


# Kills itself after the first epoch of the third training.
KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import keras, tensorflow as tf
from tiny_application import Tiny
from inline_jobs import run_here
from mtl_keras import applications
from mtl_keras.compare import Comparison, run_comparison
from mtl_keras.runs import RunConfig, fitting
from mtl_keras.runs.scheduler import Scheduler

application = Tiny()
applications.get = lambda name: application
tf.config.run_functions_eagerly(True)
Scheduler._start = run_here
epochs = []

class Kill(fitting.EpochTensorBoard):
    def on_epoch_end(self, epoch, logs=None):
        epochs.append(epoch)
        if len(epochs) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

fitting.EpochTensorBoard = Kill
config = RunConfig("tiny", tasks=("way", "level"), epochs=2, limit=32)
run_comparison(Comparison(config, ("equal",), seeds=1), {out!r})
"""


@pytest.mark.slow
def test_a_killed_comparison_resumes(
    tiny, eagerly, inline, undrawn, trainings, tmp_path
):
    """Killed by a signal that nothing can catch, within the third training."""
    out = tmp_path / "out"
    script = KILLED.format(tests=str(pathlib.Path(__file__).parents[1]), out=str(out))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert set(records(out)) == {"single_way-seed0", "single_level-seed0"}
    one = Comparison(TWO_TASKS, ("equal",), seeds=1)
    summary = run_comparison(one, out)
    assert len(trainings) == 1
    assert records(out)["hard-equal-seed0"]["epoch"] in (1, 2)
    assert summary["methods"]["equal"]["seeds"] == [0]
    assert run_comparison(one, out)["methods"] == summary["methods"]
    assert len(trainings) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"balancing": ("equal", "pcgard")}, "Did you mean 'pcgrad'"),
        ({"balancing": ("equal", "equal")}, "Received twice: equal"),
        ({"balancing": ()}, "at least one balancing"),
        ({"sharing": ("mmeo",)}, "Did you mean 'mmoe'"),
        ({"seeds": 0}, "seeds"),
        ({"base": RunConfig("tiny", tasks=("way",))}, "at least two tasks"),
        ({"base": RunConfig("tiny", limit=0)}, "limit"),
    ],
)
def test_wrong_settings_stop_it_before_anything_is_written(
    tiny, tmp_path, changes, message
):
    settings = {"base": RunConfig("tiny"), **changes}
    with pytest.raises(InputError, match=message):
        run_comparison(Comparison(**settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_in_the_folder_are_refused(tiny, inline, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for path in (out, elsewhere):
        path.mkdir()
    (out / "comparison.json").write_text(json.dumps(encode(comparison().validate())))
    (out / "cells").symlink_to(elsewhere)
    with pytest.raises(InputError, match="no symbolic link"):
        run_comparison(comparison(), out)
    assert not any(elsewhere.iterdir())


@pytest.mark.slow
def test_a_folder_of_other_settings_is_refused(tiny, eagerly, inline, tmp_path):
    few = {"balancing": ("equal",), "seeds": 1}
    run_comparison(Comparison(RunConfig("tiny", epochs=1), **few), tmp_path / "out")
    other = Comparison(RunConfig("tiny", epochs=1, width=9), **few)
    with pytest.raises(InputError, match="another width: 8 there, 9 here"):
        run_comparison(other, tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("kept")
    with pytest.raises(InputError, match="in use"):
        run_comparison(other, tmp_path / "used")


@pytest.mark.slow
def test_cells_run_in_processes_of_their_own(tmp_path):
    """Two at a time; the third is killed from outside, as for want of memory."""
    config = RunConfig("vision", tasks=("left", "even_sum"), epochs=1, limit=200)
    start, started = scheduler.start_worker, []

    def killing(*args):
        started.append(start(*args))
        if len(started) == 3:
            started[-1]._process.kill()
        return started[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scheduler, "start_worker", killing)
        summary = run_comparison(
            Comparison(config, ("equal", "pcgrad"), seeds=1), tmp_path / "out", jobs=2
        )
    assert summary["failed"] == {}
    # Four cells, of which one was run again.
    assert len({worker._process.pid for worker in started}) == 5
    assert summary["methods"]["pcgrad"]["peak_memory_mb"]["mean"] > 100


def test_without_single_tasks_the_first_method_is_the_reference(
    tiny, inline, eagerly, tmp_path, trainings, monkeypatch
):
    # Many tasks are shown together.
    monkeypatch.setattr("mtl_keras.compare.summary.MANY_TASKS", 1)
    out = tmp_path / "out"
    one = comparison(single_tasks=False, seeds=1, pairs=False)
    console = Console(record=True, width=160, file=io.StringIO())
    summary = run_comparison(one, out, console=console)
    assert len(trainings) == 2
    equal, pcgrad = (records(out)[f"hard-{m}-seed0"] for m in ("equal", "pcgrad"))
    gains = {
        task: 100 * sign * (main(pcgrad)[task] / main(equal)[task] - 1)
        for task, sign in (("way", 1), ("level", -1))
    }
    methods = summary["methods"]
    assert methods["pcgrad"]["delta_m"]["mean"] == pytest.approx(
        np.mean(list(gains.values()))
    )
    assert methods["equal"]["delta_m"]["values"] == [0.0]
    # Its epoch is the best by the same measure, on validation.
    base, history = equal["validation"], pcgrad["history"]
    deltas = [
        np.mean([(way / base["way"] - 1), (1 - level / base["level"])])
        for way, level in zip(
            history["val_way_accuracy"], history["val_level_mae"], strict=True
        )
    ]
    assert pcgrad["epoch"] == 1 + int(np.argmax(deltas))
    # That of the reference by accuracy and, which is better the lower, the error.
    by = np.mean([base["way"], -base["level"]])
    assert f"equal, seed 0: {by:.4f} on validation" in console.export_text()
    assert summary["single"] == {}
    assert "against_single" not in summary["tests"]
    page = (out / "report.html").read_text()
    assert "gain over equal, %" in page
    assert "single tasks" not in page
    with (out / "summary.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["equal", "pcgrad"]
    # Against another reference, or against single tasks, another epoch may be best.
    names = [
        {c.name for c in c.validate().cells()}
        for c in (
            one,
            comparison(
                single_tasks=False, seeds=1, pairs=False, balancing=("pcgrad", "equal")
            ),
            comparison(seeds=1, pairs=False),
        )
    ]
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    with pytest.raises(InputError, match="single_tasks=True with pairs=True"):
        comparison(single_tasks=False).validate()


@pytest.mark.filterwarnings("ignore:Δm excludes tasks")
def test_a_task_without_a_value_on_a_split_is_left_out(
    inline, eagerly, undrawn, tmp_path
):
    x = np.random.default_rng(0).normal(size=90)
    folds = np.array(["train", "validation", "test"])[np.arange(90) % 3]
    # `lone` has one class where the model is not trained.
    rows = [
        f"{value},{fold},{int(value > 0)},{int(value > 0 and fold == 'train')}"
        for value, fold in zip(x, folds, strict=True)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["x,fold,ok,lone", *rows]))
    (tmp_path / "t.toml").write_text(
        """
        data = { files = "t.csv", split = { column = "fold" } }
        features.x = "number"
        tasks = { ok = "binary", lone = "binary" }
        """
    )
    base = RunConfig(
        str(tmp_path / "t.toml"), epochs=3, width=4, depth=1, learning_rate=0.03
    )
    given = Comparison(base, balancing=("equal",), seeds=1)
    console = Console(record=True, width=160, file=io.StringIO())
    summary = run_comparison(given, tmp_path / "out", console=console)
    assert summary["failed"] == {}
    assert summary["excluded"] == ["lone"]
    assert "its epoch is chosen without lone" in console.export_text()
    cells = records(tmp_path / "out")
    equal, alone = cells["hard-equal-seed0"], cells["single_ok-seed0"]
    undefined = {
        (task, metric)
        for task, own in equal["test"].items()
        for metric, value in own.items()
        if value is None
    }
    assert undefined == {("lone", "auc"), ("lone", "average_precision")}
    assert equal["history"]["val_lone_auc"] == [None] * 3
    gain = equal["test"]["ok"]["auc"] / alone["test"]["ok"]["auc"] - 1
    (method,) = summary["methods"].values()
    assert method["delta_m"]["mean"] == pytest.approx(100 * gain)
    assert method["mean"]["mean"] == equal["test"]["ok"]["auc"]
    assert method["on_front"]
    (run,) = (tmp_path / "out" / "cells").glob("hard-equal-seed0-*")
    metrics = evaluate(run / "run")
    assert np.isnan(metrics["lone"]["auc"])
    assert 0 <= metrics["lone"]["accuracy"] <= 1
    # Without single tasks the first method chooses by the tasks that are left.
    given = dataclasses.replace(given, single_tasks=False)
    run_comparison(given, tmp_path / "alone")
    equal = records(tmp_path / "alone")["hard-equal-seed0"]
    assert equal["epoch"] == 1 + int(np.argmax(equal["history"]["val_ok_auc"]))


def test_a_main_task_is_trained_alone_with_all_and_without_each_helper(
    tiny, inline, eagerly, tmp_path, trainings
):
    out = tmp_path / "out"
    given = Comparison(RunConfig("tiny", epochs=2), primary="level", seeds=1)
    told = {
        cell.method: cell.config.balancing
        for cell in given.validate().cells()
        if cell.kind == "combination"
    }
    assert len(told) == 6
    for name, spec in told.items():
        if name != "equal":
            assert spec["config"]["primary"] == "level"
    one = dataclasses.replace(given, balancing=("equal", "gradient_cosine"))
    console = Console(record=True, width=160, file=io.StringIO())
    summary = run_comparison(one, out, console=console)
    assert "2 without a helper" in console.export_text()
    found = records(out)
    assert len(trainings) == len(found) == 1 + 2 + 2
    alone = found["single_level-seed0"]
    together = found["hard-equal-seed0"]
    without = found["without_way-seed0"]
    assert set(without["test"]) == {"bright", "level"}
    # All keep the epoch that is best for the main task.
    for record in (alone, together, without):
        key = "val_mae" if record is alone else "val_level_mae"
        assert record["epoch"] == 1 + int(np.argmin(record["history"][key]))
    values = [record["test"]["level"]["mae"] for record in (alone, together, without)]
    helpers = summary["helpers"]
    assert list(helpers["gains"]) == ["all", "way", "bright"]
    gain = helpers["gains"]["all"]["gain"]
    assert gain == pytest.approx(100 * (1 - values[1] / values[0]))
    assert summary["methods"]["equal"]["delta_m"]["mean"] == pytest.approx(gain)
    gain = helpers["gains"]["way"]["gain"]
    assert gain == pytest.approx(100 * (1 - values[1] / values[2]))
    page = (out / "report.html").read_text()
    assert "Do the helpers help?" in page
    assert "all but way" in page
    # With one helper, without it is alone.
    two = dataclasses.replace(one, base=TWO_TASKS)
    assert {cell.kind for cell in two.validate().cells()} == {"single", "combination"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"primary": "lvel"}, "Did you mean 'level'"),
        ({"primary": "level", "pairs": True}, "pairs=False and single_tasks=True"),
    ],
)
def test_a_main_task_is_checked(tiny, changes, message):
    with pytest.raises(InputError, match=message):
        Comparison(TWO_TASKS, **changes).validate()
