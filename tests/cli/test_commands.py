"""The commands, from a study to a checked export, and how they fail."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from mtl_keras import data
from mtl_keras_cli.app import app

STUDY = """
application = "tiny"
oracle = "random"
trials = 2
epochs = 1
limit = 32
[space]
width = [4, 8, 12]
"""


@pytest.fixture
def run(tiny, eagerly, inline, undrawn, tmp_path, monkeypatch):
    """Runs a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTL_KERAS_DATA_DIR", str(tmp_path / "data"))

    def invoke(line):
        return CliRunner().invoke(app, shlex.split(line))

    return invoke


def ok(result):
    assert result.exit_code == 0, result.stderr or result.exception
    assert result.stderr == ""
    return result.stdout


def test_from_a_study_to_a_checked_export_and_again(run, tmp_path):
    (tmp_path / "small.toml").write_text(STUDY)
    output = ok(run("tune small.toml"))
    assert "trial 1 (2/2)" in output
    assert "mtl-keras train --from-study runs/study-small" in output
    assert "nothing left to run" in ok(run("tune small.toml"))
    again = ok(run("tune small.toml --workers 2"))  # which have nothing to do
    assert "nothing left to run" in again
    output = ok(run("tune small.toml --from-trial 1 --run runs/other"))
    assert "Training trial 1 in full" in output
    assert (tmp_path / "runs/other/model.keras").is_file()
    best = json.loads((tmp_path / "runs/study-small/trials/0.json").read_text())
    other = json.loads((tmp_path / "runs/study-small/trials/1.json").read_text())
    best = max(best, other, key=lambda record: record["score"])

    train = "train --from-study runs/study-small --epochs 1 --out runs/best --reuse"
    output = ok(run(train))
    assert f"trial {best['trial']}" in output
    assert "1/1" in output
    config = json.loads((tmp_path / "runs/best/config.json").read_text())
    assert config["width"] == best["config"]["width"]
    assert (config["epochs"], config["limit"]) == (1, None)
    assert "reused" in ok(run(train))

    metrics = json.loads((tmp_path / "runs/best/metrics.json").read_text())
    again = json.loads(ok(run("evaluate runs/best --json")))
    assert again["level"]["mae"] == pytest.approx(metrics["level"]["mae"], rel=1e-5)
    assert f"{metrics['level']['mae']:.4f}" in ok(run("evaluate runs/best"))

    output = ok(run("export runs/best --to served --check"))
    assert "served/1" in output
    assert "Every answer is that of the Keras model" in output
    assert "reused" in ok(run("export runs/best --to served --check --reuse"))
    assert "served/2" in ok(run("export runs/best --to served --tasks way"))
    assert "served/2" in ok(run("serve-check served --seconds 0"))

    output = ok(run("export runs/best --to served --weights int8 --tasks way --reuse"))
    assert "served/3" in output
    (line,) = [line for line in output.splitlines() if "mae" in line]
    before, after, change = map(float, line.split()[2:])
    assert before == pytest.approx(metrics["level"]["mae"], abs=1e-4)
    assert change == pytest.approx(after - before, abs=2e-4)
    card = (tmp_path / "served/3/MODEL_CARD.md").read_text()
    assert "| `way` |" in card
    assert "| `level` |" not in card


@pytest.mark.slow
def test_runs_of_one_task_are_served_together_and_checked(run, tmp_path):
    for task in ("way", "bright"):
        ok(run(f"train tiny --epochs 1 --tasks {task} --out runs/{task}"))
    ok(run("export runs/way runs/bright --to both"))
    output = ok(run("serve-check both/1 --seconds 0"))
    assert all(f"\n{task} " in output for task in ("serving_default", "way", "bright"))
    result = run("export runs/way runs/way --to twice")
    assert result.exit_code == 2
    assert "Received twice: 'way'" in result.stderr
    # The weights of one, the records of the other.
    ok(run("export runs/bright --to other"))
    ok(run("train tiny --epochs 1 --tasks bright --seed 5 --out runs/again"))
    ok(run("export runs/again --to other"))
    shutil.rmtree(tmp_path / "other/2/variables")
    shutil.copytree(tmp_path / "other/1/variables", tmp_path / "other/2/variables")
    result = run("serve-check other --seconds 0")
    assert result.exit_code == 1
    assert "serving_default: batch of 1: bright differs" in result.stdout


