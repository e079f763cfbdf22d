"""Gram-based methods for one main task, which the others only help."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mtl_keras.balancing.arguments import (
    PerTask,
    check_choice,
    check_primary,
    per_task,
    plain,
    primary_index,
)
from mtl_keras.balancing.base import (
    GradientStep,
    GramBalancer,
    divided,
    has_gradient,
)
from mtl_keras.balancing.gram_programs import shortened
from mtl_keras.balancing.gram_stochastic import HalfBatchBalancer
from mtl_keras.errors import InputError, check_number
from mtl_keras.ops import solvers

_register = keras.saving.register_keras_serializable(package="mtl_keras")


class _PrimaryBalancer(GramBalancer):
    """A Gram balancer with a main task, in the scale of its gradient."""

    natural_scale = "sum"

    def __init__(
        self,
        primary: str | None = None,
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
        self.primary = primary

    def build_state(self, num_tasks: int) -> None:
        """Checks that the main task exists."""
        super().build_state(num_tasks)
        check_primary(self.primary, self.tasks)

    @property
    def main(self) -> int:
        """The index of the main task; 0 before `build`."""
        return primary_index(self.primary, self.tasks)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "primary": self.primary}


@_register
class PCD(_PrimaryBalancer):
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
        normalize: What divides the task gradients first; see `GramBalancer`.
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

    def __init__(
        self,
        primary: str | None = None,
        tau: float = 0.02,
        beta: float = 0.999,
        epsilon: float = 1e-8,
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
            primary,
            solve=solve,
            update_every=update_every,
            normalize=normalize,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        self.tau = check_number("tau", tau, 0.0)
        self.beta = check_number("beta", beta, 0.0, 1.0 - 1e-9)
        self.epsilon = check_number("epsilon", epsilon, 0.0)

    def build_state(self, num_tasks: int) -> None:
        """Creates the averages of the squared norms."""
        super().build_state(num_tasks)
        self._squares = self.add_variable("squares", (num_tasks,), 0.0, "float64")
        self._steps = self.add_variable("steps_seen", (num_tasks,), 0.0, "float64")

    def weights(self, gramian: tf.Tensor, precision: float = solvers.EPS) -> tf.Tensor:
        """See `GramBalancer.weights`. Before `build`, averages are this step's."""
        gramian = tf.cast(gramian, "float64")
        num_tasks = gramian.shape[0]
        main = self.main
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
        weights = tf.where(usable, weights, _mean_of(taking_part))
        return self.solved(weights, feasible & usable)

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
            "tau": self.tau,
            "beta": self.beta,
            "epsilon": self.epsilon,
        }


@_register
class GradientCosine(_PrimaryBalancer):
    """Lets auxiliary gradients through as far as they agree with the main task's.

    g₁ + Σ_j max(0, cos(g₁, g_j)) g_j over the auxiliary tasks j, or, with
    `gate="hard"`, those g_j whole whose cosine is not negative. Du et al., "Adapting
    Auxiliary Losses Using Gradient Similarity", arXiv 1812.02224 (the weighted and the
    unweighted version). ⟨g₁, update⟩ ≥ ‖g₁‖²: the main task never loses to first order.
    Without the main task in the batch the update is the mean of the others, counted as
    a fallback.

    Cost: T backward; needs: `primary`.
    Choose it when one task is the main one and others may hurt it at times.

    Args:
        primary: Name of the main task; the first by name if `None`.
        gate: `"soft"` (weights are cosines) or `"hard"` (0 or 1).
        solve: `"exact"`; the method has no other way.
        update_every: Solve every k-th step only; see `GramBalancer`.
        normalize: What divides the task gradients first; see `GramBalancer`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"sum"`.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: At `build`, when `primary` is no task.

    Example:

    ```pycon
    >>> gramian = tf.constant([[1.0, -0.5, 1.0], [-0.5, 4.0, 0.0], [1.0, 0.0, 4.0]])
    >>> mtl_keras.balancing.GradientCosine().weights(gramian).numpy()
    array([1. , 0. , 0.5])
    ```
    """

    method = "gradient_cosine"

    def __init__(
        self,
        primary: str | None = None,
        gate: str = "soft",
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
            primary,
            solve=solve,
            update_every=update_every,
            normalize=normalize,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        check_choice("gate", gate, ("soft", "hard"))
        self.gate = gate

    def weights(self, gramian: tf.Tensor) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        gramian = tf.cast(gramian, "float64")
        norms = tf.sqrt(tf.linalg.diag_part(gramian))
        taking_part = has_gradient(gramian)
        # One division after the other: a product of two small norms may underflow.
        cosines = tf.math.divide_no_nan(gramian[self.main], norms)
        cosines = tf.math.divide_no_nan(cosines, norms[self.main])
        gates = tf.clip_by_value(cosines, 0.0, 1.0)
        if self.gate == "hard":
            gates = tf.cast(cosines >= 0.0, "float64")
        is_main = tf.one_hot(self.main, gramian.shape[0], dtype="float64")
        gates = tf.where(taking_part, tf.maximum(is_main, gates), 0.0)
        usable = taking_part[self.main] & tf.reduce_all(tf.math.is_finite(gramian))
        return self.solved(tf.where(usable, gates, _mean_of(taking_part)), usable)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "gate": self.gate}


