"""Every method trains a small model, stops and resumes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings

import balancing_cases as cases
import keras
import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

import mtl_keras
from mtl_keras import balancing, ops
from mtl_keras.balancing import matrix_auxiliary, matrix_averaging

NAMES = balancing.names()
FIT = {"batch_size": 16, "shuffle": False, "verbose": 0}


def build(method, **compile_config):
    keras.utils.set_random_seed(21)
    inputs = keras.Input((6,))
    h = keras.layers.Dense(8, "tanh")(inputs)
    h = keras.layers.BatchNormalization()(h)
    h = keras.layers.Dropout(0.1, seed=3)(h)
    model = mtl_keras.MultiTaskModel(
        inputs, {task: keras.layers.Dense(1)(h) for task in ("a", "b", "c")}
    )
    if isinstance(method, str):
        method = {"class_name": method, "config": cases.CONFIGS.get(method, {})}
    model.compile(
        keras.optimizers.Adam(0.02), loss="mse", balancing=method, **compile_config
    )
    return model


def data():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(32, 6)).astype("float32")
    y = x @ rng.normal(size=(6, 3)).astype("float32") * [1.0, 3.0, 0.5] + 1.0
    return x, {task: y[:, i : i + 1] for i, task in enumerate(("a", "b", "c"))}


def assert_same(model, other, rtol=1e-4, atol=1e-5):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(two, one, rtol=rtol, atol=atol)
    mine, others = model._pipeline.state, other._pipeline.state
    assert mine.keys() == others.keys()
    for key in mine:
        np.testing.assert_allclose(others[key], mine[key], rtol, atol, err_msg=key)


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def quick(names):
    """The names, all but these behind the slow mark."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(n, marks=[] if n in names else [pytest.mark.slow])
            for n in NAMES
        ],
    )


@quick({"auto_lambda", "db_mtl", "dwa", "famo", "graddrop", "moco", "nash", "sdmgrad"})
def test_a_saved_step_resumes(name, tmp_path):
    x, y = data()
    whole = build(name, run_eagerly=True)
    whole.train_on_batch(x, y)
    whole.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    for model in (whole, again):
        model.train_on_batch(x, y)
    assert_same(whole, again, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("floatx", ["float64", "bfloat16"])
@quick({"auto_lambda", "db_mtl"})
def test_any_floatx_trains(name, floatx):
    default = keras.config.floatx()
    keras.config.set_floatx(floatx)
    try:
        x, y = data()
        # By default a task far below the others has weight 0, and its head stays.
        model = build(balancing.EPOLike(0.3) if name == "epo_like" else name)
        # Keras's Adam does not move in bfloat16, where its β₂ of 0.999 is 1.
        optimizer = keras.optimizers.SGD(0.02)
        model.compile(
            optimizer, loss="mse", balancing=model.balancers[0], run_eagerly=True
        )
        before = [np.array(w, "float64") for w in model.get_weights()]
        for _ in range(3):
            assert np.isfinite(float(model.train_on_batch(x, y)[0]))
    finally:
        keras.config.set_floatx(default)
    assert {v.dtype for v in model.trainable_variables} == {floatx}
    for old, new in zip(before, model.get_weights(), strict=True):
        assert np.any(old != np.array(new, "float64"))


@pytest.mark.parametrize(
    "name",
    [
        "aligned_mtl",
        pytest.param("imtl_g", marks=pytest.mark.slow),
        pytest.param("config", marks=pytest.mark.slow),
    ],
)
def test_a_task_that_is_the_mean_of_two_others_does_not_stop_the_training(name):
    """Of the gradients one is half the sum of the others, up to float32's rounding."""
    keras.utils.set_random_seed(21)
    inputs = keras.Input((6,))
    h = keras.layers.Dense(16, "tanh")(keras.layers.Dense(16, "tanh")(inputs))
    one, two = (keras.layers.Dense(1)(h) for _ in range(2))
    both = keras.layers.Concatenate()([one, two])
    model = mtl_keras.MultiTaskModel(inputs, {"a": one, "b": two, "c": both})
    # Adam would hide that an update is too small.
    model.compile(keras.optimizers.SGD(0.05), loss="mse", balancing=name)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(256, 6)).astype("float32")
    y = np.tanh(x @ rng.normal(size=(6, 2)) / 2).astype("float32") * [1.0, 3.0] + 1.0
    labels = {"a": y[:, :1], "b": y[:, 1:], "c": y}
    losses = model.fit(x, labels, epochs=20, **FIT).history["loss"]
    assert losses[-1] < 0.1 * losses[0]
    assert model.balancers[0].variables["fallbacks"].numpy() == 0


