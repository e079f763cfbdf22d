"""Conventions of every method: scale, absent tasks, order, degenerate steps."""

from __future__ import annotations

import json

import balancing_cases as cases
import keras
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import balancing
from mtl_keras.balancing import AutoLambda, GradientBalancer
from mtl_keras.errors import InputError

NAMES = balancing.names()


@pytest.fixture
def method(request):
    """A method's balancer, fresh, and its compiled step."""
    balancer, run, restart = cases.compiled(request.param)
    restart()
    return balancer, run


EVERY = pytest.mark.parametrize("method", NAMES, indirect=True)


@EVERY
def test_sum_is_mean_times_the_tasks_and_graph_is_eager(method):
    balancer, run = method
    assert balancer.scale == "sum"
    eager = cases.make(balancer.method, scale="mean")
    rows, losses = cases.rows_of(), cases.losses_of()
    for present in ([True] * 4, [True, True, False, True]):
        total, update = run(rows, losses, present)
        mean, smaller = cases.step(eager, rows, losses, present)
        count = sum(present)
        np.testing.assert_allclose(total, count * mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(update, count * smaller, rtol=1e-4, atol=1e-5)
        if isinstance(balancer, AutoLambda):  # its look-ahead has the update's length
            return
    for key, value in cases.values(eager).items():
        np.testing.assert_allclose(
            cases.values(balancer)[key], value, rtol=1e-5, atol=1e-6
        )


@EVERY
def test_an_absent_task_weighs_nothing_and_keeps_its_state(method):
    balancer, run = method
    for seed in range(2):  # so that there is a state
        run(cases.rows_of(seed=seed), cases.losses_of(seed=seed))
        balancer.on_epoch_begin()
    before = cases.values(balancer)
    weights, update = run(
        cases.rows_of(seed=3), cases.losses_of(seed=3), [True, True, False, True]
    )
    assert weights[2] == 0
    assert np.count_nonzero(weights) >= 1
    assert np.isfinite(update).all()
    for key, now in cases.values(balancer).items():
        if now.ndim and now.shape[0] == 4:
            np.testing.assert_array_equal(now[2], before[key][2], err_msg=key)
        if now.shape == (4, 4):
            np.testing.assert_array_equal(now[:, 2], before[key][:, 2], err_msg=key)


DETERMINISTIC = [name for name in NAMES if name not in cases.DRAWN]


@pytest.mark.parametrize("method", DETERMINISTIC, indirect=True)
def test_with_an_absent_task_it_is_the_method_of_the_others(method):
    balancer, run = method
    rows, losses = cases.rows_of(), cases.losses_of()
    present = np.array([True, True, False, True])
    small = cases.make(balancer.method, tasks=("a", "b", "d"))
    for _ in range(2):
        weights, update = run(rows, losses, present)
        fewer, same = cases.step(small, rows[present], losses[present])
        np.testing.assert_allclose(
            weights.numpy()[present], fewer, rtol=2e-5, atol=1e-6
        )
        np.testing.assert_allclose(update, same, rtol=1e-4, atol=1e-5)


# Their weights do not depend on who else is there.
BY_TASK = ("equal", "static", "uncertainty", "imtl_l")


@pytest.mark.parametrize(
    "method", [n for n in DETERMINISTIC if n not in BY_TASK], indirect=True
)
def test_a_task_without_loss_is_excluded_from_the_formula(method):
    """A loss weight of 0: loss and gradient are zero, though there are labels."""
    balancer, run = method
    others = np.array([True, True, False, True])
    small = cases.make(balancer.method, tasks=("a", "b", "d"))
    for seed in range(3):
        rows, losses = cases.rows_of(seed=seed), cases.losses_of(seed=seed)
        weights, update = run(rows * others[:, None], losses * others)
        fewer, same = cases.step(small, rows[others], losses[others])
        np.testing.assert_allclose(weights.numpy()[others], fewer, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(update, same, rtol=1e-4, atol=1e-5)
        balancer.on_epoch_begin()
        small.on_epoch_begin()


@pytest.mark.parametrize("name", ["uncertainty", "imtl_l"])
def test_a_task_without_loss_moves_no_scale(name):
    balancer = cases.make(name)
    cases.step(balancer, cases.rows_of() * 0.0, np.zeros(4))
    assert not any(np.any(value) for value in cases.values(balancer).values())


def test_building_again_starts_every_method_anew():
    for name in NAMES:
        balancer = cases.make(name)
        start = cases.values(balancer)
        cases.step(balancer, cases.rows_of(), cases.losses_of())
        balancer.build(cases.TASKS)
        if isinstance(balancer, GradientBalancer):
            balancer.build_variables(
                [keras.Variable(np.zeros(s)) for s in cases.SHAPES]
            )
        again = cases.values(balancer)
        assert start.keys() == again.keys(), name
        for key, value in start.items():
            np.testing.assert_array_equal(again[key], value, err_msg=f"{name} {key}")


# A main task has a name, not a place; "ldc_mtl" compares neighbours, and "m_config"
# takes the tasks in turn.
BY_PLACE = (*cases.WITH_PRIMARY, "ldc_mtl", "m_config")


@pytest.mark.parametrize(
    "method", [name for name in DETERMINISTIC if name not in BY_PLACE], indirect=True
)
def test_permuting_tasks_permutes_weights(method):
    balancer, run = method
    order = [2, 0, 3, 1]
    many = [(cases.rows_of(seed=s), cases.losses_of(seed=s)) for s in range(3)]
    plain = [run(rows, losses) for rows, losses in many]
    cases.compiled(balancer.method)[2]()  # starts anew
    for (rows, losses), (weights, update) in zip(many, plain, strict=True):
        permuted, same = run(rows[order], losses[order])
        np.testing.assert_allclose(
            permuted, weights.numpy()[order], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(same, update, rtol=1e-4, atol=1e-5)


# "modo", "moco" and "excess_mtl" have absolute step sizes; updates of "nash" and its
# kin shrink as the gradients grow, and those of "m_config" are Adam's.
SCALES_WITH_GRADIENTS = [
    name
    for name in NAMES
    if name not in ("modo", "moco", "excess_mtl", "m_config")
    and name not in ("nash", "fairgrad", "pivrg", "auxinash", "consmtl", "samo")
    and isinstance(balancing.get({"class_name": name}), GradientBalancer)
]


@pytest.mark.parametrize("method", SCALES_WITH_GRADIENTS, indirect=True)
def test_updates_scale_with_the_gradients(method):
    balancer, run = method
    many = [(cases.rows_of(seed=s), cases.losses_of(seed=s)) for s in range(3)]
    plain = [run(rows, losses) for rows, losses in many]
    for scale in (1e-9, 1e9):
        cases.compiled(balancer.method)[2]()  # starts anew
        for (rows, losses), (weights, update) in zip(many, plain, strict=True):
            same, scaled = run(rows * scale, losses)
            np.testing.assert_allclose(same, weights, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(scaled / scale, update, rtol=1e-4, atol=1e-5)


def degenerate():
    rows, losses = cases.rows_of(), cases.losses_of()
    everywhere = [True] * 4
    for bad in (0.0, np.nan, np.inf, 1e12, 1e-12, 1e30, 1e-30):
        one_bad = losses.copy()
        one_bad[1] = bad
        yield f"a loss of {bad}", rows, one_bad, everywhere
        yield f"losses of {bad}", rows, np.full(4, bad), everywhere
        factors = np.ones((4, 1))
        factors[1] = bad
        yield f"a gradient times {bad}", rows * factors, losses, everywhere
        yield f"gradients times {bad}", rows * bad, losses, everywhere
    yield "one task", rows, losses, [False, True, False, False]
    yield "no task", rows, losses, [False] * 4
    yield "opposite", rows[[0, 1, 0, 1]] * [[1], [1], [-1], [-1]], losses, everywhere


@EVERY
def test_degenerate_steps_give_finite_weights_and_leave_no_trace(method):
    balancer, run = method
    of_gradients = isinstance(balancer, GradientBalancer)
    rows, losses = cases.rows_of(), cases.losses_of()
    for case, bad_rows, bad_losses, present in degenerate():
        weights, update = run(bad_rows, bad_losses, present)
        assert np.isfinite(weights).all(), case
        inputs = bad_rows[np.array(present)]
        if np.any(inputs) or (any(present) and not of_gradients):
            assert np.any(weights != 0), case
        if np.isfinite(inputs).all():
            assert np.isfinite(update).all(), case
        elif of_gradients:
            # A loss-scaling optimizer must see that the step overflowed.
            assert not np.isfinite(update).all(), case
        for key, value in cases.values(balancer).items():
            assert np.isfinite(value).all(), (case, key)
        weights, update = run(rows, losses)
        assert np.isfinite(update).all(), case
        assert np.any(update != 0), case


OF_GRADIENTS = [
    name for name in NAMES if issubclass(balancing.get_class(name), GradientBalancer)
]


@pytest.mark.parametrize("method", OF_GRADIENTS, indirect=True)
def test_a_steep_loss_near_zero_leaves_no_trace(method):
    """The gradient of its logarithm, 1e40, is beyond float32."""
    balancer, run = method
    rows, losses = cases.rows_of(), cases.losses_of()
    steep = losses.copy()
    steep[1] = 1e-30
    _, update = run(rows * [[1.0], [1e10], [1.0], [1.0]], steep)
    assert np.isfinite(update).all()
    for key, value in cases.values(balancer).items():
        assert np.isfinite(value).all(), key


def xla_cases():
    quick = ("stch", "gradnorm", "moco")
    for name in NAMES:
        yield pytest.param(name, marks=[] if name in quick else [pytest.mark.slow])


@pytest.mark.parametrize("method", xla_cases(), indirect=True)
def test_compiles_under_xla(method):
    balancer, run = method
    _, compiled, _ = cases.compiled(balancer.method, xla=True)
    inputs = cases.rows_of(), cases.losses_of(), [True, False, True, True]
    for one, two in zip(run(*inputs), compiled(*inputs), strict=True):
        assert np.isfinite(two).all()
        if balancer.method not in cases.DRAWN:  # XLA draws other numbers
            np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


OTHER_CONFIGS = {
    "static": {"task_weights": {"a": 0.5, "d": 2.0}, "task_specific": "own"},
    "uncertainty": {
        "initial_log_variance": -0.5,
        "learning_rate": 0.01,
        "kinds": {"a": "classification"},
    },
    "uw_so": {"temperature": 3.0},
    "dwa": {"temperature": 1.0},
    "stch": {"mu": 0.5, "warmup_epochs": 0, "ideal": 0.1, "preference": [1, 2, 3, 4]},
    "cosmos": {"strength": 0.2, "preference": {"a": 1.0, "b": 2.0}},
    "pbi": {"penalty": 5.0},
    "epo_like": {"strength": 2.0, "preference": {"a": 1.0, "b": 2.0}},
    "famo": {"learning_rate": 0.1, "weight_decay": 0.0, "lower_bound": -1.0},
    "gradnorm": {"alpha": 0.5, "learning_rate": 0.1},
    "imtl_l": {"learning_rate": 0.1, "initial_log_scale": "first_loss"},
    "mgda": {"normalization": "loss+", "update_every": 3, "task_specific": "weighted"},
    "pcgrad": {"seed": 3, "gradients_of": "representation"},
    "gradvac": {"beta": 0.5, "seed": 3},
    "cagrad": {"c": 0.2, "rescale": "square"},
    "nash": {"max_norm": 1.0, "scale": "mean"},
    "fairgrad": {"alpha": 0.7, "max_norm": 2.0},
    "aligned_mtl": {"scale_mode": "rmse"},
    "upgrad": {"preference": {"a": 1.0, "c": 3.0}, "reg_eps": 1e-3},
    "krum": {"n_byzantine": 0, "n_selected": 2},
    "cr_mogm": {"balancer": "upgrad", "alpha": 0.5},
    "pcd": {"primary": "c", "tau": 0.1, "beta": 0.9, "epsilon": 1e-6},
    "sdmgrad": {"strength": 0.5, "inner_steps": 3, "step_size": 0.2},
    "modo": {"gamma": 0.1, "rho": 0.0},
    "graddrop": {"leak": {"a": 0.5}, "seed": 3},
    "moco": {"beta": 0.2, "gamma": 0.2, "beta_decay": 0.0, "rho": 0.1},
    "db_mtl": {"beta": 0.5},
    "excess_mtl": {"step_size": 0.5},
    "trimmed_mean": {"trim": 0},
    "ldc_mtl": {
        "strength": 0.3,
        "normalization": "none",
        "learning_rate": 0.1,
        "initial_logit": -1.0,
    },
    "pivrg": {
        "baselines": {"a": 0.5, "b": 1.0, "c": 2.0, "d": 0.1},
        "bound": 3.0,
        "min_temperature": 1.0,
        "max_norm": 1.0,
    },
    "samo": {"balancer": "upgrad", "rho": 0.1, "local": 0.2, "epsilon": 0.1, "seed": 3},
    "consmtl": {"strength": 0.5, "share": 0.2, "max_norm": 1.0},
    "gradient_cosine": {"primary": "c", "gate": "hard"},
    "auxinash": {
        "primary": "c",
        "preference": {"a": 2.0},
        "learning_rate": 0.1,
        "momentum": 0.5,
        "max_norm": 1.0,
    },
    "metabalance": {"primary": "c", "relax": 0.5, "adjust": "reduce", "beta": 0.5},
    "m_config": {"beta_1": 0.5, "beta_2": None, "epsilon": 1e-6},
    "auto_lambda": {"primary": ["a"], "learning_rate": 0.1, "initial": 0.5},
}


@pytest.mark.parametrize("name", OTHER_CONFIGS)
def test_a_configuration_gives_the_same_method_again(name):
    rows, losses = cases.rows_of(), cases.losses_of()
    balancer = cases.make(name, **OTHER_CONFIGS[name])
    config = json.loads(json.dumps(balancing.serialize(balancer)))
    again = balancing.deserialize(config)
    assert again.get_config() == balancer.get_config()
    default = balancing.get(name).get_config()
    assert all(
        balancer.get_config()[key] != default[key] for key in OTHER_CONFIGS[name]
    )
    again = cases.make(name, **again.get_config())
    expected = cases.step(balancer, rows, losses)
    for one, two in zip(expected, cases.step(again, rows, losses), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["cr_mogm", "samo"])
@pytest.mark.parametrize("wrapped", ["sdmgrad", "consmtl", "samo", "graddrop"])
def test_methods_that_are_more_than_weights_cannot_be_wrapped(name, wrapped):
    with pytest.raises(InputError, match="whole batches"):
        balancing.get({"class_name": name, "config": {"balancer": wrapped}})


@pytest.mark.parametrize("primary", ["a", ["a"]])
def test_auto_lambda_takes_one_name(primary):
    assert cases.make("auto_lambda", primary=primary).primary == ["a"]


@pytest.mark.parametrize("name", cases.WITH_PRIMARY)
def test_a_main_task_is_one_of_the_tasks(name):
    with pytest.raises(InputError, match=r"Unknown primary task.*'e'"):
        cases.make(name, primary="e")
    assert cases.make(name, primary=None).primary is None


@pytest.mark.parametrize("primary", ["ab", [], ["a", "e"]])
def test_auto_lambda_names_the_existing_tasks(primary):
    with pytest.raises(InputError, match=r"'a', 'b', 'c', 'd'.*Received: primary="):
        cases.make("auto_lambda", primary=primary)


BY_TASK_ARGUMENTS = (
    ("static", "task_weights"),
    ("upgrad", "preference"),
    ("stch", "preference"),
    ("auxinash", "preference"),
    ("pivrg", "baselines"),
    ("graddrop", "leak"),
)


@pytest.mark.parametrize(("name", "argument"), BY_TASK_ARGUMENTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, "2", True])
def test_arguments_by_task_are_finite_numbers(name, argument, value):
    values = {"a": value, "b": 1.0, "c": 1.0, "d": 1.0}
    with pytest.raises(InputError, match=f"`{argument}`.*finite number"):
        cases.make(name, **{argument: values})
    assert cases.make(name, **{argument: {**values, "a": np.float32(0.5)}}).built


def test_a_leak_is_a_share_by_task_too():
    with pytest.raises(InputError, match=r"`leak` to be a number from 0 to 1"):
        cases.make("graddrop", leak={"a": 5.0})


@pytest.mark.parametrize("name", ["gls", "scale_invariant", "epo_like"])
def test_negative_losses_have_no_logarithm(name):
    balancer = cases.make(name)
    with pytest.raises(tf.errors.InvalidArgumentError, match="non-negative"):
        cases.step(balancer, cases.rows_of(), -cases.losses_of())
    compiled = tf.function(balancer.weights, jit_compile=True, autograph=False)
    losses, present = (
        tf.constant([1.0, 2.0, -3.0, 0.0]),
        tf.constant([True] * 3 + [False]),
    )
    np.testing.assert_array_equal(compiled(losses, present), [1.0, 1.0, 1.0, 0.0])
