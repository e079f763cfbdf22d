"""Objectives of a study, and the cost of its trials."""

from __future__ import annotations

import json
import re

import keras
import keras_tuner
import numpy as np
import pytest
from rich.console import Console

from mtl_keras import MultiTaskModel
from mtl_keras.errors import InputError
from mtl_keras.evaluation import delta_m, pareto_front
from mtl_keras.runs.scheduler import Scheduler
from mtl_keras.search import (
    MultiTaskHyperModel,
    best_config,
    keras_tuner_compat,
    load_study,
    run_study,
)
from mtl_keras.search.hypermodel import StudyHyperModel, best_epoch, train_baseline
from mtl_keras.search.running import Search
from mtl_keras.search.study import Objective
from mtl_keras.sharing import get as get_sharing

HEAD = 'application = "tiny"\nlimit = 32\n'
SPACE = "[space]\nwidth = [4, 8, 12]\nlearning_rate = [0.001, 0.02]\n"


@pytest.fixture
def study_of(tiny, eagerly, inline, tmp_path):
    def make(lines, space=SPACE):
        path = tmp_path / "study.toml"
        path.write_text(HEAD + lines + "\n" + space)
        return load_study(path)

    return make


@pytest.mark.slow
def test_delta_m_is_over_tasks_trained_alone_once(study_of, tmp_path, monkeypatch):
    study = study_of('trials = 2\nepochs = 1\nobjective = "delta_m"')
    fitted = []
    fit = keras.Model.fit
    monkeypatch.setattr(
        keras.Model,
        "fit",
        lambda self, *a, **k: fitted.append(len(self.outputs)) or fit(self, *a, **k),
    )
    results = run_study(study, tmp_path / "study")
    assert fitted == [1, 1, 1, 3, 3]
    baselines = json.loads((tmp_path / "study" / "baselines.json").read_text())
    for record in results:
        main = {
            "way": record.metrics["way"]["accuracy"],
            "bright": record.metrics["bright"]["auc"],
            "level": record.metrics["level"]["mae"],
        }
        directions = {"way": "max", "bright": "max", "level": "min"}
        expected = delta_m(main, baselines, directions)
        assert record.objectives == {"delta_m": pytest.approx(expected)}
    # Stopped while the second of the baselines trained.
    path = tmp_path / "study" / "baselines.json"
    path.write_text(json.dumps({"way": baselines["way"]}))
    more = study_of('trials = 3\nepochs = 1\nobjective = "delta_m"')
    run_study(more, tmp_path / "study")
    assert fitted == [1, 1, 1, 3, 3, 1, 1, 3]
    assert json.loads(path.read_text()) == baselines


def test_a_worker_reads_the_baselines_when_it_has_a_trial(
    study_of, tmp_path, monkeypatch
):
    study = study_of('trials = 1\nepochs = 1\nobjective = "delta_m"')
    oracle = keras_tuner_compat.make(StudyHyperModel(study))
    (tmp_path / "out").mkdir()
    keras_tuner_compat.open_state(oracle, tmp_path / "out", [])
    received = []

    def noted(folder, settings):
        received.append(settings["baselines"])
        return {"val_delta_m": 1.0}

    monkeypatch.setattr("mtl_keras.search.trial.train_trial", noted)
    with Scheduler(1) as scheduler:
        search = Search(study, oracle, tmp_path / "out", scheduler, Console(quiet=True))
        # Its chief trains them after the worker has started.
        baselines = {"way": 0.5, "bright": 0.6, "level": 0.7}
        (tmp_path / "out" / "baselines.json").write_text(json.dumps(baselines))
        search.run()
    assert received == [baselines]


