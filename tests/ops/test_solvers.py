"""Solvers against SciPy, closed forms and the properties that define them."""

from __future__ import annotations

import functools

import hypothesis.extra.numpy
import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtl_keras import ops
from mtl_keras.ops import solvers

KINDS = ("plain", "conflict", "scales", "aligned", "tiny")
SIZES = (2, 3, 5)  # few, as every size is traced anew

J2 = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
STATIONARY = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -0.5]])


def jacobian(kind, num_tasks, seed=0):
    rng = np.random.default_rng(100 * num_tasks + seed)
    rows = rng.normal(size=(num_tasks, 3 * num_tasks + 5))
    if kind == "conflict":
        rows -= 0.95 * rows.mean(axis=0)
    if kind == "scales":
        rows *= 10.0 ** rng.uniform(-3, 3, size=(num_tasks, 1))
    if kind == "aligned":
        rows += 4.0 * rng.normal(size=rows.shape[1])
    return rows * (1e-6 if kind == "tiny" else 1.0)


def orders_of(gramian):
    return solvers.random_orders(gramian.shape[0], [3, 4])


def gradvac(gramian):
    goals = tf.fill([gramian.shape[0]] * 2, tf.constant(0.3, tf.float64))
    weights, _, converged = solvers.gradvac(gramian, goals, orders_of(gramian), 0.1)
    return weights, converged


METHODS = {
    "min_norm": solvers.min_norm,
    "upgrad": solvers.upgrad,
    "dualproj": solvers.dualproj,
    "cagrad": functools.partial(solvers.cagrad, c=0.5),
    "nash": solvers.power_root,
    "fairgrad": functools.partial(solvers.power_root, alpha=2.0),
    "imtl_g": solvers.imtl_g,
    "aligned": solvers.aligned,
    "config": solvers.config,
    "krum": functools.partial(solvers.krum, n_byzantine=0),
    "pcgrad": lambda g: solvers.pcgrad(g, orders_of(g)),
    "gradvac": gradvac,
}
SUM_SCALE = ("nash", "fairgrad", "config", "pcgrad", "gradvac")


@functools.cache
def compiled(name, xla=False):
    return tf.function(METHODS[name], jit_compile=xla, autograph=False)


def solve(name, rows, xla=False):
    weights, converged = compiled(name, xla)(tf.constant(rows @ rows.T))
    return weights.numpy(), bool(converged)


# Values worked out by hand and with independent solvers.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("upgrad", (1.1109, 0.7894)),
        ("dualproj", (0.6109, 0.5)),
        ("min_norm", (0.6, 0.4)),
        ("imtl_g", (0.5923, 0.4077)),
        ("aligned", (0.5591, 0.4083)),
        ("pcgrad", (2.2222, 1.5789)),
        ("nash", (0.5915, 0.4071)),
        ("cagrad", (0.7041, 0.5)),
    ],
)
def test_two_tasks_by_hand(name, expected):
    weights, converged = solve(name, J2)
    assert converged
    np.testing.assert_allclose(weights, expected, atol=6e-5)


def test_pareto_stationary_point():
    weights, converged = solve("min_norm", STATIONARY)
    assert converged
    np.testing.assert_allclose(weights, [0.4, 0.2, 0.4], atol=1e-10)
    weights, converged = solve("imtl_g", STATIONARY)
    assert weights.min() < 0
    for name in ("nash", "fairgrad"):
        weights, converged = solve(name, STATIONARY)
        assert not converged
        np.testing.assert_array_equal(weights, [1.0, 1.0, 1.0])


