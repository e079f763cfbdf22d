"""Common part of all solvers: a scaled Gram matrix, and the fallback on failure.

Conventions of every solver in this package:

- It takes a Gram matrix of static shape `[tasks, tasks]` and works in float64.
- A task whose diagonal entry is exactly zero is excluded (weight 0). `1/T` means one
  over the number of active tasks.
- Where it decides whether gradients are dependent, in conflict or cancel, it takes
  `precision`, the spacing at 1 of the dtype in which they were computed, and leaves
  differences within their noise out of account. The default is float64's.
- It returns `(weights, converged)`. Where the matrix is not finite, where all
  gradients are zero, or where the method has no solution, the weights are those
  of the mean of the gradients and `converged` is False. Weights are always finite.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

EPS = 2.0**-52
"""The spacing of float64 at 1, as rounding errors are multiples of it."""


def noise_of(precision: float) -> float:
    """Returns how far a gradient may be off, relative to its norm.

    A gradient is a sum over samples that cancel in part, so that it has lost more
    digits than the last; the finer the dtype, the more of them. The exponent 2/3 is
    checked by measurement (`benchmarks/gradient_noise.py`; dense, convolutional,
    embedding and recurrent models, batches of 16 and 256, at the start and trained on
    the batch): a gradient that is the mean of two others is off by at most 3.0e-6 of
    its norm in float32 and 0.001 in float16, 8 and 13 times less than this. In bfloat16
    one case of 20 is above it (0.043; convolutions on a CPU that computes in bfloat16),
    the others are at most 0.023. Errors of the forward pass, which all tasks share, do
    not make dependent gradients independent, and are no part of it.

    Args:
        precision: The spacing at 1 of the dtype in which it was computed.

    Raises:
        ValueError: If `precision` is not between 0 and 1.
    """
    if not 0.0 < precision < 1.0:
        raise ValueError(f"Expected 0 < precision < 1. Received: {precision}.")
    return precision ** (2.0 / 3.0)


class Problem(NamedTuple):
    """A Gram matrix, decomposed into cosines and norms.

    With `n = scale * norms`, the matrix is `n_i * cosines_ij * n_j`. Tasks that
    take no part have norm 1 and a row of the unit matrix, which keeps all linear
    systems regular at their static size.

    Attributes:
        cosines: `[T, T]` float64, ones on the diagonal.
        norms: `[T]` float64, at most 1: norms relative to the largest.
        scale: Scalar float64, the largest norm.
        active: `[T]` float64, 1 for tasks that take part and 0 for the others.
        count: Scalar float64, the number of tasks that take part, at least 1.
        mean: `[T]` float64, the weights of the mean: 1/T for tasks that take part.
        valid: Scalar bool, False where there is nothing to solve.
    """

    cosines: tf.Tensor
    norms: tf.Tensor
    scale: tf.Tensor
    active: tf.Tensor
    count: tf.Tensor
    mean: tf.Tensor
    valid: tf.Tensor

    @property
    def gramian(self) -> tf.Tensor:
        """The Gram matrix over `scale**2`, zero for excluded tasks."""
        norms = self.norms * self.active
        return norms[:, tf.newaxis] * self.cosines * norms


def square(gramian: Any) -> tf.Tensor:
    """Returns a Gram matrix as a constant float64 tensor.

    Raises:
        ValueError: If the matrix is not square with a static shape.
    """
    gramian = tf.cast(tf.convert_to_tensor(gramian), tf.float64)
    shape = gramian.shape
    if shape.rank != 2 or shape[0] is None or shape[0] != shape[1]:
        raise ValueError(
            "Expected a Gram matrix of static shape [tasks, tasks]. "
            f"Received: shape {shape}."
        )
    # Weights are constants of the update: nothing is differentiated through them.
    return tf.stop_gradient(gramian)


def prepare(gramian: Any) -> Problem:
    """Decomposes a Gram matrix into cosines and norms, without unusable entries.

    Args:
        gramian: `[T, T]` tensor with static T.

    Returns:
        The `Problem`.

    Raises:
        ValueError: If the matrix is not square with a static shape.
    """
    gramian = square(gramian)
    diagonal = tf.linalg.diag_part(gramian)
    finite = tf.reduce_all(tf.math.is_finite(gramian))
    is_active = tf.logical_not(tf.equal(diagonal, 0.0))
    active = tf.cast(is_active, tf.float64)
    total = tf.reduce_sum(active)
    count = tf.maximum(total, 1.0)
    mean = active / count

    solvable = finite & tf.reduce_all(diagonal >= 0.0) & (total > 0.0)
    unit = tf.eye(gramian.shape[0], dtype=tf.float64)
    gramian = tf.where(solvable, gramian, unit)
    active = tf.where(solvable, active, tf.ones_like(active))
    is_active = active > 0.0
    norms = tf.where(is_active, tf.sqrt(tf.linalg.diag_part(gramian)), 1.0)
    largest = tf.reduce_max(norms * active)

    # One division after the other: the product of two small norms may underflow.
    cosines = gramian / norms[:, tf.newaxis] / norms
    # Clipped before the mean, which infinities of both signs do not have.
    cosines = tf.clip_by_value(cosines, -1.0, 1.0)
    cosines = 0.5 * (cosines + tf.transpose(cosines))
    both = active[:, tf.newaxis] * active
    cosines = tf.linalg.set_diag(cosines * both, tf.ones_like(norms))
    norms = tf.where(is_active, norms / largest, 1.0)
    return Problem(cosines, norms, largest, active, count, mean, solvable)


def finish(
    problem: Problem,
    weights: tf.Tensor,
    converged: tf.Tensor | bool,
    fallback: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Removes absent tasks and puts the fallback in place of a failed solution.

    Args:
        problem: The problem that was solved.
        weights: `[..., T]` solution.
        converged: Scalar bool, whether the solver vouches for it.
        fallback: `[..., T]` weights for the other case.

    Returns:
        Finite weights, and whether they are the solution.
    """
    weights = weights * problem.active
    converged = converged & problem.valid
    converged &= tf.reduce_all(tf.math.is_finite(weights))
    return tf.where(converged, weights, fallback), converged
