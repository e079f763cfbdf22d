"""Files of a training run, which it writes all or none of."""

from __future__ import annotations

import csv
import dataclasses
import json

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras.compare import Comparison
from mtl_keras.decoding import decode
from mtl_keras.encoding import encode
from mtl_keras.errors import InputError
from mtl_keras.runs import RunConfig, compiled_model, evaluate, load_run, train
from mtl_keras.runs.config import TrainingConfig
from mtl_keras.runs.training import training_batches
from mtl_keras.runs.unfinished import opened
from mtl_keras.search import StudyHyperModel, load_study


def test_run_folder_holds_everything_and_can_be_evaluated_again(tiny, tmp_path):
    out = tmp_path / "deep" / "run"
    results = train(RunConfig("tiny", balancing="uncertainty", seed=3), out)

    assert sorted(p.name for p in out.iterdir()) == [
        "config.json",
        "history.csv",
        "logs",
        "metrics.json",
        "model.keras",
    ]
    assert list((out / "logs").rglob("events.out.tfevents.*"))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == results.metrics
    assert {task: set(values) for task, values in metrics.items()} == {
        "way": {"accuracy", "loss"},
        "bright": {"accuracy", "auc", "loss"},
        "level": {"mae", "loss"},
    }
    with (out / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"loss", "val_loss", "val_way_accuracy"} <= set(rows[0])

    run = load_run(out)
    assert run.config == RunConfig("tiny", balancing="uncertainty", seed=3).validate()
    assert run.config.epochs == 2  # the application's default, written out
    again = evaluate(out)
    for task, values in metrics.items():
        for name, value in values.items():
            assert again[task][name] == pytest.approx(value, rel=1e-5), (task, name)


