"""CAGrad: the best worst-case decrease in a ball around the mean gradient."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from mtl_keras.ops import native
from mtl_keras.ops.solvers.problem import EPS, finish, noise_of, prepare, square
from mtl_keras.ops.solvers.quadratic import ActiveSet, dual_cone, nonnegative_qp

_MAX_STEPS = 60
# A correction of unit length with larger coefficients exists only where gradients
# cancel almost exactly.
_LARGEST = 1e5


def cagrad(
    gramian: Any, c: float = 0.4, precision: float = EPS
) -> tuple[tf.Tensor, tf.Tensor]:
    """Minimises `w' G b + c |g_0| sqrt(w' G w)` over the simplex (CAGrad).

    `b = 1/T`, `g_0` is the mean gradient and the weights of the update
    `g_0 + c |g_0| g_w / |g_w|` are returned, in mean scale and not rescaled.

    In its dual form the update `g_0 + sum_i v_i g_i`, `v >= 0`, is the shortest
    correction for which every task's product with the update is at least `t`; its
    length grows with `t`, convexly. Newton's method finds the `t` at which it is
    `c |g_0|`, from above and therefore monotonically; every step is a small
    quadratic program that starts from the active set of the one before.

    Where the minimum lies at `g_w = 0`, which happens at Pareto-stationary points
    only, the direction `g_w / |g_w|` does not exist. No update in the ball then helps
    the worst task, and many do not hurt it; the nearest of them to `g_0` is returned,
    which is the limit for smaller `c`. With `c >= 1` it may be zero.

    Paper: Liu et al., Conflict-Averse Gradient Descent for Multi-task Learning,
    NeurIPS 2021, arXiv:2110.14048.

    Args:
        gramian: `[T, T]` Gram matrix.
        c: Radius of the ball relative to the mean gradient, at least 0.
        precision: That of the gradients, see `problem`.

    Returns:
        `[T]` float64 weights, and a scalar bool.

    Raises:
        ValueError: If `c` is negative.
    """
    if c < 0.0:
        raise ValueError(f"Expected c >= 0. Received: c={c}.")
    gramian = square(gramian)
    if (library := native.solvers_in_use()) is not None:
        return tuple(library.mtl_keras_ca_grad(gramian, c, precision))
    problem = prepare(gramian)
    cosines, norms = problem.cosines, problem.norms
    reciprocal = problem.active / norms

    mean = problem.active / problem.count
    products = tf.linalg.matvec(cosines, mean * norms) * problem.active
    mean_length = tf.sqrt(tf.maximum(tf.reduce_sum(mean * norms * products), 0.0))
    radius = c * mean_length
    # For t: the value of the objective at the best corner of the simplex.
    corners = norms * (products + radius)
    upper = tf.reduce_min(
        tf.where(problem.active > 0.0, corners, tf.reduce_max(corners))
    )

    def unfinished(
        t: tf.Tensor,
        y: tf.Tensor,
        free: tf.Tensor,
        length: tf.Tensor,
        before: tf.Tensor,
        solved: tf.Tensor,
    ) -> tf.Tensor:
        # A step from this close leaves rounding errors only.
        far = (length > radius * (1.0 + 1e-9)) | (before > radius * (1.0 + 1e-7))
        return solved & far

    def body(
        t: tf.Tensor,
        y: tf.Tensor,
        free: tf.Tensor,
        length: tf.Tensor,
        before: tf.Tensor,
        solved: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        before = length
        # The length's derivative by t is sum_i v_i / length; the first step, where
        # there is no v yet, stays at the upper end.
        step = (length - radius) * length
        t = t - tf.math.divide_no_nan(step, tf.reduce_sum(y * reciprocal))
        linear = t * reciprocal - products
        (y, free), converged = nonnegative_qp(
            cosines, linear[tf.newaxis], ActiveSet(y, free)
        )
        length = tf.sqrt(tf.maximum(tf.reduce_sum(y * tf.matmul(y, cosines)), 0.0))
        return t, y, free, length, before, converged[0]

    def solve(
        t: tf.Tensor, y: tf.Tensor, length: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Starts at `t`, or after the step that its correction `y` asks for."""
        _, y, _, length, _, solved = tf.while_loop(
            unfinished,
            body,
            (t, y, y > 0.0, length, tf.constant(math.inf, tf.float64), True),
            maximum_iterations=_MAX_STEPS,
        )
        solved &= length <= radius * (1.0 + 1e-6)
        return y * tf.math.divide_no_nan(radius, length), solved

    def without_gain() -> tuple[tf.Tensor, tf.Tensor]:
        """No update helps all tasks: the nearest that hurts none, or tasks lose."""
        raised, solved = dual_cone(gramian, mean, precision)
        nearest = ((raised - mean) * norms)[tf.newaxis]
        square = tf.reduce_sum(nearest * tf.matmul(nearest, cosines))
        length = tf.sqrt(tf.maximum(square, 0.0))
        inside = ~solved | (length <= radius * (1.0 + 1e-9))
        y, converged = solve(
            tf.zeros([], tf.float64), nearest, tf.where(inside, radius, length)
        )
        return tf.where(inside, nearest, y), solved & (inside | converged)

    none = tf.zeros([1, cosines.shape[0]], tf.float64)
    y, solved = solve(upper, none, tf.constant(math.inf, tf.float64))
    solved &= tf.reduce_max(y) <= min(_LARGEST, 1.0 / noise_of(precision)) * radius
    # Without a radius there is no correction.
    still = (mean_length <= 1e-12) | (c == 0.0)
    y, solved = tf.cond(solved | still, lambda: (y, solved), without_gain)
    y = tf.where(still, none, y)
    return finish(problem, mean + y[0] * reciprocal, solved | still, problem.mean)
