"""Pairwise projections in the T×T space of coefficients: PCGrad and GradVac."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from mtl_keras.ops import native
from mtl_keras.ops.solvers.problem import EPS, finish, noise_of, prepare, square

# Keeps the angle that GradVac aims at away from zero, where no finite multiple of
# the other gradient reaches it.
_LARGEST_GOAL = 1.0 - 1e-6


def random_orders(num_tasks: int, seed: Any) -> tf.Tensor:
    """Returns, for every task, the other tasks in random order.

    Args:
        num_tasks: T.
        seed: Integer tensor of shape `[2]`; the same seed gives the same orders on
            every machine and replica.

    Returns:
        int32 tensor of shape `[T, T - 1]`.
    """
    # The default generator differs between devices.
    draws = tf.random.stateless_uniform([num_tasks] * 2, seed, alg="philox")
    # The task itself sorts last and is cut off.
    draws += 2.0 * tf.eye(num_tasks)
    return tf.argsort(draws, axis=1)[:, : num_tasks - 1]


def pcgrad(gramian: Any, orders: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Removes conflicting components task by task and adds (PCGrad).

    For every task `i`, over the other tasks `j` in order: if the current `g_i` has
    a negative product with the original `g_j`, its component along `g_j` is
    removed. Sum scale.

    Paper: Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020,
    arXiv:2001.06782.

    Args:
        gramian: `[T, T]` Gram matrix.
        orders: `[T, T - 1]` integers: the order in which task `i` meets the others,
            as `random_orders` gives.

    Returns:
        `[T]` float64 weights, and a scalar bool.

    Raises:
        ValueError: If `orders` has another shape.
    """
    gramian = square(gramian)
    orders = _checked_orders(gramian, orders)
    if (library := native.solvers_in_use()) is not None:
        return tuple(library.mtl_keras_pc_grad(gramian, orders))
    problem = prepare(gramian)
    size = gramian.shape[0]

    def body(k: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        other = tf.one_hot(orders[:, k], size, dtype=tf.float64)
        product = tf.reduce_sum(tf.matmul(rows, problem.cosines) * other, axis=1)
        return k + 1, rows - tf.minimum(product, 0.0)[:, tf.newaxis] * other

    # Row i holds the coefficients of g_i on the unit gradients.
    _, rows = tf.while_loop(
        lambda k, rows: k < size - 1,
        body,
        (tf.constant(0), tf.linalg.diag(problem.norms * problem.active)),
    )
    weights = tf.reduce_sum(rows, axis=0) / problem.norms
    return finish(problem, weights, True, problem.mean * problem.count)


def gradvac(
    gramian: Any,
    goals: Any,
    orders: Any,
    beta: float = 1e-2,
    precision: float = EPS,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Aligns gradients up to the cosines that pairs of tasks usually have (GradVac).

    For every task `i`, over the other tasks `j` in order, with `phi` the cosine
    between the current `g_i` and the original `g_j`: if `phi` is below its moving
    average, so much of `g_j` is added that the cosine equals the average. Then the
    average moves, `(1 - beta) * average + beta * phi`. Sum scale.

    Differs from the paper in that averages are kept for the whole shared gradient,
    not layer by layer, and that the cosine aimed at is kept below 1.

    Paper: Wang et al., Gradient Vaccine: Investigating and Improving Multi-task
    Optimization in Massively Multilingual Models, ICLR 2021, arXiv:2010.05874.

    Args:
        gramian: `[T, T]` Gram matrix.
        goals: `[T, T]`, the moving averages of the cosines; zeros at first.
        orders: As in `pcgrad`.
        beta: Share of the new cosine in the average.
        precision: That of the gradients, see `problem`; a `g_i` that has cancelled to
            less has cosines of 0.

    Returns:
        `[T]` float64 weights, the new averages (float64; unchanged for pairs with an
        excluded task, and where not converged), and a scalar bool.

    Raises:
        ValueError: If `goals` or `orders` has another shape.
    """
    gramian = square(gramian)
    orders = _checked_orders(gramian, orders)
    size = gramian.shape[0]
    old = tf.cast(tf.convert_to_tensor(goals), tf.float64)
    if not old.shape.is_compatible_with([size, size]):
        raise ValueError(
            f"Expected averages of shape [{size}, {size}]. Received: shape {old.shape}."
        )
    noise = max(noise_of(precision), math.sqrt(4.0 * size * EPS))
    if (library := native.solvers_in_use()) is not None:
        return tuple(library.mtl_keras_grad_vac(gramian, old, orders, beta, precision))
    problem = prepare(gramian)
    present = problem.active[:, tf.newaxis] * problem.active

    def body(
        k: tf.Tensor, rows: tf.Tensor, goals: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        other = tf.one_hot(orders[:, k], size, dtype=tf.float64)
        products = tf.matmul(rows, problem.cosines)
        squares = tf.reduce_sum(rows * products, axis=1)
        parts = tf.reduce_sum(tf.abs(rows), axis=1)
        cancelled = squares <= (noise * parts) ** 2
        length = tf.sqrt(tf.where(~cancelled, squares, 0.0))
        product = tf.reduce_sum(products * other, axis=1)
        cosine = tf.clip_by_value(tf.math.divide_no_nan(product, length), -1.0, 1.0)
        goal = tf.clip_by_value(
            tf.reduce_sum(goals * other, axis=1), -_LARGEST_GOAL, _LARGEST_GOAL
        )
        slope = goal / tf.sqrt(1.0 - goal**2)
        added = length * (slope * tf.sqrt(1.0 - cosine**2) - cosine)
        counts = tf.reduce_sum(present * other, axis=1) > 0.0
        added = tf.where(counts & (cosine < goal), added, 0.0)
        rows += added[:, tf.newaxis] * other
        share = beta * other * present
        return k + 1, rows, goals + share * (cosine[:, tf.newaxis] - goals)

    _, rows, goals = tf.while_loop(
        lambda k, rows, goals: k < size - 1,
        body,
        (tf.constant(0), tf.linalg.diag(problem.norms * problem.active), old),
    )
    weights = tf.reduce_sum(rows, axis=0) / problem.norms
    weights, converged = finish(problem, weights, True, problem.mean * problem.count)
    return weights, tf.where(converged, goals, old), converged


def _checked_orders(gramian: tf.Tensor, orders: Any) -> tf.Tensor:
    size = gramian.shape[0]
    orders = tf.cast(tf.convert_to_tensor(orders), tf.int32)
    if not orders.shape.is_compatible_with([size, size - 1]):
        raise ValueError(
            f"Expected orders of shape [{size}, {size - 1}]. "
            f"Received: shape {orders.shape}."
        )
    return orders
