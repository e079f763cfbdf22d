"""Gram-based methods by name, against public solvers, SciPy and recurrences."""

from __future__ import annotations

import functools
import json
import os
import pathlib

import balancing_cases as cases
import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

from mtl_keras import balancing
from mtl_keras.balancing import GradientStep
from mtl_keras.balancing.simplex import project_to_simplex
from mtl_keras.errors import InputError
from mtl_keras.ops import solvers

J2 = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
STATIONARY = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -0.5]])
GRAM_METHODS = [
    name
    for name in balancing.names()
    if isinstance(
        balancing.get({"class_name": name, "config": cases.CONFIGS.get(name, {})}),
        balancing.GramBalancer,
    )
]


def solved(name, rows, **config):
    balancer = balancing.get({"class_name": name, "config": config})
    return balancer.weights(tf.constant(rows @ rows.T)).numpy()


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("upgrad", {}, (1.1109, 0.7894)),
        ("dualproj", {}, (0.6109, 0.5)),
        ("mgda", {}, (0.6, 0.4)),
        ("imtl_g", {}, (0.5923, 0.4077)),
        ("aligned_mtl", {}, (0.5591, 0.4083)),
        ("pcgrad", {"seed": 1}, (2.2222, 1.5789)),
        ("nash", {}, (0.5915, 0.4071)),
        ("fairgrad", {"alpha": 1.0}, (0.5915, 0.4071)),
        ("cagrad", {"c": 0.5}, (0.7041, 0.5)),
        ("cagrad", {"c": 0.5, "rescale": "linear"}, (0.7041 / 1.5, 0.5 / 1.5)),
        ("cagrad", {"c": 0.5, "rescale": "square"}, (0.7041 / 1.25, 0.5 / 1.25)),
        ("cr_mogm", {}, (0.6, 0.4)),
        ("nash", {"max_norm": 2**-0.5}, (0.29575, 0.20355)),
    ],
)
def test_two_tasks_by_hand(name, config, expected):
    np.testing.assert_allclose(solved(name, J2, **config), expected, atol=6e-5)


def test_config_by_its_definition():
    unit = J2 / np.linalg.norm(J2, axis=1, keepdims=True)
    direction = np.linalg.pinv(unit) @ np.ones(2)
    direction /= np.linalg.norm(direction)
    update = (J2 @ direction).sum() * direction
    np.testing.assert_allclose(solved("config", J2) @ J2, update, rtol=1e-9)


def test_pareto_stationary_point():
    weights = solved("mgda", STATIONARY)
    np.testing.assert_allclose(weights, [0.4, 0.2, 0.4], atol=1e-9)
    np.testing.assert_allclose(weights @ STATIONARY, 0.0, atol=1e-9)
    assert solved("imtl_g", STATIONARY).min() < 0
    for name in ("nash", "fairgrad"):
        balancer = cases.make(name, tasks=("a", "b", "c"))
        weights = balancer.weights(tf.constant(STATIONARY @ STATIONARY.T))
        np.testing.assert_array_equal(weights, 1.0)
        assert balancer.variables["fallbacks"].numpy() == 1


# Weights that public solvers gave, as {"cases": [{"J": …, "weights": {…}}]}: those that
# benchmarks/public_solvers.py has written, or others of that form.
REFERENCE = pathlib.Path(
    os.environ.get("MTL_KERAS_TEST_REFERENCE")
    or pathlib.Path(__file__).with_name("public_weights.json")
)
PUBLISHED = {
    "upgrad": ("upgrad", {}),
    "dualproj": ("dualproj", {}),
    "imtlg": ("imtl_g", {}),
    "aligned_min": ("aligned_mtl", {"scale_mode": "min"}),
    "aligned_median": ("aligned_mtl", {"scale_mode": "median"}),
    "aligned_rmse": ("aligned_mtl", {"scale_mode": "rmse"}),
    "mgda": ("mgda", {}),
    "cagrad_c0.4": ("cagrad", {"c": 0.4}),
    "nash": ("nash", {}),
    "fairgrad_a2": ("fairgrad", {"alpha": 2.0}),
    "pcgrad": ("pcgrad", {"seed": 0}),
    "krum_f1_m2": ("krum", {"n_byzantine": 1, "n_selected": 2}),
}