@quick({"moco"})
def test_trains_and_resumes_after_a_stop(name, tmp_path):
    x, y = data()
    whole = build(name)
    losses = whole.fit(x, y, epochs=4, **FIT).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]

    # Eagerly, which spares compiling and shows that both ways agree.
    eager = {"run_eagerly": True}
    backup = tmp_path / "backup"
    first = build(name, **eager)
    callbacks = [keras.callbacks.BackupAndRestore(backup), Stop()]
    with pytest.raises(KeyboardInterrupt):
        first.fit(x, y, epochs=4, callbacks=callbacks, **FIT)
    first.save(tmp_path / "model.keras")
    second = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    second.fit(x, y, epochs=2, **FIT)
    assert_same(whole, second)
    third = build(name, **eager)
    callbacks = [keras.callbacks.BackupAndRestore(backup)]
    third.fit(x, y, epochs=4, callbacks=callbacks, **FIT)
    assert_same(whole, third)


COMPILATIONS = """
import json, sys
import keras, numpy as np
import mtl_keras
tasks, methods = json.loads(sys.argv[1])
x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
y = {task: x[:, :1] + place for place, task in enumerate(tasks)}
for name, config in methods.items():
    keras.utils.clear_session(free_memory=False)
    inputs = keras.Input((3,))
    h = keras.layers.Dense(4, "tanh")(inputs)
    heads = {task: keras.layers.Dense(1)(h) for task in tasks}
    model = mtl_keras.MultiTaskModel(inputs, heads)
    method = {"class_name": name, "config": config}
    model.compile("sgd", loss="mse", balancing=method, jit_compile=True)
    print("method", name, file=sys.stderr, flush=True)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
"""


