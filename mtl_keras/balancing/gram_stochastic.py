"""Gram-based methods with a memory, a main task, or independent half-batches."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mtl_keras import ops
from mtl_keras.balancing.base import (
    GradientStep,
    GramBalancer,
    accepted,
    has_gradient,
)
from mtl_keras.balancing.simplex import over_present, project_to_simplex
from mtl_keras.errors import InputError, check_integer, check_number, unknown_name
from mtl_keras.ops import solvers

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class CRMOGM(GramBalancer):
    """Wraps another Gram-based method and smooths its weights over the steps.

    w ← α w + (1 − α) w_new. Zhou et al., "On the Convergence of Stochastic
    Multi-Objective Gradient Manipulation and Beyond", NeurIPS 2022. The first
    weights are taken as they are; an absent task keeps its old weight for later and
    gets 0 now. The average is over weights in the scale "sum", so that it is one of
    like with like when the number of tasks in the batch changes.

    Cost: T backward; state: T weights, the wrapped method's; needs: a method to
    wrap.
    Choose it when small batches make another method's weights jump.

    Args:
        balancer: The method to wrap: a name, a configuration or a `GramBalancer`,
            but none that reads halves of the batch. What belongs to every method
            (`scale`, `task_specific`, `gradients_of`, `update_every`) is given to
            the wrapper; the wrapped method's own is not read.
        alpha: α, the share of the old weights.
        solve: `"exact"`; the method has no other way.
        update_every: Solve every k-th step only; see `GramBalancer`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            the wrapped method's.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: For a method that it cannot wrap.

    Example:

    ```python
    balancer = mtl_keras.balancing.CRMOGM(balancer="mgda", alpha=0.9)
    model.compile("adam", loss="mse", balancing=balancer)
    ```
    """

    method = "cr_mogm"

    def __init__(
        self,
        balancer: Any = "mgda",
        alpha: float = 0.9,
        *,
        solve: str = "exact",
        update_every: int = 1,
        gradients_of: str = "shared",
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        from mtl_keras import balancing

        super().__init__(
            solve=solve,
            update_every=update_every,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        wrapped = balancing.get(balancer)
        if (
            not isinstance(wrapped, GramBalancer)
            or wrapped.num_sub_batches
            or wrapped.is_running
        ):
            raise InputError(
                "Expected a Gram-based method on whole batches, solved exactly, for "
                "cr_mogm to wrap. "
                f"Received: balancer={balancer!r}."
            )
        self.balancer = wrapped.fresh_copy()
        self.alpha = check_number("alpha", alpha, 0.0, 1.0)

    def fresh_copy(self) -> CRMOGM:
        """See `Balancer.fresh_copy`; the wrapped method is copied, too."""
        other = super().fresh_copy()
        other.balancer = self.balancer.fresh_copy()
        return other

    @property
    def natural_scale(self) -> str:  # type: ignore[override]
        """The wrapped method's."""
        return self.balancer.natural_scale

    def build_state(self, num_tasks: int) -> None:
        """Creates the smoothed weights and the wrapped method's state."""
        super().build_state(num_tasks)
        self._smooth = self.add_variable("smoothed", (num_tasks,), 0.0, "float64")
        self._seen = self.add_variable("seen", (num_tasks,), 0.0, "float64")
        self.balancer.build(self.tasks)
        for name, variable in self.balancer.variables.items():
            self._variables[f"wrapped.{name}"] = variable

    def weights_with_losses(
        self, gramian: tf.Tensor, losses: tf.Tensor, precision: float = solvers.EPS
    ) -> tf.Tensor:
        """See `GramBalancer.weights_with_losses`."""
        new = self.balancer.weights_with_losses(
            gramian,
            losses,
            **accepted(self.balancer.weights_with_losses, precision),
        )
        return self._smoothed(gramian, new)

    def weights(self, gramian: tf.Tensor, precision: float = solvers.EPS) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        new = self.balancer.weights(
            gramian, **accepted(self.balancer.weights, precision)
        )
        return self._smoothed(gramian, new)

    def _smoothed(self, gramian: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        if not self.built:
            return new
        gramian = tf.cast(gramian, "float64")
        taking_part = has_gradient(gramian)
        moves = taking_part & tf.reduce_all(tf.math.is_finite(gramian))
        count = tf.ones((), "float64")
        if self.natural_scale == "mean":
            count = tf.maximum(tf.reduce_sum(tf.cast(taking_part, "float64")), 1.0)
        mixed = self.alpha * self._smooth + (1.0 - self.alpha) * new * count
        mixed = tf.where(self._seen > 0, mixed, new * count)
        self._smooth.assign(tf.where(moves, mixed, self._smooth))
        self._seen.assign(tf.maximum(self._seen, tf.cast(moves, "float64")))
        return tf.where(taking_part, mixed / count, 0.0)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        wrapped = keras.saving.serialize_keras_object(self.balancer)
        return {**super().get_config(), "balancer": wrapped, "alpha": self.alpha}


@_register
class PCD(GramBalancer):
    """Priority-constrained descent: one main task, the others must not be hurt.

    min ½‖d − ĝ₁‖² subject to ⟨ĝ_j, d⟩ ≥ τ‖ĝ_j‖² for the auxiliary tasks j, with
    ĝ_i = g_i / √(EMA of ‖g_i‖² + ε); d is rescaled to ‖g₁‖. TMLR 2026, arXiv
    2606.29521. Constraints that contradict each other are dropped: the update is
    then the main task's gradient, and the step counts as a fallback. Without the
    main task in the batch it is the mean of the others. ε is relative to the
    average, where the paper's 1e-8 is absolute.

    Cost: T backward; state: T mean squares, T step counts; needs: `primary`.
    Choose it when one task is the main one, the others auxiliary.

    Args:
        primary: Name of the main task; the first by name if `None`.
        tau: τ.
        beta: Share of the old average of ‖g_i‖², which is corrected for its bias.
        epsilon: ε, relative.
        solve: `"exact"`; the method has no other way.
        update_every: Solve every k-th step only; see `GramBalancer`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale, one
            main task's gradient, counts as `"sum"` here.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: At `build`, when `primary` is no task.

    Example:

    ```python
    model.compile("adam", loss="mse", balancing=mtl_keras.balancing.PCD(primary="a"))
    ```
    """

    method = "pcd"
    natural_scale = "sum"

    def __init__(
        self,
        primary: str | None = None,
        tau: float = 0.02,
        beta: float = 0.999,
        epsilon: float = 1e-8,
        *,
        solve: str = "exact",
        update_every: int = 1,
        gradients_of: str = "shared",
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            solve=solve,
            update_every=update_every,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        self.primary = primary
        self.tau = check_number("tau", tau, 0.0)
        self.beta = check_number("beta", beta, 0.0, 1.0 - 1e-9)
        self.epsilon = check_number("epsilon", epsilon, 0.0)

    def build_state(self, num_tasks: int) -> None:
        """Creates the averages of the squared norms."""
        super().build_state(num_tasks)
        if self.primary is not None and self.primary not in self.tasks:
            raise unknown_name("primary task", self.primary, self.tasks)
        self._squares = self.add_variable("squares", (num_tasks,), 0.0, "float64")
        self._steps = self.add_variable("steps_seen", (num_tasks,), 0.0, "float64")

    def weights(self, gramian: tf.Tensor, precision: float = solvers.EPS) -> tf.Tensor:
        """See `GramBalancer.weights`. Before `build`, averages are this step's."""
        gramian = tf.cast(gramian, "float64")
        num_tasks = gramian.shape[0]
        main = self.tasks.index(self.primary) if self.primary in self.tasks else 0
        squares = tf.linalg.diag_part(gramian)
        taking_part = has_gradient(gramian)
        finite = tf.reduce_all(tf.math.is_finite(gramian))
        scales = tf.sqrt(self._average(squares, taking_part & finite))
        inverse = tf.where(taking_part, tf.math.divide_no_nan(1.0, scales), 0.0)
        unit = inverse[:, None] * gramian * inverse
        unit = tf.where(finite, unit, tf.eye(num_tasks, dtype="float64"))
        is_main = tf.one_hot(main, num_tasks, dtype="float64")
        auxiliary = tf.where(taking_part, 1.0 - is_main, 0.0)
        # Dual of the projection: min ½ vᵀAv − cᵀv over v ≥ 0, with d = ĝ₁ + Σ v_j e_j
        # for the unit vectors e_j along the ĝ_j: constraints then are of one size.
        lengths = tf.sqrt(tf.linalg.diag_part(unit))
        shorter = auxiliary * tf.math.divide_no_nan(tf.ones_like(lengths), lengths)
        matrix = shorter[:, None] * unit * shorter
        matrix = tf.linalg.set_diag(matrix, tf.ones_like(lengths))
        gaps = self.tau * auxiliary * lengths - shorter * unit[main]
        solution, solved = solvers.nonnegative_qp(matrix, gaps[None])
        multipliers = shorter * solution.x[0]
        reached = shorter * tf.linalg.matvec(unit, multipliers) - gaps
        size = 1.0 + tf.reduce_max(tf.abs(gaps))
        # Constraints that contradict each other up to noise ask for multipliers that
        # only the noise holds up.
        bounded = tf.reduce_max(solution.x) < size / solvers.noise_of(precision) ** 2
        met = tf.reduce_min(reached) > -1e-6 * size
        feasible = solved[0] & finite & bounded & met
        direction = (is_main + tf.where(feasible, multipliers, 0.0)) * inverse
        length = tf.sqrt(
            tf.maximum(tf.einsum("i,ij,j", direction, gramian, direction), 0.0)
        )
        weights = direction * tf.math.divide_no_nan(tf.sqrt(squares[main]), length)
        usable = taking_part[main] & (length > 0) & finite
        count = tf.maximum(tf.reduce_sum(tf.cast(taking_part, "float64")), 1.0)
        mean = tf.cast(taking_part, "float64") / count
        return self.solved(tf.where(usable, weights, mean), feasible & usable)

    def _average(self, squares: tf.Tensor, moves: tf.Tensor) -> tf.Tensor:
        if not self.built:
            return squares
        steps = self._steps + tf.cast(moves, "float64")
        averages = self.beta * self._squares + (1 - self.beta) * squares
        averages = tf.where(moves, averages, self._squares)
        self._steps.assign(steps)
        self._squares.assign(averages)
        bias = 1.0 - tf.pow(tf.cast(self.beta, "float64"), steps)
        return tf.math.divide_no_nan(averages, bias) * (1.0 + self.epsilon)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "primary": self.primary,
            "tau": self.tau,
            "beta": self.beta,
            "epsilon": self.epsilon,
        }


class _HalfBatchBalancer(GramBalancer):
    """Reads the cross-Gram matrix of two disjoint halves of the batch.

    Every other sample is in the same half; the update itself is that of the whole
    batch, where the papers draw a further batch for it. Batch statistics are the
    whole batch's.
    """

    num_sub_batches = 2

    def __init__(
        self,
        *,
        solve: str = "exact",
        update_every: int = 1,
        gradients_of: str = "shared",
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            solve=solve,
            update_every=update_every,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        if self.gradients_of != "shared" or self.update_every != 1:
            raise InputError(
                f"Expected gradients_of='shared' and update_every=1 for balancing="
                f"{self.method!r}. Received: gradients_of={self.gradients_of!r}, "
                f"update_every={self.update_every}."
            )

    def build_state(self, num_tasks: int) -> None:
        """Creates the dual weights."""
        super().build_state(num_tasks)
        self._dual = self.add_variable(
            "dual", (num_tasks,), 1.0 / num_tasks, dtype="float64"
        )

    def solution(self, step: GradientStep) -> tf.Tensor:
        """See `GramBalancer.solution`."""
        first, second = step.sub_batches
        both = ops.gramian([*first, *second])
        num_tasks = len(self.tasks)
        cross = both[:num_tasks, num_tasks:]
        cross /= tf.square(tf.cast(step.loss_scale, "float64"))
        # The shortest vector would be that of a task without gradient.
        taking_part = step.present & has_gradient(step.gramian)
        return self.rescaled(self.dual_step(cross, taking_part), step.gramian)

    def dual_step(self, cross: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """Moves the dual weights and returns the task weights, float64 `[T]`."""
        raise NotImplementedError

    def weights(self, gramian: tf.Tensor) -> tf.Tensor:
        """The weights when both halves' gradients are the same."""
        return self.dual_step(gramian, has_gradient(gramian))

    def keep_if_finite(self, new: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """Stores the dual weights of present tasks, unless they are not finite."""
        finite = tf.reduce_all(tf.math.is_finite(new))
        self.count_fallback(~finite)
        mean = tf.cast(present, "float64")
        mean = tf.math.divide_no_nan(mean, tf.reduce_sum(mean))
        if self.built:
            self._dual.assign(
                tf.where(finite & present, new, tf.convert_to_tensor(self._dual))
            )
        return tf.where(finite, new, mean)

    def dual(self, num_tasks: int) -> tf.Tensor:
        """The present dual weights, float64 `[T]`."""
        if self.built:
            return tf.convert_to_tensor(self._dual)
        return tf.ones((num_tasks,), "float64") / num_tasks


@_register
class MoDo(_HalfBatchBalancer):
    """One projected dual step a batch on a double sample: λ ← Π(λ − γ (G₁₂λ + ρλ)).

    Chen et al., "Three-Way Trade-Off in Multi-Objective Learning", NeurIPS 2023,
    arXiv 2305.20057. G₁₂ holds inner products of gradients of two disjoint halves
    of the batch, which makes the dual gradient unbiased. Differs from the paper in
    that the update is the whole batch's, where the paper draws a further batch.

    Cost: 3 T backward; state: T dual weights; needs: halves of the batch.
    Choose it when `sdmgrad` would do, with slowly moving weights.

    Args:
        gamma: γ.
        rho: ρ.
        solve: `"exact"`; the method has no other way.
        update_every: Solve every k-th step only; see `GramBalancer`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"mean"`.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```python
    model.compile("adam", loss="mse", balancing=mtl_keras.balancing.MoDo())
    ```
    """

    method = "modo"

    def __init__(
        self,
        gamma: float = 1e-3,
        rho: float = 0.1,
        *,
        solve: str = "exact",
        update_every: int = 1,
        gradients_of: str = "shared",
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            solve=solve,
            update_every=update_every,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        self.gamma = check_number("gamma", gamma, 0.0)
        self.rho = check_number("rho", rho, 0.0)

    def dual_step(self, cross: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `_HalfBatchBalancer.dual_step`."""
        old = over_present(self.dual(cross.shape[0]), present)
        slope = tf.linalg.matvec(tf.cast(cross, "float64"), old) + self.rho * old
        return self.keep_if_finite(
            project_to_simplex(old - self.gamma * slope, present), present
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "gamma": self.gamma, "rho": self.rho}


@_register
class SDMGrad(_HalfBatchBalancer):
    """Min-norm direction regularised towards the mean, from independent samples.

    Dual steps w ← Π(w − η G₁₂ (w + λ w₀)) with w₀ = 1/T; the update is that of
    (w + λ w₀) / (1 + λ). Xiao, Ban & Ji, "Direction-oriented Multi-objective
    Learning: Simple and Provable Stochastic Algorithms", NeurIPS 2023, arXiv
    2305.18409. G₁₂ is that of two halves of the batch; differs from the paper in that
    the update is the whole batch's, where the paper draws a further batch, and in
    that η is relative to the mean diagonal of G₁₂ over the present tasks, so that it
    does not depend on the size of the gradients.

    Cost: 3 T backward; state: T dual weights; needs: halves of the batch.
    Choose it when `mgda` would do, and gradients are noisy.

    Args:
        strength: λ.
        inner_steps: Dual steps per batch.
        step_size: η, relative.
        solve: `"exact"`; the method has no other way.
        update_every: Solve every k-th step only; see `GramBalancer`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"mean"`.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```python
    model.compile("adam", loss="mse", balancing=mtl_keras.balancing.SDMGrad())
    ```
    """

    method = "sdmgrad"

    def __init__(
        self,
        strength: float = 0.3,
        inner_steps: int = 20,
        step_size: float = 0.1,
        *,
        solve: str = "exact",
        update_every: int = 1,
        gradients_of: str = "shared",
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            solve=solve,
            update_every=update_every,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        self.strength = check_number("strength", strength, 0.0)
        self.inner_steps = check_integer("inner_steps", inner_steps, low=1)
        self.step_size = check_number("step_size", step_size, 0.0)

    def dual_step(self, cross: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `_HalfBatchBalancer.dual_step`."""
        cross = tf.cast(cross, "float64")
        centre = tf.cast(present, "float64")
        centre = tf.math.divide_no_nan(centre, tf.reduce_sum(centre))
        size = tf.reduce_sum(centre * tf.abs(tf.linalg.diag_part(cross)))
        rate = tf.math.divide_no_nan(tf.cast(self.step_size, "float64"), size)
        dual = over_present(self.dual(cross.shape[0]), present)
        for _ in range(self.inner_steps):
            slope = tf.linalg.matvec(cross, dual + self.strength * centre)
            dual = project_to_simplex(dual - rate * slope, present)
        dual = self.keep_if_finite(dual, present)
        return (dual + self.strength * centre) / (1.0 + self.strength)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "strength": self.strength,
            "inner_steps": self.inner_steps,
            "step_size": self.step_size,
        }