@functools.cache
def compiled(published):
    name, config = PUBLISHED[published]
    balancer = balancing.get({"class_name": name, "config": config})
    return tf.function(balancer.weights, autograph=False)


def objective(published, weights, gram):
    """The objectives of MGDA and CAGrad; their minimisers need not be unique."""
    if published == "mgda":
        return weights @ gram @ weights
    # The update's worst ⟨g_i, d⟩, maximal within the ball (the dual's value).
    return -(gram @ weights).min()


@pytest.mark.parametrize("published", PUBLISHED)
def test_weights_are_those_of_public_solvers(published):
    cases = json.loads(REFERENCE.read_text())["cases"]
    chosen = [case for case in cases if published in case["weights"]]
    assert chosen
    for case in chosen:
        check(published, case)


def test_updates_of_config_are_those_of_a_public_solver():
    cases = json.loads(REFERENCE.read_text())["cases"]
    balancer = tf.function(balancing.ConFIG().weights, autograph=False)
    for case in cases:
        rows, expected = np.array(case["J"]), np.array(case["config_update"])
        update = balancer(tf.constant(rows @ rows.T)).numpy() @ rows
        size = np.abs(expected).max()
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-9 * size)


def check(published, case):
    rows = np.array(case["J"])
    gram = rows @ rows.T
    expected = np.array(case["weights"][published]["w"])
    actual = compiled(published)(tf.constant(gram)).numpy()
    if published in ("mgda", "cagrad_c0.4"):
        value = objective(published, actual, gram)
        best = objective(published, expected, gram)
        assert value <= best + 1e-6 * abs(best) + 1e-12 * np.trace(gram)
    else:
        size = np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9 * size)


@pytest.mark.parametrize("losses", [(2.0, 0.5), (2.0, 0.0), (2.0, -0.5), (2.0, np.inf)])
@pytest.mark.parametrize("normalization", ["l2", "loss", "loss+"])
def test_mgda_divides_gradients(normalization, losses):
    divisors = np.ones(2)
    if normalization != "loss":
        divisors = divisors * np.linalg.norm(J2, axis=1)
    if normalization != "l2":
        usable = np.isfinite(losses) & (np.array(losses) != 0)
        divisors = np.where(usable, divisors * np.abs(losses), 1.0)
    balancer = balancing.get(
        {"class_name": "mgda", "config": {"normalization": normalization}}
    )
    weights = balancer.weights_with_losses(
        tf.constant(J2 @ J2.T), tf.constant(losses, tf.float32)
    )
    expected = solved("mgda", J2 / divisors[:, None]) / divisors
    np.testing.assert_allclose(weights, expected, rtol=1e-9)


def update_of(name, rows, dtype, **config):
    """The update from gradients of a dtype, and the count of fallbacks."""
    tasks = tuple("abcdefghijkl"[: len(rows)])
    balancer = cases.make(name, tasks=tasks, **config)
    gradients = [[tf.cast(tf.constant(row), dtype)] for row in rows]
    ones = tf.ones((len(rows),))
    update, _ = balancer.aggregate(
        GradientStep(gradients, ones, ones > 0, tf.constant(1.0))
    )
    return tf.cast(update[0], "float64").numpy(), int(balancer.variables["fallbacks"])


