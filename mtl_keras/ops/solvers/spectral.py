"""Closed forms from eigenvalues: IMTL-G, Aligned-MTL and ConFIG."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from mtl_keras.ops import native
from mtl_keras.ops.solvers.problem import (
    EPS,
    Problem,
    finish,
    noise_of,
    prepare,
    square,
)

# Sums that cancel to less than this share of their terms are taken for zero.
_CANCELLED = 1e-6

SCALE_MODES = ("min", "median", "rmse")


def imtl_g(gramian: Any, precision: float = EPS) -> tuple[tf.Tensor, tf.Tensor]:
    """Weights with equal projections of the update on all unit gradients (IMTL-G).

    `w = G^+ sqrt(diag G)`, divided by its sum. Weights may be negative. Where the
    sum cancels to nothing there is no solution. Differs from the paper where
    gradients are linearly dependent: the pseudo-inverse (of the cosines) takes the
    place of the inverse.

    Paper: Liu et al., Towards Impartial Multi-task Learning, ICLR 2021.

    Args:
        gramian: `[T, T]` Gram matrix.
        precision: That of the gradients, see `problem`.

    Returns:
        `[T]` float64 weights that sum to 1, and a scalar bool.
    """
    gramian = square(gramian)
    share = max(_CANCELLED, noise_of(precision))
    if (library := native.solvers_in_use()) is not None:
        return tuple(library.mtl_keras_imtl_g(gramian, precision))
    problem = prepare(gramian)
    weights = _equal_cosines(problem, precision) / problem.norms
    total = tf.reduce_sum(weights)
    converged = tf.abs(total) > share * tf.reduce_sum(tf.abs(weights))
    return finish(problem, weights / total, converged, problem.mean)


def config(gramian: Any, precision: float = EPS) -> tuple[tf.Tensor, tf.Tensor]:
    """Equal cosines with all gradients, and the length that adds them up (ConFIG).

    The direction is `d = U^+ 1` for the unit gradients `U`, normalised; its length
    is `sum_i <g_i, d>`. Sum scale. Where unit gradients cancel, or the length is
    not positive, there is no solution.

    Paper: Liu, Chu and Thuerey, ConFIG: Towards Conflict-free Training of Physics
    Informed Neural Networks, ICLR 2025, arXiv:2408.11104.

    Args:
        gramian: `[T, T]` Gram matrix.
        precision: That of the gradients, see `problem`.

    Returns:
        `[T]` float64 weights, and a scalar bool.
    """
    gramian = square(gramian)
    share = max(_CANCELLED, noise_of(precision))
    if (library := native.solvers_in_use()) is not None:
        return tuple(library.mtl_keras_config(gramian, precision))
    problem = prepare(gramian)
    units = _equal_cosines(problem, precision)
    products = tf.linalg.matvec(problem.cosines, units) * problem.active
    squared = tf.reduce_sum(units * products)
    length = tf.reduce_sum(problem.norms * products)
    # At a Pareto-stationary point the sign of the length is one of rounding.
    positive = length > share * tf.reduce_sum(problem.norms * tf.abs(products))
    converged = (squared > share**2 * tf.reduce_sum(units**2)) & positive
    weights = units / problem.norms * length / squared
    return finish(problem, weights, converged, problem.mean * problem.count)


def aligned(
    gramian: Any, scale_mode: str = "min", precision: float = EPS
) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes the principal components of the gradients equally long (Aligned-MTL).

    With `G = V diag(l) V'`, over the eigenvalues above `l_max * T * 2^-52`:
    `w = sqrt(s) V diag(l)^(-1/2) V' (1/T)`. Mean scale. Weights may be negative.
    Directions in which the unit gradients differ by their noise are removed from `G`
    first: rounding is relative to the norm of each gradient. In bfloat16, norms of
    dependent gradients that spread over four decades leave the update undetermined:
    that of the same gradients rounded otherwise is off by up to a half.

    Under XLA without the compiled solvers, whose eigenvectors are less exact, weights
    are good to about 1e-7 for gradients of similar norms and 1e-2 for norms that spread
    over six decades.

    Where the update would be zero, because the gradients cancel, the weights are
    the mean's and not converged.

    Paper: Senushkin et al., Independent Component Alignment for Multi-Task
    Learning, CVPR 2023, arXiv:2305.19000.

    Args:
        gramian: `[T, T]` Gram matrix.
        scale_mode: Choice of `s`: `"min"`, the least eigenvalue (the paper's);
            `"median"`, the lower median; or `"rmse"`, the mean.
        precision: That of the gradients, see `problem`.

    Returns:
        `[T]` float64 weights, and a scalar bool.

    Raises:
        ValueError: If `scale_mode` is unknown.
    """
    if scale_mode not in SCALE_MODES:
        raise ValueError(
            f"Expected scale_mode in {SCALE_MODES}. Received: {scale_mode!r}."
        )
    gramian = square(gramian)
    if (library := native.solvers_in_use()) is not None:
        mode = SCALE_MODES.index(scale_mode)
        return tuple(library.mtl_keras_aligned(gramian, mode, precision))
    problem = prepare(gramian)
    spectrum = _spectrum(*_without_noise(problem, precision))
    values, kept = spectrum.values, spectrum.kept
    rank = tf.reduce_sum(tf.cast(kept, tf.int32))
    if scale_mode == "rmse":
        scale = tf.reduce_sum(tf.where(kept, values, 0.0)) / tf.cast(rank, tf.float64)
    else:
        # Eigenvalues ascend: those kept are the last ones.
        place = values.shape[0] - rank
        place += (rank - 1) // 2 if scale_mode == "median" else 0
        scale = tf.gather(values, place)
    roots = tf.sqrt(tf.where(kept, values, 1.0))
    slopes = -1.0 / (roots[:, tf.newaxis] * roots * (roots[:, tf.newaxis] + roots))
    weights = tf.sqrt(scale) * _apply(spectrum, 1.0 / roots, slopes, problem.mean)
    # The update is sqrt(s) times this long: zero where all gradients cancel.
    along = tf.linalg.matvec(spectrum.vectors, problem.mean, transpose_a=True)
    squared = tf.reduce_sum(tf.where(kept, along**2, 0.0))
    share = max(_CANCELLED, noise_of(precision))
    converged = squared > share**2 * tf.reduce_sum(problem.mean**2)
    return finish(problem, weights, converged, problem.mean)


