"""Methods that need the whole T × D matrix of task gradients.

Their update is not a weighted sum of the gradients, or they keep a moving average
of every task's gradient. Sparse gradients are made dense, so cost and state grow
with T times the shared variables.
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
    mean_weights,
)
from mtl_keras.balancing.loss_based import masked_softmax
from mtl_keras.balancing.simplex import over_present, project_to_simplex
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
        step.present &= _any_nonzero(matrix, len(step.gradients))
        update, weights = self.combine(matrix, step)
        # Gradients that are not finite stay so, which tells a loss-scaling optimizer
        # to skip the step; weights without any entry would stop training silently.
        usable = all_finite([*matrix, *update])
        present = tf.reduce_any(step.present)
        usable &= tf.reduce_any(tf.not_equal(weights, 0.0)) | ~present
        self.count_fallback(~usable)
        mean = mean_weights(step.present, self.scale)
        factor = self._rescaling(step.present)
        combined: list[Any] = [None] * len(connected)
        for index, value, rows in zip(
            (i for i, reached in enumerate(connected) if reached),
            update,
            matrix,
            strict=True,
        ):
            plain = _sum_of_rows(mean, rows)
            value = tf.where(usable, value * factor, plain)
            value *= step.loss_scale
            combined[index] = tf.cast(value, _dtype(step.gradients, index))
        return combined, tf.where(usable, weights * factor, mean)

    def _rescaling(self, present: tf.Tensor) -> tf.Tensor:
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


class AveragingBalancer(MatrixBalancer):
    """Keeps a moving state for every entry of the task gradients."""

    def __init__(
        self,
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
        if self.gradients_of != "shared":
            raise InputError(
                f"Expected gradients_of='shared' for balancing={self.method!r}, "
                "whose averages belong to variables. "
                f"Received: gradients_of={self.gradients_of!r}."
            )

    def build_state(self, num_tasks: int) -> None:
        """Forgets the shared variables of an earlier `build`."""
        super().build_state(num_tasks)
        self._states: dict[int, keras.Variable] = {}

    def build_variables(self, shared: Sequence[keras.Variable]) -> None:
        """Creates the state, one entry per task and shared variable's entry.

        Where it is called again, the state of frozen variables is dropped. With
        thawed ones the method starts anew, as its counts hold for all averages.
        """
        if self._states and any(id(v) not in self._states for v in shared):
            self.build(self.tasks)
        known, self._states = self._states, {}
        for index in range(len(known)):
            del self._variables[f"state_{index}"]
        for index, v in enumerate(shared):
            name = f"state_{index}"
            if id(v) in known:
                self._variables[name] = known[id(v)]
            else:
                self.add_variable(name, (len(self.tasks), *v.shape), 0.0)
            self._states[id(v)] = self._variables[name]

    def state_of(self, step: GradientStep) -> list[keras.Variable]:
        """Returns the state of the variables that a task reaches."""
        states = list(self._states.values())
        if step.sources:
            for variable in step.sources:
                if id(variable) not in self._states:
                    raise InputError(
                        "Expected variables that the model's layers show as shared "
                        f"before the first step, as {self.method} keeps averages for "
                        f"them. Received {variable.path!r}, which was thawed since, or "
                        "which tasks share through a closure or a loss; compile "
                        "again, or take a method without averages."
                    )
            states = [self._states[id(variable)] for variable in step.sources]
        return [
            state
            for index, state in enumerate(states)
            if any(row[index] is not None for row in step.gradients)
        ]


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
        self._leaks = per_task("leak", leak, self.tasks, 0.0)

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
            leaks = _shaped(tf.constant(self._leaks, rows.dtype), rows)
            kept = leaks + (1.0 - leaks) * tf.cast(~fails, rows.dtype)
            update.append(tf.reduce_sum(kept * rows, axis=0))
        return update, mean_weights(step.present, "sum")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "leak": self.leak}


@_register
class MoCo(AveragingBalancer):
    """Min-norm weights on tracked gradients: y_i ← y_i − β (y_i − g_i).

    λ ← Π(λ − γ (YYᵀ + ρ I) λ) with Π the projection onto the simplex; the update is
    Yᵀλ. Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning",
    ICLR 2023, arXiv 2210.12624. LibMTL uses a softmax in place of the projection, and
    brings each g_i to the length of its loss (g_i · L_i / ‖g_i‖) before it is
    tracked. β falls with the steps of its task, γ with those of the task that has
    most.

    Cost: T backward; state: T × P averages, T weights, T step counts.
    Choose it when `mgda` would do, gradients are noisy and there is memory to
    spare.

    Args:
        beta: β of the first step.
        gamma: γ of the first step.
        beta_decay: β falls as step^−beta_decay.
        gamma_decay: γ falls as step^−gamma_decay.
        rho: ρ.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"mean"`.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```python
    model.compile("adam", loss="mse", balancing=mtl_keras.balancing.MoCo())
    ```
    """

    method = "moco"

    def __init__(
        self,
        beta: float = 0.5,
        gamma: float = 0.1,
        beta_decay: float = 0.5,
        gamma_decay: float = 0.5,
        rho: float = 0.0,
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
        self.beta = check_number("beta", beta, 0.0, 1.0)
        self.gamma = check_number("gamma", gamma, 0.0)
        self.beta_decay = check_number("beta_decay", beta_decay, 0.0)
        self.gamma_decay = check_number("gamma_decay", gamma_decay, 0.0)
        self.rho = check_number("rho", rho, 0.0)

    def build_state(self, num_tasks: int) -> None:
        """Creates λ and the tasks' step counts."""
        super().build_state(num_tasks)
        self._lambda = self.add_variable(
            "lambda", (num_tasks,), 1.0 / num_tasks, dtype="float64"
        )
        self._steps = self.add_variable("steps", (num_tasks,), 0.0)

    def combine(
        self, matrix: list[tf.Tensor], step: GradientStep
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """See `MatrixBalancer.combine`."""
        moves = step.present & all_finite(matrix)
        steps = self._steps + tf.cast(moves, "float32")
        self._steps.assign(steps)
        steps = tf.maximum(steps, 1.0)
        beta = self.beta * tf.pow(steps, -self.beta_decay)
        gamma = self.gamma * tf.pow(tf.reduce_max(steps), -self.gamma_decay)
        tracked = []
        for rows, state in zip(matrix, self.state_of(step), strict=True):
            new = state - _shaped(beta, rows) * (state - rows)
            new = tf.where(_by_row(moves, rows), new, state)
            state.assign(new)
            tracked.append(new)
        kept = tf.convert_to_tensor(self._lambda)
        old = over_present(kept, step.present)
        slope = tf.linalg.matvec(_gramian(tracked), old) + self.rho * old
        moved = old - tf.cast(gamma, "float64") * slope
        new = project_to_simplex(moved, step.present)
        self._lambda.assign(tf.where(moves, new, kept))
        weights = tf.cast(new, "float32")
        return _weighted_sum(weights, tracked), weights

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "beta": self.beta,
            "gamma": self.gamma,
            "beta_decay": self.beta_decay,
            "gamma_decay": self.gamma_decay,
            "rho": self.rho,
        }


@_register
class DBMTL(AveragingBalancer):
    """Dual balancing: log losses, and averaged gradients of equal length.

    An average of each ∇ log L_i is kept; the update is Σ (max‖avg‖ / ‖avg_i‖) avg_i.
    Lin et al., "Dual-Balancing for Multi-Task Learning", arXiv 2308.12029. Differs
    from public code in that the average, which starts at zero, is corrected for
    that bias, and that heads follow their own loss (not its logarithm).

    Cost: T backward; state: T × P averages, T step counts; needs: positive losses.
    Choose it when losses and gradients both differ in size.

    Args:
        beta: Share of the old average.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"sum"`.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```python
    model.compile("adam", loss="mse", balancing=mtl_keras.balancing.DBMTL())
    ```
    """

    method = "db_mtl"
    natural_scale = "sum"

    def __init__(
        self,
        beta: float = 0.9,
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
        self.beta = check_number("beta", beta, 0.0, 1.0 - 1e-9)

    def build_state(self, num_tasks: int) -> None:
        """Creates the tasks' step counts."""
        super().build_state(num_tasks)
        self._steps = self.add_variable("steps", (num_tasks,), 0.0)

    def combine(
        self, matrix: list[tf.Tensor], step: GradientStep
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """See `MatrixBalancer.combine`."""
        usable = tf.math.is_finite(step.losses) & (step.losses > 0)
        moves = step.present & all_finite(matrix) & usable
        steps = self._steps + tf.cast(moves, "float32")
        self._steps.assign(steps)
        correction = tf.math.divide_no_nan(1.0, 1.0 - tf.pow(self.beta, steps))
        inverse = tf.where(moves, 1.0 / step.losses, 0.0)
        averages = []
        for rows, state in zip(matrix, self.state_of(step), strict=True):
            new = self.beta * state + (1 - self.beta) * _shaped(inverse, rows) * rows
            new = tf.where(_by_row(moves, rows), new, state)
            state.assign(new)
            present = tf.where(moves, correction, 0.0)
            averages.append(_shaped(present, rows) * new)
        norms = tf.sqrt(tf.linalg.diag_part(_gramian(averages)))
        weights = tf.math.divide_no_nan(tf.reduce_max(norms), norms)
        weights = tf.cast(weights, "float32")
        return _weighted_sum(weights, averages), weights * inverse

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "beta": self.beta}