DEPENDENT = {
    "half the sum": lambda rows: (rows[0] + rows[1]) / 2,
    "sum": lambda rows: rows[0] + rows[1],
    "the same": lambda rows: rows[0],
    "opposite": lambda rows: -rows[0],
}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1)])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("aligned_mtl", {}),
        ("imtl_g", {}),
        ("config", {}),
        ("nash", {}),
        ("cagrad", {}),
        ("upgrad", {"reg_eps": 0.0}),
        ("pcd", {"primary": "b"}),
    ],
)
def test_rank_is_decided_at_the_precision_of_the_gradients(
    name, config, dtype, tolerance
):
    rng = np.random.default_rng(0)
    for kind, last in DEPENDENT.items():
        for num_tasks in (3, 6, 12):
            rows = rng.normal(size=(num_tasks, 60))
            rows *= 10.0 ** rng.uniform(-1, 1, size=(num_tasks, 1))
            rows = tf.cast(tf.cast(rows, dtype), "float64").numpy()
            rows[-1] = last(rows)
            # A task of the same data, by another order of sums.
            noisy = rows.copy()
            noisy[-1] *= 1 + 0.3 * rng.uniform(-1, 1, 60) * float(
                {"float32": 2**-23, "bfloat16": 2**-7}[dtype]
            )
            expected, fell_back = update_of(name, rows, "float64", **config)
            update, again = update_of(name, noisy, dtype, **config)
            assert again == fell_back, (kind, num_tasks)
            size = np.linalg.norm(expected) + 1e-3 * np.linalg.norm(rows)
            assert np.linalg.norm(update - expected) < tolerance * size, (
                kind,
                num_tasks,
            )


def test_aligned_weights_are_exact_for_gradients_within_the_noise_of_those_given():
    """Where norms spread over four decades, bfloat16 loses what the small gradients add
    to the large ones: exact updates for two roundings of the same gradients differ by a
    third. What can be asked for is the paper's formula for gradients nearby."""
    precision = 2.0**-7
    noise = solvers.noise_of(precision)
    rng = np.random.default_rng(1)
    for kind, last in DEPENDENT.items():
        for num_tasks in (3, 6):
            rows = rng.normal(size=(num_tasks, 60))
            rows *= 10.0 ** rng.uniform(-2, 2, size=(num_tasks, 1))
            rows[-1] = last(rows)
            rows = tf.cast(tf.cast(rows, "bfloat16"), "float64").numpy()
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            left, lengths, right = np.linalg.svd(rows / norms, full_matrices=False)
            kept = lengths > noise
            assert kept.sum() == num_tasks - 1, kind
            nearby = left[:, kept] * lengths[kept] @ right[kept]
            assert np.all(np.linalg.norm(nearby - rows / norms, axis=1) < noise)
            left, lengths, _ = np.linalg.svd(norms * nearby, full_matrices=False)
            left, lengths = left[:, kept], lengths[kept]
            mean = np.full(num_tasks, 1 / num_tasks)
            expected = lengths[-1] * left @ (left.T @ mean / lengths)
            weights, solved = solvers.aligned(rows @ rows.T, precision=precision)
            assert solved
            size = np.abs(expected).max()
            np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-9 * size)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("name", GRAM_METHODS)
def test_weights_stay_in_the_range_of_float32(name, scale):
    balancer = cases.make(name, **({"alpha": 10.0} if name == "fairgrad" else {}))
    rows = cases.rows_of() * scale
    weights, update = cases.step(balancer, rows, cases.losses_of())
    assert np.isfinite(weights).all()
    assert np.isfinite(update).all()
    assert np.any(update)
    assert balancer.variables["fallbacks"].numpy() == 0


def test_weights_beyond_float32_keep_the_direction_of_the_update():
    rows = cases.rows_of()
    exact = solved("fairgrad", rows) @ rows
    for scale in (1e-30, 1e30):
        balancer = cases.make("fairgrad")
        weights, _ = cases.step(balancer, rows * scale, cases.losses_of())
        update = weights.numpy().astype("float64") @ rows
        cosine = update @ exact / np.linalg.norm(update) / np.linalg.norm(exact)
        np.testing.assert_allclose(cosine, 1.0, rtol=1e-6)