@pytest.mark.parametrize(
    ("tasks", "methods"),
    [
        pytest.param("ab", ["nash"], id="one"),
        pytest.param(
            "ab",
            # Two need three tasks.
            [name for name in NAMES if name not in ("krum", "trimmed_mean")],
            id="2-tasks",
            marks=pytest.mark.slow,
        ),
        pytest.param("abcdefgh", NAMES, id="8-tasks", marks=pytest.mark.slow),
    ],
)
def test_xla_compiles_a_fit_once(tasks, methods):
    arguments = [tasks, {name: cases.CONFIGS.get(name, {}) for name in methods}]
    environment = os.environ | {
        "TF_CPP_MIN_LOG_LEVEL": "0",
        "TF_CPP_VMODULE": "device_compiler=1",
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILATIONS, json.dumps(arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    _, *by_method = re.split(r"^method ", done.stderr, flags=re.MULTILINE)
    counts = {
        part.split()[0]: part.count("Compilation of XLA executable")
        for part in by_method
    }
    assert counts == dict.fromkeys(methods, 1)


def test_one_pass_of_m_config_is_what_it_takes_of_t_passes():
    """A policy that checks task gradients takes all of them."""
    x, y = data()
    one, all_of_them = (
        build("m_config", run_eagerly=True, on_nonfinite=policy)
        for policy in ("raise", "skip_task")
    )
    for model in (one, all_of_them):
        for _ in range(4):
            model.train_on_batch(x, y)
    assert not one._stepper.changes_rows
    assert all_of_them._stepper.changes_rows
    assert_same(one, all_of_them, rtol=1e-4, atol=1e-6)
    assert one.balancers[0].variables["steps"].numpy().tolist() == [2, 1, 1]


def test_m_config_warns_of_an_optimizer_with_a_second_moment_of_its_own(tmp_path):
    expected = "Expected keras.optimizers.SGD for balancing='m_config'.*Adam"
    with pytest.warns(UserWarning, match=expected) as caught:
        model = build("m_config")
    assert [warning.filename for warning in caught] == [__file__]
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match=expected):
        keras.models.load_model(tmp_path / "model.keras")
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(momentum=0.9))
    without = balancing.MConFIG(beta_2=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.compile(scaled, loss="mse", balancing="m_config")
        model.compile("adam", loss="mse", balancing=without)


@pytest.mark.parametrize(
    ("gradients_of", "share"), [("shared", 1e6), ("representation", 0.1)]
)
def test_heads_of_consmtl_turn_their_gradients_to_the_update(gradients_of, share):
    """By nested tapes and SciPy's root of G w = w^(−1/2)."""
    keras.utils.set_random_seed(2)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(16, 5)).astype("float32")
    y = {task: rng.normal(size=(16, 1)).astype("float32") for task in "abc"}
    trunk = keras.layers.Dense(4, "tanh")
    heads = {
        task: [keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)] for task in "abc"
    }
    inputs = keras.Input((5,))
    z = trunk(inputs)
    outputs = {task: last(first(z)) for task, (first, last) in heads.items()}
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    method = balancing.ConsMTL(strength=0.7, share=share, gradients_of=gradients_of)
    model.compile(
        keras.optimizers.SGD(1.0),
        loss="mse",
        balancing=method,
        run_eagerly=gradients_of == "representation",
    )
    own = {
        task: [v.value for layer in layers for v in layer.trainable_variables]
        for task, layers in heads.items()
    }
    shared = [v.value for v in trunk.trainable_variables]
    with tf.GradientTape(persistent=True) as outer:
        z = trunk(x)
        with tf.GradientTape(persistent=True) as inner:
            inner.watch(z)
            losses = {
                task: tf.reduce_mean((last(first(z)) - y[task]) ** 2)
                for task, (first, last) in heads.items()
            }
        at_z = {task: inner.gradient(loss, z) for task, loss in losses.items()}
        rows = [outer.gradient(loss, shared) for loss in losses.values()]
        sources = rows if gradients_of == "shared" else [[v] for v in at_z.values()]
        matrix = np.stack([np.concatenate([np.ravel(g) for g in r]) for r in sources])
        gramian = matrix.astype("float64") @ matrix.T
        root = scipy.optimize.root(
            lambda s: gramian @ np.exp(s) - np.exp(-s / 2), np.zeros(3), tol=1e-12
        )
        weights = np.exp(root.x).astype("float32")
        direction = np.tensordot(weights, np.stack(list(at_z.values())), 1)
        aligned = {task: tf.reduce_sum(v * direction) for task, v in at_z.items()}
    updates = [
        (v, np.tensordot(weights, np.stack([row[i] for row in rows]), 1))
        for i, v in enumerate(shared)
    ]
    for task, variables in own.items():
        gradients = outer.gradient(losses[task], variables)
        further = outer.gradient(aligned[task], variables)
        norms = [float(tf.linalg.global_norm(g)) for g in (gradients, further)]
        factor = min(0.7, share * norms[0] / norms[1])
        assert (factor < 0.7) == (share < 1)
        updates += [
            (v, g - factor * (0.0 if f is None else f))
            for v, g, f in zip(variables, gradients, further, strict=True)
        ]
    expected = [variable - update for variable, update in updates]
    model.train_on_batch(x, y)
    for (variable, _), value in zip(updates, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-4, atol=1e-5)


