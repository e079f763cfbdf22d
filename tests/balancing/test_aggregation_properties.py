"""Properties of gradient balancers over task gradients by rank and stationarity.

The properties and the kinds of matrices that "Jacobian Descent for Multi-Objective
Optimization" (Quinton & Rey 2024, arXiv 2406.16232) defines: where no positive
weights cancel the rows, a method that is strongly stationary moves; one that is not
conflicting increases no loss; one that is linear under scaling weighs a task by the
length of its gradient.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import balancing
from mtl_keras.balancing import GradientBalancer, GradientStep

RNG = np.random.default_rng(0)


def complement(columns):
    """Returns a random orthonormal basis of the complement of orthonormal columns."""
    size, rank = columns.shape
    drawn = RNG.normal(size=(size, size - rank))
    return np.linalg.qr(drawn - columns @ (columns.T @ drawn))[0]


def with_left_vectors(left, width, rank):
    """Returns a matrix with these left-singular vectors and random other parts."""
    right = complement(np.zeros((width, 0)))[:, :rank]
    return left[:, :rank] * np.abs(RNG.normal(size=rank)) @ right.T


def unit(vector):
    return vector / np.linalg.norm(vector)


def normal(tasks, width, rank):
    return with_left_vectors(complement(np.zeros((tasks, 0))), width, rank)


def strongly_stationary(tasks, width, rank):
    """Positive weights cancel the rows."""
    weights = unit(np.abs(RNG.normal(size=tasks)))[:, None]
    return with_left_vectors(complement(weights), width, rank)


def weakly_stationary(tasks, width, rank):
    """Weights cancel the rows, but none that are all positive."""
    size, order = np.abs(RNG.normal(size=tasks)), RNG.permutation(tasks)
    first = order < RNG.integers(1, tasks)
    basis = np.stack([unit(size * first), unit(size * ~first)], axis=1)
    return with_left_vectors(np.hstack([basis[:, 1:], complement(basis)]), width, rank)


def not_stationary(tasks, width, rank):
    """No non-negative weights cancel the rows."""
    positive = unit(np.abs(RNG.normal(size=tasks)))[:, None]
    return with_left_vectors(np.hstack([positive, complement(positive)]), width, rank)


SHAPES = ((1, 1, 1), (4, 3, 1), (4, 3, 2), (4, 3, 3), (9, 11, 5), (9, 11, 9))
LARGE = ((20, 10, 10), (20, 10, 5), (20, 10, 1), (20, 100, 1), (20, 100, 19))
NORMAL = [normal(*shape) for shape in SHAPES]
NOT_STRONG = [
    make(*shape) for make in (weakly_stationary, not_stationary) for shape in LARGE
]
TYPICAL = [
    *(np.zeros(shape[:2]) for shape in SHAPES[::3]),
    *NORMAL,
    *(strongly_stationary(*shape) for shape in LARGE),
    *NOT_STRONG,
]
SCALES = (1e-10, 1e15)


def update_of(name, rows, **config):
    """Returns the update in the scale "mean", and the task weights."""
    rows = np.asarray(rows, "float32")
    tasks = tuple(f"task{index:02}" for index in range(len(rows)))
    config = {"scale": "mean", **config}
    balancer = balancing.get({"class_name": name, "config": config})
    balancer.build(tasks)
    ones, present = tf.ones(len(rows)), tf.ones(len(rows), "bool")
    if not isinstance(balancer, GradientBalancer):
        weights = balancer.weights(ones, present).numpy()
        return weights @ rows, weights
    gradients = [[tf.constant(row)] for row in rows]
    (update,), weights = balancer.aggregate(
        GradientStep(gradients, ones, present, tf.ones(()))
    )
    return update.numpy(), weights.numpy()


def over(*methods):
    """Parametrizes by methods: a name, or name and configuration."""
    pairs = [(m, {}) if isinstance(m, str) else m for m in methods]
    ids = ["-".join(map(str, (name, *config.values()))) for name, config in pairs]
    return pytest.mark.parametrize(("name", "config"), pairs, ids=ids)


@pytest.mark.slow
@over(
    "equal",
    "static",
    "random",
    "upgrad",
    "dualproj",
    "mgda",
    ("cagrad", {"c": 0.5}),
    "pcgrad",
    "gradvac",
    "imtl_g",
    "config",
    ("aligned_mtl", {"scale_mode": "min"}),
    ("aligned_mtl", {"scale_mode": "median"}),
    ("aligned_mtl", {"scale_mode": "rmse"}),
    "nash",
    "fairgrad",
    "graddrop",
    ("krum", {"n_byzantine": 1}),
    ("trimmed_mean", {"trim": 1}),
)
def test_updates_are_finite(name, config):
    for rows in [*TYPICAL, *(rows * s for rows in NORMAL for s in SCALES)]:
        if name in ("krum", "trimmed_mean") and len(rows) < 4:
            continue
        update, _ = update_of(name, rows, **config)
        assert update.shape == rows.shape[1:]
        assert np.isfinite(update).all(), rows


@over(
    ("upgrad", {"reg_eps": 0.0}),
    ("dualproj", {"reg_eps": 0.0}),
    "mgda",
    ("cagrad", {"c": 1.0}),
    ("cagrad", {"c": 2.0}),
)
def test_updates_do_not_conflict(name, config):
    for rows in TYPICAL:
        products = rows @ update_of(name, rows, **config)[0]
        worst = np.linalg.norm(np.minimum(products, 0))
        # The rows are float32: what is smaller beside them is round-off.
        size = np.linalg.norm(rows) + np.linalg.norm(products)
        assert worst <= 1e-4 * size, rows.shape


@pytest.mark.slow
@over(
    "equal",
    "upgrad",
    "dualproj",
    "mgda",
    "cagrad",
    "imtl_g",
    "config",
    "aligned_mtl",
    "nash",
    "fairgrad",
    ("trimmed_mean", {"trim": 1}),
)
def test_the_order_of_tasks_does_not_matter(name, config):
    for rows in TYPICAL:
        if name == "trimmed_mean" and len(rows) < 4:
            continue
        update, _ = update_of(name, rows, **config)
        permuted, _ = update_of(name, RNG.permutation(rows), **config)
        np.testing.assert_allclose(permuted, update, rtol=1e-4, atol=1e-4)


@over("config", "upgrad")
def test_updates_are_linear_under_scaling(name, config):
    tolerance = 6e-2 if name == "upgrad" else 1e-4  # UPGrad regularises.
    # ConFIG falls back to the mean where the length of its update would be negative, as
    # it may be where positive weights cancel the rows.
    for rows in TYPICAL if name == "upgrad" else [*NORMAL, *NOT_STRONG]:
        first, second = RNG.uniform(size=(2, len(rows), 1))
        a, b = RNG.uniform(size=2)
        parts = [update_of(name, s * rows, **config)[0] for s in (first, second)]
        update, _ = update_of(name, (a * first + b * second) * rows, **config)
        expected = a * parts[0] + b * parts[1]
        np.testing.assert_allclose(update, expected, rtol=tolerance, atol=tolerance)


@over("equal", "static", ("random", {"seed": 1}), "upgrad", "dualproj")
def test_only_strongly_stationary_rows_give_no_update(name, config):
    for rows in NOT_STRONG:
        assert np.linalg.norm(update_of(name, rows, **config)[0]) > 1e-3, rows.shape


@pytest.mark.parametrize("shape", [(5, 7), (9, 37), (32, 114), (50, 100)])
def test_weights_of_mgda_fulfil_the_kkt_conditions(shape):
    rows = RNG.normal(size=shape)
    _, weights = update_of("mgda", rows)
    products = rows @ rows.T @ weights
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    assert (products >= weights @ products - 1e-3).all()


@pytest.mark.parametrize("width", [5, 15, 68, 1200])
def test_pcgrad_of_two_tasks_is_upgrad(width):
    rows = RNG.normal(size=(2, width))
    _, expected = update_of("upgrad", rows, scale="sum", reg_eps=0.0)
    _, weights = update_of("pcgrad", rows, scale="sum")
    np.testing.assert_allclose(weights, expected, atol=4e-4)
