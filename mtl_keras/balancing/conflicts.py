"""Conflicts between task gradients: cosines, shared samples and confidence."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

CONFIDENT = 0.95
"""From this confidence on, reports call a negative mean cosine a conflict."""


class ConflictMonitor(keras.metrics.Metric):
    """Mean cosines between task gradients, and the share of conflicting pairs.

    Args:
        num_tasks: T.
    """

    def __init__(self, num_tasks: int, name: str = "conflict_monitor"):
        super().__init__(name=name, dtype="float32")
        shape = (num_tasks, num_tasks)
        self._cosines, self._squares, self._pairs, self._conflicts, self._shared = (
            self._add(shape, part, dtype)
            for part, dtype in (
                ("sum", "float64"),
                ("squares", "float64"),
                ("pairs", "float32"),
                ("conflicts", "float32"),
                ("shared", "float32"),
            )
        )
        self._last = self._add((4, *shape), "last", "float64")

    def _add(self, shape: tuple[int, ...], name: str, dtype: str) -> keras.Variable:
        # All replicas count the same steps.
        return self.add_variable(
            shape, "zeros", dtype, aggregation="only_first_replica", name=name
        )

    def update_state(
        self, gramian: tf.Tensor, shared_samples: tf.Tensor | None = None
    ) -> None:
        """Adds one step; absent tasks are left out.

        Args:
            gramian: float64 `[T, T]`.
            shared_samples: float32 `[T, T]`, samples with labels of both tasks; `None`
                where they are not known, which counts 0.
        """
        norms = tf.sqrt(tf.linalg.diag_part(gramian))
        # One division after the other: a product of two small norms may underflow.
        cosines = tf.math.divide_no_nan(
            tf.math.divide_no_nan(gramian, norms[:, None]), norms
        )
        usable = (norms > 0) & tf.math.is_finite(norms)
        pairs = usable[:, None] & usable
        cosines = tf.where(pairs, cosines, tf.zeros_like(cosines))
        self._cosines.assign_add(cosines)
        self._squares.assign_add(tf.square(cosines))
        self._pairs.assign_add(tf.cast(pairs, "float32"))
        self._conflicts.assign_add(tf.cast(pairs & (cosines < 0), "float32"))
        if shared_samples is not None:
            self._shared.assign_add(tf.where(pairs, shared_samples, 0.0))

    def _tables(self) -> tf.Tensor:
        """Returns mean cosine and square, steps, and samples, float64 `[4, T, T]`.

        Since the last reset; before the first step after it, those of before.
        """
        pairs = tf.cast(self._pairs, "float64")
        sums = (self._cosines, self._squares, tf.cast(self._shared, "float64"))
        cosine, square, shared = (tf.math.divide_no_nan(s, pairs) for s in sums)
        tables = tf.stack([cosine, square, pairs, shared])
        return tf.where(tf.reduce_any(pairs > 0), tables, self._last)

    def cosines(self) -> tf.Tensor:
        """Returns the mean cosine of every pair, float32 `[T, T]`.

        Since the last reset; before the first step after it, those of before.
        """
        return tf.cast(self._tables()[0], "float32")

    def tables(self) -> dict[str, np.ndarray]:
        """Returns what `MultiTaskModel.gradient_conflicts` does."""
        cosine, square, steps, shared = self._tables().numpy()
        return {
            "cosines": cosine,
            "shared_samples": shared,
            "steps": steps,
            "confidence": confidence(cosine, square, steps),
        }

    def reset_state(self) -> None:
        """Starts anew, but keeps the means until the next step.

        Validation resets all metrics, before a callback could read the epoch's.
        """
        last = self._tables()
        super().reset_state()
        self._last.assign(last)

    def result(self) -> dict[str, tf.Tensor]:
        """Returns `{"conflicts": share}` of the pairs of different tasks."""
        pairs = tf.reduce_sum(self._pairs) - tf.linalg.trace(self._pairs)
        share = tf.math.divide_no_nan(tf.reduce_sum(self._conflicts), pairs)
        return {"conflicts": share}


def confidence(
    mean: np.ndarray, mean_square: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """Returns how sure it is that cosines are negative on average, float64, 0 to 1.

    1 minus the p-value of the one-sided t-test of the mean against 0 over independent
    measurements: 0.5 says nothing, near 0 is the opposite, and below two measurements
    it is NaN.

    Args:
        mean: Mean cosines, of any shape.
        mean_square: Means of their squares.
        count: Numbers of measurements.
    """
    mean, mean_square, count = (
        np.asarray(values, np.float64) for values in (mean, mean_square, count)
    )
    freedom = np.maximum(count - 1.0, 1.0)
    # What round-off leaves of equal measurements is no variance.
    spread = np.maximum(mean_square - mean**2, 0.0)
    spread = np.where(spread > 1e-14 * mean_square, spread, 0.0)
    # freedom / (freedom + t²), by which the distribution of t is a beta function's.
    total = spread + mean**2
    tail = np.divide(spread, total, out=np.ones_like(total), where=total > 0)
    half = 0.5 * tf.math.betainc(0.5 * freedom, np.full_like(tail, 0.5), tail).numpy()
    result = np.where(mean < 0.0, 1.0 - half, half)
    return np.where(count >= 2.0, result, np.nan)
