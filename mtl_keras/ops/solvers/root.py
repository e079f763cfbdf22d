"""Power roots: Nash-MTL and FairGrad."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from mtl_keras.ops import native
from mtl_keras.ops.solvers.problem import finish, prepare, square

_MAX_STEPS = 100
# Bounds min |g_w|^2 over unit gradients from below, up to a factor: roots beyond
# are the work of rounding errors. It is the largest entries that tell, as a short
# gradient against a long one rightly gets a weight far beyond its own start.
_LARGEST = 1e10
# Fractions of the way to the boundary that a step may go.
_FRACTIONS = (0.95, 0.8, 0.6, 0.4, 0.25, 0.12, 0.06, 0.03, 0.01, 1e-3, 1e-4)


def power_root(gramian: Any, alpha: float = 1.0) -> tuple[tf.Tensor, tf.Tensor]:
    """Solves `G w = w^(-1/alpha)` for `w > 0` (Nash-MTL and FairGrad).

    `alpha = 1` is the Nash bargaining solution. The root is the only minimum of
    the convex function `w' G w / 2 - sum_i phi(w_i)`, where the derivative of `phi`
    is `w^(-1/alpha)`. Newton's method runs on relative changes of `w`, for which
    the size of the gradients does not matter, and searches along every step until
    steps are short. Exact, where the paper of Nash-MTL solves a sequence of convex
    approximations and FairGrad's authors use a least-squares solver.

    At a Pareto-stationary point there is no root: the weights are then 1 for every
    task, the plain sum, and not converged.

    Papers: Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022,
    arXiv:2202.01017. Ban and Ji, Fair Resource Allocation in Multi-Task Learning,
    ICML 2024, arXiv:2402.15638.

    Args:
        gramian: `[T, T]` Gram matrix.
        alpha: Fairness, positive.

    Returns:
        `[T]` float64 weights, the root itself, and a scalar bool.

    Raises:
        ValueError: If `alpha` is not positive.
    """
    if not alpha > 0.0:
        raise ValueError(f"Expected alpha > 0. Received: alpha={alpha}.")
    gramian = square(gramian)
    if (library := native.in_use()) is not None:
        return tuple(library.mtl_keras_power_root(gramian, alpha))
    p = 1.0 / alpha
    problem = prepare(gramian)
    cosines = problem.cosines

    # With y = norms * w: cosines y = target * y^-p. Tasks that take no part are
    # equations of their own, y = y^-p.
    target = problem.norms ** (p - 1.0)
    logs = tf.math.log(target)
    common = tf.exp(tf.reduce_mean(logs))
    target /= common

    def objective(y: tf.Tensor) -> tf.Tensor:
        if p == 1.0:
            gains = target * tf.math.log(y)
        else:
            gains = target * y ** (1.0 - p) / (1.0 - p)
        return tf.reduce_sum(0.5 * y * tf.matmul(y, cosines) - gains, axis=-1)

    def body(
        y: tf.Tensor, change: tf.Tensor, alive: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        marginal = target * y ** (1.0 - p)
        pull = y * tf.linalg.matvec(cosines, y)
        system = y[:, tf.newaxis] * cosines * y
        system = tf.linalg.set_diag(system, tf.linalg.diag_part(system) + p * marginal)
        factor = tf.linalg.cholesky(system)
        step = tf.linalg.cholesky_solve(factor, (marginal - pull)[:, tf.newaxis])[:, 0]
        change = tf.reduce_max(tf.abs(step))
        reach = 1.0 / tf.maximum(-tf.reduce_min(step), 1e-3)
        lengths = tf.concat([reach * _FRACTIONS, [tf.minimum(0.9 * reach, 1.0)]], 0)
        tried = y * (1.0 + lengths[:, tf.newaxis] * step)
        best = lengths[tf.argmin(objective(tried))]
        # Close to the root the objective is flat to rounding: full steps are safe.
        y = y * (1.0 + tf.where(change >= 0.1, best, 1.0) * step)
        alive = tf.reduce_max(y) < tf.reduce_max(start) * bound
        return y, change, alive & tf.math.is_finite(change)

    # The root for orthogonal gradients, at the best common length.
    start = target ** (1.0 / (1.0 + p))
    bound = _LARGEST ** (1.0 / (1.0 + p))
    curvature = tf.reduce_sum(start * tf.linalg.matvec(cosines, start))
    curvature = tf.maximum(curvature, 1e-3 * tf.reduce_sum(start**2))
    length = tf.reduce_sum(target * start ** (1.0 - p)) / curvature
    y, change, alive = tf.while_loop(
        lambda y, change, alive: alive & (change > 1e-8),
        body,
        (
            start * length ** (1.0 / (1.0 + p)),
            tf.constant(1.0, tf.float64),
            tf.constant(True),
        ),
        maximum_iterations=_MAX_STEPS,
    )
    solved = alive & (change <= 1e-6)
    y *= common ** (1.0 / (1.0 + p))
    weights = y / problem.norms / problem.scale ** (2.0 / (1.0 + p))
    return finish(problem, weights, solved, problem.mean * problem.count)