def test_metrics_are_those_of_the_test_split(tiny, eagerly, tmp_path):
    results = train(RunConfig("tiny"), tmp_path / "run")
    model = load_run(tmp_path / "run").model()
    inputs, labels = next(iter(tiny.load("test", batch_size=1000)))
    predicted = model.predict_on_batch(inputs)
    accuracy = np.mean(predicted["way"].argmax(-1) == labels["way"].numpy())
    assert results.metrics["way"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    error = np.abs(predicted["level"] - labels["level"].numpy()).mean()
    assert results.metrics["level"]["mae"] == pytest.approx(error, rel=1e-5)


def test_the_same_seed_gives_the_same_weights(tiny, eagerly, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        train(RunConfig("tiny", seed=seed, epochs=1), tmp_path / name)
    a, b, c = (load_run(tmp_path / n).model().get_weights() for n in "abc")
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.array_equal(a[0], c[0])


def test_a_subset_of_tasks_down_to_one(tiny, eagerly, tmp_path):
    results = train(RunConfig("tiny", tasks=("bright",), epochs=1), tmp_path / "run")
    assert {t: set(v) for t, v in results.metrics.items()} == {
        "bright": {"accuracy", "auc", "loss"}
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"application": "tinny"}, "Did you mean 'tiny'"),
        ({"tasks": ("way", "brigth")}, "Did you mean 'bright'"),
        ({"tasks": ("way", "way")}, "each task once"),
        ({"tasks": ()}, "at least one task"),
        ({"backbone": "cn"}, "Did you mean 'cnn'"),
        ({"balancing": "pcgard"}, "Did you mean 'pcgrad'"),
        ({"balancing": ["dwa", "uncertainty"]}, "and a gradient balancer. Received"),
        ({"sharing": "mmeo"}, "Did you mean 'mmoe'"),
        ({"loss_weights": {"wy": 1.0}}, "Did you mean 'way'"),
        ({"loss_weights": {"way": -1.0}}, "at least 0"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"limit": -3}, "limit"),
        ({"seed": -1}, "seed"),
        ({"data": "stripe"}, "Did you mean 'stripes'"),
    ],
)
def test_wrong_settings_are_one_line_and_write_nothing(
    tiny, tmp_path, changes, message
):
    config = RunConfig(**{"application": "tiny", **changes})
    with pytest.raises(InputError, match=message) as caught:
        train(config, tmp_path / "new" / "run")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_output_in_use_is_refused_before_training(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", lambda *a, **k: pytest.fail("trained"))
    used = tmp_path / "used"
    used.mkdir()
    (used / "precious.txt").write_text("kept")
    file = tmp_path / "file"
    file.write_text("kept")
    for out in (used, file, file / "run"):
        with pytest.raises(InputError, match=str(file.parent)):
            train(RunConfig("tiny"), out)
    assert (used / "precious.txt").read_text() == file.read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "used"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_training_that_fails_before_a_checkpoint_leaves_nothing(
    tiny, eagerly, tmp_path, monkeypatch, error
):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(keras.Model, "evaluate", fail)
    with pytest.raises(error):
        train(RunConfig("tiny", epochs=1), tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_full_gpu_is_one_line(tiny, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(keras.Model, "fit", fail)
    for kind, message in (
        (tf.errors.InternalError, "Failed to create cuBLAS handle"),
        (tf.errors.NotFoundError, "No algorithm worked! Error messages: none"),
        (tf.errors.FailedPreconditionError, "DNN library initialization failed."),
    ):
        error = kind(None, None, message)
        with pytest.raises(InputError, match=f"out of memory.*{message[:20]}"):
            train(RunConfig("tiny", epochs=1), tmp_path / "run")
    error = tf.errors.InternalError(None, None, "CUDA_ERROR_ILLEGAL_ADDRESS")
    with pytest.raises(tf.errors.InternalError):
        train(RunConfig("tiny", epochs=1), tmp_path / "run")


def test_files_of_others_beside_a_failed_run_are_kept(tiny, tmp_path):
    def fail():
        config = RunConfig("tiny").validate()
        with opened(tmp_path / "runs" / "a", config) as (run, _):
            (run / "half").write_text("half")
            (tmp_path / "runs" / "b").mkdir()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["b"]


def test_broken_runs_are_one_line(tiny, eagerly, tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        load_run(tmp_path / "absent")
    with pytest.raises(InputError, match=r"no config\.json"):
        load_run(tmp_path)
    train(RunConfig("tiny", epochs=1), tmp_path / "run")
    (tmp_path / "run" / "model.keras").write_bytes(b"PK not a zip file")
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load_run(tmp_path / "run").model()
    assert "\n" not in str(caught.value)
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "epoch": 3}))
    with pytest.raises(InputError, match="Did you mean 'epochs'"):
        load_run(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"application": ')
    with pytest.raises(InputError, match=r"config\.json"):
        load_run(tmp_path / "run")


def test_a_learning_rate_may_be_a_whole_number(tiny):
    """As a JSON file may have it; Keras's optimizers take floats alone."""
    for schedule in ("constant", "cosine"):
        config = RunConfig("tiny", learning_rate=1, schedule=schedule).validate()
        rate = compiled_model(config, steps=10).optimizer.learning_rate
        np.testing.assert_allclose(float(rate), 1.0)


@pytest.mark.parametrize(
    ("jit", "count", "sizes"),
    [(False, 10, [4, 4, 2]), (True, 10, [4, 4]), (True, 8, [4, 4]), (True, 3, [3])],
)
def test_batches_under_xla_have_one_shape(jit, count, sizes):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse", jit_compile=jit)
    data = tf.data.Dataset.from_tensor_slices((np.ones((count, 2)), np.ones(count)))
    batches = training_batches(data.batch(4), model, 4)
    assert [len(x) for x, _ in batches] == sizes
    assert int(batches.cardinality()) == len(sizes)


def test_settings_of_compiling_reach_trainings_trials_and_comparisons(
    tiny, tmp_path, monkeypatch
):
    def fit(model, batches, **kwargs):
        shapes = {tuple(x["image"].shape) for x, *_ in batches}
        fits.append((model.jit_compile, model.steps_per_execution, shapes))
        raise InterruptedError

    fits = []
    monkeypatch.setattr(keras.Model, "fit", fit)
    config = RunConfig("tiny", limit=40, jit=True, steps_per_execution=3)
    with pytest.raises(InterruptedError):
        train(config, tmp_path / "run")
    path = tmp_path / "study.toml"
    path.write_text(
        'application = "tiny"\ntrials = 1\nepochs = 1\nlimit = 40\n'
        "[space]\nwidth = [4, 8]\njit = true\nsteps_per_execution = 3\n"
    )
    trial = StudyHyperModel(load_study(path))
    hp = keras_tuner.HyperParameters()
    with pytest.raises(InterruptedError):
        trial.fit(hp, trial.build(hp))
    assert fits == [(True, 3, {(32, 8, 8, 1)})] * 2
    cells = Comparison(config, balancing=("equal",), seeds=1).validate().cells()
    assert {(c.config.jit, c.config.steps_per_execution) for c in cells} == {(True, 3)}
    # Files of runs that were made before there was this setting.
    one = dataclasses.replace(config, steps_per_execution=1).validate()
    values = encode(one)
    del values["steps_per_execution"]
    assert decode(TrainingConfig, values) == one
    assert one.identity() != config.validate().identity()
    with pytest.raises(InputError, match="steps_per_execution"):
        dataclasses.replace(config, steps_per_execution=0).validate()


def test_the_precision_of_a_run_is_of_its_model_alone(tiny, tmp_path):
    config = RunConfig("tiny", epochs=1, precision="mixed_float16")
    train(config, tmp_path / "run")
    assert keras.config.dtype_policy().name == "float32"
    run = load_run(tmp_path / "run")
    assert run.config.precision == "mixed_float16"
    for model in (compiled_model(config.validate(), steps=3), run.model()):
        dense = [x for x in model.layers if isinstance(x, keras.layers.Dense)]
        assert dense
        assert {layer.compute_dtype for layer in dense} == {"float16"}
        assert {layer.kernel.dtype for layer in dense} == {"float32"}
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