def test_methods_of_a_users_own_need_not_take_the_precision():
    class Own(balancing.GramBalancer):
        method = "own"

        def weights(self, gramian):
            return tf.ones((gramian.shape[0],), "float64") / gramian.shape[0]

    for balancer in (Own(), balancing.CRMOGM(Own())):
        balancer.build(cases.TASKS)
        weights, _ = cases.step(balancer, cases.rows_of(), cases.losses_of())
        np.testing.assert_allclose(weights, 1.0)


def test_smoothed_weights_follow_their_recurrence():
    smooth = cases.make("cr_mogm", balancer="upgrad", alpha=0.8, scale="mean")
    expected = None
    for seed in range(3):
        rows = cases.rows_of(seed=seed)
        new = solved("upgrad", rows.astype("float32").astype("float64"))
        expected = new if expected is None else 0.8 * expected + 0.2 * new
        weights, _ = cases.step(smooth, rows, cases.losses_of())
        np.testing.assert_allclose(weights, expected, rtol=1e-5)


def priority_constrained(rows, averages, tau):
    """The update of the paper, by SciPy."""
    unit = rows / np.sqrt(averages)[:, None]
    auxiliary = np.delete(unit, 1, axis=0)
    solution = scipy.optimize.minimize(
        lambda d: 0.5 * np.sum((d - unit[1]) ** 2),
        unit[1],
        jac=lambda d: d - unit[1],
        method="SLSQP",
        constraints={
            "type": "ineq",
            "fun": lambda d: auxiliary @ d - tau * np.sum(auxiliary**2, axis=1),
            "jac": lambda d: auxiliary,
        },
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert solution.success
    return solution.x / np.linalg.norm(solution.x) * np.linalg.norm(rows[1])


def test_priority_constrained_descent_is_slsqp():
    balancer = cases.make("pcd", primary="b", tau=0.1, beta=0.9)
    average = 0.0
    for number in (1, 2, 3):
        rows = cases.rows_of(seed=number)
        average = 0.9 * average + 0.1 * np.sum(rows**2, axis=1)
        _, update = cases.step(balancer, rows, cases.losses_of())
        expected = priority_constrained(rows, average / (1 - 0.9**number), 0.1)
        np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-5)
    assert balancer.variables["fallbacks"].numpy() == 0