def _equal_cosines(problem: Problem, precision: float) -> tf.Tensor:
    """Coefficients on unit gradients, by the pseudo-inverse of their cosines."""
    spectrum = _of_cosines(problem, precision)
    inverse = 1.0 / tf.where(spectrum.kept, spectrum.values, 1.0)
    slopes = -inverse[:, tf.newaxis] * inverse
    return _apply(spectrum, inverse, slopes, problem.active)


class _Spectrum(NamedTuple):
    """`V' A V` for nearly exact eigenvectors: its diagonal and the remainder.

    XLA's eigenvectors are orthogonal to rounding but diagonalise to about 1e-9 only,
    which small eigenvalues would magnify. Functions of the matrix take the rest
    into account to first order; elsewhere it is rounding noise.
    """

    values: tf.Tensor
    rest: tf.Tensor
    vectors: tf.Tensor
    kept: tf.Tensor


def _of_cosines(problem: Problem, precision: float) -> _Spectrum:
    """The spectrum of the cosines; eigenvalues that noise may have made are cut."""
    spectrum = _spectrum(problem.cosines)
    kept = spectrum.kept & (spectrum.values > noise_of(precision) ** 2)
    return spectrum._replace(kept=kept)


def _without_noise(problem: Problem, precision: float) -> tuple[tf.Tensor, tf.Tensor]:
    """The Gram matrix without the noise of the unit gradients, and its rank."""
    spectrum = _of_cosines(problem, precision)
    cut = tf.where(~spectrum.kept, spectrum.vectors, 0.0)
    size = problem.cosines.shape[0]
    projection = tf.eye(size, dtype=tf.float64) - tf.matmul(cut, cut, transpose_b=True)
    cosines = tf.matmul(projection, tf.matmul(problem.cosines, projection))
    # Excluded tasks have eigenvalues of their own.
    absent = size - tf.cast(tf.reduce_sum(problem.active), tf.int32)
    rank = tf.reduce_sum(tf.cast(spectrum.kept, tf.int32)) - absent
    return problem._replace(cosines=cosines).gramian, rank


def _spectrum(matrix: tf.Tensor, rank: tf.Tensor | None = None) -> _Spectrum:
    """Decomposes a matrix, of at most this rank where it is known."""
    _, vectors = tf.linalg.eigh(matrix)
    inner = tf.matmul(vectors, tf.matmul(matrix, vectors), transpose_a=True)
    values = tf.linalg.diag_part(inner)
    kept = values > tf.reduce_max(values) * matrix.shape[0] * EPS
    if rank is not None:
        kept &= tf.range(matrix.shape[0]) >= matrix.shape[0] - rank
    rest = tf.linalg.set_diag(inner, tf.zeros_like(values))
    return _Spectrum(values, rest, vectors, kept)


def _apply(
    spectrum: _Spectrum, images: tf.Tensor, slopes: tf.Tensor, vector: tf.Tensor
) -> tf.Tensor:
    """Multiplies a function of the matrix, over the eigenvalues kept, by a vector.

    Args:
        spectrum: The decomposed matrix.
        images: `[T]`, the function at the eigenvalues.
        slopes: `[T, T]`, its divided differences between pairs of eigenvalues.
        vector: `[T]`.
    """
    kept = tf.cast(spectrum.kept, tf.float64)
    function = tf.linalg.set_diag(slopes * spectrum.rest, images)
    function *= kept[:, tf.newaxis] * kept
    along = tf.linalg.matvec(spectrum.vectors, vector, transpose_a=True)
    return tf.linalg.matvec(spectrum.vectors, tf.linalg.matvec(function, along))
