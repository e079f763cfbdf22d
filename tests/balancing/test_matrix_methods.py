"""Methods on the whole matrix of gradients, against NumPy and SciPy."""

from __future__ import annotations

import balancing_cases as cases
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from test_gram_methods import projected

from mtl_keras.balancing import GradientStep


def test_graddrop_passes_one_sign_as_often_as_the_tasks_agree_on_it():
    column = np.array([3.0, -1.0, 0.5, -0.5])
    count = 20_000
    rows = tf.constant(np.repeat(column[:, None], count, axis=1), tf.float32)
    for leak in (0.0, {"b": 0.25}):
        balancer = cases.make("graddrop", leak=leak)
        step = GradientStep(
            [[row] for row in tf.unstack(rows)],
            tf.ones((4,)),
            tf.ones((4,), "bool"),
            tf.ones(()),
        )
        (update,), weights = balancer.aggregate(step)
        np.testing.assert_array_equal(weights, 1.0)
        share = np.array([0.0, 0.25 if leak else 0.0, 0.0, 0.0])
        positive = np.maximum(column, 0).sum() + (share * np.minimum(column, 0)).sum()
        negative = np.minimum(column, 0).sum() + (share * np.maximum(column, 0)).sum()
        passed = np.isclose(update, positive)
        np.testing.assert_allclose(update.numpy()[~passed], negative, rtol=1e-6)
        purity = 0.5 * (1 + column.sum() / np.abs(column).sum())
        assert abs(passed.mean() - purity) < 4 * np.sqrt(0.25 / count)
        again = balancer.aggregate(step)[0][0]
        assert 0.2 < np.mean(again.numpy() != update.numpy()) < 0.8


def test_graddrop_on_a_representation_draws_one_sign_a_feature():
    """By the definition: signs of Σ_batch g · sign(x), against NumPy."""
    rng = np.random.default_rng(0)
    features = 4000
    activations = rng.normal(size=(5, features))
    rows = rng.normal(size=(4, 5, features))
    balancer = cases.make("graddrop", gradients_of="representation")
    step = GradientStep(
        [[tf.constant(row, tf.float32)] for row in rows],
        tf.ones((4,)),
        tf.ones((4,), "bool"),
        tf.ones(()),
        summed=False,
        sources=[tf.constant(activations, tf.float32)],
    )
    (update,), _ = balancer.aggregate(step)
    signed = np.sum(rows * np.sign(activations), axis=1)
    positive = np.einsum("tf,tbf->bf", signed > 0, rows)
    negative = np.einsum("tf,tbf->bf", signed < 0, rows)
    passed = np.isclose(update, positive, atol=1e-4).all(axis=0)
    np.testing.assert_allclose(
        update.numpy()[:, ~passed], negative[:, ~passed], rtol=1e-4, atol=1e-4
    )
    purity = 0.5 * (1 + signed.sum(axis=0) / np.abs(signed).sum(axis=0))
    decided = np.abs(purity - 0.5) < 0.49  # else both sums are the same
    bound = 4 * np.sqrt(0.25 / decided.sum())
    assert abs(passed[decided].mean() - purity[decided].mean()) < bound


def test_moco_tracks_a_task_that_comes_late_as_fast_as_the_first():
    balancer, late = cases.make("moco"), np.array([False, True, True, True])
    rows, losses = cases.rows_of(), cases.losses_of()
    for _ in range(50):
        cases.step(balancer, rows, losses, late)
    cases.step(balancer, rows, losses)
    tracked = np.concatenate(
        [balancer.variables[f"state_{i}"][0].numpy().ravel() for i in (0, 1)]
    )
    np.testing.assert_allclose(tracked, 0.5 * rows[0], rtol=1e-5)


def test_excess_risks_of_a_rare_task_stay_where_they_stood():
    """Among equal tasks no weight grows, however often one of them is absent."""
    balancer = cases.make("excess_mtl", step_size=0.5)
    rows, losses = np.tile(cases.rows_of()[:1], (4, 1)), np.ones(4)
    for _ in range(20):
        cases.step(balancer, rows, losses, np.array([True, True, True, False]))
    np.testing.assert_allclose(balancer.variables["log_weights"], 0.0, atol=1e-6)