def test_priority_constrained_descent_drops_contradictions():
    balancer = cases.make("pcd", primary="b")
    rows = cases.rows_of()
    rows[2] = -rows[0]
    weights, update = cases.step(balancer, rows, cases.losses_of())
    np.testing.assert_allclose(weights, [0, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(update, rows[1], rtol=1e-5)
    assert balancer.variables["fallbacks"].numpy() == 1


def projected(point):
    """The nearest point of the simplex, by SciPy."""
    point = np.asarray(point)
    threshold = scipy.optimize.brentq(
        lambda shift: np.maximum(point - shift, 0).sum() - 1,
        point.min() - 1,
        point.max(),
        xtol=1e-15,
    )
    return np.maximum(point - threshold, 0)


def test_projection_onto_the_simplex():
    rng = np.random.default_rng(0)
    for scale in (0.1, 1.0, 30.0):
        point = scale * rng.normal(size=6)
        present = np.array([True, True, False, True, True, True])
        actual = project_to_simplex(tf.constant(point), tf.constant(present)).numpy()
        np.testing.assert_allclose(
            actual[present], projected(point[present]), atol=1e-9
        )
        assert actual[2] == 0
    far = tf.constant([-1e30, -2e30, 0.0], tf.float64)
    everywhere = tf.ones((3,), "bool")
    np.testing.assert_array_equal(project_to_simplex(far, everywhere), [0, 0, 1])
    shifted = project_to_simplex(far - 1e30, everywhere)
    np.testing.assert_array_equal(shifted, [0, 0, 1])


@pytest.mark.parametrize("name", ["modo", "sdmgrad"])
def test_dual_steps_on_two_halves(name):
    config = {"gamma": 0.1, "rho": 0.2} if name == "modo" else {"inner_steps": 5}
    balancer = cases.make(name, scale="mean", **config)
    dual = np.full(4, 0.25)
    for seed in range(2):
        first, second = cases.rows_of(seed=seed), cases.rows_of(seed=seed + 50)
        update, weights = balancer.aggregate(
            GradientStep(
                cases.by_variable(first + second),
                tf.ones((4,)),
                tf.ones((4,), "bool"),
                tf.constant(8.0),  # which divides the gradients
                sub_batches=[cases.by_variable(8 * rows) for rows in (first, second)],
            )
        )
        cross = first @ second.T
        if name == "modo":
            dual = projected(dual - 0.1 * (cross @ dual + 0.2 * dual))
            expected = dual
        else:
            rate = 0.1 / np.abs(np.diag(cross)).mean()
            for _ in range(5):
                dual = projected(dual - rate * cross @ (dual + 0.3 * 0.25))
            expected = (dual + 0.3 * 0.25) / 1.3
        np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-7)
        flat = tf.concat([tf.reshape(part, [-1]) for part in update], 0)
        np.testing.assert_allclose(
            flat, expected @ (first + second), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("gate", ["soft", "hard"])
def test_gates_let_auxiliary_gradients_through_by_their_cosine(gate):
    balancer = cases.make("gradient_cosine", primary="b", gate=gate)
    for rows, _ in cases.problems():
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = unit @ unit[1]
        expected = np.maximum(cosines, 0.0) if gate == "soft" else 1.0 * (cosines >= 0)
        weights = balancer.weights(tf.constant(rows @ rows.T)).numpy()
        np.testing.assert_allclose(weights, expected, atol=1e-12)
        # The main task never loses.
        assert rows[1] @ (weights @ rows) >= (1 - 1e-12) * rows[1] @ rows[1]


def omega(losses, baselines, bound, least):
    """Shares by performance, as the authors' code has them."""
    delta = 100 * (losses - baselines) / baselines
    temperature = max((delta.max() - delta.min()) / np.log(bound), least)
    shares = np.exp((delta - delta.max()) / temperature)
    return len(losses) * shares / shares.sum()


def test_performance_informed_weights_solve_their_equation():
    """On 100 problems, at the losses of the epoch before; a root is the only one."""
    baselines = np.array([0.5, 1.0, 0.7, 2.0])
    balancer = cases.make("pivrg", baselines=baselines.tolist(), min_temperature=2.0)
    present = np.array([True, True, False, True])
    solve = tf.function(balancer.weights, autograph=False)
    learn = tf.function(balancer.weights_with_losses, autograph=False)
    before = baselines  # for which all shares are 1, as in the first epoch
    for rows, losses in cases.problems():
        gramian, shares = rows @ rows.T, omega(before, baselines, 2.0, 2.0)
        assert shares.max() / shares.min() <= 2.0 + 1e-9
        weights = solve(tf.constant(gramian)).numpy()
        np.testing.assert_allclose(
            gramian @ weights, np.sqrt(shares / weights), rtol=1e-5
        )
        fewer = solve(tf.constant(gramian * np.outer(present, present))).numpy()
        shares = omega(before[present], baselines[present], 2.0, 2.0)
        products = gramian[np.ix_(present, present)] @ fewer[present]
        np.testing.assert_allclose(
            products, np.sqrt(shares / fewer[present]), rtol=1e-5
        )
        assert fewer[2] == 0
        balancer.on_epoch_begin()
        for factor in (0.5, 1.5):
            learn(tf.constant(gramian), tf.constant(factor * losses, tf.float32))
        balancer.on_epoch_begin()
        before = losses


def test_consistent_multi_task_weights_are_fair():
    solve = tf.function(cases.make("consmtl").weights, autograph=False)
    for rows, _ in cases.problems():
        weights = solve(tf.constant(rows @ rows.T)).numpy()
        products = rows @ rows.T @ weights
        np.testing.assert_allclose(products * np.sqrt(weights), 1.0, rtol=1e-5)


def test_performance_informed_weights_without_baselines_are_fairgrads():
    for rows, _ in cases.problems(10):
        np.testing.assert_allclose(
            solved("pivrg", rows), solved("fairgrad", rows, alpha=2.0), rtol=1e-9
        )


@pytest.mark.parametrize(
    ("baselines", "reason"),
    [([1.0, 2.0], "one entry per task"), ({"a": 1.0}, "positive for every task")],
)
def test_baselines_are_those_of_all_tasks(baselines, reason):
    with pytest.raises(InputError, match=reason):
        cases.make("pivrg", baselines=baselines)


def test_running_performance_informed_weights_reach_the_exact_ones():
    config = {"baselines": [0.5, 1.0, 0.7, 2.0], "min_temperature": 2.0}
    exact, running = (
        cases.make("pivrg", solve=s, **config) for s in ("exact", "running")
    )
    rows, losses = cases.rows_of(), tf.constant(cases.losses_of(), tf.float32)
    gramian = tf.constant(rows @ rows.T)
    exact.weights_with_losses(gramian, losses)
    weights = followed(running, gramian, losses, steps=1)
    exact.on_epoch_begin()
    running.on_epoch_begin()
    weights = followed(running, gramian, losses)
    np.testing.assert_allclose(weights, exact.weights(gramian), rtol=1e-3)
    assert not np.allclose(weights, solved("fairgrad", rows, alpha=2.0), rtol=5e-3)


def followed(balancer, gramian, losses, steps=150):
    """Returns the weights of a running solve after products with one matrix."""
    present, sizes = tf.ones(losses.shape, "bool"), tf.ones(losses.shape, "float64")

    @tf.function(autograph=False)
    def step():
        weights = balancer.running_weights(losses, sizes, present)
        products = tf.linalg.matvec(gramian, tf.cast(weights, "float64"))
        balancer.follow(products, losses, sizes, present, tf.constant(True))

    for _ in range(steps):
        step()
    return balancer.running_weights(losses, sizes, present).numpy()


def halves_step(rows, first, second):
    return GradientStep(
        cases.by_variable(rows),
        tf.ones((4,)),
        tf.ones((4,), "bool"),
        tf.constant(8.0),  # which divides the gradients
        sub_batches=[cases.by_variable(8 * half) for half in (first, second)],
    )


def bargaining_root(gramian, shares, near):
    """Returns w > 0 with G w = shares / w, by SciPy from weights nearby."""

    def slopes(logs):
        return gramian * np.exp(logs) + np.diag(shares * np.exp(-logs))

    found = scipy.optimize.root(
        lambda logs: gramian @ np.exp(logs) - shares * np.exp(-logs),
        np.log(near),
        jac=slopes,
        tol=1e-14,
    )
    return np.exp(found.x)


def test_learned_preferences_descend_the_main_tasks_loss():
    """Weights solve G w = p / w; p follows the slope by differences, 100 times."""
    balancer = cases.make("auxinash", primary="b", learning_rate=0.02, momentum=0.5)

    @tf.function(autograph=False)
    def take(rows, first, second):
        return balancer.aggregate(halves_step(8 * rows, first, second))[1]

    momentum, preference = np.zeros(4), np.ones(4)
    for seed in range(100):
        first, second = (cases.rows_of(seed=seed + add) for add in (0, 200))
        rows = 0.5 * (first + second)
        single = rows.astype("float32").astype("float64")
        gramian = single @ single.T
        parts = (tf.constant(x, tf.float32) for x in (rows, first, second))
        weights = take(*parts).numpy()
        np.testing.assert_allclose(gramian @ weights, preference / weights, rtol=1e-4)
        # Linear in the step, on the second half as a batch of its own.
        slope = -second[1] @ first.T
        gradient = np.zeros(4)
        for index, move in enumerate(1e-4 * np.eye(4)):
            ahead, behind = (
                slope @ bargaining_root(gramian, preference + sign * move, weights)
                for sign in (1, -1)
            )
            gradient[index] = (ahead - behind) / 2e-4
        momentum = 0.5 * momentum + gradient / max(np.linalg.norm(gradient), 1.0)
        preference = np.maximum(preference - 0.02 * momentum, 1e-4)
        preference *= 4 / preference.sum()
        kept = balancer.variables["preference"].numpy()
        np.testing.assert_allclose(kept, preference, rtol=1e-4, atol=1e-6)
        preference, momentum = kept, balancer.variables["momentum"].numpy()
    assert balancer.variables["fallbacks"].numpy() == 0
    assert np.ptp(preference) > 0.5


def divided_cases():
    quick = ("nash", "cr_mogm", "sdmgrad", "auxinash", "pivrg", "mgda")
    for name in GRAM_METHODS:
        yield pytest.param(name, marks=[] if name in quick else [pytest.mark.slow])


@pytest.mark.parametrize("normalize", ["norm", "loss", "loss+"])
@pytest.mark.parametrize("name", divided_cases())
def test_every_gram_method_divides_gradients_first(name, normalize):
    """Its update is that of the method without, on gradients divided beforehand."""
    divides, plain = (cases.make(name, normalize=n) for n in (normalize, "none"))
    for seed in range(2):
        rows, losses = cases.rows_of(seed=seed), cases.losses_of(seed=seed)
        losses[2] = 0.0 if normalize == "loss" else -losses[2]
        divisors = np.ones(4)
        if normalize != "loss":
            divisors = divisors * np.linalg.norm(rows, axis=1)
        if normalize != "norm":
            divisors *= np.where(losses == 0.0, 1.0, np.abs(losses))
        expected, update = cases.step(plain, rows / divisors[:, None], losses)
        weights, same = cases.step(divides, rows, losses)
        np.testing.assert_allclose(weights, expected / divisors, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(same, update, rtol=1e-3, atol=1e-4)
    assert divides.get_config()["normalize"] == normalize


def test_mgda_has_two_names_of_one_normalisation():
    assert balancing.MGDA("l2").normalize == "norm"
    with pytest.raises(InputError, match="one of `normalization` and `normalize`"):
        balancing.MGDA("l2", normalize="loss")


def test_running_solves_divide_by_losses():
    """At the solution of the divided gradients; norms they do not know."""
    rows, losses = cases.rows_of(), tf.constant(cases.losses_of(), tf.float32)
    gramian = tf.constant(rows @ rows.T)
    balancer = cases.make("nash", solve="running", normalize="loss")
    weights = followed(balancer, gramian, losses)
    exact = balancing.Nash(normalize="loss").weights_with_losses(gramian, losses)
    np.testing.assert_allclose(weights, exact, rtol=1e-3)
    with pytest.raises(InputError, match="normalize='none' or 'loss'"):
        balancing.Nash(solve="running", normalize="norm")


def test_shifts_of_samo_have_their_length_between_global_and_local_directions():
    balancer = cases.make("samo", rho=0.3, local=0.4)
    shift = tf.function(balancer.shift, autograph=False)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        gradients, direction = (
            [rng.normal(size=shape).astype("float32") for shape in cases.SHAPES]
            for _ in range(2)
        )
        rise = np.float32(rng.normal())
        mixed = [
            0.6 * g + 0.4 * np.sign(rise) * z * np.sqrt((g**2).sum() / (z**2).sum())
            for g, z in zip(gradients, direction, strict=True)
        ]
        length = np.sqrt(sum((part**2).sum() for part in mixed))
        for unit in (1.0, 1e-6):  # a loss scale does not matter
            parts = shift([unit * g for g in gradients], direction, rise)
            for part, expected in zip(parts, mixed, strict=True):
                np.testing.assert_allclose(
                    part, 0.3 * expected / length, rtol=1e-4, atol=1e-6
                )