@_register
class AuxiNash(HalfBatchBalancer):
    """Bargaining with learned preferences: G w = p / w, where p helps the main task.

    The asymmetric Nash bargaining solution. p, on the simplex times T, descends the
    main task's loss on samples that the update has not seen: with w(p) the solution,
    ∂w/∂p = (G + diag(p / w²))⁻¹ diag(1 / w) and ∂L₁/∂w_i = −⟨g_i, g₁'⟩. Shamsian et
    al., "Auxiliary Learning as an Asymmetric Bargaining Game", ICML 2023, arXiv
    2301.13501.

    Differs from the paper in that half of each batch takes the place of the samples set
    apart, that p moves at every step (in the authors' code at every 25th), and in the
    look-ahead: one step of descent, where the paper takes the inverse Hessian of the
    training loss by a Neumann series (three terms at 1e-4 in the code, which is four
    times the gradient here up to 1e-4). As in the code p moves by gradient descent with
    momentum, its gradient no longer than 1. Where there is no solution the weights are
    the plain sum's, counted as a fallback, and p stays.

    Cost: 3 T backward; state: T preferences, T momenta; needs: `primary`, halves of the
    batch.
    Choose it when some tasks only help others, and `nash` would do for all.

    Args:
        primary: Name of the main task; the first by name if `None`.
        preference: p at the start, `{task: number}` or a list; `None` is 1 for all.
        learning_rate: Rate for p; 0.005 in the authors' code.
        momentum: Share of p's old gradient; 0.9 in the authors' code.
        max_norm: Longest update; `None` for no limit (1 in the authors' code).
        solve: `"exact"`; the method has no other way.
        update_every: 1; the method reads every batch.
        normalize: What divides the task gradients first; see `GramBalancer`.
        gradients_of: `"shared"`; the method has no other way.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"sum"`, the root itself.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: At `build`, when `primary` is no task, or for a preference that is
            not positive.

    Example:

    ```python
    balancer = mtl_keras.balancing.AuxiNash(primary="a")
    model.compile("adam", loss="mse", balancing=balancer)
    ```
    """

    method = "auxinash"
    search_space = {  # noqa: RUF012
        "learning_rate": {"min": 5e-4, "max": 5e-2, "log": True}
    }
    natural_scale = "sum"
    _LEAST = 1e-4
    """The least share of a task, as in the authors' code."""

    def __init__(
        self,
        primary: str | None = None,
        preference: PerTask | None = None,
        learning_rate: float = 5e-3,
        momentum: float = 0.9,
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
        self.primary = primary
        self.preference = None if preference is None else plain(preference)
        self.learning_rate = check_number("learning_rate", learning_rate, low=0.0)
        self.momentum = check_number("momentum", momentum, low=0.0, high=1.0)
        if max_norm is not None:
            max_norm = check_number("max_norm", max_norm, low=0.0)
        self.max_norm = max_norm

    def build_state(self, num_tasks: int) -> None:
        """Creates p and its momentum."""
        super().build_state(num_tasks)
        check_primary(self.primary, self.tasks)
        values = per_task("preference", self.preference or {}, self.tasks, 1.0)
        if min(values) <= 0.0:
            raise InputError(
                "Expected `preference` to be positive. "
                f"Received: preference={self.preference}."
            )
        initial = keras.initializers.Constant(
            [value * num_tasks / sum(values) for value in values]
        )
        shape = (num_tasks,)
        self._preference = self.add_variable("preference", shape, initial, "float64")
        self._momentum = self.add_variable("momentum", shape, 0.0, "float64")

    @property
    def main(self) -> int:
        """The index of the main task; 0 before `build`."""
        return primary_index(self.primary, self.tasks)

    def _shares(self, taking_part: tf.Tensor) -> tf.Tensor | None:
        """Returns p of the tasks that take part, on average 1, float64 `[T]`."""
        if not self.built:
            return None
        kept = tf.where(taking_part, self._preference, 0.0)
        count = tf.reduce_sum(tf.cast(taking_part, "float64"))
        kept *= tf.math.divide_no_nan(count, tf.reduce_sum(kept))
        return tf.where(taking_part, kept, 1.0)

    def _bargain(
        self, gramian: tf.Tensor, precision: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns w, float64 `[T]`, and whether there is a solution."""
        shares = self._shares(has_gradient(gramian))
        return solvers.power_root(gramian, 1.0, precision, shares)

    def weights(self, gramian: tf.Tensor, precision: float = solvers.EPS) -> tf.Tensor:
        """See `GramBalancer.weights`; for the present preferences, which stay."""
        weights = self.solved(*self._bargain(gramian, precision))
        return shortened(weights, gramian, self.max_norm)

    def solution(self, step: GradientStep) -> tf.Tensor:
        """See `GramBalancer.solution`; moves the preferences, too."""
        factors = self.factors(step.gramian, step.losses)
        gramian = divided(step.gramian, factors)
        weights, has_solution = self._bargain(gramian, step.precision)
        # Each half is a batch of its own.
        cross = divided(self.cross_gramian(step), factors)
        taking_part = step.present & has_gradient(gramian)
        self._learn(gramian, cross, taking_part, weights, has_solution)
        weights = self.solved(weights, has_solution)
        weights = shortened(weights, gramian, self.max_norm)
        return self.rescaled(factors * weights, gramian)

    def _learn(
        self,
        gramian: tf.Tensor,
        cross: tf.Tensor,
        taking_part: tf.Tensor,
        weights: tf.Tensor,
        has_solution: tf.Tensor,
    ) -> None:
        """Moves p against the gradient of the main task's loss after the step.

        Args:
            gramian: float64 `[T, T]`, inner products of the batch's task gradients.
            cross: float64 `[T, T]`, those of the first half with the second.
            taking_part: bool `[T]`.
            weights: w, float64 `[T]`.
            has_solution: bool scalar.
        """
        shares = self._shares(taking_part)
        progress = cross[:, self.main]
        inverse = tf.math.divide_no_nan(tf.ones_like(weights), weights)
        # Excluded tasks are equations of their own.
        curvature = tf.where(taking_part, shares * tf.square(inverse), 1.0)
        system = gramian + tf.linalg.diag(curvature)
        # ∂w/∂p, scaled to a diagonal of 1, as weights may differ by decades.
        scale = 1.0 / tf.sqrt(tf.linalg.diag_part(system))
        system = scale[:, None] * system * scale
        usable = has_solution & taking_part[self.main]
        usable &= tf.reduce_all(tf.math.is_finite(system))
        usable &= tf.reduce_all(tf.math.is_finite(progress))
        identity = tf.eye(len(self.tasks), dtype="float64")
        factor = tf.linalg.cholesky(tf.where(usable, system, identity))
        right = tf.where(taking_part & usable, scale * progress, 0.0)
        solution = tf.linalg.cholesky_solve(factor, right[:, None])[:, 0]
        gradient = -tf.where(taking_part, scale * solution * inverse, 0.0)
        gradient /= tf.maximum(tf.norm(gradient), 1.0)
        usable &= tf.reduce_all(tf.math.is_finite(gradient))
        momentum = self.momentum * self._momentum + gradient
        moved = self._preference - self.learning_rate * momentum
        moved = tf.where(taking_part, tf.maximum(moved, self._LEAST), 0.0)
        before = tf.reduce_sum(tf.where(taking_part, self._preference, 0.0))
        moved *= tf.math.divide_no_nan(before, tf.reduce_sum(moved))
        moves = taking_part & usable
        self._momentum.assign(tf.where(moves, momentum, self._momentum))
        self._preference.assign(tf.where(moves, moved, self._preference))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "primary": self.primary,
            "preference": self.preference,
            "learning_rate": self.learning_rate,
            "momentum": self.momentum,
            "max_norm": self.max_norm,
        }


def _mean_of(taking_part: tf.Tensor) -> tf.Tensor:
    """Returns 1 / (their number) for the tasks that take part, float64 `[T]`."""
    shares = tf.cast(taking_part, "float64")
    return shares / tf.maximum(tf.reduce_sum(shares), 1.0)