def steps(name, count, **config):
    """Yields the gradients and losses of some steps, and what the method makes."""
    balancer = cases.make(name, **config)
    for seed in range(count):
        rows, losses = cases.rows_of(seed=seed), cases.losses_of(seed=seed)
        weights, update = cases.step(balancer, rows, losses)
        yield rows, losses, weights.numpy(), update.numpy()


def test_moco_tracks_gradients_and_projects():
    tracked, dual = np.zeros((4, 11)), np.full(4, 0.25)
    config = {"beta": 0.5, "gamma": 0.3, "gamma_decay": 0.7, "rho": 0.1}
    method = steps("moco", 3, scale="mean", **config)
    for number, (rows, _, weights, update) in enumerate(method, start=1):
        tracked -= 0.5 * number**-0.5 * (tracked - rows)
        slope = (tracked @ tracked.T + 0.1 * np.eye(4)) @ dual
        dual = projected(dual - 0.3 * number**-0.7 * slope)
        np.testing.assert_allclose(weights, dual, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(update, dual @ tracked, rtol=1e-4, atol=1e-5)


def test_dual_balancing_brings_averages_to_one_length():
    average = np.zeros((4, 11))
    method = steps("db_mtl", 3, beta=0.8)
    for number, (rows, losses, weights, update) in enumerate(method, start=1):
        average = 0.8 * average + 0.2 * rows / losses[:, None]
        corrected = average / (1 - 0.8**number)
        norms = np.linalg.norm(corrected, axis=1)
        expected = norms.max() / norms
        np.testing.assert_allclose(update, expected @ corrected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(weights, expected / losses, rtol=1e-4)


def test_dual_balancing_without_a_positive_loss_is_the_sum():
    balancer = cases.make("db_mtl")
    rows = cases.rows_of()
    weights, update = cases.step(balancer, rows, np.full(4, -1.0))
    np.testing.assert_array_equal(weights, 1.0)
    np.testing.assert_allclose(update, rows.sum(axis=0), rtol=1e-4, atol=1e-6)
    assert balancer.variables["fallbacks"].numpy() == 1


def test_excess_risks_grow_weights():
    sums, logs, first = np.zeros((4, 11)), np.zeros(4), None
    method = steps("excess_mtl", 3, step_size=0.5, scale="mean")
    for rows, _, weights, update in method:
        sums += rows**2
        excess = np.sum(rows**2 / np.sqrt(sums + 1e-7), axis=1)
        first = excess if first is None else first
        logs += 0.5 * excess / first
        expected = np.exp(logs) / np.exp(logs).sum()
        np.testing.assert_allclose(weights, expected, rtol=1e-5)
        np.testing.assert_allclose(update, expected @ rows, rtol=1e-4, atol=1e-5)


def test_trimmed_mean_of_the_present_tasks():
    balancer = cases.make("trimmed_mean", scale="mean")
    rows, losses = cases.rows_of(), cases.losses_of()
    _, update = cases.step(balancer, rows, losses)
    expected = scipy.stats.trim_mean(rows, 0.25, axis=0)
    np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-6)
    present = np.array([True, False, True, True])
    _, update = cases.step(balancer, rows, losses, present)
    expected = np.median(rows[present], axis=0)
    np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-6)
    assert balancer.variables["fallbacks"].numpy() == 0
    present = np.array([True, False, False, True])
    _, update = cases.step(balancer, rows, losses, present)
    np.testing.assert_allclose(update, rows[present].mean(axis=0), rtol=1e-5)
    assert balancer.variables["fallbacks"].numpy() == 1


@pytest.mark.parametrize("name", ["moco", "db_mtl", "excess_mtl", "graddrop"])
def test_an_overflowed_step_is_seen_and_forgotten(name):
    one, other = cases.make(name), cases.make(name)
    rows, losses = cases.rows_of(), cases.losses_of()
    bad = rows.copy()
    bad[1, 3] = np.inf
    _, update = cases.step(one, bad, losses)
    assert not np.isfinite(update).all()
    assert one.variables["fallbacks"].numpy() == 1
    if name != "graddrop":  # which has drawn once more
        _, update = cases.step(one, rows, losses)
        np.testing.assert_array_equal(update, cases.step(other, rows, losses)[1])


