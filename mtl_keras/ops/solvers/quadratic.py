"""Quadratic programs: MGDA, UPGrad and DualProj."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from mtl_keras.ops import native
from mtl_keras.ops.solvers.problem import EPS, finish, noise_of, prepare, square

# Keeps every factorisation regular where gradients are linearly dependent. One
# step of iterative refinement takes its effect out of the directions that count.
_RIDGE = 1e-12
# Entries beyond this, for a linear term of size 1, come from the ridge alone: the
# objective has no minimum.
_LARGEST = 1e-2 / _RIDGE


class ActiveSet(NamedTuple):
    """The state of `nonnegative_qp`: a point and the entries that are free."""

    x: tf.Tensor
    free: tf.Tensor


def nonnegative_qp(
    matrix: tf.Tensor,
    linear: tf.Tensor,
    start: ActiveSet | None = None,
    noise: float = 0.0,
) -> tuple[ActiveSet, tf.Tensor]:
    """Minimises `x' A x / 2 - b' x` over `x >= 0`, for a batch of `b`.

    The primal active-set method of Lawson and Hanson (Solving Least Squares
    Problems, 1974, chapter 23) on the normal equations: it ends at the exact
    solution after finitely many steps. Every step solves one masked system of
    static size, in which held entries have rows of the unit matrix.

    Args:
        matrix: `[T, T]` float64, positive semi-definite up to rounding, with
            diagonal entries near 1.
        linear: `[B, T]` float64.
        start: A feasible start, such as the result for a nearby `linear`.
        noise: Share of its terms below which a slope counts as zero; rounding errors
            of the solution always do.

    Returns:
        The solution, `[B, T]`, with its free entries, and a `[B]` bool: whether
        the optimality conditions hold. They fail where there is no minimum.
    """
    if start is None and (library := native.solvers_in_use()) is not None:
        x, solved = library.mtl_keras_nonnegative_qp(matrix, linear, noise)
        return ActiveSet(x, x > 0.0), solved
    size = matrix.shape[0]
    rounding = 4.0 * size * EPS
    share = max(noise, rounding)
    largest = tf.reduce_max(tf.abs(linear), axis=-1, keepdims=True)
    unit = tf.where(largest > 0.0, largest, 1.0)
    linear = linear / unit
    # Rounding may leave eigenvalues below zero: they are lifted, by as much as it can.
    # An eigendecomposition would tell, and cost more than the minimum on a GPU.
    identity = tf.eye(size, dtype=tf.float64)
    matrix += rounding * identity
    shifted = matrix + _RIDGE * identity

    def solve(free: tf.Tensor) -> tf.Tensor:
        both = free[:, :, tf.newaxis] & free[:, tf.newaxis, :]
        system = tf.where(both, shifted, identity)
        factor = tf.linalg.cholesky(system)
        rhs = tf.where(free, linear, 0.0)[..., tf.newaxis]
        x = tf.linalg.cholesky_solve(factor, rhs)
        rest = rhs - tf.where(free[..., tf.newaxis], tf.matmul(matrix, x), 0.0)
        return tf.squeeze(x + tf.linalg.cholesky_solve(factor, rest), -1)

    def slope(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The negative gradient, and the size of its errors."""
        terms = tf.abs(linear) + tf.matmul(tf.abs(x), tf.abs(matrix))
        return linear - tf.matmul(x, matrix), share * terms

    def body(
        x: tf.Tensor,
        free: tf.Tensor,
        barred: tf.Tensor,
        best: tf.Tensor,
        done: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        goal = solve(free)
        blocking = free & (goal <= 0.0)
        feasible = ~tf.reduce_any(blocking, axis=-1, keepdims=True)

        # Towards the goal as far as all entries stay non-negative.
        room = tf.where(blocking, tf.math.divide_no_nan(x, x - goal), 1.0)
        length = tf.reduce_min(room, axis=-1, keepdims=True)
        moved = x + length * (goal - x)
        hit = blocking & ((room <= length) | (moved <= 0.0))
        kept = free & ~hit
        moved = tf.where(kept, tf.maximum(moved, 0.0), 0.0)
        # An entry that leaves the free set at once entered it by round-off.
        barred |= hit & (length <= 0.0)

        # At the minimum over the free entries: let in the steepest of the others.
        value = tf.reduce_sum(linear * goal, axis=-1, keepdims=True)
        barred &= ~(feasible & (value > best))
        best = tf.where(feasible, tf.maximum(best, value), best)
        gain, error = slope(goal)
        gain = tf.where(~free & ~barred & (gain > error), gain, 0.0)
        enters = _one_hot_mask(tf.argmax(gain, axis=-1), size) & (gain > 0.0)
        optimal = feasible & ~tf.reduce_any(enters, axis=-1, keepdims=True)

        new_x = tf.where(feasible, goal, moved)
        new_free = tf.where(feasible, free | enters, kept)
        return (
            tf.where(done, x, new_x),
            tf.where(done, free, new_free),
            barred,
            best,
            done | optimal,
        )

    if start is None:
        first = _one_hot_mask(tf.argmax(linear, axis=-1), size) & (linear > 0.0)
        start = ActiveSet(tf.zeros_like(linear), first)
    state = (
        start.x / unit,
        start.free,
        tf.zeros_like(start.free),
        tf.zeros_like(unit),
        tf.zeros_like(unit, tf.bool),
    )
    x, free, _, _, _ = tf.while_loop(
        lambda x, free, barred, best, done: ~tf.reduce_all(done),
        body,
        state,
        maximum_iterations=6 * size + 20,
    )
    x = tf.where(free, tf.maximum(x, 0.0), 0.0)
    gain, error = slope(x)
    violation = tf.where(free, tf.abs(gain), gain)
    # Looser than the steps' own test by the error of one regular solve.
    slack = max(1.0, 1e4 * rounding / share) * error
    solved = tf.reduce_all(violation <= slack, axis=-1)
    solved &= tf.reduce_all(x < _LARGEST, axis=-1)
    return ActiveSet(x * unit, free), solved


def _one_hot_mask(index: tf.Tensor, size: int) -> tf.Tensor:
    return tf.one_hot(index, size, on_value=True, off_value=False)


def min_norm(gramian: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Minimises `w' G w` over the probability simplex (MGDA).

    Exact, where the Frank-Wolfe iteration of the paper is stopped early. At a
    Pareto-stationary point the minimum is zero and so is the update; the weights
    are the solution and count as converged.

    Paper: Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization,
    NeurIPS 2018, arXiv:1810.04650.

    Args:
        gramian: `[T, T]` Gram matrix.

    Returns:
        `[T]` float64 weights that sum to 1, and a scalar bool.
    """
    gramian = square(gramian)
    if (library := native.solvers_in_use()) is not None:
        return tuple(library.mtl_keras_min_norm(gramian))
    problem = prepare(gramian)
    # With x = norms * w up to a factor, and r = 1 / norms, w lies on the simplex
    # where r' x = 1. Adding (r' x - 1)^2 to the objective changes the length of its
    # minimiser only, and unlike the constraint it keeps the minimum finite where
    # the least norm is zero.
    reciprocal = problem.active / problem.norms
    reciprocal /= tf.reduce_max(reciprocal)
    matrix = problem.cosines + reciprocal[:, tf.newaxis] * reciprocal
    solution, solved = nonnegative_qp(matrix, reciprocal[tf.newaxis])
    weights = solution.x[0] * reciprocal
    weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights))
    return finish(problem, weights, solved[0], problem.mean)


def dual_cone(
    gramian: Any, lower: Any, precision: float = EPS
) -> tuple[tf.Tensor, tf.Tensor]:
    """Minimises `v' G v` over `v >= u`.

    `sum_i v_i g_i` is the projection of `sum_i u_i g_i` onto the dual cone of the
    gradients: the nearest update that conflicts with no task.

    Paper: Quinton and Rey, Jacobian Descent for Multi-Objective Optimization,
    2024, arXiv:2406.16232.

    Args:
        gramian: `[T, T]` Gram matrix.
        lower: `u`, `[T]` or a batch `[B, T]`.
        precision: That of the gradients, see `problem`; lesser conflicts are none.

    Returns:
        `v`, float64, in the shape of `lower`, and a scalar bool: whether all of
        the batch converged. Otherwise `v` is `u`.

    Raises:
        ValueError: If the last axis of `lower` is not `T`.
    """
    gramian = square(gramian)
    lower = tf.cast(tf.convert_to_tensor(lower), tf.float64)
    size = gramian.shape[0]
    noise = max(noise_of(precision), 4.0 * size * EPS)
    if lower.shape.rank not in (1, 2) or lower.shape[-1] != size:
        raise ValueError(
            f"Expected lower bounds of shape [{size}] or [batch, {size}]. "
            f"Received: shape {lower.shape}."
        )
    if (library := native.solvers_in_use()) is not None:
        return tuple(library.mtl_keras_dual_cone(gramian, lower, precision))
    problem = prepare(gramian)
    present = tf.where(problem.mean > 0.0, lower, 0.0)
    # v = u + z / norms with z >= 0.
    bounds = tf.reshape(present, [-1, size]) * problem.norms
    linear = -tf.matmul(bounds, problem.cosines) * problem.active
    # Where the bounds' own gradients cancel, the rest is noise: no conflict.
    parts = tf.matmul(tf.abs(bounds), tf.abs(problem.cosines))
    linear = tf.where(tf.abs(linear) > noise * parts, linear, 0.0)
    solution, solved = nonnegative_qp(problem.cosines, linear, noise=noise)
    raised = tf.reshape(solution.x / problem.norms, tf.shape(lower))
    return finish(problem, present + raised, tf.reduce_all(solved), present)


def upgrad(
    gramian: Any,
    preference: Any | None = None,
    reg_eps: float = 1e-4,
    precision: float = EPS,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Projects every task's gradient onto the dual cone and adds (UPGrad).

    `w = sum_i argmin_{v >= u_i e_i} v' (G / tr G + reg_eps I) v`, in mean scale.

    Paper: Quinton and Rey, Jacobian Descent for Multi-Objective Optimization,
    2024, arXiv:2406.16232.

    Args:
        gramian: `[T, T]` Gram matrix.
        preference: `u`, `[T]` non-negative; by default 1/T for tasks that take
            part.
        reg_eps: Weight of the unit matrix, relative to the trace. With 0 no task
            ever loses to first order.
        precision: That of the gradients, see `problem`.

    Returns:
        `[T]` float64 weights, and a scalar bool.

    Raises:
        ValueError: If the preference has another shape.
    """
    return _cone_projection(gramian, preference, reg_eps, precision, each=True)


def dualproj(
    gramian: Any,
    preference: Any | None = None,
    reg_eps: float = 1e-4,
    precision: float = EPS,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Projects the mean gradient onto the dual cone (DualProj, as in GEM).

    `w = argmin_{v >= u} v' (G / tr G + reg_eps I) v`, in mean scale.

    Paper: Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning,
    NeurIPS 2017, arXiv:1706.08840.

    Args:
        gramian: `[T, T]` Gram matrix.
        preference: `u`, `[T]` non-negative; by default 1/T for tasks that take
            part.
        reg_eps: Weight of the unit matrix, relative to the trace.
        precision: That of the gradients, see `problem`.

    Returns:
        `[T]` float64 weights, and a scalar bool.

    Raises:
        ValueError: If the preference has another shape.
    """
    return _cone_projection(gramian, preference, reg_eps, precision, each=False)


def _cone_projection(
    gramian: Any,
    preference: Any | None,
    reg_eps: float,
    precision: float,
    each: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Projects each weighted gradient, or else their sum, onto the dual cone."""
    gramian = square(gramian)
    if preference is not None:
        preference = tf.cast(tf.convert_to_tensor(preference), tf.float64)
        if not preference.shape.is_compatible_with(gramian.shape[:1]):
            raise ValueError(
                f"Expected a preference of shape {tuple(gramian.shape[:1])}. "
                f"Received: shape {preference.shape}."
            )
    if (library := native.solvers_in_use()) is not None:
        op = library.mtl_keras_up_grad if each else library.mtl_keras_dual_proj
        preference = [] if preference is None else preference
        return tuple(op(gramian, preference, reg_eps, precision))
    problem = prepare(gramian)
    # Divided by the trace, plus `reg_eps` for active tasks.
    matrix = problem.gramian
    matrix /= tf.linalg.trace(matrix)
    matrix += tf.linalg.diag(reg_eps * problem.active)
    preference = problem.mean if preference is None else preference
    lower = tf.linalg.diag(preference) if each else preference
    # With more regularisation than noise the solution is a smooth function of the
    # gradients, and nothing needs deciding.
    precision = EPS if reg_eps > noise_of(precision) ** 2 else precision
    weights, converged = dual_cone(matrix, lower, precision)
    if each:
        weights = tf.reduce_sum(weights, axis=0)
    return finish(problem, weights, converged, problem.mean)