def test_train_takes_options_and_numbers_its_runs(run, tmp_path):
    output = ok(
        run(
            "train tiny --epochs 1 --tasks way,level --seed 4 --balancing "
            "'dwa(temperature=1) + mgda' --sharing 'mmoe(num_experts=2)' --patience 3 "
            "--steps-per-execution 4"
        )
    )
    assert "mmoe(num_experts=2) sharing, dwa(temperature=1) + mgda balancing" in output
    assert "Wrote runs/tiny-1" in output
    assert "Wrote runs/tiny-2" in ok(run("train tiny --epochs 1 --sharing mmoe"))
    config = json.loads((tmp_path / "runs/tiny-1/config.json").read_text())
    assert config["tasks"] == ["way", "level"]
    assert (config["patience"], config["steps_per_execution"]) == (3, 4)
    dwa = {"class_name": "dwa", "config": {"temperature": 1}}
    assert (config["balancing"], config["seed"]) == ([dwa, "mgda"], 4)


def test_a_run_with_preferences_is_evaluated_at_each_tasks_own(run, tiny, tmp_path):
    form = "hypernetwork(hidden=[4], rank=1, scalarisation=cosmos(strength=0.5))"
    line = "train tiny --tasks way,level --epochs 1 --learning-rate 0.1 --out a"
    output = ok(run(f"{line} --preferences '{form}' --balancing pcgrad"))
    assert f"preferences by {form}" in output.replace("\n", " ")
    front = json.loads(ok(run("evaluate a --json")))
    # In the order of the application; the model's own is by name.
    uniform, way, level = front["preferences"]
    assert way["preference"] == {"way": 1.0, "level": 0.0}
    assert level["preference"] == {"way": 0.0, "level": 1.0}
    written = json.loads((tmp_path / "a/metrics.json").read_text())
    assert uniform["metrics"]["level"] == pytest.approx(written["level"], rel=1e-4)
    model = keras.saving.load_model(tmp_path / "a/model.keras")
    ((x, y),) = tiny.load("test", batch_size=40, tasks=("way", "level"))
    errors = []
    for row, answer in (([0.0, 1.0], way), ([1.0, 0.0], level)):
        rows = np.repeat([row], 40, axis=0).astype("float32")
        predicted = model({**x, "preference": rows})["level"]
        errors.append(float(np.abs(predicted - y["level"]).mean()))
        assert answer["metrics"]["level"]["mae"] == pytest.approx(errors[-1], rel=1e-4)
    assert abs(errors[0] - errors[1]) > 1e-4
    losses = np.array(
        [
            [r["metrics"][t]["loss"] for t in ("way", "level")]
            for r in front["preferences"]
        ]
    )
    np.testing.assert_allclose(front["reference"], 1.1 * losses.max(0), rtol=1e-5)
    # The union of the boxes by inclusion and exclusion.
    volume = 0.0
    for count in (1, 2, 3):
        for boxes in itertools.combinations(losses, count):
            volume -= (-1) ** count * np.prod(
                front["reference"] - np.max(boxes, axis=0)
            )
    assert front["hypervolume"] == pytest.approx(volume, rel=1e-4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train tinny", "Did you mean 'tiny'"),
        ("train", "Expected an application"),
        ("train tiny --tasks way,brigth", "Did you mean 'bright'"),
        ("train tiny --balancing pcgard", "Did you mean 'pcgrad'"),
        ("train tiny --balancing dwa+famo", "a loss balancer and a"),
        ("train tiny --balancing 'cagrad(d=0.5)'", "for balancing method 'cagrad'"),
        ("train tiny --balancing 'cagrad(c=0.5'", "no closing ')'"),
        ("train tiny --sharing mmeo", "Did you mean 'mmoe'"),
        ("train tiny --preferences manifol", "Did you mean 'manifold'"),
        ("train tiny --preferences 'manifold(rnk=2)'", "Did you mean 'rank'"),
        ("train tiny --preferences 'manifold(rank=0)'", "rank to be a whole number"),
        ("train tiny --preferences 'manifold(alpha=0)'", "alpha"),
        ("train tiny --preferences 'manifold(scalarisation=cosmo)'", "one of ['linear"),
        ("train tiny --preferences manifold --tasks way", "at least two tasks"),
        ("train tiny --preferences manifold --balancing dwa", "no loss balancer"),
        ("train tiny --backbone cnm", "Did you mean 'cnn'"),
        ("train tiny --data stripe", "Did you mean 'stripes'"),
        ("train vision --data multi_digits/mnist", "mtl-keras datasets prepare"),
        ("train tiny --epochs 0", "epochs"),
        ("train tiny --epochs few", "'--epochs'"),
        ("train tiny --patience 0", "patience"),
        ("train tiny --epoch 3", "--epoch"),
        ("train tiny --out used", "in use"),
        ("train tiny --out used --reuse", "not a run folder"),
        ("train tiny --out used/file/run", "not a folder"),
        ("train --from-study used", "not a study folder"),
        ("tune absent.toml", "no study file"),
        ("tune wrong.toml", "Did you mean 'trials'"),
        ("tune tuned.toml --out used", "in use"),
        ("tune tuned.toml --workers 0", "--workers"),
        ("tune tuned.toml --role cheif --chief here:1", "Did you mean 'chief'"),
        ("tune tuned.toml --role worker", "together with --chief"),
        ("tune tuned.toml --role worker --chief here", "HOST:PORT"),
        ("tune tuned.toml --role chief --chief here:1 --workers 2", "either"),
        ("tune tuned.toml --from-trial 0 --out used", "not a study folder"),
        ("evaluate absent", "no run folder"),
        ("evaluate used", "not a run folder"),
        ("export used --to served", "not a run folder"),
        ("export absent", "--to"),
        ("serve-check absent", "no export folder"),
        ("serve-check used", "no exported version"),
        ("serve-check used --tolerance -1", "tolerance"),
        ("compare tiny --balancing equal,pcgard", "Did you mean 'pcgrad'"),
        ("compare tiny --balancing dwa+famo --seeds 1", "a loss balancer and a"),
        ("compare tiny --sharing mmeo", "Did you mean 'mmoe'"),
        ("compare tiny --sharing 'hard, mmoe(experts)'", "'experts' as an argument"),
        ("compare tiny --tasks way", "at least two tasks"),
        ("compare tiny --seeds 0", "seeds"),
        ("compare tiny --jobs 0", "jobs"),
        ("compare tiny --steps-per-execution 0", "steps_per_execution"),
        ("train tiny --steps-per-execution 0", "steps_per_execution"),
        ("compare tiny --out used", "in use"),
        ("datasets prepare multi_digit", "Did you mean 'multi_digits"),
        ("trian tiny", "trian"),
        ("--verison", "--verison"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(run, tmp_path, monkeypatch, line, message):
    monkeypatch.setattr(keras.Model, "fit", lambda *a, **k: pytest.fail("trained"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("kept")
    (tmp_path / "wrong.toml").write_text(STUDY.replace("trials", "trails"))
    (tmp_path / "tuned.toml").write_text(STUDY)
    before = sorted(tmp_path.rglob("*"))
    result = run(line)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_compare_reports_progress_and_results(run, tmp_path):
    line = "compare tiny --tasks way,level --seeds 1"
    line += " --balancing 'equal, dwa(temperature=1)+pcgrad'"
    line += " --epochs 1 --limit 32 --out both"
    output = ok(run(line))
    assert "4/4  dwa(temperature=1) + pcgrad, seed 0: Δm" in output
    assert "Wrote both: report.html" in output
    (path,) = (tmp_path / "both/cells").glob("hard-dwa*pcgrad-seed0-*/record.json")
    record = json.loads(path.read_text())
    name = "dwa(temperature=1) + pcgrad "
    (row,) = [line for line in output.splitlines() if line.startswith(name)]
    assert f"{record['result']['test']['level']['mae']:.4f}" in row
    assert "Reused: 4 finished; none to go" in ok(run(line))


@pytest.mark.parametrize("failing", ["all", "some"])
def test_exit_code_1_reports_failed_trainings(run, monkeypatch, failing):
    fit = keras.Model.fit

    def failing_fit(self, *args, **kwargs):
        if failing == "all" or (failing == "some" and len(self.outputs) > 1):
            raise ValueError("does not fit")
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "fit", failing_fit)
    line = "compare tiny --tasks way,level --balancing equal --seeds 1"
    result = run(line + " --epochs 1 --limit 32 --out both")
    assert result.exit_code == 1
    assert result.stdout.count("failed: ") == {"all": 6, "some": 2}[failing]
    assert "Wrote both: report.html" in result.stdout


def test_exit_code_1_reports_a_study_without_a_finished_trial(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: 1 / 0)
    several = STUDY.replace("random", "pareto").replace(
        "trials = 2", 'trials = 2\nobjective = ["way", "level"]'
    )
    for out, text in (("one", STUDY), ("several", several)):
        (tmp_path / "small.toml").write_text(text)
        result = run(f"tune small.toml --out {out}")
        assert result.exit_code == 1, result.stderr
        assert "No trial finished" in result.stdout


@pytest.mark.slow
def test_runs_of_other_batch_sizes_are_exported_together(run, tmp_path):
    for task, size in (("way", 32), ("level", 8)):
        ok(
            run(
                f"train tiny --tasks {task} --epochs 1 --batch-size {size} --out {task}"
            )
        )
    ok(run("export way level --to both --check"))


def test_reuse_refuses_a_run_with_other_settings(run):
    ok(run("train tiny --epochs 1 --out a"))
    result = run("train tiny --epochs 1 --width 9 --out a --reuse")
    assert result.exit_code == 2
    assert "another width: 8 there, 9 here" in result.stderr


def test_an_interruption_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "fit", interrupted)
    result = run("train tiny")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted.\n"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "small.toml").write_text(STUDY)
    result = run("tune small.toml")
    assert result.exit_code == 130
    assert "resumes the study" in result.stderr


def test_datasets_are_listed(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_KERAS_DATA_DIR", str(tmp_path))
    output = ok(run("datasets list"))
    assert all(name in output for name in data.names())


def test_doctor_reports_versions_and_devices(run):
    output = ok(run("doctor"))
    assert keras.__version__ in output
    assert "CPU" in output
    assert "balancing ops" in output
    assert "a trial's precision" in output


def command(*arguments, **environment):
    """Runs the entry point in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TF_CPP")}
    return subprocess.run(
        [sys.executable, "-c", "from mtl_keras_cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        env={**clean, **environment},
        timeout=300,
    )


def test_help_shows_examples_and_loads_no_tensorflow():
    code = (
        "import sys; from mtl_keras_cli.app import app; "
        "app(['train', '--help'], standalone_mode=False); "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mtl-keras train vision" in done.stdout
    assert "mtl-keras tune tuning/vision.toml" in command("--help").stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("mtl-keras tr", ["train"]),
        ("mtl-keras train --ba", ["--backbone", "--balancing", "--batch-size"]),
        ("mtl-keras datasets pre", ["prepare"]),
    ],
)
def test_a_shell_completes_commands_and_options(typed, offered):
    script = CliRunner().invoke(
        app, ["--show-completion", "bash"], prog_name="mtl-keras"
    )
    assert "complete -o default -F _mtl_keras_completion mtl-keras" in script.stdout
    typed_words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    completing = {"_MTL_KERAS_COMPLETE": "complete_bash", **typed_words}
    code = (
        "import sys; sys.argv = ['mtl-keras']; import mtl_keras_cli, atexit; "
        "atexit.register(lambda: print('tensorflow' in sys.modules, file=sys.stderr)); "
        "mtl_keras_cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **completing},
    )
    assert done.stdout.split() == offered
    assert done.stderr == "False\n"


@pytest.mark.slow
def test_data_that_cannot_be_had_names_the_command_that_prepares_it(tmp_path):
    done = command(
        *("train", "vision", "--data", "multi_digits/mnist"),
        *("--out", str(tmp_path / "run")),
        MTL_KERAS_DATA_DIR=str(tmp_path / "data"),
    )
    assert done.returncode == 2
    # One line in all: TensorFlow's start-up noise is not passed on.
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "mtl-keras datasets prepare" in done.stderr
    assert not (tmp_path / "run").exists()


def test_errors_while_tensorflow_is_loaded_are_still_printed():
    code = (
        "import os, sys; from mtl_keras_cli import tensorflow; "
        "manager = tensorflow._filtered_stderr(); manager.__enter__(); "
        "os.write(2, b'I0000 00:00:00.1 1 port.cc:1] noise\\nE0000 real trouble\\n'); "
        "manager.__exit__(None, None, None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "E0000 real trouble\n"
