"""Gram-based methods with a memory, or on independent half-batches."""

from __future__ import annotations

from typing import Any, TypeVar

import keras
import tensorflow as tf

from mtl_keras import ops
from mtl_keras.balancing.base import (
    GradientStep,
    GramBalancer,
    accepted,
    agreed,
    divided,
    has_gradient,
)
from mtl_keras.balancing.simplex import over_present, project_to_simplex
from mtl_keras.errors import InputError, check_integer, check_number
from mtl_keras.ops import solvers

_register = keras.saving.register_keras_serializable(package="mtl_keras")

_Wrapping = TypeVar("_Wrapping", bound="WrappingBalancer")


class WrappingBalancer(GramBalancer):
    """A method that wraps another Gram-based one, solved exactly on whole batches."""

    def __init__(
        self,
        balancer: Any,
        *,
        solve: str = "exact",
        update_every: int = 1,
        normalize: str = "none",
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
            normalize=normalize,
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
            or wrapped.aligns_heads
            or wrapped.needs_probe
        ):
            raise InputError(
                "Expected a Gram-based method on whole batches, solved exactly, whose "
                f"weights are all that it gives, for {self.method} to wrap. "
                f"Received: balancer={balancer!r}."
            )
        self.balancer = wrapped.fresh_copy()

    def fresh_copy(self: _Wrapping) -> _Wrapping:
        """See `Balancer.fresh_copy`; the wrapped method is copied, too."""
        other = super().fresh_copy()
        other.balancer = self.balancer.fresh_copy()
        return other

    @property
    def natural_scale(self) -> str:  # type: ignore[override]
        """The wrapped method's."""
        return self.balancer.natural_scale

    @property
    def compares_losses(self) -> bool:  # type: ignore[override]
        """The wrapped method's."""
        return self.balancer.compares_losses

    def build_state(self, num_tasks: int) -> None:
        """Creates the wrapped method's state."""
        super().build_state(num_tasks)
        self.balancer.build(self.tasks)
        for name, variable in self.balancer.variables.items():
            self._variables[f"wrapped.{name}"] = variable

    def on_epoch_begin(self) -> None:
        """Tells the wrapped method."""
        self.balancer.on_epoch_begin()

    def weights_with_losses(
        self, gramian: tf.Tensor, losses: tf.Tensor, precision: float = solvers.EPS
    ) -> tf.Tensor:
        """See `GramBalancer.weights_with_losses`."""

        def solve(divided: tf.Tensor) -> tf.Tensor:
            new = self.balancer.weights_with_losses(
                divided,
                losses,
                **accepted(self.balancer.weights_with_losses, precision),
            )
            return self.settled(divided, new)

        return self.of_divided(solve, gramian, losses)

    def weights(self, gramian: tf.Tensor, precision: float = solvers.EPS) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        new = self.balancer.weights(
            gramian, **accepted(self.balancer.weights, precision)
        )
        return self.settled(gramian, new)

    def settled(self, gramian: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        """Returns the weights to take for the wrapped method's, float64 `[T]`.

        Args:
            gramian: `[T, T]`.
            new: float64 `[T]`, the wrapped method's.
        """
        del gramian
        return new

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        wrapped = keras.saving.serialize_keras_object(self.balancer)
        return {**super().get_config(), "balancer": wrapped}


@_register
class CRMOGM(WrappingBalancer):
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
        normalize: What divides the task gradients first; see `GramBalancer`.
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
        normalize: str = "none",
        gradients_of: str = "shared",
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            balancer,
            solve=solve,
            update_every=update_every,
            normalize=normalize,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        self.alpha = check_number("alpha", alpha, 0.0, 1.0)

    def build_state(self, num_tasks: int) -> None:
        """Creates the smoothed weights and the wrapped method's state."""
        super().build_state(num_tasks)
        self._smooth = self.add_variable("smoothed", (num_tasks,), 0.0, "float64")
        self._seen = self.add_variable("seen", (num_tasks,), 0.0, "float64")

    def settled(self, gramian: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        """See `WrappingBalancer.settled`: the smoothed weights."""
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
        return {**super().get_config(), "alpha": self.alpha}


class HalfBatchBalancer(GramBalancer):
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
        normalize: str = "none",
        gradients_of: str = "shared",
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            solve=solve,
            update_every=update_every,
            normalize=normalize,
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

    def cross_gramian(self, step: GradientStep) -> tf.Tensor:
        """Returns inner products of the halves' task gradients, float64 `[T, T]`.

        Row i, column j: task i on the first half, task j on the second.
        """
        first, second = step.sub_batches
        num_tasks = len(self.tasks)
        cross = agreed(ops.gramian([*first, *second]))[:num_tasks, num_tasks:]
        return cross / tf.square(tf.cast(step.loss_scale, "float64"))


class _DualBalancer(HalfBatchBalancer):
    """Dual weights on the simplex, moved by the cross-Gram matrix."""

    def build_state(self, num_tasks: int) -> None:
        """Creates the dual weights."""
        super().build_state(num_tasks)
        self._dual = self.add_variable(
            "dual", (num_tasks,), 1.0 / num_tasks, dtype="float64"
        )

    def solution(self, step: GradientStep) -> tf.Tensor:
        """See `GramBalancer.solution`."""
        factors = self.factors(step.gramian, step.losses)
        cross = divided(self.cross_gramian(step), factors)
        # The shortest vector would be that of a task without gradient.
        taking_part = step.present & has_gradient(step.gramian)
        weights = factors * self.dual_step(cross, taking_part)
        return self.rescaled(weights, step.gramian)

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
class MoDo(_DualBalancer):
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
        normalize: What divides the task gradients first; see `GramBalancer`.
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
        normalize: str = "none",
        gradients_of: str = "shared",
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            solve=solve,
            update_every=update_every,
            normalize=normalize,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        self.gamma = check_number("gamma", gamma, 0.0)
        self.rho = check_number("rho", rho, 0.0)

    def dual_step(self, cross: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `_DualBalancer.dual_step`."""
        old = over_present(self.dual(cross.shape[0]), present)
        slope = tf.linalg.matvec(tf.cast(cross, "float64"), old) + self.rho * old
        return self.keep_if_finite(
            project_to_simplex(old - self.gamma * slope, present), present
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "gamma": self.gamma, "rho": self.rho}


@_register
class SDMGrad(_DualBalancer):
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
        normalize: What divides the task gradients first; see `GramBalancer`.
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
        normalize: str = "none",
        gradients_of: str = "shared",
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            solve=solve,
            update_every=update_every,
            normalize=normalize,
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
        """See `_DualBalancer.dual_step`."""
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
