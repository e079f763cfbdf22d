"""Krum: the gradients with the nearest neighbours."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from mtl_keras.ops.solvers.problem import EPS, finish, noise_of, prepare


def krum(
    gramian: Any,
    n_byzantine: int = 1,
    n_selected: int = 1,
    squared: bool = False,
    precision: float = EPS,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Averages the gradients that lie closest to their neighbours (Multi-Krum).

    A task's score is the sum of its distances to the nearest
    `T - n_byzantine - 2` others; the `n_selected` tasks with the smallest scores
    get weight `1 / n_selected`, the first of equals before the others.

    Differs from the paper in that distances are not squared, as in the common
    implementations; `squared=True` gives the paper's scores.

    Paper: Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant
    Gradient Descent, NeurIPS 2017.

    Args:
        gramian: `[T, T]` Gram matrix.
        n_byzantine: Number of tasks that may be far off, at least 0.
        n_selected: Number of tasks to average, at least 1.
        squared: Whether scores add squared distances.
        precision: That of the gradients, see `problem`; lesser distances are 0.

    Returns:
        `[T]` float64 weights that sum to 1, and a scalar bool, False where too few
        tasks take part.

    Raises:
        ValueError: If there are fewer tasks than `n_byzantine + 3` or `n_selected`.
    """
    problem = prepare(gramian)
    size = problem.cosines.shape[0]
    if n_byzantine < 0 or n_selected < 1:
        raise ValueError(
            "Expected n_byzantine >= 0 and n_selected >= 1. "
            f"Received: n_byzantine={n_byzantine}, n_selected={n_selected}."
        )
    needed = max(n_byzantine + 3, n_selected)
    if size < needed:
        raise ValueError(
            f"Expected at least {needed} tasks for n_byzantine={n_byzantine} and "
            f"n_selected={n_selected}. Received: {size} tasks."
        )
    inner = problem.gramian
    squares = tf.linalg.diag_part(inner)
    sums = squares[:, tf.newaxis] + squares
    distances = sums - 2.0 * inner
    noise = max(noise_of(precision) ** 2, 4.0 * EPS)
    distances = tf.where(distances > noise * sums, distances, 0.0)
    distances = distances if squared else tf.sqrt(distances)
    # Excluded tasks are no neighbours, and no task is its own.
    absent = problem.active <= 0.0
    far = absent[:, tf.newaxis] | absent | tf.eye(size, dtype=tf.bool)
    distances = tf.sort(tf.where(~far, distances, math.inf))
    neighbours = tf.range(size, dtype=tf.float64) < problem.count - n_byzantine - 2.0
    scores = tf.reduce_sum(tf.where(neighbours, distances, 0.0), axis=1)
    scores = tf.where(~absent, scores, math.inf)
    chosen = tf.argsort(scores, stable=True)[:n_selected]
    weights = tf.reduce_sum(tf.one_hot(chosen, size, dtype=tf.float64), axis=0)
    return finish(problem, weights / n_selected, problem.count >= needed, problem.mean)
