"""Methods whose weights solve a program in the Gram matrix: bargaining, dual cones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from mtl_keras.balancing.arguments import (
    PerTask,
    per_task,
    plain,
    preference_per_task,
)
from mtl_keras.balancing.base import GramBalancer, has_gradient
from mtl_keras.balancing.epochs import EpochMeans
from mtl_keras.balancing.running import RunningBalancer, is_size
from mtl_keras.errors import InputError, check_number
from mtl_keras.ops import solvers

_register = keras.saving.register_keras_serializable(package="mtl_keras")


class _PowerRoot(RunningBalancer):
    """Solves G w = s w^(−1/α); what Nash-MTL, FairGrad and PIVRG have in common."""

    natural_scale = "sum"
    alpha = 1.0

    def __init__(
        self,
        max_norm: float | None = None,
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
        if max_norm is not None:
            max_norm = check_number("max_norm", max_norm, low=0.0)
        self.max_norm = max_norm

    def weights(self, gramian: tf.Tensor, precision: float = solvers.EPS) -> tf.Tensor:
        """See `GramBalancer.weights`; shortened where the update exceeds `max_norm`."""
        shares = self.shares(has_gradient(gramian))
        solution = solvers.power_root(gramian, self.alpha, precision, shares)
        weights = self.solved(*solution)
        return shortened(weights, gramian, self.max_norm)

    def shares(self, present: tf.Tensor) -> tf.Tensor | None:
        """Returns s, positive float64 `[T]`; None is 1 for every task.

        Args:
            present: bool `[T]`, the tasks that take part.
        """
        del present
        return None

    def targets(self, weights: tf.Tensor, products: tf.Tensor) -> tf.Tensor:
        """See `RunningBalancer.targets`: s w^(−1/α)."""
        targets = tf.pow(weights, -1.0 / self.alpha)
        shares = self.shares(tf.not_equal(weights, 0.0))
        return targets if shares is None else shares * targets

    def residual(self, ratios: tf.Tensor, moves: tf.Tensor) -> tf.Tensor:
        """See `RunningBalancer.residual`: max |(G w)_i w_i^(1/α) − 1|."""
        return tf.reduce_max(tf.where(moves, tf.abs(ratios - 1.0), 0.0))

    @property
    def log_rate(self) -> float:
        """See `RunningBalancer.log_rate`."""
        return self.alpha / (1.0 + self.alpha)

    def running_factor(
        self, norm: tf.Tensor, sizes: tf.Tensor, present: tf.Tensor
    ) -> tf.Tensor:
        """See `RunningBalancer.running_factor`.

        At the solution wᵀG w = Σ s_i w_i^(1 − 1/α): of the multiples of w the one
        that meets this, shortened where the update exceeds `max_norm`.
        """
        taking_part = present & is_size(sizes)
        weights = self.natural_weights(sizes, present)
        terms = tf.where(taking_part, weights * self.targets(weights, weights), 0.0)
        quotient = tf.reduce_sum(terms) / tf.square(norm)
        usable = tf.math.is_finite(quotient) & (quotient > 0.0)
        multiple = tf.pow(tf.where(usable, quotient, 1.0), self.log_rate)
        multiple = tf.clip_by_value(multiple, 2.0**-110, 2.0**110)
        if self.max_norm is not None:
            longest = tf.math.divide_no_nan(tf.cast(self.max_norm, "float64"), norm)
            multiple = tf.minimum(multiple, tf.where(norm > 0.0, longest, 1.0))
        factor = super().running_factor(norm, sizes, present)
        return factor * tf.cast(multiple, "float32")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "max_norm": self.max_norm}


def shortened(
    weights: tf.Tensor, gramian: tf.Tensor, max_norm: float | None
) -> tf.Tensor:
    """Returns weights whose update is no longer than `max_norm`, float64 `[T]`.

    Args:
        weights: float64 `[T]`.
        gramian: `[T, T]`.
        max_norm: `None` for no limit.
    """
    if max_norm is None:
        return weights
    square = tf.einsum("i,ij,j", weights, tf.cast(gramian, "float64"), weights)
    norm = tf.sqrt(tf.maximum(square, 0.0))
    shorter = tf.math.divide_no_nan(tf.cast(max_norm, "float64"), norm)
    return tf.where(norm > max_norm, weights * shorter, weights)


@_register
class Nash(_PowerRoot):
    """The Nash bargaining solution between the tasks: G w = 1 / w, w > 0.

    Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, arXiv
    2202.01017. ‖update‖² = T at the solution, whatever the size of the gradients.
    Solved exactly by Newton's method, where the paper solves a sequence of convex
    approximations. Near Pareto-stationary points there is no solution: the weights
    are then the plain sum's, and the step is counted as a fallback.

    Cost: T (running: 2) backward.
    Choose it when tasks differ in scale; the result does not depend on it. Updates
    have length √T: set the learning rate, or `max_norm`.

    Args:
        max_norm: Longest update; `None` for no limit (1 in the authors' code).
        solve: `"exact"`, or `"running"` for weights that follow the solution at a
            price independent of T; see `RunningBalancer`.
        update_every: Solve every k-th step only; see `GramBalancer`.
        normalize: What divides the task gradients first; see `GramBalancer`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"sum"`, the root itself; `update_every` is the paper's way to save time.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```pycon
    >>> gramian = tf.constant([[1.0, -0.5], [-0.5, 4.0]])
    >>> mtl_keras.balancing.Nash().weights(gramian).numpy().round(3)
    array([1.155, 0.577])
    ```
    """

    method = "nash"


@_register
class FairGrad(_PowerRoot):
    """α-fair allocation of the progress to the tasks: G w = w^(−1/α), w > 0.

    Ban & Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, arXiv
    2402.15638. α = 1 is Nash-MTL; the authors ran 2 (LibMTL's default is 1).

    Cost: T (running: 2) backward.
    Choose it when `nash` would do, with fairness set by `alpha`.

    Args:
        alpha: α > 0; the larger, the fairer.
        max_norm: Longest update; `None` for no limit.
        solve: `"exact"`, or `"running"` for weights that follow the solution at a
            price independent of T; see `RunningBalancer`.
        update_every: Solve every k-th step only; see `GramBalancer`.
        normalize: What divides the task gradients first; see `GramBalancer`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```pycon
    >>> gramian = tf.constant([[1.0, -0.5], [-0.5, 4.0]])
    >>> mtl_keras.balancing.FairGrad(alpha=2.0).weights(gramian).numpy().round(3)
    array([1.173, 0.5  ])
    ```
    """

    method = "fairgrad"
    search_space = {"alpha": {"min": 0.5, "max": 4.0}}  # noqa: RUF012

    def __init__(
        self,
        alpha: float = 2.0,
        max_norm: float | None = None,
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
            max_norm,
            solve=solve,
            update_every=update_every,
            normalize=normalize,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        self.alpha = check_number("alpha", alpha, low=1e-3)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "alpha": self.alpha}


@_register
class PIVRG(_PowerRoot):
    """Performance-informed fairness: tasks behind their single-task model count more.

    G w = √(ω / w), w > 0, with ω = T · softmax(Δ / τ) and Δ_i = 100 (L_i − B_i) / B_i,
    the mean loss of the task in the last epoch beside that of a model of this task
    alone; τ = max((max Δ − min Δ) / log `bound`, `min_temperature`), so that no ω is
    more than `bound` times another. Qin, Wang & Yan, "Revisiting Fairness in Multitask
    Learning: A Performance-Driven Approach for Variance Reduction", CVPR 2025.

    Without `baselines`, and in the first epoch, ω = 1: that is `fairgrad` with α = 2.
    Differs from the paper in that Δ compares losses, where the paper compares metrics
    (of the validation samples, or those of training), and in that an exact solver takes
    the place of the authors' least squares. Epochs are those of `fit`; a training loop
    of your own calls `on_epoch_begin`. With `update_every` the means are over the steps
    that solve.

    Cost: T (running: 2) backward; state: T means of two epochs; needs: `baselines`.
    Choose it when `fairgrad` would do, and losses of single-task models are known.

    Args:
        baselines: Positive B, `{task: loss}` or a list, for every task, times the
            task's `loss_weights` as the losses are; `None` for none. Not beside a
            loss balancer, whose weights change.
        bound: Largest ratio of two ω, above 1; 1.8 to 2 in the authors' runs.
        min_temperature: Least τ, in percent; 10 to 100 in the authors' runs.
        max_norm: Longest update; `None` for no limit (1 in the authors' code).
        solve: `"exact"`, or `"running"` for weights that follow the solution at a
            price independent of T; see `RunningBalancer`.
        update_every: Solve every k-th step only; see `GramBalancer`.
        normalize: What divides the task gradients first; see `GramBalancer`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: At `build`, when the baselines do not fit the tasks.

    Example:

    ```python
    balancer = mtl_keras.balancing.PIVRG(baselines={"a": 0.2, "b": 1.3})
    model.compile("adam", loss="mse", balancing=balancer)
    ```
    """

    method = "pivrg"
    search_space = {"bound": {"min": 1.2, "max": 4.0, "log": True}}  # noqa: RUF012
    alpha = 2.0

    def __init__(
        self,
        baselines: PerTask | None = None,
        bound: float = 2.0,
        min_temperature: float = 10.0,
        max_norm: float | None = None,
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
            max_norm,
            solve=solve,
            update_every=update_every,
            normalize=normalize,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        self.baselines = None if baselines is None else plain(baselines)
        self.bound = check_number("bound", bound, low=1.0 + 1e-6)
        self.min_temperature = check_number(
            "min_temperature", min_temperature, low=1e-6
        )

    def build_state(self, num_tasks: int) -> None:
        """Checks the baselines against the tasks, and creates the epoch means."""
        super().build_state(num_tasks)
        self._means = EpochMeans(self.add_variable, num_tasks)
        if self.baselines is None:
            return
        self._baselines = per_task("baselines", self.baselines, self.tasks, 0.0)
        if min(self._baselines) <= 0.0:
            raise InputError(
                f"Expected `baselines` to be positive for every task of "
                f"{list(self.tasks)}. Received: baselines={self.baselines}."
            )

    @property
    def compares_losses(self) -> bool:  # type: ignore[override]
        """See `GradientBalancer.compares_losses`."""
        return self.baselines is not None

    def on_epoch_begin(self) -> None:
        """Closes the epoch before."""
        self._means.close_epoch()

    def shares(self, present: tf.Tensor) -> tf.Tensor | None:
        """See `_PowerRoot.shares`: √ω."""
        if self.baselines is None or not self.built:
            return None
        losses = tf.cast(tf.convert_to_tensor(self._means.last), "float64")
        delta = 100.0 * (losses / tf.constant(self._baselines, "float64") - 1.0)
        delta = tf.where(self._means.epochs > 0, delta, 0.0)
        highest = tf.reduce_max(tf.where(present, delta, delta.dtype.min))
        lowest = tf.reduce_min(tf.where(present, delta, delta.dtype.max))
        spread = (highest - lowest) / math.log(self.bound)
        temperature = tf.maximum(spread, self.min_temperature)
        parts = tf.where(present, tf.exp((delta - highest) / temperature), 0.0)
        count = tf.reduce_sum(tf.cast(present, "float64"))
        omega = tf.math.divide_no_nan(count * parts, tf.reduce_sum(parts))
        return tf.where(present, tf.sqrt(omega), 1.0)

    def weights_with_losses(
        self, gramian: tf.Tensor, losses: tf.Tensor, precision: float = solvers.EPS
    ) -> tf.Tensor:
        """See `GramBalancer.weights_with_losses`; adds the losses to the epoch's."""
        weights = super().weights_with_losses(gramian, losses, precision)
        if self.built:
            self._means.add(losses, has_gradient(gramian))
        return weights

    def follow(
        self,
        products: tf.Tensor,
        losses: tf.Tensor,
        sizes: tf.Tensor,
        present: tf.Tensor,
        due: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """See `RunningBalancer.follow`; adds the losses to the epoch's."""
        followed = super().follow(products, losses, sizes, present, due)
        self._means.add(losses, present)
        return followed

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "baselines": self.baselines,
            "bound": self.bound,
            "min_temperature": self.min_temperature,
        }


@_register
class ConsMTL(_PowerRoot):
    """Consistent multi-task learning: heads turn their gradients to the update, too.

    Shared variables follow `fairgrad` with α = 2. The gradient of head i's own
    variables θ_i is ∂L_i/∂θ_i − λ ∂/∂θ_i ⟨∂L_i/∂z, Σ_j w_j ∂L_j/∂z⟩, with the sum held
    and z the representation that the heads read: a descent that also brings the task's
    gradient there nearer to the update of all, so that fewer conflicts remain. The
    second part is shortened to `share` of the first one's norm. Qin, Wang & Yan,
    "Towards Consistent Multi-Task Learning: Unlocking the Potential of Task-Specific
    Parameters", CVPR 2025.

    Follows the authors' code (λ = 1, `share` = 0.1). Differs from it in that an exact
    solver takes the place of least squares, and that the update is not multiplied by T.
    The model needs a boundary between shared and task-specific layers, as
    `gradients_of="representation"` does. The second part is a second derivative
    through the heads: T passes through them, and one through each of these.

    Cost: T (running: 2) backward.
    Choose it when `fairgrad` would do, and heads are large enough to give way.

    Args:
        strength: λ.
        share: Longest second part, of the norm of the head's own gradient.
        max_norm: Longest update of shared variables; `None` for no limit (1 in the
            authors' code).
        solve: `"exact"`, or `"running"` for weights that follow the solution at a
            price independent of T; see `RunningBalancer`.
        update_every: Solve every k-th step only; see `GramBalancer`.
        normalize: What divides the task gradients first; see `GramBalancer`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: At `compile`, for a model without such a boundary, or for `columns`.

    Example:

    ```python
    balancer = mtl_keras.balancing.ConsMTL(strength=1.0)
    model.compile("adam", loss="mse", balancing=balancer)
    ```
    """

    method = "consmtl"
    search_space = {"strength": {"min": 0.01, "max": 10.0, "log": True}}  # noqa: RUF012
    alpha = 2.0
    aligns_heads = True

    def __init__(
        self,
        strength: float = 1.0,
        share: float = 0.1,
        max_norm: float | None = None,
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
            max_norm,
            solve=solve,
            update_every=update_every,
            normalize=normalize,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        self.strength = check_number("strength", strength, low=0.0)
        self.share = check_number("share", share, low=0.0)

    def head_factor(self, own: tf.Tensor, alignment: tf.Tensor) -> tf.Tensor:
        """See `GradientBalancer.head_factor`: −λ, shortened to the share."""
        longest = tf.math.divide_no_nan(self.share * own, alignment)
        return -tf.minimum(tf.cast(self.strength, "float64"), longest)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "strength": self.strength, "share": self.share}


class _ConeProjection(GramBalancer):
    """Projection onto the dual cone of the gradients; UPGrad's and DualProj's base."""

    natural_scale = "mean"

    def __init__(
        self,
        preference: PerTask | None = None,
        reg_eps: float = 1e-4,
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
        self.preference = None if preference is None else plain(preference)
        self.reg_eps = check_number("reg_eps", reg_eps, low=0.0)

    def build_state(self, num_tasks: int) -> None:
        """Checks the preference against the tasks."""
        super().build_state(num_tasks)
        self._preference()

    def _preference(self) -> tf.Tensor | None:
        if self.preference is None:
            return None
        if isinstance(self.preference, Mapping) and not self.tasks:
            raise InputError(
                "Expected a list for `preference` where the tasks have no names yet. "
                f"Received: preference={self.preference}."
            )
        tasks = self.tasks or [""] * len(self.preference)
        return tf.constant(preference_per_task(self.preference, tasks), "float64")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "preference": self.preference,
            "reg_eps": self.reg_eps,
        }


@_register
class UPGrad(_ConeProjection):
    """Projects every gradient onto the dual cone, then takes the mean.

    w = Σ_i argmin over v ≥ u_i e_i of vᵀG̃v, with G̃ = G / tr G + ε I and u the
    preference. Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization",
    arXiv 2406.16232. Conflicts with no task: J · update ≥ 0 (up to ε).

    Cost: T backward.
    Choose it when no task may lose in a step, yet large gradients may count more;
    has `preference`.

    Args:
        preference: Non-negative u, `{task: number}` or a list; `None` is 1/T.
        reg_eps: ε.
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

    ```pycon
    >>> gramian = tf.constant([[1.0, -0.5], [-0.5, 4.0]])
    >>> mtl_keras.balancing.UPGrad().weights(gramian).numpy().round(3)
    array([0.75 , 0.562])
    ```
    """

    method = "upgrad"

    def weights(self, gramian: tf.Tensor, precision: float = solvers.EPS) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        solution = solvers.upgrad(gramian, self._preference(), self.reg_eps, precision)
        return self.solved(*solution)


@_register
class DualProj(_ConeProjection):
    """Projects the mean gradient onto the dual cone of the gradients.

    argmin over v ≥ u of vᵀG̃v, with G̃ and u as in `UPGrad`. Lopez-Paz & Ranzato,
    "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, arXiv
    1706.08840, as used for many objectives.

    Cost: T backward.
    Choose it when `upgrad` would do, nearer to the mean.

    Args:
        preference: As in `UPGrad`.
        reg_eps: ε.
        solve: `"exact"`; the method has no other way.
        update_every: Solve every k-th step only; see `GramBalancer`.
        normalize: What divides the task gradients first; see `GramBalancer`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The scale here is
            `"mean"`.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```pycon
    >>> gramian = tf.constant([[1.0, -0.5], [-0.5, 4.0]])
    >>> mtl_keras.balancing.DualProj().weights(gramian).numpy().round(3)
    array([0.5, 0.5])
    ```
    """

    method = "dualproj"

    def weights(self, gramian: tf.Tensor, precision: float = solvers.EPS) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        solution = solvers.dualproj(
            gramian, self._preference(), self.reg_eps, precision
        )
        return self.solved(*solution)
