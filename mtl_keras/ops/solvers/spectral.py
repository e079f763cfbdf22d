"""Closed forms from eigenvalues: IMTL-G, Aligned-MTL and ConFIG."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from mtl_keras.ops.solvers.problem import EPS, Problem, finish, prepare

# Sums that cancel to less than this share of their terms are taken for zero.
_CANCELLED = 1e-6

SCALE_MODES = ("min", "median", "rmse")


def imtl_g(gramian: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Weights with equal projections of the update on all unit gradients (IMTL-G).

    `w = G^+ sqrt(diag G)`, divided by its sum. Weights may be negative. Where the
    sum cancels to nothing there is no solution. Differs from the paper where
    gradients are linearly dependent: the pseudo-inverse (of the cosines) takes the
    place of the inverse.

    Paper: Liu et al., Towards Impartial Multi-task Learning, ICLR 2021.

    Args:
        gramian: `[T, T]` Gram matrix.

    Returns:
        `[T]` float64 weights that sum to 1, and a scalar bool.
    """
    problem = prepare(gramian)
    weights = _equal_cosines(problem) / problem.norms
    total = tf.reduce_sum(weights)
    converged = tf.abs(total) > _CANCELLED * tf.reduce_sum(tf.abs(weights))
    return finish(problem, weights / total, converged, problem.mean)


def config(gramian: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Equal cosines with all gradients, and the length that adds them up (ConFIG).

    The direction is `d = U^+ 1` for the unit gradients `U`, normalised; its length
    is `sum_i <g_i, d>`. Sum scale. Where unit gradients cancel, or the length is
    not positive, there is no solution.

    Paper: Liu, Chu and Thuerey, ConFIG: Towards Conflict-free Training of Physics
    Informed Neural Networks, ICLR 2025, arXiv:2408.11104.

    Args:
        gramian: `[T, T]` Gram matrix.

    Returns:
        `[T]` float64 weights, and a scalar bool.
    """
    problem = prepare(gramian)
    units = _equal_cosines(problem)
    products = tf.linalg.matvec(problem.cosines, units) * problem.active
    square = tf.reduce_sum(units * products)
    length = tf.reduce_sum(problem.norms * products)
    converged = (square > _CANCELLED**2 * tf.reduce_sum(units**2)) & (length > 0.0)
    weights = units / problem.norms * length / square
    return finish(problem, weights, converged, problem.mean * problem.count)


def aligned(gramian: Any, scale_mode: str = "min") -> tuple[tf.Tensor, tf.Tensor]:
    """Makes the principal components of the gradients equally long (Aligned-MTL).

    With `G = V diag(l) V'`, over the eigenvalues above `l_max * T * 2^-52`:
    `w = sqrt(s) V diag(l)^(-1/2) V' (1/T)`. Mean scale. Weights may be negative.

    Paper: Senushkin et al., Independent Component Alignment for Multi-Task
    Learning, CVPR 2023, arXiv:2305.19000.

    Args:
        gramian: `[T, T]` Gram matrix.
        scale_mode: What `s` is: `"min"`, the least eigenvalue (the paper's);
            `"median"`, the lower median; or `"rmse"`, the mean.

    Returns:
        `[T]` float64 weights, and a scalar bool.

    Raises:
        ValueError: If `scale_mode` is unknown.
    """
    if scale_mode not in SCALE_MODES:
        raise ValueError(
            f"Expected scale_mode in {SCALE_MODES}. Received: {scale_mode!r}."
        )
    problem = prepare(gramian)
    size = problem.cosines.shape[0]
    values, vectors = tf.linalg.eigh(problem.gramian)
    kept = values > values[-1] * size * EPS
    rank = tf.reduce_sum(tf.cast(kept, tf.int32))
    if scale_mode == "rmse":
        scale = tf.reduce_sum(tf.where(kept, values, 0.0)) / tf.cast(rank, tf.float64)
    else:
        # Eigenvalues ascend: those kept are the last ones.
        place = size - rank + ((rank - 1) // 2 if scale_mode == "median" else 0)
        scale = tf.gather(values, place)
    factors = tf.where(kept, tf.sqrt(scale / tf.where(kept, values, 1.0)), 0.0)
    weights = tf.linalg.matvec(
        vectors, factors * tf.linalg.matvec(vectors, problem.mean, transpose_a=True)
    )
    return finish(problem, weights, True, problem.mean)


def _equal_cosines(problem: Problem) -> tf.Tensor:
    """Coefficients on unit gradients, by the pseudo-inverse of their cosines."""
    size = problem.cosines.shape[0]
    values, vectors = tf.linalg.eigh(problem.cosines)
    kept = values > values[-1] * size * EPS
    inverse = tf.where(kept, 1.0 / tf.where(kept, values, 1.0), 0.0)
    along = tf.linalg.matvec(vectors, problem.active, transpose_a=True)
    return tf.linalg.matvec(vectors, inverse * along)
