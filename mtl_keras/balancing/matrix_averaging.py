"""Methods that keep a moving state for the gradient of each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mtl_keras.balancing.base import GradientStep, agreed, mean_weights
from mtl_keras.balancing.loss_based import masked_softmax
from mtl_keras.balancing.matrix_based import (
    MatrixBalancer,
    all_finite,
    by_row,
    gramian_of_rows,
    shaped,
    weighted_sum,
)
from mtl_keras.balancing.simplex import over_present, project_to_simplex
from mtl_keras.errors import InputError, check_number

_register = keras.saving.register_keras_serializable(package="mtl_keras")


class AveragingBalancer(MatrixBalancer):
    """Keeps a moving state by shared variable.

    `state_shape` is that of a row per task, unless a method overrides it.
    """

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
        """Creates the state of every shared variable.

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
                self.add_variable(name, self.state_shape(v), 0.0)
            self._states[id(v)] = self._variables[name]

    def state_shape(self, variable: keras.Variable) -> tuple[int, ...]:
        """Returns the shape of the state that belongs to a shared variable."""
        return (len(self.tasks), *variable.shape)

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
            new = state - shaped(beta, rows) * (state - rows)
            new = tf.where(by_row(moves, rows), new, state)
            state.assign(new)
            tracked.append(new)
        kept = tf.convert_to_tensor(self._lambda)
        old = over_present(kept, step.present)
        slope = tf.linalg.matvec(gramian_of_rows(tracked), old) + self.rho * old
        moved = old - tf.cast(gamma, "float64") * slope
        new = project_to_simplex(moved, step.present)
        self._lambda.assign(tf.where(moves, new, kept))
        weights = tf.cast(new, "float32")
        return weighted_sum(weights, tracked), weights

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
        usable = step.present & tf.math.is_finite(step.losses) & (step.losses > 0)
        inverse = tf.where(usable, 1.0 / step.losses, 0.0)
        of_logs = [shaped(inverse, rows) * rows for rows in matrix]
        moves = usable & all_finite([*matrix, *of_logs])
        steps = self._steps + tf.cast(moves, "float32")
        self._steps.assign(steps)
        correction = tf.math.divide_no_nan(1.0, 1.0 - tf.pow(self.beta, steps))
        averages = []
        for rows, state in zip(of_logs, self.state_of(step), strict=True):
            new = self.beta * state + (1 - self.beta) * rows
            new = tf.where(by_row(moves, rows), new, state)
            state.assign(new)
            present = tf.where(moves, correction, 0.0)
            averages.append(shaped(present, rows) * new)
        norms = tf.sqrt(tf.linalg.diag_part(gramian_of_rows(averages)))
        weights = tf.math.divide_no_nan(tf.reduce_max(norms), norms)
        weights = tf.cast(weights, "float32")
        return weighted_sum(weights, averages), weights * inverse

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
        excess = agreed(_excess_risks(squares, sums))
        moves = step.present & all_finite(matrix) & tf.math.is_finite(excess)
        for state, new in zip(states, sums, strict=True):
            state.assign(tf.where(by_row(moves, new), new, state))
        first = tf.where(moves & tf.equal(self._first, 0.0), excess, self._first)
        self._first.assign(first)
        growth = self.step_size * tf.math.divide_no_nan(excess, first)
        growth = tf.where(moves, growth, 0.0)
        growth -= tf.reduce_sum(mean_weights(moves, "mean") * growth)
        logits = tf.where(moves, self._logits + growth, self._logits)
        self._logits.assign(logits)
        weights = masked_softmax(logits, step.present)
        return weighted_sum(weights, matrix), weights

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "step_size": self.step_size}


def _excess_risks(squares: Sequence[tf.Tensor], sums: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns Σ g² / √(S + 1e-7), float32 `[T]`, of g² and S `[T, …]` by variable."""
    return tf.add_n(
        [
            tf.reduce_sum(square / tf.sqrt(new + 1e-7), list(range(1, new.ndim)))
            for square, new in zip(squares, sums, strict=True)
        ]
    )
