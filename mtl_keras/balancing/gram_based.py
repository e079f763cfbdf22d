"""Methods whose task weights follow from the Gram matrix of the task gradients.

The mathematics is in `mtl_keras.ops.solvers`; here are the methods as a user
names and configures them. T counts the tasks that take part in a step.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mtl_keras.balancing.arguments import check_choice
from mtl_keras.balancing.base import GramBalancer
from mtl_keras.balancing.running import RunningBalancer
from mtl_keras.errors import InputError, check_integer, check_number
from mtl_keras.ops import solvers

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class MGDA(RunningBalancer):
    """The shortest vector in the convex hull of the task gradients.

    min over the simplex of ‖Σ w_i g_i‖². Sener & Koltun, "Multi-Task Learning as
    Multi-Objective Optimization", NeurIPS 2018, arXiv 1810.04650.

    Differs from the paper in that the small quadratic program is solved exactly,
    where the paper (and public code) stops Frank–Wolfe early. At a
    Pareto-stationary point the update is zero, by the method's own definition.

    Cost: T (running: 2) backward.
    Choose it when a step must hurt no task; it favours tasks with small gradients
    (`normalize`).

    Args:
        normalization: Another name of `normalize`, whose `"norm"` it calls `"l2"`.
        solve: `"exact"`, or `"running"` for weights that follow the solution at a
            price independent of T; see `RunningBalancer`.
        update_every: Solve every k-th step only; see `GramBalancer`.
        normalize: What divides the task gradients first; see `GramBalancer`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"mean"` (the weights sum to 1).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: For another normalisation, two different ones, or one that a
            running solve cannot have.

    Example:

    ```pycon
    >>> gramian = tf.constant([[1.0, -0.5], [-0.5, 4.0]])
    >>> mtl_keras.balancing.MGDA().weights(gramian).numpy().round(3)
    array([0.75, 0.25])
    ```
    """

    method = "mgda"
    natural_scale = "mean"

    def __init__(
        self,
        normalization: str = "none",
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
        check_choice("normalization", normalization, ("none", "l2", "loss", "loss+"))
        same = "norm" if normalization == "l2" else normalization
        if "none" not in (same, normalize) and same != normalize:
            raise InputError(
                "Expected one of `normalization` and `normalize`. Received: "
                f"normalization={normalization!r}, normalize={normalize!r}."
            )
        super().__init__(
            solve=solve,
            update_every=update_every,
            normalize=normalize if same == "none" else same,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        self.normalization = normalization

    def weights(self, gramian: tf.Tensor) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        return self.solved(*solvers.min_norm(gramian))

    def natural_weights(self, sizes: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `RunningBalancer.natural_weights`: on the simplex."""
        logits = self.step_logits(sizes)
        logits = tf.where(present, logits, logits.dtype.min)
        weights = tf.where(present, tf.exp(logits - tf.reduce_max(logits)), 0.0)
        return tf.math.divide_no_nan(weights, tf.reduce_sum(weights))

    def targets(self, weights: tf.Tensor, products: tf.Tensor) -> tf.Tensor:
        """See `RunningBalancer.targets`: wᵀGw, which tasks of weight 0 may exceed.

        Near a Pareto-stationary point it comes near 0 and says little.
        """
        square = tf.tensordot(weights, products, 1)
        least = 0.05 * tf.tensordot(weights, tf.abs(products), 1)
        return tf.fill(weights.shape, tf.maximum(square, least))

    def residual(self, ratios: tf.Tensor, moves: tf.Tensor) -> tf.Tensor:
        """See `RunningBalancer.residual`: the duality gap, relative to wᵀGw."""
        return tf.reduce_max(tf.where(moves, tf.maximum(1.0 - ratios, 0.0), 0.0))

    def bounded(self, logits: tf.Tensor) -> tf.Tensor:
        """See `RunningBalancer.bounded`; no weight below 1e-12 of the largest."""
        logits -= tf.reduce_max(logits)
        return tf.maximum(logits, tf.math.log(tf.constant(1e-12, "float64")))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "normalization": self.normalization}


@_register
class PCGrad(GramBalancer):
    """Projects each gradient off those it conflicts with, in random order.

    For each i, over j ≠ i in a random order: where ⟨g_i, g_j⟩ < 0 the part of g_i
    along the original g_j is taken out; the update is the sum. Yu et al., "Gradient
    Surgery for Multi-Task Learning", NeurIPS 2020, arXiv 2001.06782. Computed in
    the T × T space of coefficients, which gives the same update.

    Cost: T backward; state: step count; needs: `seed`.
    Choose it when you want a robust first try against conflicts.

    Args:
        solve: `"exact"`; the method has no other way.
        update_every: Solve every k-th step only; see `GramBalancer`.
        normalize: What divides the task gradients first; see `GramBalancer`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"sum"`. `seed` draws the orders.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Seed of its random numbers; None draws one.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```pycon
    >>> gramian = tf.constant([[1.0, -0.5], [-0.5, 4.0]])
    >>> mtl_keras.balancing.PCGrad(seed=0).weights(gramian).numpy().round(3)
    array([1.5  , 1.125])
    ```
    """

    method = "pcgrad"
    natural_scale = "sum"
    uses_seed = True

    def build_state(self, num_tasks: int) -> None:
        """Creates the count of draws, from which the orders follow."""
        super().build_state(num_tasks)
        self.add_variable("draws", (), 0, dtype="int64")

    def weights(self, gramian: tf.Tensor) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        orders = solvers.random_orders(gramian.shape[0], self.next_seed())
        return self.solved(*solvers.pcgrad(gramian, orders))


@_register
class GradVac(GramBalancer):
    """Moves each gradient to the cosines that pairs of tasks usually have.

    Where the cosine φ of g_i and g_j is below its moving average φ̂, so much of g_j
    is added to g_i that the cosine becomes φ̂; then φ̂ ← (1 − β) φ̂ + β φ. Wang et
    al., "Gradient Vaccine", ICLR 2021, arXiv 2010.05874. Differs from the paper in
    that one average is kept for the whole shared gradient, not one per layer.

    Cost: T backward; state: step count, T × T cosines; needs: `seed`.
    Choose it when tasks should align more than not conflict; else as `pcgrad`.

    Args:
        beta: β; 0.01 in the paper (0.5 in LibMTL).
        solve: `"exact"`; the method has no other way.
        update_every: Solve every k-th step only; see `GramBalancer`.
        normalize: What divides the task gradients first; see `GramBalancer`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"sum"`. `seed` draws the orders.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Seed of its random numbers; None draws one.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```pycon
    >>> gramian = tf.constant([[1.0, -0.5], [-0.5, 4.0]])
    >>> mtl_keras.balancing.GradVac(seed=0).weights(gramian).numpy().round(3)
    array([1.5  , 1.125])
    ```
    """

    method = "gradvac"
    search_space = {"beta": {"min": 1e-3, "max": 0.5, "log": True}}  # noqa: RUF012
    natural_scale = "sum"
    uses_seed = True

    def __init__(
        self,
        beta: float = 1e-2,
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
        self.beta = check_number("beta", beta, low=0.0, high=1.0)

    def build_state(self, num_tasks: int) -> None:
        """Creates the averages of the cosines, and the count of draws."""
        super().build_state(num_tasks)
        self.add_variable("draws", (), 0, dtype="int64")
        self._goals = self.add_variable(
            "goals", (num_tasks, num_tasks), 0.0, dtype="float64"
        )

    def weights(self, gramian: tf.Tensor, precision: float = solvers.EPS) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        goals = (
            tf.convert_to_tensor(self._goals) if self.built else tf.zeros_like(gramian)
        )
        orders = solvers.random_orders(gramian.shape[0], self.next_seed())
        weights, goals, converged = solvers.gradvac(
            gramian, goals, orders, self.beta, precision
        )
        if self.built:
            self._goals.assign(goals)
        return self.solved(weights, converged)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "beta": self.beta}


@_register
class IMTLG(GramBalancer):
    """Equal projections of the update on all unit gradients, Σ w = 1.

    w ∝ G⁺ √diag(G). Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021.
    Weights may be negative. Where they cannot be made to sum to 1, the mean.

    Cost: T backward.
    Choose it when every task should gain alike, whatever the size of its gradient.

    Args:
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
    >>> mtl_keras.balancing.IMTLG().weights(gramian).numpy().round(3)
    array([0.667, 0.333])
    ```
    """

    method = "imtl_g"
    natural_scale = "mean"

    def weights(self, gramian: tf.Tensor, precision: float = solvers.EPS) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        return self.solved(*solvers.imtl_g(gramian, precision))


@_register
class CAGrad(GramBalancer):
    """The best worst case within a ball around the mean gradient.

    min over the simplex of wᵀGb + c‖g₀‖ √(wᵀGw) with b = 1/T; the update is
    g₀ + c‖g₀‖ g_w / ‖g_w‖. Liu et al., "Conflict-Averse Gradient Descent for
    Multi-task Learning", NeurIPS 2021, arXiv 2110.14048. The problem is solved
    exactly, and no absolute threshold stops it late in training. Where its minimum is
    at g_w = 0 (no update in the ball helps the worst task), the update is the nearest
    to g₀ that hurts no task, the limit for smaller c; with c ≥ 1 at a Pareto-stationary
    point it may be zero.

    Cost: T backward.
    Choose it when the mean loss counts, and no task may be left behind; `c` sets
    how strictly.

    Args:
        c: Radius of the ball relative to ‖g₀‖; 0.4 in the paper's main runs.
        rescale: `"none"`, `"linear"` (divides the update by 1 + c) or `"square"`
            (by 1 + c²), as in the authors' code.
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
    >>> mtl_keras.balancing.CAGrad(c=0.4).weights(gramian).numpy().round(3)
    array([0.9, 0.5])
    ```
    """

    method = "cagrad"
    search_space = {"c": {"min": 0.1, "max": 0.9}}  # noqa: RUF012
    natural_scale = "mean"

    def __init__(
        self,
        c: float = 0.4,
        rescale: str = "none",
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
        self.c = check_number("c", c, low=0.0)
        check_choice("rescale", rescale, ("none", "linear", "square"))
        self.rescale = rescale

    def weights(self, gramian: tf.Tensor, precision: float = solvers.EPS) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        divisor = {"none": 1.0, "linear": 1 + self.c, "square": 1 + self.c**2}
        weights = self.solved(*solvers.cagrad(gramian, self.c, precision))
        return weights / divisor[self.rescale]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "c": self.c, "rescale": self.rescale}


@_register
class AlignedMTL(GramBalancer):
    """Makes the gradients orthogonal and equally long before their mean is taken.

    G = VΛVᵀ without negligible eigenvalues; w = √λ V Λ^(−1/2) Vᵀ 1/T. Senushkin et
    al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023, arXiv
    2305.19000. Where all gradients cancel, the mean, counted as a fallback.

    Cost: T backward.
    Choose it when gradients are nearly dependent, or one dominates.

    Args:
        scale_mode: Which λ: `"min"` (the paper), `"median"` or `"rmse"` (the mean).
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
    >>> mtl_keras.balancing.AlignedMTL("min").weights(gramian).numpy().round(3)
    array([0.535, 0.286])
    ```
    """

    method = "aligned_mtl"
    natural_scale = "mean"

    def __init__(
        self,
        scale_mode: str = "min",
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
        check_choice("scale_mode", scale_mode, ("min", "median", "rmse"))
        self.scale_mode = scale_mode

    def weights(self, gramian: tf.Tensor, precision: float = solvers.EPS) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        return self.solved(*solvers.aligned(gramian, self.scale_mode, precision))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "scale_mode": self.scale_mode}


@_register
class ConFIG(GramBalancer):
    """Equal positive cosines with all gradients, and the length they add up to.

    Direction pinv(U) · 1 with U the unit gradients, length Σ ⟨g_i, direction⟩. Liu,
    Chu & Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed
    Neural Networks", arXiv 2408.11104.

    Cost: T backward.
    Choose it when there are few terms of very different size, as in
    physics-informed networks.

    Args:
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

    Example:

    ```pycon
    >>> gramian = tf.constant([[1.0, -0.5], [-0.5, 4.0]])
    >>> mtl_keras.balancing.ConFIG().weights(gramian).numpy().round(3)
    array([1.5 , 0.75])
    ```
    """

    method = "config"
    natural_scale = "sum"

    def weights(self, gramian: tf.Tensor, precision: float = solvers.EPS) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        return self.solved(*solvers.config(gramian, precision))


@_register
class Krum(GramBalancer):
    """The mean of the gradients that lie closest to their neighbours.

    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NeurIPS 2017. Differs from the paper in that distances are not
    squared, as in public code.

    Cost: T backward; needs: T ≥ `n_byzantine` + 3.
    Choose it when there are many tasks, some of them corrupt.

    Args:
        n_byzantine: How many tasks may be far off; needs T ≥ n_byzantine + 3.
        n_selected: How many tasks to average.
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

    Raises:
        InputError: At `build`, when there are too few tasks.

    Example:

    ```pycon
    >>> gramian = tf.linalg.diag([1.0, 4.0, 1.0, 100.0])
    >>> mtl_keras.balancing.Krum(n_byzantine=1).weights(gramian).numpy()
    array([1., 0., 0., 0.])
    ```
    """

    method = "krum"
    natural_scale = "mean"

    def __init__(
        self,
        n_byzantine: int = 1,
        n_selected: int = 1,
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
        self.n_byzantine = check_integer("n_byzantine", n_byzantine, low=0)
        self.n_selected = check_integer("n_selected", n_selected, low=1)

    def build_state(self, num_tasks: int) -> None:
        """Checks that there are tasks enough."""
        super().build_state(num_tasks)
        needed = max(self.n_byzantine + 3, self.n_selected)
        if num_tasks < needed:
            raise InputError(
                f"Expected at least {needed} tasks for krum with n_byzantine="
                f"{self.n_byzantine} and n_selected={self.n_selected}. "
                f"Received: {num_tasks} tasks."
            )

    def weights(self, gramian: tf.Tensor, precision: float = solvers.EPS) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        solution = solvers.krum(
            gramian, self.n_byzantine, self.n_selected, precision=precision
        )
        return self.solved(*solution)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "n_byzantine": self.n_byzantine,
            "n_selected": self.n_selected,
        }