def test_samo_weighs_the_gradients_of_weights_moved_uphill():
    """By tapes at weights that are set there; only z is the method's own draw."""
    keras.utils.set_random_seed(2)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(16, 5)).astype("float32")
    y = {task: rng.normal(size=(16, 1)).astype("float32") for task in "ab"}
    inputs = keras.Input((5,))
    trunk = keras.layers.Dense(4, "tanh")
    heads = {task: keras.layers.Dense(1) for task in "ab"}
    outputs = {task: head(trunk(inputs)) for task, head in heads.items()}
    model = mtl_keras.MultiTaskModel(inputs, outputs)
    method = balancing.SAMO("imtl_g", rho=0.5, local=0.3, epsilon=0.02, seed=1)
    model.compile(keras.optimizers.SGD(1.0), loss="mse", balancing=method)
    shared = [v.value for v in trunk.trainable_variables]
    own = {t: [v.value for v in head.trainable_variables] for t, head in heads.items()}
    drawn = model.balancers[0].directions([v.shape for v in shared])
    model.balancers[0].variables["draws"].assign(0)
    variables = [*shared, *own["a"], *own["b"]]
    start = [v.numpy() for v in variables]

    def at(values, task=None):
        """Returns losses and gradients at these values; then goes back."""
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        with tf.GradientTape() as tape:
            losses = {
                t: tf.reduce_mean((head(trunk(x)) - y[t]) ** 2)
                for t, head in heads.items()
            }
            loss = losses["a"] + losses["b"] if task is None else losses[task]
        gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        return losses, [g.numpy() for g in gradients]

    def uphill(parts):
        length = np.sqrt(sum((part**2).sum() for part in parts))
        return [0.5 * part / length for part in parts]

    _, total = at(start)
    rows = {}
    for task, z in zip("ab", drawn, strict=True):
        z = [part.numpy() for part in z]
        ends = [
            at(
                [s + sign * 0.02 * part for s, part in zip(start, z, strict=False)]
                + start[2:]
            )[0]
            for sign in (1, -1)
        ]
        sign = np.sign(ends[0][task] - ends[1][task])
        mixed = [
            0.7 * g + 0.3 * sign * np.linalg.norm(g) / np.linalg.norm(part) * part
            for g, part in zip(total, z, strict=False)
        ]
        heads_moves = {
            t: uphill(total[i : i + 2]) if t == task else [0.0, 0.0]
            for t, i in (("a", 2), ("b", 4))
        }
        moves = [*uphill(mixed), *heads_moves["a"], *heads_moves["b"]]
        _, rows[task] = at([s + m for s, m in zip(start, moves, strict=True)], task)
    flat = [np.concatenate([g.ravel() for g in rows[t][:2]]) for t in "ab"]
    # Equal projections on both unit gradients, of weights that sum to T.
    inverse = np.array([1 / np.linalg.norm(row) for row in flat])
    weights = 2 * inverse / inverse.sum()
    update = [
        weights[0] * one + weights[1] * other
        for one, other in zip(rows["a"][:2], rows["b"][:2], strict=True)
    ]
    update += [*rows["a"][2:4], *rows["b"][4:]]
    model.train_on_batch(x, y)
    for variable, value, change in zip(variables, start, update, strict=True):
        np.testing.assert_allclose(variable, value - change, rtol=1e-4, atol=1e-5)


def test_samo_that_moves_nowhere_is_the_wrapped_method():
    """Dropout masks and batch statistics are those of the step."""
    x, y = data()
    config = {"balancer": "mgda", "rho": 0.0, "seed": 0}
    moved, plain = (
        build(method, run_eagerly=True)
        for method in ({"class_name": "samo", "config": config}, "mgda")
    )
    for model in (moved, plain):
        for _ in range(2):
            model.train_on_batch(x, y)
    for one, two in zip(moved.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    assert moved.balancers[0].variables["draws"].numpy() == 2


@pytest.mark.parametrize("name", ["famo", "auto_lambda", "sdmgrad"])
def test_further_passes_leave_batch_statistics_and_seeds_alone(name):
    x, y = data()
    plain, other = (build(n, run_eagerly=True) for n in ("equal", name))
    seeds = [v.numpy() for v in plain.non_trainable_variables]
    for model in (plain, other):
        model.train_on_batch(x, y)
    assert len(plain.non_trainable_variables) == 3  # two of the norm, one seed
    for old, one, two in zip(
        seeds,
        plain.non_trainable_variables,
        other.non_trainable_variables,
        strict=True,
    ):
        assert np.any(one.numpy() != old)
        np.testing.assert_array_equal(two.numpy(), one.numpy())


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_the_second_pass_of_famo_draws_the_same_masks(run_eagerly):
    """Without a step in between, the losses are the same, and so nothing is learned."""
    keras.utils.set_random_seed(21)
    inputs = keras.Input((6,))
    h = keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(inputs))
    model = mtl_keras.MultiTaskModel(
        inputs, {task: keras.layers.Dense(1)(h) for task in ("a", "b", "c")}
    )
    balancer = balancing.FAMO(weight_decay=0.0)
    model.compile(
        keras.optimizers.SGD(0.0),
        loss="mse",
        balancing=balancer,
        run_eagerly=run_eagerly,
    )
    x, y = data()
    first, second = (model.train_on_batch(x, y) for _ in range(2))
    assert first[0] != second[0]  # other masks at each step
    # Adam would bring any difference to the size of its learning rate.
    np.testing.assert_allclose(balancer.variables["logits"], 0.0, atol=1e-6)
    assert balancer.variables["adam_steps"].numpy().tolist() == [2, 2, 2]


