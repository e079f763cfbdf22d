"""Methods that need the whole T × D matrix of task gradients.

Their update is not a weighted sum of the gradients; those that keep a moving average
for every task are in `matrix_averaging`. Sparse gradients are made dense, so cost and
state grow with T times the shared variables.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtl_keras.balancing.arguments import per_task
from mtl_keras.balancing.base import (
    GradientBalancer,
    GradientStep,
    agreed,
    mean_weights,
)
from mtl_keras.errors import InputError, check_integer, check_number

_register = keras.saving.register_keras_serializable(package="mtl_keras")


class MatrixBalancer(GradientBalancer):
    """A gradient balancer that works on the gradients themselves.

    A task whose gradient is zero is excluded, as an absent one. A method implements
    `combine`. `natural_scale` is as for `GramBalancer`.

    Args:
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.get("graddrop")
    >>> isinstance(balancer, mtl_keras.balancing.MatrixBalancer)
    True
    ```
    """

    natural_scale = "mean"

    def aggregate(self, step: GradientStep) -> tuple[list[Any], tf.Tensor]:
        """See `GradientBalancer.aggregate`."""
        matrix, connected = dense_matrix(step)
        # As for Gram-based methods: a task without gradient, as of a loss weight of 0,
        # is excluded. The shortest vector would be its.
        step = copy.copy(step)
        nonzero = _any_nonzero(matrix, len(step.gradients))
        # Of a representation a replica has the rows of its own samples alone.
        step.present &= step.total(tf.cast(nonzero, "float32")) > 0.0
        update, weights = self.combine(matrix, step)
        # Gradients that are not finite stay so, which tells a loss-scaling optimizer
        # to skip the step; weights without any entry would stop training silently.
        usable = all_finite([*matrix, *update])
        present = tf.reduce_any(step.present)
        usable &= tf.reduce_any(tf.not_equal(weights, 0.0)) | ~present
        self.count_fallback(~usable)
        mean = mean_weights(step.present, self.scale)
        factor = self.rescaling(step.present)
        updates = [
            tf.where(usable, value * factor, _sum_of_rows(mean, rows))
            for value, rows in zip(update, matrix, strict=True)
        ]
        combined = as_gradients(updates, connected, step)
        return combined, tf.where(usable, weights * factor, mean)

    def rescaling(self, present: tf.Tensor) -> tf.Tensor:
        """Returns what brings the paper's scale to `self.scale`, a float32 scalar."""
        if self.scale == self.natural_scale:
            return tf.ones(())
        count = tf.maximum(tf.reduce_sum(tf.cast(present, "float32")), 1.0)
        return count if self.scale == "sum" else 1.0 / count

    def combine(
        self, matrix: list[tf.Tensor], step: GradientStep
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Returns the update in the paper's scale.

        Args:
            matrix: For each variable that a task reaches, the stacked task
                gradients, float32 `[T, …]`, zero for absent tasks.
            step: The rest of the step.

        Returns:
            The update by variable, and the task weights float32 `[T]` to log.
        """
        raise NotImplementedError


@_register
class GradDrop(MatrixBalancer):
    """Lets one sign per entry pass, drawn by how much the tasks agree on it.

    P = ½ (1 + Σg / Σ|g|); with u ~ U(0, 1), entries of positive gradients pass where
    P > u, of negative ones where P < u. Chen et al., "Just Pick a Sign: Optimizing
    Deep Multitask Models with Gradient Sign Dropout", NeurIPS 2020, arXiv
    2010.06808. Differs from the paper in that it acts on the gradients of shared
    variables, where the paper acts on those of a layer's activations.

    That is `gradients_of="representation"`, as in the paper and the authors' layer:
    gradients are multiplied by the signs of the activations and summed over the
    batch (of all replicas), and each feature has one P, one u and one sign for all
    samples. The authors' layer also multiplies the result by the ratio of its norm to
    that of the summed gradients; this one does not.

    Cost: T backward; state: step count; needs: `seed`.
    Choose it when conflicts are local to some entries; with
    `gradients_of="representation"` as in the paper.

    Args:
        leak: Share of each task's gradient that always passes: one number, or
            `{task: number}`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"sum"`; `seed` fixes the draws.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Seed of its random numbers; None draws one.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```python
    model.compile("adam", loss="mse", balancing=mtl_keras.balancing.GradDrop(seed=0))
    ```
    """

    method = "graddrop"
    natural_scale = "sum"
    uses_seed = True

    def __init__(
        self,
        leak: Any = 0.0,
        *,
        gradients_of: str = "shared",
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        self.leak = leak if isinstance(leak, dict) else check_number("leak", leak, 0, 1)

    def build_state(self, num_tasks: int) -> None:
        """Creates the count of draws."""
        super().build_state(num_tasks)
        self.add_variable("draws", (), 0, dtype="int64")
        leak = self.leak if isinstance(self.leak, dict) else [self.leak] * num_tasks
        leaks = per_task("leak", leak, self.tasks, 0.0)
        self._leaks = [check_number("leak", value, 0, 1) for value in leaks]

    def combine(
        self, matrix: list[tf.Tensor], step: GradientStep
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """See `MatrixBalancer.combine`."""
        seed = self.next_seed()
        update = []
        for index, (rows, signs) in enumerate(
            zip(matrix, _sign_deciders(matrix, step), strict=True)
        ):
            agreement = tf.math.divide_no_nan(
                tf.reduce_sum(signs, axis=0), tf.reduce_sum(tf.abs(signs), axis=0)
            )
            purity = 0.5 * (1.0 + agreement)
            draws = tf.random.stateless_uniform(
                tf.shape(signs)[1:],
                seed + tf.constant([index, 0], "int64"),
                alg="philox",
            )
            fails = ((signs > 0) & (purity <= draws)) | (
                (signs < 0) & (purity >= draws)
            )
            leaks = shaped(tf.constant(self._leaks, rows.dtype), rows)
            kept = leaks + (1.0 - leaks) * tf.cast(~fails, rows.dtype)
            update.append(tf.reduce_sum(kept * rows, axis=0))
        return update, mean_weights(step.present, "sum")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "leak": self.leak}


@_register
class TrimmedMean(MatrixBalancer):
    """Entry by entry, the mean without the k largest and the k smallest values.

    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
    Rates", ICML 2018, arXiv 1803.01498. With 2k or fewer tasks in the batch it is
    the mean, counted as a fallback.

    Cost: T backward; needs: T > 2 `trim`.
    Choose it when there are many tasks, some with outliers.

    Args:
        trim: k; needs T > 2k.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"mean"`.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: At `build`, when there are too few tasks.

    Example:

    ```python
    model.compile("adam", loss="mse", balancing=mtl_keras.balancing.TrimmedMean(trim=0))
    ```
    """

    method = "trimmed_mean"

    def __init__(
        self,
        trim: int = 1,
        *,
        gradients_of: str = "shared",
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        self.trim = check_integer("trim", trim, low=0)

    def build_state(self, num_tasks: int) -> None:
        """Checks that values are left."""
        super().build_state(num_tasks)
        if num_tasks <= 2 * self.trim:
            raise InputError(
                f"Expected more than {2 * self.trim} tasks for trimmed_mean with "
                f"trim={self.trim}. Received: {num_tasks} tasks."
            )

    def combine(
        self, matrix: list[tf.Tensor], step: GradientStep
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """See `MatrixBalancer.combine`."""
        ranks = tf.range(len(self.tasks))
        count = tf.reduce_sum(tf.cast(step.present, "int32"))
        enough = count > 2 * self.trim
        self.count_fallback(~enough & (count > 0))
        trim = tf.where(enough, self.trim, 0)
        shares = mean_weights((ranks >= trim) & (ranks < count - trim), "mean")
        update = []
        for rows in matrix:
            # Absent tasks are sorted behind all others, where no share reaches.
            ordered = tf.sort(tf.where(by_row(step.present, rows), rows, np.inf), 0)
            ordered = tf.where(by_row(ranks < count, rows), ordered, 0.0)
            update.append(_sum_of_rows(shares, ordered))
        return update, mean_weights(step.present, "mean")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "trim": self.trim}


def _dtype(gradients: Sequence[Sequence[Any]], index: int) -> tf.DType:
    """Returns the dtype of the gradients on a variable that a task reaches."""
    return next(row[index].dtype for row in gradients if row[index] is not None)


def dense_matrix(step: GradientStep) -> tuple[list[tf.Tensor], list[bool]]:
    """Returns the stacked, unscaled task gradients of each connected variable.

    Args:
        step: The step.

    Returns:
        float32 tensors `[T, …]`, and for every variable whether any task reaches it.
    """
    matrix, connected = [], []
    for column in zip(*step.gradients, strict=True):
        gradients = [gradient for gradient in column if gradient is not None]
        connected.append(bool(gradients))
        if gradients:
            like = tf.convert_to_tensor(gradients[0])
            rows = [
                tf.zeros_like(like) if g is None else tf.convert_to_tensor(g)
                for g in column
            ]
            stacked = tf.cast(tf.stack(rows), "float32") / step.loss_scale
            matrix.append(stacked)
    return matrix, connected


def as_gradients(
    updates: Sequence[tf.Tensor], connected: Sequence[bool], step: GradientStep
) -> list[Any]:
    """Returns updates in the dtypes and with the loss scale of a step's gradients.

    Args:
        updates: float32, for each variable that a task reaches.
        connected: For every variable whether any task reaches it.
        step: The step.

    Returns:
        The V gradients; None for variables that no task reaches.
    """
    left = iter(updates)
    return [
        tf.cast(next(left) * step.loss_scale, _dtype(step.gradients, index))
        if reached
        else None
        for index, reached in enumerate(connected)
    ]


def _sign_deciders(matrix: Sequence[tf.Tensor], step: GradientStep) -> list[tf.Tensor]:
    """Returns the gradients whose signs GradDrop compares.

    `[T, …]` for variables. For a representation `[T, 1, …]`: gradients times the
    signs of the activations, summed over the batch of all replicas.
    """
    if step.summed:
        return list(matrix)
    connected = [
        source
        for index, source in enumerate(step.sources)
        if any(row[index] is not None for row in step.gradients)
    ]
    signed = [
        rows * tf.sign(tf.cast(activations, rows.dtype))
        for rows, activations in zip(matrix, connected, strict=True)
    ]
    return [step.total(tf.reduce_sum(rows, axis=1, keepdims=True)) for rows in signed]


def _any_nonzero(matrix: Sequence[tf.Tensor], num_tasks: int) -> tf.Tensor:
    """Returns for which tasks an entry is not zero, bool `[T]`."""
    nonzero = [
        tf.reduce_any(tf.not_equal(rows, 0.0), axis=list(range(1, rows.ndim)))
        for rows in matrix
    ]
    return tf.reduce_any(tf.stack([tf.zeros(num_tasks, "bool"), *nonzero]), axis=0)


def all_finite(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns whether every entry of every tensor is finite, a bool scalar."""
    finite = [tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors]
    return tf.reduce_all(tf.stack(finite)) if finite else tf.constant(True)


def shaped(by_task: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Returns a vector `[T]` in a shape that broadcasts over rows `[T, …]`."""
    return tf.reshape(by_task, (-1, *[1] * (rows.ndim - 1)))


def by_row(mask: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Returns a mask `[T]` in the shape of rows `[T, …]`."""
    return tf.broadcast_to(shaped(mask, rows), tf.shape(rows))


def gramian_of_rows(matrix: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the Gram matrix of rows `[T, …]` by variable, float64 `[T, T]`."""
    flat = [
        tf.cast(tf.reshape(rows, (rows.shape[0], -1)), "float64") for rows in matrix
    ]
    products = [tf.matmul(rows, rows, transpose_b=True) for rows in flat]
    return agreed(tf.add_n(products))


def weighted_sum(weights: tf.Tensor, matrix: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns Σ w_i rows_i by variable, for weights float32 `[T]`."""
    return [_sum_of_rows(weights, rows) for rows in matrix]


def _sum_of_rows(weights: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    # Not a product of matrices: GPUs round its float32 factors to ten bits (TF32).
    return tf.reduce_sum(shaped(weights, rows) * rows, axis=0)
