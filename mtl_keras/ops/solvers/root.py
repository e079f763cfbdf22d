"""Power roots: Nash-MTL and FairGrad."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from mtl_keras.ops import native
from mtl_keras.ops.solvers.problem import EPS, finish, noise_of, prepare, square

_MAX_STEPS = 200
# A sum of gradients shorter than this, for a largest term of length 1, counts as zero:
# larger roots are numerical artifacts.
_CANCELLED = 1e-5
# Keeps the system regular where gradients are dependent and their terms underflow.
_RIDGE = 1e-13
# Fractions of a full step that are tried.
_FRACTIONS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)
# Exponents are kept within the range of a double.
_LARGEST_LOG = 600.0


def power_root(
    gramian: Any,
    alpha: float = 1.0,
    precision: float = EPS,
    shares: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Solves `G w = s w^(-1/alpha)` for `w > 0` (Nash-MTL, FairGrad and their kin).

    `alpha = 1` is the Nash bargaining solution, with `shares` the asymmetric one. The
    root is the only minimum of the convex function
    `w' G w / 2 - sum_i s_i phi(w_i)`, where the derivative of `phi` is `w^(-1/alpha)`.
    Newton's method runs on the logarithms of `w` and of `w^(-1/alpha)`, which stay in
    the range of a float64 for any `alpha` and any size of the gradients, and searches
    along every step until steps are short. Exact, where the paper of Nash-MTL solves a
    sequence of convex approximations and FairGrad's authors use a least-squares solver.

    At a Pareto-stationary point there is no root: the weights are then 1 for every
    task, the plain sum, and not converged.

    Papers: Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022,
    arXiv:2202.01017. Ban and Ji, Fair Resource Allocation in Multi-Task Learning,
    ICML 2024, arXiv:2402.15638.

    Args:
        gramian: `[T, T]` Gram matrix.
        alpha: Fairness, positive.
        precision: That of the gradients, see `problem`: sums that cancel to less are
            Pareto-stationary points.
        shares: `s`, positive float64 `[T]`; None is 1 for every task.

    Returns:
        `[T]` float64 weights, the root itself, and a scalar bool.

    Raises:
        ValueError: If `alpha` is not positive.
    """
    if not alpha > 0.0:
        raise ValueError(f"Expected alpha > 0. Received: alpha={alpha}.")
    gramian = square(gramian)
    noise = max(_CANCELLED, noise_of(precision))
    library = native.solvers_in_use()
    if library is not None:
        shares = [] if shares is None else shares
        return tuple(library.mtl_keras_power_root(gramian, alpha, shares, precision))
    p = 1.0 / alpha
    problem = prepare(gramian)
    cosines = problem.cosines
    size = cosines.shape[0]
    identity = tf.eye(size, dtype=tf.float64)
    fractions = tf.constant(_FRACTIONS, tf.float64)[:, tf.newaxis]

    # With y = norms * w: cosines y = target * y^-p. Excluded tasks are equations of
    # their own, y = y^-p.
    log_target = (p - 1.0) * tf.math.log(problem.norms)
    if shares is not None:
        log_target += problem.active * tf.math.log(tf.cast(shares, tf.float64))
    common = tf.reduce_mean(log_target)
    log_target -= common

    def moved(log_y: tf.Tensor, products: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Returns the changes of log y for a step, `[..., T]`.

        Upwards y moves as in the linear model. Downwards it does so too unless that
        takes q = target * y^-p beyond both the linear model of q and the present
        product: q may grow by any power there.
        """
        up, down = tf.maximum(step, 0.0), tf.minimum(step, 0.0)
        log_q = log_target - p * log_y + tf.math.log1p(-p * down)
        positive = products > 0.0
        logs = tf.math.log(tf.where(positive, products, 1.0))
        log_q = tf.where(positive, tf.maximum(log_q, logs), log_q)
        within = down > -1.0
        linear = tf.math.log1p(tf.where(within, down, 0.0))
        bounded = (log_target - log_q) / p - log_y
        lower = tf.where(within, tf.maximum(bounded, linear), bounded)
        return tf.where(step > 0.0, tf.math.log1p(up), tf.minimum(lower, 0.0))

    def exponential(log: tf.Tensor) -> tf.Tensor:
        return tf.exp(tf.minimum(log, _LARGEST_LOG))

    def body(
        log_y: tf.Tensor, change: tf.Tensor, exact: tf.Tensor, alive: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        del change, exact, alive
        y = tf.exp(log_y)
        products = tf.linalg.matvec(cosines, y)
        log_q = log_target - p * log_y
        q = exponential(log_q)
        residual = q - products
        parts = tf.linalg.matvec(tf.abs(cosines), y)
        exact = tf.reduce_all(tf.abs(residual) <= 4.0 * size * EPS * (q + parts))
        # Newton's system for relative changes of y, scaled to a diagonal of 1.
        damping = 1.0 / tf.sqrt(1.0 + _RIDGE + p * exponential(log_q - log_y))
        system = damping[:, tf.newaxis] * cosines * damping
        system = tf.where(identity > 0.0, identity, system)
        factor = tf.linalg.cholesky(system)
        step = tf.linalg.cholesky_solve(factor, (damping * residual)[:, tf.newaxis])
        step = step[:, 0] * damping / y
        change = tf.reduce_max(tf.abs(step))

        moves = moved(log_y, products, fractions * step)
        power = moves if p == 1.0 else tf.math.expm1((1.0 - p) * moves) / (1.0 - p)
        tried = y * tf.exp(moves)
        length = tf.reduce_sum(y * products)
        squares = tf.reduce_sum(tried * tf.matmul(tried, cosines), axis=-1)
        values = 0.5 * (squares - length) - tf.reduce_sum(q * y * power, axis=-1)
        values = tf.where(tf.math.is_finite(values), values, math.inf)
        # The largest fraction whose objective is the least up to rounding.
        slack = 1e-13 * (0.5 * length + tf.reduce_sum(q * y))
        good = values <= tf.reduce_min(values) + slack
        # Close to the root the objective is flat to rounding: full steps are safe.
        best = tf.argmax(tf.cast(good | (change < 0.1), tf.int32))
        log_y = tf.where(exact, log_y, log_y + tf.gather(moves, best))
        # Gradients that cancel at positive weights prove the point Pareto-stationary.
        alive = length > noise**2 * tf.reduce_max(y) ** 2
        return log_y, change, exact, alive & tf.math.is_finite(change)

    # The root for orthogonal gradients, at the best common length.
    log_y = log_target / (1.0 + p)
    start = tf.exp(log_y - tf.reduce_max(log_y))
    total = tf.reduce_sum(start**2)
    curvature = tf.reduce_sum(start * tf.linalg.matvec(cosines, start))
    log_y += tf.math.log(total / tf.maximum(curvature, 1e-3 * total)) / (1.0 + p)
    log_y, change, exact, alive = tf.while_loop(
        lambda log_y, change, exact, alive: alive & (change > 1e-8) & ~exact,
        body,
        (log_y, tf.constant(1.0, tf.float64), tf.constant(False), tf.constant(True)),
        maximum_iterations=_MAX_STEPS,
    )
    solved = alive & (exact | (change <= 1e-6))
    log_y += (common - 2.0 * tf.math.log(problem.scale)) / (1.0 + p)
    weights = tf.exp(log_y - tf.math.log(problem.norms))
    return finish(problem, weights, solved, problem.mean * problem.count)