def norms_by_variable(rows):
    return np.array(
        [np.linalg.norm(part, axis=1) for part in (rows[:, :6], rows[:, 6:])]
    )


@pytest.mark.parametrize("adjust", ["both", "reduce", "enlarge"])
def test_metabalance_brings_auxiliary_gradients_to_the_main_ones_length(adjust):
    balancer = cases.make("metabalance", primary="b", adjust=adjust, relax=0.7)
    take = tf.function(lambda *x: cases.step(balancer, *x), autograph=False)
    average, seen = np.zeros((2, 4)), np.zeros(4)
    problems = cases.problems(100 if adjust == "both" else 20)
    for number, (rows, losses) in enumerate(problems):
        rows = rows * 10.0 ** np.array([-2.0, 0.0, 2.0, 0.0])[:, None]
        present = np.array([True, True, number % 3 > 0, True])
        rows *= present[:, None]
        moved = 0.9 * average + 0.1 * norms_by_variable(rows)
        average, seen = np.where(present, moved, average), seen + present
        corrected = average / (1 - 0.9 ** np.maximum(seen, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = 0.7 * corrected[:, 1:2] / corrected + 0.3
        if adjust != "both":
            longer = corrected > corrected[:, 1:2]
            factors = np.where(longer == (adjust == "reduce"), factors, 1.0)
        factors[:, 1] = 1.0
        factors = np.where(present, factors, 0.0)
        scaled = np.repeat(factors, (6, 5), axis=0).T * rows
        weights, update = take(
            *(tf.constant(x, tf.float32) for x in (rows, losses)), tf.constant(present)
        )
        size = np.abs(scaled).sum(axis=0).max()
        np.testing.assert_allclose(update, scaled.sum(0), rtol=1e-4, atol=1e-6 * size)
        with np.errstate(invalid="ignore"):
            ratio = np.linalg.norm(scaled, axis=1) / np.linalg.norm(rows, axis=1)
        np.testing.assert_allclose(weights, np.nan_to_num(ratio), rtol=1e-4)


def test_metabalance_without_its_main_task_is_the_sum():
    balancer = cases.make("metabalance", primary="b")
    rows, present = cases.rows_of(), np.array([True, False, True, True])
    for _ in range(2):
        weights, update = cases.step(balancer, rows, cases.losses_of(), present)
        np.testing.assert_allclose(update, rows[present].sum(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(weights, present, rtol=1e-6)


def config_update(rows):
    """ConFIG by the definition of the paper."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    direction = np.linalg.pinv(unit) @ np.ones(len(rows))
    direction /= np.linalg.norm(direction)
    return (rows @ direction).sum() * direction


@pytest.mark.parametrize("beta_2", [0.99, None])
def test_momentum_config_takes_the_tasks_in_turn(beta_2):
    balancer = cases.make("m_config", beta_1=0.8, beta_2=beta_2)
    take = tf.function(lambda *x: cases.step(balancer, *x), autograph=False)
    averages, seen = np.zeros((4, 11)), np.zeros(4)
    last, second = np.zeros(11), np.zeros(11)
    fallbacks = 0
    for number, (rows, losses) in enumerate(cases.problems(), start=1):
        turn = (number - 1) % 4
        averages[turn] = 0.8 * averages[turn] + 0.2 * rows[turn]
        seen[turn] += 1
        ready = seen > 0
        means = averages[ready] / (1 - 0.8 ** seen[ready])[:, None]
        expected = config_update(means)
        _, update = take(*(tf.constant(x, tf.float32) for x in (rows, losses)))
        if balancer.variables["fallbacks"].numpy() > fallbacks:
            fallbacks += 1
            expected = means.sum(axis=0)
        average = expected * (1 - 0.8**number)
        added = (average - 0.8 * last) / 0.2
        last = average
        if beta_2 is not None:
            second = beta_2 * second + (1 - beta_2) * added**2
            root = np.sqrt(second / (1 - beta_2**number))
            expected = expected / (root + 1e-8 * root.max())
        size = np.abs(expected).max()
        np.testing.assert_allclose(update, expected, rtol=1e-3, atol=1e-4 * size)
    assert fallbacks < 10
