"""The columns of one output as tasks, beside as many outputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import mtl_keras
from mtl_keras import balancing
from mtl_keras.errors import InputError
from mtl_keras.model.column_metrics import with_column_metrics

NAMES = ["t0", "t1", "t2", "t3"]
LABELS = (np.random.default_rng(2).random((32, 4)) < 0.4).astype("float32")
LABELLED = (np.random.default_rng(3).random((32, 4)) < 0.6).astype("float32")
LABELLED[:16, 2] = 0.0  # absent from the first batch
X = np.random.default_rng(4).normal(size=(32, 6)).astype("float32")


def build(is_group):
    """Returns a model with a group of four tasks or four outputs, weights alike."""
    inputs = keras.Input((6,))
    h = keras.layers.Dense(5, "tanh", name="below")(inputs)
    outputs = {"other": keras.layers.Dense(2, name="other")(h)}
    if is_group:
        logits = keras.layers.Dense(4, name="assay")(h)
        outputs["assay"] = keras.layers.Activation("sigmoid")(logits)
    else:
        for name in NAMES:
            outputs[name] = keras.layers.Dense(1, "sigmoid", name=name)(h)
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    rng = np.random.default_rng(0)
    for name in ("below", "other"):
        layer = model.get_layer(name)
        layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    kernel, bias = rng.normal(size=(5, 4)), rng.normal(size=4)
    if is_group:
        model.get_layer("assay").set_weights([kernel, bias])
    else:
        for i, name in enumerate(NAMES):
            weights = [kernel[:, i : i + 1], bias[i : i + 1]]
            model.get_layer(name).set_weights(weights)
    return model


def compiled(model, method, **options):
    is_group = "assay" in model.output
    if is_group:
        options["columns"] = {"assay": NAMES}
    crossentropy = "binary_crossentropy"
    model.compile(
        keras.optimizers.SGD(0.1),
        loss={o: "mse" if o == "other" else crossentropy for o in model.output},
        balancing=method,
        metrics={o: ["auc", "accuracy"] for o in model.output if o != "other"},
        **options,
    )
    return model


def batches(is_group):
    y = {"other": X[:, :2]}
    weights = {"other": np.ones(32)}
    if is_group:
        y["assay"], weights["assay"] = LABELS, LABELLED
    else:
        y |= {name: LABELS[:, i : i + 1] for i, name in enumerate(NAMES)}
        weights |= {name: LABELLED[:, i] for i, name in enumerate(NAMES)}
    return {"x": X, "y": y, "sample_weight": weights}


def weights_of(model):
    below = [*model.get_layer("below").get_weights()]
    below += model.get_layer("other").get_weights()
    if "assay" in model.output:
        return [*below, *model.get_layer("assay").get_weights()]
    heads = [model.get_layer(name).get_weights() for name in NAMES]
    return [*below, *(np.concatenate(w, axis=-1) for w in zip(*heads, strict=True))]


FIT = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}
CASES = {
    "equal": ({"class_name": "equal"}, {"loss_weights": {"assay": 2.0, "t1": 0.25}}),
    "nash": ({"class_name": "nash", "config": {"task_specific": "weighted"}}, {}),
    "running": (
        [
            {"class_name": "uncertainty"},
            {"class_name": "nash", "config": {"solve": "running"}},
        ],
        {},
    ),
    "clipped": (
        {"class_name": "upgrad"},
        {"on_nonfinite": "skip_task", "task_clipnorm": 0.1},
    ),
}


QUICK = ("equal", "running")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case in QUICK else [pytest.mark.slow])
        for case in CASES
    ],
)
def test_a_group_trains_as_outputs_of_their_own(case):
    method, options = CASES[case]
    models, histories = [], []
    for is_group in (True, False):
        arguments = dict(options)
        if "loss_weights" in arguments and not is_group:
            arguments["loss_weights"] = {**dict.fromkeys(NAMES, 2.0), "t1": 0.5}
        eager = not is_group or case != "running"
        model = compiled(build(is_group), method, run_eagerly=eager, **arguments)
        histories.append(model.fit(**batches(is_group), **FIT).history)
        models.append(model)
    for one, two in zip(*map(weights_of, models), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=2e-6)
    group, apart = histories
    assert models[0].tasks == [*NAMES, "other"]
    np.testing.assert_allclose(group["loss"], apart["loss"], rtol=1e-5)
    results = models[0].column_results()["assay"]
    for name in ("weight", "auc", "accuracy"):
        by_task = [apart[f"{task}_{name}"] for task in NAMES]
        np.testing.assert_allclose(
            group[f"assay_{name}"], np.mean(by_task, axis=0), rtol=1e-4
        )
        last = [values[-1] for values in by_task]
        np.testing.assert_allclose(results[name], last, rtol=1e-4)


def test_a_sure_and_wrong_column_has_the_loss_of_its_logits():
    model = compiled(build(is_group=True), "equal")
    kernel = np.full((5, 4), 60.0)
    model.get_layer("assay").set_weights([kernel, np.zeros(4)])
    logits = keras.Model(model.input, model.get_layer("assay").output).predict(
        X, verbose=0
    )
    logs = model.evaluate(**batches(is_group=True), verbose=0, return_dict=True)
    losses = np.logaddexp(0.0, logits) - LABELS * logits
    expected = losses[LABELLED > 0].mean()
    assert expected > 20.0
    assert logs["assay_loss"] == pytest.approx(expected, rel=1e-5)


def test_one_column_can_be_stopped_or_not_finite():
    model = compiled(build(True), "equal", on_nonfinite="skip_task", run_eagerly=True)
    batch = {key: value for key, value in batches(True).items() if key != "x"}
    y = {**batch["y"], "assay": batch["y"]["assay"].copy()}
    row = int(np.flatnonzero(LABELLED[:, 1])[0])
    y["assay"][row, 1] = np.nan
    model.stop_tasks(["t3"])
    before = model.get_layer("assay").get_weights()[0]
    logs = model.train_on_batch(X, y, batch["sample_weight"], return_dict=True)
    after = model.get_layer("assay").get_weights()[0]
    assert (before != after).any(axis=0).tolist() == [True, False, True, False]
    assert logs["assay_nonfinite"] == 0.25
    assert logs["skipped_steps"] == 0


def test_a_saved_group_resumes(tmp_path):
    method = balancing.FairGrad(solve="running")
    whole = compiled(build(True), method, run_eagerly=True)
    fit = {**FIT, "epochs": 1}
    whole.fit(**batches(True), **fit)
    whole.save(tmp_path / "model.keras")
    second = keras.saving.load_model(tmp_path / "model.keras")
    for model in (whole, second):
        model.fit(**batches(True), **fit)
    assert second.tasks == whole.tasks
    for one, two in zip(whole.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)


def test_metrics_of_columns_are_those_of_each_alone():
    rng = np.random.default_rng(5)
    p = rng.random((60, 4)).astype("float32")
    y = (rng.random((60, 4)) < p).astype("float32")
    labelled = (rng.random((60, 4)) < 0.7).astype("float32")
    labelled[:, 2] = 0.0  # a column without a label
    makers = {
        "rmse": keras.metrics.RootMeanSquaredError,
        "mae": keras.metrics.MeanAbsoluteError,
        "r2": keras.metrics.R2Score,
        "roc": keras.metrics.AUC,
        "pr": lambda **options: keras.metrics.AUC(curve="PR", **options),
    }
    given = {"assay": [make(name=name) for name, make in makers.items()]}
    metrics = with_column_metrics(given, ["assay"], {"assay": NAMES})["assay"]
    for metric in metrics:
        for rows in (slice(0, 25), slice(25, 60)):
            metric.update_state(y[rows], p[rows], labelled[rows])
        expected = []
        for column in (0, 1, 3):
            alone = makers[metric.name]()
            rows = labelled[:, column] > 0
            alone.update_state(y[rows, column, None], p[rows, column, None])
            expected.append(float(alone.result()))
        values = metric.by_column().numpy()
        assert np.isnan(values[2])
        np.testing.assert_allclose(values[[0, 1, 3]], expected, rtol=1e-5)
        np.testing.assert_allclose(metric.result(), np.mean(expected), rtol=1e-5)
        metric.reset_state()
        assert not np.isfinite(metric.by_column()).any()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"assays": NAMES}, "assay"),
        ({"assay": NAMES[:3]}, "3 names for an output of shape"),
        ({"assay": ["t0", "t0", "t1", "other"]}, r"\['other', 't0'\]"),
        ({"assay": ["t0", "t1", "t2", "assay"]}, r"\['assay'\]"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns, message):
    with pytest.raises(InputError, match=message):
        build(True).compile("sgd", loss="mse", columns=columns)


def test_options_that_groups_do_not_support_are_refused():
    columns = {"assay": NAMES}
    model = build(True)
    with pytest.raises(InputError, match="gradients_of='shared'"):
        model.compile(
            "sgd",
            loss="mse",
            columns=columns,
            balancing=balancing.MGDA(gradients_of="representation"),
        )
    metrics = {"assay": [keras.metrics.Precision()]}
    with pytest.raises(InputError, match="means over samples, their square roots"):
        model.compile("sgd", loss="mse", columns=columns, metrics=metrics)
    model.compile("sgd", loss="categorical_crossentropy", columns=columns)
    with pytest.raises(InputError, match="mean over elements"):
        model.train_on_batch(X, {"assay": LABELS, "other": X[:, :2]})


def test_metrics_without_a_value_are_known():
    inputs = keras.Input((2,))
    outputs = {
        name: keras.layers.Dense(1, activation, name=name)(inputs)
        for name, activation in {"no": "sigmoid", "both": "sigmoid", "n": None}.items()
    }
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    auc = {"curve": "PR", "name": "precision"}
    model.compile(
        loss={"no": "mse", "both": "mse", "n": "mse"},
        metrics={
            "no": ["auc", keras.metrics.AUC(**auc), "accuracy"],
            "both": ["auc", keras.metrics.AUC(**auc)],
            "n": [keras.metrics.R2Score(name="r2"), "mae"],
        },
        run_eagerly=True,
    )
    x = X[:9, :2]
    y = {"no": np.zeros((9, 1)), "both": np.eye(9)[:, :1], "n": x[:, :1]}
    model.evaluate(x, y, batch_size=4, verbose=0)
    assert model.metrics_without_value() == {"no": ["auc", "precision"]}
    # All alike, a number whose square float32 rounds.
    model.evaluate(x, {**y, "n": np.full((9, 1), 0.7)}, batch_size=4, verbose=0)
    assert model.metrics_without_value()["n"] == ["r2"]
    model.evaluate(x[:1], {t: v[:1] for t, v in y.items()}, verbose=0)
    assert set(model.metrics_without_value()) == {"no", "both", "n"}


def test_r2_of_columns_whose_labels_are_alike_is_left_out():
    (metric,) = with_column_metrics(
        {"y": [keras.metrics.R2Score()]}, ["y"], {"y": ["a", "b"]}
    )["y"]
    y = np.stack([np.arange(9), np.full(9, 0.7)], axis=1).astype("float32")
    metric.update_state(y, y + 0.5)
    # 1 - 9 / 4 over the sum of squares of -4 to 4.
    expected = 1 - 9 * 0.25 / 60
    np.testing.assert_allclose(metric.by_column(), [expected, np.nan], rtol=1e-6)
    assert float(metric.result()) == pytest.approx(expected)
