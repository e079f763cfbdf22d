"""Studies: their files, resuming, and failed trials."""

from __future__ import annotations

import csv
import dataclasses
import gc
import io
import json
import weakref

import keras
import pytest
from rich.console import Console

from mtl_keras.encoding import encode
from mtl_keras.errors import InputError
from mtl_keras.search import best_config, load_study, run_study
from mtl_keras.search import trial as trials
from mtl_keras_cli.tuning import leaderboard

STUDY = """
application = "tiny"
oracle = "{oracle}"
trials = {trials}
epochs = 1
limit = 32
[space]
balancing = ["equal", "pcgrad"]
width = [4, 8, 12, 16]
loss_weights = {{ max_ratio = 2.0 }}
"""


@pytest.fixture
def study_of(tiny, eagerly, inline, tmp_path):
    def make(trials, oracle="random"):
        path = tmp_path / "study.toml"
        path.write_text(STUDY.format(trials=trials, oracle=oracle))
        return load_study(path)

    return make


@pytest.fixture
def console():
    return Console(record=True, width=160, file=io.StringIO())


def count_fits(monkeypatch):
    fits = []
    fit = keras.Model.fit

    def counted(self, *args, **kwargs):
        fits.append(self)
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "fit", counted)
    return fits


def test_a_study_leaves_trials_table_and_plot(study_of, tmp_path, console):
    out = tmp_path / "new" / "study"
    study = study_of(2, "bayesian")
    results = run_study(study, out, console=console)

    assert len(results) == 2
    assert results[0].score >= results[1].score
    on_disk = [json.loads(p.read_text()) for p in (out / "trials").iterdir()]
    on_disk.sort(key=lambda record: -record["score"])
    assert on_disk == json.loads(json.dumps(encode(results)))
    best = results[0]
    assert best.score == pytest.approx(
        (
            best.metrics["way"]["accuracy"]
            + best.metrics["bright"]["auc"]
            - best.metrics["level"]["mae"]
        )
        / 3
    )
    with (out / "results.csv").open() as file:
        rows = {row["trial"]: row for row in csv.DictReader(file)}
    assert float(rows[best.trial]["score"]) == best.score
    assert int(rows[best.trial]["width"]) == best.config.width
    assert (out / "trade_off.png").read_bytes().startswith(b"\x89PNG")

    trial, config = best_config(out)
    assert trial == best.trial
    assert config.width == best.config.width
    assert config.loss_weights == best.config.loss_weights
    assert config.epochs is None
    assert config.limit is None

    console.print(leaderboard(study, results))
    text = console.export_text()
    assert "trial 0 (1/2)" in text
    assert f"{best.score:.4f}" in text


def test_an_interrupted_study_resumes(
    study_of, undrawn, tmp_path, monkeypatch, console
):
    whole = run_study(study_of(3), tmp_path / "whole")

    with monkeypatch.context() as patch:
        fits = count_fits(patch)
        interrupted = keras.Model.fit

        def fit(self, *args, **kwargs):
            if len(fits) == 1:
                raise KeyboardInterrupt
            return interrupted(self, *args, **kwargs)

        patch.setattr(keras.Model, "fit", fit)
        with pytest.raises(KeyboardInterrupt):
            run_study(study_of(3), tmp_path / "cut")

    # As a kill leaves it that comes while a record is written.
    (tmp_path / "cut" / "trials" / ".123.1.json").write_text('{"trial": ')
    fits = count_fits(monkeypatch)
    resumed = run_study(study_of(3), tmp_path / "cut", console=console)
    assert len(fits) == 2
    assert "1 finished trial" in console.export_text()

    # The same trials with the same results as without the interruption.
    def essence(results):
        return [dataclasses.replace(record, seconds=0.0) for record in results]

    assert essence(resumed) == essence(whole)

    run_study(study_of(3), tmp_path / "cut")
    assert len(fits) == 2
    run_study(study_of(4), tmp_path / "cut")
    assert len(fits) == 3


def test_a_trial_that_calls_exit_fails(study_of, tmp_path, monkeypatch):
    def leave(folder, settings):
        raise SystemExit(3) if folder.name == "trial_0" else ValueError("no")

    monkeypatch.setattr(trials, "train_trial", leave)
    (first, _) = run_study(study_of(2), tmp_path / "study")
    assert first.error == "SystemExit: 3"


@pytest.mark.slow
def test_nothing_keeps_the_models_of_trials(study_of, tmp_path, monkeypatch):
    models, left = [], []
    fit, train = keras.Model.fit, trials.train_trial

    def noted(self, *args, **kwargs):
        models.append(weakref.ref(self))
        fit(self, *args, **kwargs)
        if len(models) != 2:
            raise ValueError("no")
        return None

    def counted(folder, settings):
        gc.collect()
        left.append(sum(model() is not None for model in models))
        return train(folder, settings)

    monkeypatch.setattr(keras.Model, "fit", noted)
    monkeypatch.setattr(trials, "train_trial", counted)
    run_study(study_of(4), tmp_path / "study")
    assert left == [0, 0, 0, 0]


def test_another_study_or_foreign_files_are_not_touched(study_of, undrawn, tmp_path):
    run_study(study_of(1), tmp_path / "study")
    with pytest.raises(InputError, match="another oracle: 'random' there"):
        run_study(study_of(1, "bayesian"), tmp_path / "study")
    (tmp_path / "study" / "state" / "oracle.json").write_text('{"cut": ')
    with pytest.raises(InputError, match="is broken"):
        run_study(study_of(1), tmp_path / "study")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious.txt").write_text("kept")
    with pytest.raises(InputError, match="in use"):
        run_study(study_of(1), tmp_path / "used")
    with pytest.raises(InputError, match="not a study folder"):
        best_config(tmp_path / "used")
    assert [p.name for p in (tmp_path / "used").iterdir()] == ["precious.txt"]


def test_links_in_the_folder_are_refused(study_of, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for path in (out, elsewhere):
        path.mkdir()
    (out / "study.json").write_text("{}")
    (out / "trials").symlink_to(elsewhere)
    with pytest.raises(InputError, match="no symbolic link"):
        run_study(study_of(2), out)
    assert not any(elsewhere.iterdir())


def test_a_failed_trial_is_recorded_and_skipped(
    study_of, undrawn, tmp_path, monkeypatch, console, capfd
):
    fits = count_fits(monkeypatch)
    fit = keras.Model.fit

    def sometimes(self, *args, **kwargs):
        if len(fits) == 0:
            fits.append(self)
            raise MemoryError("out of\nmemory")
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "fit", sometimes)
    results = run_study(study_of(3), tmp_path / "study", console=console)
    assert [r.status for r in results] == ["COMPLETED", "COMPLETED", "FAILED"]
    assert results[-1].error == "MemoryError: out of\nmemory"
    assert "Traceback" in results[-1].traceback
    assert "failed, and is skipped: MemoryError: out of memory" in console.export_text()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_study_that_only_fails_ends_in_one_line(study_of, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise ValueError("no way")

    monkeypatch.setattr(keras.Model, "fit", fail)
    with pytest.raises(InputError, match="no way") as caught:
        run_study(study_of(5), tmp_path / "study")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("oracle", ["grid", "hyperband"])
def test_the_other_oracles_run(study_of, undrawn, tmp_path, oracle):
    assert len(run_study(study_of(2, oracle), tmp_path / "study")) == 2