@_register
class ExcessMTL(AveragingBalancer):
    """Weights by excess risk, estimated from gradients: robust to label noise.

    S_i += g_i²; e_i = Σ g_i² / √(S_i + 1e-7); w ∝ w · exp(η e_i / e_i(0)). He et
    al., "Robust Multi-Task Learning with Excess Risks", ICML 2024, arXiv 2402.02009.
    The exponents of a step are taken relative to their mean over the tasks in the
    batch, which changes no weight, and leaves an absent task where it stood among the
    others.

    Cost: T backward; state: T × P sums, T weights, T first risks.
    Choose it when labels of some tasks are noisy.

    Args:
        step_size: η.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"mean"`.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```python
    model.compile("adam", loss="mse", balancing=mtl_keras.balancing.ExcessMTL())
    ```
    """

    method = "excess_mtl"

    def __init__(
        self,
        step_size: float = 1e-2,
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
        self.step_size = check_number("step_size", step_size, 0.0)

    def build_state(self, num_tasks: int) -> None:
        """Creates the log weights and the first excess risks."""
        super().build_state(num_tasks)
        self._logits = self.add_variable("log_weights", (num_tasks,), 0.0)
        self._first = self.add_variable("first_excess", (num_tasks,), 0.0)

    def combine(
        self, matrix: list[tf.Tensor], step: GradientStep
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """See `MatrixBalancer.combine`."""
        states = self.state_of(step)
        squares = [tf.square(rows) for rows in matrix]
        sums = [state + square for state, square in zip(states, squares, strict=True)]
        excess = tf.add_n(
            [
                tf.reduce_sum(square / tf.sqrt(new + 1e-7), list(range(1, new.ndim)))
                for square, new in zip(squares, sums, strict=True)
            ]
        )
        moves = step.present & all_finite(matrix) & tf.math.is_finite(excess)
        for state, new in zip(states, sums, strict=True):
            state.assign(tf.where(_by_row(moves, new), new, state))
        first = tf.where(moves & tf.equal(self._first, 0.0), excess, self._first)
        self._first.assign(first)
        growth = self.step_size * tf.math.divide_no_nan(excess, first)
        growth = tf.where(moves, growth, 0.0)
        growth -= tf.reduce_sum(mean_weights(moves, "mean") * growth)
        logits = tf.where(moves, self._logits + growth, self._logits)
        self._logits.assign(logits)
        weights = masked_softmax(logits, step.present)
        return _weighted_sum(weights, matrix), weights

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "step_size": self.step_size}


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
            ordered = tf.sort(tf.where(_by_row(step.present, rows), rows, np.inf), 0)
            ordered = tf.where(_by_row(ranks < count, rows), ordered, 0.0)
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


def _shaped(by_task: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    return tf.reshape(by_task, (-1, *[1] * (rows.ndim - 1)))


def _by_row(mask: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    return tf.broadcast_to(_shaped(mask, rows), tf.shape(rows))


def _gramian(matrix: Sequence[tf.Tensor]) -> tf.Tensor:
    flat = [
        tf.cast(tf.reshape(rows, (rows.shape[0], -1)), "float64") for rows in matrix
    ]
    return tf.add_n([tf.matmul(rows, rows, transpose_b=True) for rows in flat])


def _weighted_sum(weights: tf.Tensor, matrix: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    return [_sum_of_rows(weights, rows) for rows in matrix]


def _sum_of_rows(weights: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    # Not a product of matrices: GPUs round its float32 factors to ten bits (TF32).
    return tf.reduce_sum(_shaped(weights, rows) * rows, axis=0)