@pytest.mark.slow
def test_several_objectives_give_a_front(study_of, tmp_path, monkeypatch):
    study = study_of(
        'trials = 4\nepochs = 1\noracle = "pareto"\n'
        'objective = ["way", "level", "bright_loss"]'
    )
    assert [(o.name, o.direction) for o in study.objectives] == [
        ("val_way_accuracy", "max"),
        ("val_level_mae", "min"),
        ("val_bright_loss", "min"),
    ]
    out = tmp_path / "study"
    results = run_study(study, out)
    points = [list(record.objectives.values()) for record in results]
    front = pareto_front(points, ["max", "min", "min"])
    assert front == list(range(len(front)))
    for name in ("trade_off.png", "parallel.png", "hypervolume.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    other = results[-1]
    trial, config = best_config(out, other.trial)
    assert (trial, config.width) == (other.trial, other.config.width)
    with pytest.raises(InputError, match="finished trial"):
        best_config(out, "77")


def test_a_trial_without_progress_stops(study_of, undrawn, tmp_path, monkeypatch):
    study = study_of(
        'trials = 1\nepochs = 9\npatience = 2\nobjective = "level"',
        "[space]\nlearning_rate = [1e-12, 2e-12]\n",
    )
    lengths = []
    fit = keras.Model.fit

    def counted(self, *args, **kwargs):
        history = fit(self, *args, **kwargs)
        lengths.append(len(history.epoch))
        return history

    monkeypatch.setattr(keras.Model, "fit", counted)
    run_study(study, tmp_path / "study")
    assert lengths == [3]


@pytest.mark.slow
def test_a_trial_is_scored_by_its_best_epoch(study_of, tmp_path, monkeypatch):
    study = study_of(
        'trials = 3\nepochs = 8\npatience = 2\nobjective = "level"',
        '[space]\noptimizer = "sgd"\nbatch_size = 16\n'
        "learning_rate = [0.4, 0.7, 1.0]\n",
    )
    histories = []
    fit = keras.Model.fit

    def noted(self, *args, **kwargs):
        histories.append(fit(self, *args, **kwargs).history)

    monkeypatch.setattr(keras.Model, "fit", noted)
    results = run_study(study, tmp_path / "study")
    results.sort(key=lambda record: record.trial)
    early = 0
    for record, history in zip(results, histories, strict=True):
        values = history["val_level_mae"]
        assert record.objectives == {"level_mae": min(values)}
        best = values.index(min(values))
        early += best < len(values) - 1
        # All metrics are of that epoch.
        assert record.metrics["way"]["loss"] == history["val_way_loss"][best]
        assert record.metrics["level"]["loss"] == history["val_level_loss"][best]
        # Callbacks see the objective, so that a tuner's checkpoint is of it too.
        assert history["val_level_mae"] == values
    assert early

    def kept(self, *args, **kwargs):
        history = fit(self, *args, **kwargs)
        histories[:] = [history.history]
        return history

    monkeypatch.setattr(keras.Model, "fit", kept)
    assert train_baseline(study, "level") == min(histories[0]["val_mae"])


def test_one_epoch_stands_for_several_objectives():
    objectives = [Objective("a", "max"), Objective("b", "min")]

    def chosen(*points):
        epochs = [
            {"val_a": a, "val_b": b, "epoch": i} for i, (a, b) in enumerate(points)
        ]
        return best_epoch(epochs, objectives)["epoch"]

    assert chosen((1.0, 1.0), (2.0, 0.5), (1.5, 0.7)) == 1
    # Neither dominates: the last one.
    assert chosen((1.0, 0.2), (2.0, 0.5), (1.5, 0.7)) == 1
    assert chosen((1.0, 0.2), (2.0, 0.5), (2.5, 0.7)) == 2
    assert chosen((np.nan, 0.2), (2.0, 0.5)) == 1
    # A trial whose last value is no number has failed.
    assert chosen((1.0, 0.2), (2.0, np.nan)) == 1


@pytest.mark.slow
def test_hyperband_resumes_from_the_checkpoint(study_of, tmp_path, monkeypatch):
    study = study_of('trials = 8\nepochs = 4\noracle = "hyperband"')
    seen = []
    fit = keras.Model.fit

    def noted(self, *args, **kwargs):
        before = int(self.optimizer.iterations)
        start = [np.copy(w) for w in self.get_weights()]
        history = fit(self, *args, **kwargs)
        seen.append((before, start, len(history.epoch), self.get_weights()))
        return history

    monkeypatch.setattr(keras.Model, "fit", noted)
    results = run_study(study, tmp_path / "study")
    assert len(results) == 8
    resumed = 0
    by_trial = {record.trial: record for record in results}
    for index, (before, start, epochs, _) in enumerate(seen):
        values = by_trial[str(index)].hyperparameters
        first = values["tuner/initial_epoch"]
        assert epochs == values["tuner/epochs"] - first
        assert before == first  # one step an epoch
        if "tuner/trial_id" in values:
            resumed += 1
            ended = seen[int(values["tuner/trial_id"])][3]
            for one, other in zip(start, ended, strict=True):
                np.testing.assert_array_equal(one, other)
    assert resumed >= 1


def test_the_page_stands_alone_and_escapes_what_users_named(
    study_of, tmp_path, monkeypatch
):
    study = study_of("trials = 2\nepochs = 1")
    fit, calls = keras.Model.fit, []

    def sometimes(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 1:
            raise ValueError("<script>alert('&')</script>")
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "fit", sometimes)
    out = tmp_path / "study"
    run_study(study, out)
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;&amp;&#39;)" in page
    assert page.count('<svg role="img"') == 2
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(source.startswith("#") for source in sources)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    rows = {}
    for folder in (path for path in (out / "logs").iterdir() if path.is_dir()):
        events = EventAccumulator(str(folder))
        events.Reload()
        assert (
            "hparams" in events.summary_metadata.__str__()
            or events.PluginTagToContent("hparams")
        )
        rows[folder.name] = events.Tags()["tensors"]
    assert set(rows) == {"0", "1"}
    assert "objective/mean" in rows["1"]
    # Searched settings and objectives come first in the table.
    columns = EventAccumulator(str(next((out / "logs").glob("events.*"))))
    columns.Reload()
    (content,) = columns.PluginTagToContent("hparams").values()
    experiment = HParamsPluginData.FromString(content).experiment
    assert [column.name for column in experiment.hparam_infos] == study.searched
    names = [column.name.tag for column in experiment.metric_infos]
    assert names == ["objective/mean", "way/accuracy", "bright/auc", "level/mae"]


def test_a_broken_folder_is_one_line_and_kept(study_of, undrawn, tmp_path):
    study = study_of("trials = 1\nepochs = 1")
    out = tmp_path / "study"
    run_study(study, out)

    def refused(path, text, message):
        kept = path.read_text()
        path.write_text(text)
        files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        with pytest.raises(InputError, match=message) as caught:
            run_study(study_of("trials = 2\nepochs = 1"), out)
        assert "\n" not in str(caught.value)
        assert files == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        path.write_text(kept)

    earlier = json.loads((out / "study.json").read_text())
    makers = {**earlier["made_with"], "format": 1, "mtl_keras": "0.0.9"}
    older = json.dumps({**earlier, "made_with": makers})
    refused(out / "study.json", older, r"another version of mtl_keras \(0\.0\.9")
    refused(out / "study.json", "{", "cannot be read")
    refused(out / "trials" / "0.json", "{}", "another version")
    refused(out / "trials" / "0.json", "[", "cannot be read")
    refused(out / "state" / "oracle.json", "{}", "is broken")
    refused(out / "state" / "oracle.json", "[]", "is broken")
    refused(out / "state" / "trial_0" / "trial.json", "{}", "is broken")
    (out / "state" / "oracle.json").rename(out / "state" / "elsewhere")
    refused(out / "study.json", json.dumps(earlier), "is broken")


def test_a_model_of_ones_own_is_searched_by_keras_tuner(tmp_path):
    built = []

    def build(sharing, units):
        built.append(units)
        inputs = keras.Input((3,))
        stages = [keras.layers.Dense(units, "relu")]
        features = get_sharing(sharing)(inputs, stages, ["a", "b"])
        outputs = {t: keras.layers.Dense(1, name=t)(x) for t, x in features.items()}
        return MultiTaskModel(inputs, outputs)

    hypermodel = MultiTaskHyperModel(
        build,
        loss={"a": "mse", "b": "mse"},
        space={
            "sharing": ["hard", {"class_name": "mmoe", "search": True}],
            "balancing": [
                "equal",
                {"class_name": "dwa", "search": True},
                ["uncertainty", "pcgrad"],
            ],
            "loss_weights": {"max_ratio": 3.0},
            "optimizer": ["adam", {"class_name": "sgd", "search": True}],
            "schedule": ["cosine", "warmup_cosine", "constant"],
            "learning_rate": 0.01,
            "batch_size": [4, 8],
            "units": [2, 3],
        },
        steps=10,
    )
    hp = keras_tuner.HyperParameters()
    hypermodel.settings(hp)
    names = {p.name for p in hp.space}
    assert {"sharing/mmoe/num_experts", "balancing/dwa/temperature"} <= names
    assert {"optimizer/sgd/momentum", "loss_weight/b", "units"} <= names
    assert "learning_rate" not in names
    x = np.ones((8, 3), "float32")
    y = {"a": np.zeros((8, 1)), "b": np.ones((8, 1))}
    tuner = keras_tuner.RandomSearch(
        hypermodel,
        objective=keras_tuner.Objective("val_loss", "min"),
        max_trials=3,
        directory=tmp_path,
        seed=2,
    )
    tuner.search(x, y, validation_data=(x, y), epochs=1, verbose=0)
    assert len(tuner.oracle.get_best_trials(3)) == 3
    for trial in tuner.oracle.get_best_trials(3):
        values = trial.hyperparameters.values
        assert ("balancing/dwa/temperature" in values) == ("dwa" in values["balancing"])
        model = hypermodel.build(trial.hyperparameters)
        wanted = keras.optimizers.SGD if "sgd" in values["optimizer"] else None
        assert type(model.optimizer) is (wanted or keras.optimizers.Adam)
    assert set(built) <= {2, 3}
    # The weights change no score.
    seen = []
    logs = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(logs["val_loss"])
    )
    hp.values["schedule"] = "constant"
    for ratio in (0.34, 1.0, 2.9):
        keras.utils.set_random_seed(0)
        hp.values["loss_weight/b"] = ratio
        model = hypermodel.build(hp)
        model.optimizer.learning_rate = 0.0
        before = model.evaluate(x, y, verbose=0, return_dict=True)
        data = {"validation_data": (x, y), "verbose": 0}
        history = hypermodel.fit(hp, model, x, y, callbacks=[logs], **data).history
        expected = pytest.approx(before["a_loss"] + before["b_loss"])
        assert history["loss"] == history["val_loss"] == [expected]
        seen += history["val_loss"]
    assert seen == [pytest.approx(seen[0])] * 6
    with pytest.raises(InputError, match="`steps`"):
        MultiTaskHyperModel(build, {"a": "mse"}, {"schedule": ["cosine", "constant"]})