OF_EACH_FAMILY = {"famo", "db_mtl"}  # And the running Nash, of the Gram methods.
EVERY_SECOND = [
    {"class_name": name, "config": {"update_every": 2, **config}}
    for name, config in (
        ("pcgrad", {"seed": 3}),
        ("pcd", {}),
        ("cr_mogm", {}),
        ("mgda", {"solve": "running"}),
    )
]


def replica_cases():
    for name in NAMES:
        marks = [] if name in OF_EACH_FAMILY else [pytest.mark.slow]
        yield pytest.param(name, marks=marks, id=name)
    running = {"class_name": "nash", "config": {"solve": "running"}}
    yield pytest.param(running, id="nash-running")
    for config in EVERY_SECOND:
        yield pytest.param(
            config, marks=[pytest.mark.slow], id=f"{config['class_name']}-every-2"
        )


def shared_by_three(method, **compiling):
    keras.utils.set_random_seed(21)
    inputs = keras.Input((6,))
    h = keras.layers.Dense(8, "tanh")(inputs)
    model = mtl_keras.MultiTaskModel(
        inputs, {task: keras.layers.Dense(1)(h) for task in ("a", "b", "c")}
    )
    if isinstance(method, str):
        method = {"class_name": method, "config": cases.CONFIGS.get(method, {})}
    sgd = keras.optimizers.SGD(0.02)
    model.compile(sgd, loss="mse", balancing=method, **compiling)
    return model


@pytest.mark.parametrize("method", replica_cases())
def test_two_replicas_are_one_device(method, mirrored):
    x, y = data()
    # The halves of the batch have every other sample, on each replica as on one.
    models = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            model = shared_by_three(method, run_eagerly=strategy is not mirrored)
        model.fit(x, y, epochs=1, **FIT)
        models.append(model)
    assert_same(*models, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "compiling"),
    [
        ("pcgrad", {}),
        *(
            pytest.param(method, compiling, marks=pytest.mark.slow)
            for method, compiling in (
                *((name, {}) for name in NAMES if name != "pcgrad"),
                *((config, {}) for config in EVERY_SECOND),
                ({"class_name": "nash", "config": {"solve": "running"}}, {}),
                ("pcgrad", {"task_clipnorm": 0.1}),
                (
                    {
                        "class_name": "mgda",
                        "config": {"gradients_of": "representation"},
                    },
                    {},
                ),
            )
        ),
    ],
)
def test_replicas_whose_sums_differ_stay_the_same(
    method, compiling, mirrored, monkeypatch
):
    """As where their order is not fixed; a GPU's differ by less."""
    real = ops.gramian

    def rounded(gradients, **kwargs):
        gramian = real(gradients, **kwargs)
        context = tf.distribute.get_replica_context()
        place = tf.range(1.0, gramian.shape[0] + 1, dtype=gramian.dtype)
        replica = tf.cast(context.replica_id_in_sync_group, gramian.dtype)
        return gramian * (1.0 + 1e-5 * replica * (place + place[:, None]))

    monkeypatch.setattr(ops, "gramian", rounded)
    with mirrored.scope():
        model = shared_by_three(method, **compiling)
    model.fit(*data(), epochs=1, **FIT)
    for variable in (*model.weights, *model.optimizer.variables):
        one, two = mirrored.experimental_local_results(variable.value)
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("method", "module", "name"),
    [
        ("metabalance", matrix_auxiliary, "_norms_of_rows"),
        pytest.param(
            *("excess_mtl", matrix_averaging, "_excess_risks"), marks=pytest.mark.slow
        ),
    ],
)
def test_replicas_whose_norms_differ_stay_the_same(
    method, module, name, mirrored, monkeypatch
):
    """As where their order is not fixed; see above."""
    real = getattr(module, name)

    def rounded(*args):
        norms = real(*args)
        context = tf.distribute.get_replica_context()
        replica = tf.cast(context.replica_id_in_sync_group, norms.dtype)
        return norms + 1e-3 * replica * tf.range(1.0, norms.shape[0] + 1)

    monkeypatch.setattr(module, name, rounded)
    with mirrored.scope():
        model = shared_by_three(method)
    model.fit(*data(), epochs=1, **FIT)
    for variable in (*model.weights, *model.optimizer.variables):
        one, two = mirrored.experimental_local_results(variable.value)
        np.testing.assert_array_equal(one, two)