@pytest.mark.parametrize("num_tasks", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_quadratic_programs_match_nnls(kind, num_tasks):
    rows = jacobian(kind, num_tasks)
    # Least norm over the simplex, as non-negative least squares with one heavy row.
    weights, converged = solve("min_norm", rows)
    norms = np.linalg.norm(rows, axis=1)
    heavy = norms.min() / norms
    system = np.vstack([(rows / norms[:, None]).T, heavy])
    y, _ = scipy.optimize.nnls(system, np.eye(len(system))[-1])
    expected = y / norms / np.sum(y / norms)
    gram = rows @ rows.T
    assert converged
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(
        weights @ gram @ weights, expected @ gram @ expected, rtol=1e-8
    )

    # Projections onto the dual cone: |R (u + z)| least over z >= 0.
    regular = gram / np.trace(gram) + 1e-4 * np.eye(num_tasks)
    root = np.linalg.cholesky(regular).T
    mean = np.full(num_tasks, 1.0 / num_tasks)

    def project(u):
        return u + scipy.optimize.nnls(root, -root @ u)[0]

    weights, converged = solve("dualproj", rows)
    assert converged
    np.testing.assert_allclose(weights, project(mean), rtol=1e-7)
    weights, converged = solve("upgrad", rows)
    assert converged
    np.testing.assert_allclose(
        weights, sum(project(u) for u in np.diag(mean)), rtol=1e-7
    )


@pytest.mark.parametrize("num_tasks", [*SIZES, 11])
@pytest.mark.parametrize("kind", KINDS)
def test_cagrad_minimises_its_objective(kind, num_tasks):
    mean = np.full(num_tasks, 1.0 / num_tasks)
    for seed in range(10):
        rows = jacobian(kind, num_tasks, seed)
        gram = rows @ rows.T
        radius = 0.5 * np.sqrt(mean @ gram @ mean)
        weights, converged = solve("cagrad", rows)
        assert converged
        correction = weights - mean
        on_simplex = correction / correction.sum()
        assert on_simplex.min() > -1e-12
        length = np.sqrt(on_simplex @ gram @ on_simplex)
        objective = on_simplex @ gram @ mean + radius * length
        np.testing.assert_allclose(correction @ gram @ correction, radius**2, 1e-9)
        # The dual problem's value, the worst decrease, closes the gap: an exact proof.
        np.testing.assert_allclose((gram @ weights).min(), objective, rtol=1e-7)


@pytest.mark.parametrize("num_tasks", [*SIZES, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_power_roots(kind, num_tasks):
    rows = jacobian(kind, num_tasks)
    gram = rows @ rows.T
    for name, alpha in (("nash", 1.0), ("fairgrad", 2.0)):
        weights, converged = solve(name, rows)
        assert converged
        assert weights.min() > 0
        # The positive root is unique: to satisfy the equation is to be right.
        np.testing.assert_allclose(gram @ weights * weights ** (1 / alpha), 1.0, 1e-8)
    shares = np.linspace(0.2, 3.0, num_tasks)
    for which in ("auto", "tensorflow"):
        with ops.implementation(which):
            weights, converged = solvers.power_root(
                tf.constant(gram), 2.0, shares=tf.constant(shares)
            )
        assert converged
        weights = weights.numpy()
        np.testing.assert_allclose(gram @ weights * weights**0.5, shares, 1e-8)


@pytest.mark.parametrize("which", ["native", "tensorflow"])
@pytest.mark.parametrize("powers", [(-12, 0, 12, 0, 0), (12, 12, 0, -12, -12)])
def test_fair_root_of_gradients_many_decades_apart(powers, which):
    if which == "native" and not ops.native_available():
        pytest.skip("no compiled ops in this installation")
    rows = np.random.default_rng(5).normal(size=(5, 11))
    rows *= 10.0 ** np.array(powers)[:, np.newaxis]
    gram = rows @ rows.T
    with ops.implementation(which):
        weights, converged = solvers.power_root(tf.constant(gram), 2.0)
    assert converged
    weights = weights.numpy()
    # Most of `gram @ weights` cancels, and its rounding errors stay.
    np.testing.assert_allclose(gram @ weights * np.sqrt(weights), 1.0, atol=1e-3)


def root_of_two_tasks(gram, alpha):
    """The logarithms of the weights, by bracketing log(n_2 w_2 / n_1 w_1)."""
    p = 1.0 / alpha
    norms = np.sqrt(np.diag(gram))
    cosine = gram[0, 1] / norms.prod()
    first, second = np.log(norms)

    def difference(log):  # of the logarithms of both equations
        products = np.log(cosine + np.exp(log)) - np.log(1.0 + cosine * np.exp(log))
        return second - first + products + p * (log + first - second)

    # Both products are positive between these. For small alpha the root may lie
    # within rounding of one.
    high = -np.log(-cosine) - 1e-13 if cosine < 0 else 600.0
    low = -high
    if difference(low) > 0 or difference(high) < 0:
        log = low if difference(low) > 0 else high
    else:
        log = scipy.optimize.brentq(difference, low, high, xtol=1e-14, rtol=1e-14)
    if log < 0:
        length = -(first + np.log(1.0 + cosine * np.exp(log)) - p * first)
    else:
        length = -(second + np.log(cosine + np.exp(log)) + p * (log - second))
    length /= 1.0 + p
    return np.array([length - first, length + log - second])


@pytest.mark.parametrize("which", ["native", "tensorflow"])
def test_fair_root_for_any_alpha_and_norms(which):
    if which == "native" and not ops.native_available():
        pytest.skip("no compiled ops in this installation")
    for alpha in (1e-3, 1e-2, 0.1, 0.5, 2.0, 10.0):
        for ratio in (1.0, 0.4, 1e-4, 1e-12):
            for cosine in (0.5, -0.5):
                rows = np.array([[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]])
                rows *= [[1.0], [ratio]]
                gram = rows @ rows.T
                with ops.implementation(which):
                    weights, converged = solvers.power_root(tf.constant(gram), alpha)
                assert converged, (alpha, ratio, cosine)
                np.testing.assert_allclose(
                    np.log(weights),
                    root_of_two_tasks(gram, alpha),
                    atol=1e-7,
                    err_msg=f"{alpha} {ratio} {cosine}",
                )


def best_in_ball(rows, c):
    """The best worst product within the ball, by SLSQP on the primal problem."""
    mean = rows.mean(axis=0)
    radius = c * np.linalg.norm(mean)
    best = -np.inf
    for start in (mean, 0.5 * mean, mean + 0.5 * radius * rows[0]):
        solution = scipy.optimize.minimize(
            lambda x: -x[-1],
            np.append(start, (rows @ start).min()),
            jac=lambda x: np.append(np.zeros(len(x) - 1), -1.0),
            method="SLSQP",
            constraints=[
                {"type": "ineq", "fun": lambda x: rows @ x[:-1] - x[-1]},
                {
                    "type": "ineq",
                    "fun": lambda x: radius**2 - np.sum((x[:-1] - mean) ** 2),
                },
            ],
            options={"ftol": 1e-13, "maxiter": 500},
        )
        best = max(best, solution.x[-1] if solution.success else -np.inf)
    return best


@pytest.mark.parametrize("which", ["native", "tensorflow"])
def test_cagrad_at_pareto_stationary_points(which):
    if which == "native" and not ops.native_available():
        pytest.skip("no compiled ops in this installation")
    rows = np.array([[0.0520, 1.3574], [1.7675, 0.0788], [-1.1134, -1.6806]])
    mean = rows.mean(axis=0)
    before = None
    for c in (0.4, 0.9, 0.999, 1.0, 1.001, 3.0):
        with ops.implementation(which):
            weights, converged = solvers.cagrad(tf.constant(rows @ rows.T), c)
        assert converged
        weights = weights.numpy()
        update = weights @ rows
        assert np.linalg.norm(update - mean) <= c * np.linalg.norm(mean) * (1 + 1e-9)
        np.testing.assert_allclose(
            (rows @ update).min(), best_in_ball(rows, c), atol=1e-6
        )
        if c == 0.4:
            on_simplex = weights - 1.0 / 3.0
            np.testing.assert_allclose(
                on_simplex / on_simplex.sum(), [0.594, 0.0, 0.406], atol=1e-3
            )
        if c >= 0.999:  # continuous at 1, and constant from there on
            before = update if before is None else before
            np.testing.assert_allclose(update, before, atol=2e-3)
    # Opposite gradients and a third: the nearest harmless update, whatever c is.
    rows = np.array([[1.0, 0.0, 0.2], [-1.0, 0.0, -0.2], [0.5, 1.0, 0.0]])
    normal = rows[0] / np.linalg.norm(rows[0])
    expected = rows.mean(axis=0) - rows.mean(axis=0) @ normal * normal
    for c in (0.6, 1.0, 2.0):
        with ops.implementation(which):
            weights, converged = solvers.cagrad(tf.constant(rows @ rows.T), c)
        assert converged
        np.testing.assert_allclose(weights.numpy() @ rows, expected, atol=1e-9)


def test_nash_closed_form_of_two_tasks():
    rows = jacobian("scales", 2)
    norms = np.linalg.norm(rows, axis=1)
    cosine = rows[0] @ rows[1] / norms.prod()
    expected = 1.0 / (norms * np.sqrt(1.0 + cosine))
    np.testing.assert_allclose(solve("nash", rows)[0], expected, rtol=1e-10)


@pytest.mark.parametrize("num_tasks", SIZES)
@pytest.mark.parametrize("kind", ["plain", "conflict", "aligned", "tiny"])
def test_closed_forms_match_the_whole_jacobian(kind, num_tasks):
    rows = jacobian(kind, num_tasks)
    norms = np.linalg.norm(rows, axis=1)
    units = rows / norms[:, None]
    direction = np.linalg.pinv(units) @ np.ones(num_tasks)
    direction /= np.linalg.norm(direction)

    update = solve("imtl_g", rows)[0] @ rows
    np.testing.assert_allclose(units @ update / (units @ update)[0], 1.0, rtol=1e-8)
    np.testing.assert_allclose(solve("imtl_g", rows)[0].sum(), 1.0)
    update = solve("config", rows)[0] @ rows
    np.testing.assert_allclose(
        update, (rows @ direction).sum() * direction, rtol=1e-7, atol=1e-9 * norms.max()
    )

    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    values = singular**2
    for mode, scale in (
        ("min", values[-1]),
        ("median", np.sort(values)[(num_tasks - 1) // 2]),
        ("rmse", values.mean()),
    ):
        expected = np.sqrt(scale) * (left / singular) @ left.T @ np.ones(num_tasks)
        weights, converged = solvers.aligned(rows @ rows.T, mode)
        assert converged
        np.testing.assert_allclose(weights, expected / num_tasks, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("num_tasks", SIZES)
def test_pairwise_projections_match_the_whole_jacobian(num_tasks):
    rows = jacobian("conflict", num_tasks)
    gram = rows @ rows.T
    orders = solvers.random_orders(num_tasks, [1, 2]).numpy()
    for task, order in enumerate(orders):
        assert sorted([task, *order]) == list(range(num_tasks))

    update = np.zeros(rows.shape[1])
    for task, order in enumerate(orders):
        g = rows[task].copy()
        for other in order:
            if g @ rows[other] < 0:
                g -= g @ rows[other] / gram[other, other] * rows[other]
        update += g
    weights, _ = solvers.pcgrad(gram, orders)
    np.testing.assert_allclose(weights.numpy() @ rows, update, rtol=1e-9, atol=1e-9)

    goals = np.random.default_rng(0).uniform(-0.2, 0.6, size=(num_tasks, num_tasks))
    expected = goals.copy()
    update = np.zeros(rows.shape[1])
    for task, order in enumerate(orders):
        g = rows[task].copy()
        for other in order:
            h = rows[other]
            length, goal = np.linalg.norm(g), goals[task, other]
            cosine = g @ h / (length * np.linalg.norm(h))
            if cosine < goal:
                sine, goal_sine = np.sqrt(1 - cosine**2), np.sqrt(1 - goal**2)
                share = length * (goal * sine - cosine * goal_sine)
                g += share / (np.linalg.norm(h) * goal_sine) * h
            expected[task, other] = 0.8 * goal + 0.2 * cosine
        update += g
    weights, averages, _ = solvers.gradvac(gram, goals, orders, beta=0.2)
    np.testing.assert_allclose(weights.numpy() @ rows, update, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(averages, expected, rtol=1e-12)


def test_krum_picks_the_centre_and_leaves_outliers():
    rows = np.random.default_rng(0).normal(size=(6, 4)) * 0.1 + 1.0
    rows[2] += 10.0
    distances = np.linalg.norm(rows[:, None] - rows, axis=-1)
    for squared in (False, True):
        power = distances**2 if squared else distances
        scores = np.sort(power, axis=1)[:, 1:4].sum(axis=1)
        weights, _ = solvers.krum(rows @ rows.T, 1, 2, squared)
        assert set(np.flatnonzero(weights)) == set(np.argsort(scores)[:2])
        np.testing.assert_allclose(weights.numpy().sum(), 1.0)
        assert weights[2] == 0


@pytest.mark.parametrize("name", METHODS)
def test_eager_graph_and_xla_agree(name):
    # XLA's eigenvectors are not exact enough for eigenvalues over twelve decades.
    for kind in ("conflict",) if name == "aligned" else ("conflict", "scales"):
        rows = jacobian(kind, 3)
        eager, converged = METHODS[name](tf.constant(rows @ rows.T))
        assert converged
        for xla in (False, True):
            np.testing.assert_allclose(solve(name, rows, xla)[0], eager, rtol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_large_problems_converge(name):
    for kind in ("plain", "conflict"):
        rows = jacobian(kind, 64)
        weights, converged = solve(name, rows)
        assert converged
        if name == "upgrad":
            gram = rows @ rows.T
            slack = gram @ weights + 1e-4 * np.trace(gram) * weights
            assert slack.min() > -1e-9 * np.trace(gram)


rows_strategy = st.builds(
    jacobian,
    st.sampled_from([*KINDS, "conflict"]),
    st.sampled_from([3, 5]),
    st.integers(0, 10_000),
)


# Zero, duplicate, opposite and dependent rows, and Pareto-stationary points.
small_integers = st.tuples(st.sampled_from([3, 5]), st.integers(1, 6)).flatmap(
    lambda shape: hypothesis.extra.numpy.arrays(
        "float64", shape, elements=st.integers(-3, 3)
    )
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(rows_strategy, small_integers))
@example(np.array([[-1.0], [-2.0], [3.0]]))  # a mean of zero, up to rounding
def test_non_conflicting(rows):
    gram = rows @ rows.T
    norms = np.linalg.norm(rows, axis=1)
    exact = solvers.upgrad(gram, reg_eps=0.0)
    projected = solvers.dualproj(gram, reg_eps=0.0)
    least = compiled("min_norm")(tf.constant(gram))
    for weights, converged in (exact, projected, least):
        assert converged or not rows.any()
        update = weights.numpy() @ rows
        parts = np.abs(weights) @ norms  # terms that may have cancelled in the update
        assert (rows @ update >= -1e-9 * norms * parts).all()


@settings(max_examples=50, deadline=None)
@given(small_integers, st.sampled_from([1e-12, 1.0, 1e12]))
@pytest.mark.parametrize("name", METHODS)
def test_any_gradients_give_finite_weights(name, rows, scale):
    gram = rows @ rows.T * scale**2
    weights, converged = solve(name, rows * scale)
    assert np.isfinite(weights).all()
    present = np.diag(gram) > 0
    assert (weights[~present] == 0).all()
    assert weights.any() or not present.any()
    if not converged:
        count = 1.0 if name in SUM_SCALE else max(present.sum(), 1)
        np.testing.assert_allclose(weights, present / count)


@settings(max_examples=40, deadline=None)
@given(rows_strategy, st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", [m for m in METHODS if m not in ("pcgrad", "gradvac")])
def test_permuting_tasks_permutes_weights(name, rows, random):
    if name == "krum" and len(rows) < 5:  # nearest neighbours tie
        return
    order = list(range(len(rows)))
    random.shuffle(order)
    weights, converged = solve(name, rows)
    permuted, again = solve(name, rows[order])
    assert converged
    assert again
    np.testing.assert_allclose(permuted, weights[order], rtol=1e-5, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(rows_strategy, st.sampled_from([1e-12, 1e-6, 1e6, 1e12]))
@pytest.mark.parametrize("name", METHODS)
def test_scaling_all_gradients(name, rows, scale):
    weights, _ = solve(name, rows)
    scaled, _ = solve(name, rows * scale)
    # Updates grow with the gradients, but for the roots: G w = w^(-1/alpha).
    factor = {"nash": scale**-1.0, "fairgrad": scale ** (-4 / 3)}.get(name, 1.0)
    np.testing.assert_allclose(scaled, weights * factor, rtol=1e-5, atol=1e-12 * factor)


def degenerate():
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(5, 11))
    yield "stationary", np.vstack([rows[:4], -rows[:4].sum(axis=0)])
    yield "rank deficient", rng.normal(size=(5, 2)) @ rng.normal(size=(2, 11))
    yield "duplicates", rows[[0, 1, 1, 1, 2]]
    yield "all the same", rows[[0] * 5]
    yield "opposite", np.vstack([rows[:3], -rows[:2]])
    yield "one zero", rows * [[1], [0], [1], [1], [1]]
    yield "three zero", rows * [[0], [0], [1], [0], [1]]
    yield "all zero", rows * 0.0
    for powers in ((-12, 0, 12, 0, 0), (12, 12, 0, -12, -12), (-12, -12, 0, 0, 0)):
        yield f"scaled {powers}", rows * 10.0 ** np.array(powers)[:, None]
    yield "underflow", rows * 1e-200
    yield "huge", rows * 1e150
    yield "infinite", rows * [[np.inf], [1], [1], [1], [1]]
    yield "not a number", rows * [[np.nan], [1], [1], [1], [1]]


@pytest.mark.parametrize("name", METHODS)
def test_degenerate_gradients_give_finite_updates(name):
    for case, rows in degenerate():
        with np.errstate(all="ignore"):
            gram = rows @ rows.T
        weights, converged = compiled(name)(tf.constant(gram))
        assert np.isfinite(weights).all(), case
        present = np.diag(gram) != 0
        np.testing.assert_array_equal(weights.numpy()[~present], 0.0, case)
        if case in ("all zero", "underflow", "infinite", "not a number"):
            assert not converged, case
            count = 1.0 if name in SUM_SCALE else max(present.sum(), 1)
            np.testing.assert_allclose(weights, present / count, err_msg=case)


@pytest.mark.parametrize("name", METHODS)
def test_absent_tasks_are_as_if_they_did_not_exist(name):
    rows = jacobian("conflict", 5)
    with_absent = np.insert(rows, 2, 0.0, axis=0)
    if name in ("pcgrad", "gradvac"):
        orders = orders_of(rows @ rows.T).numpy()
        full = np.array([[*(o + (o >= 2)), 2] for o in orders])
        full = np.insert(full, 2, [0, 1, 3, 4, 5], axis=0)
        if name == "pcgrad":
            small, _ = solvers.pcgrad(rows @ rows.T, orders)
            large, _ = solvers.pcgrad(with_absent @ with_absent.T, full)
        else:
            goals = np.full((6, 6), 0.3)
            small, _, _ = solvers.gradvac(rows @ rows.T, goals[:5, :5], orders)
            large, moved, _ = solvers.gradvac(
                with_absent @ with_absent.T, goals, full, beta=0.5
            )
            np.testing.assert_array_equal(moved[2], goals[2])
            np.testing.assert_array_equal(moved[:, 2], goals[:, 2])
            assert not np.allclose(moved[0, 1], goals[0, 1])
    else:
        small, _ = solve(name, rows)
        large, _ = solve(name, with_absent)
    np.testing.assert_allclose(np.delete(large, 2), small, rtol=1e-9)
    assert large[2] == 0


def test_float32_noise_in_the_gramian():
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    gram = (rows @ rows.T).astype(np.float64)  # rank 3, slightly indefinite
    for name in METHODS:
        weights, _ = compiled(name)(tf.constant(gram))
        assert np.isfinite(weights).all()
        assert np.abs(weights).max() < 1e6


@pytest.mark.parametrize("batch", [16, 512])
@pytest.mark.parametrize(
    ("dtype", "spacing"),
    [("float32", 2.0**-23), ("float16", 2.0**-10), ("bfloat16", 2.0**-7)],
)
def test_a_dependent_gradient_is_off_by_less_than_the_noise(dtype, spacing, batch):
    rng = np.random.default_rng(0)
    x = tf.cast(rng.normal(size=(batch, 16)), dtype)
    targets = tf.constant(rng.normal(size=(batch, 2)), tf.float32)
    shared = [
        tf.constant(rng.normal(size=(size, 64)) / np.sqrt(size), tf.float32)
        for size in (16, 64)
    ]
    heads = tf.constant(rng.normal(size=(64, 2)) / 8.0, tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(shared)
        h = x
        for kernel in shared:
            h = tf.nn.relu(h @ tf.cast(kernel, dtype))
        outputs = tf.cast(h @ tf.cast(heads, dtype), tf.float32)
        first, second = tf.unstack(tf.reduce_mean((outputs - targets) ** 2, axis=0))
        mean = (first + second) / 2.0
    rows = [
        np.concatenate([g.numpy().ravel() for g in tape.gradient(loss, shared)])
        for loss in (first, second, mean)
    ]
    a, b, c = np.array(rows, "float64")
    defect = np.linalg.norm(c - (a + b) / 2.0) / np.linalg.norm(c)
    assert spacing / 20.0 < defect < solvers.noise_of(spacing)


def test_dual_cone_takes_a_batch():
    gram = tf.constant(J2 @ J2.T)
    lower = np.array([[0.5, 0.0], [0.0, 0.5], [0.5, 0.5]])
    batch, converged = solvers.dual_cone(gram, lower)
    assert converged
    for row, u in zip(batch, lower, strict=True):
        np.testing.assert_allclose(row, solvers.dual_cone(gram, u)[0], rtol=1e-12)


def test_nonnegative_qp_reports_a_missing_minimum():
    matrix = tf.constant([[1.0, -1.0], [-1.0, 1.0]], tf.float64)
    _, solved = solvers.nonnegative_qp(matrix, tf.constant([[1.0, 1.0]], tf.float64))
    assert not solved[0]


def test_errors():
    gram = np.eye(3)
    with pytest.raises(ValueError, match="0 < precision < 1"):
        solvers.imtl_g(gram, precision=1.0)
    with pytest.raises(ValueError, match=r"\[tasks, tasks\]"):
        solvers.min_norm(np.ones((2, 3)))
    with pytest.raises(ValueError, match="static shape"):
        tf.function(
            solvers.min_norm, input_signature=[tf.TensorSpec([None, None])]
        ).get_concrete_function()
    with pytest.raises(ValueError, match="alpha > 0"):
        solvers.power_root(gram, 0.0)
    with pytest.raises(ValueError, match="c >= 0"):
        solvers.cagrad(gram, -1.0)
    with pytest.raises(ValueError, match="scale_mode"):
        solvers.aligned(gram, "max")
    with pytest.raises(ValueError, match="at least 4 tasks"):
        solvers.krum(gram, n_byzantine=1)
    with pytest.raises(ValueError, match=r"orders of shape \[3, 2\]"):
        solvers.pcgrad(gram, [[1], [0], [0]])
    with pytest.raises(ValueError, match=r"averages of shape \[3, 3\]"):
        solvers.gradvac(gram, np.zeros((2, 2)), [[1, 2], [0, 2], [0, 1]])
    with pytest.raises(ValueError, match=r"lower bounds of shape"):
        solvers.dual_cone(gram, np.zeros(2))
