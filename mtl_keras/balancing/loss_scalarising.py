"""Methods that fold the task losses into one scalar, without learned parameters."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from mtl_keras.balancing.arguments import (
    PerTask,
    plain,
    preference_per_task,
)
from mtl_keras.balancing.base import Balancer, LossStep, mean_weights
from mtl_keras.balancing.epochs import EpochMeans
from mtl_keras.balancing.loss_based import MeanScaleBalancer, masked_softmax
from mtl_keras.errors import check_integer, check_number

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class RandomWeighting(MeanScaleBalancer):
    """Fresh random weights each step: softmax(N(0, I)).

    Lin et al., "Reasonable Effectiveness of Random Weighting: A Litmus Test for
    Multi-Task Learning", TMLR 2022, arXiv 2111.10603 (RLW). Takes the arguments of
    `Balancer`, whose `seed` fixes the draws.

    Cost: 1 backward; state: step count; needs: `seed`.
    Choose it when you want a second baseline, which any method should beat.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.RandomWeighting(seed=0)
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([4.0, 1.0]), tf.constant([True, True])
    >>> balancer.weights(losses, present).numpy().round(3)
    array([0.457, 1.543], dtype=float32)
    ```
    """

    method = "random"
    uses_seed = True

    def build_state(self, num_tasks: int) -> None:
        """Creates the count of draws."""
        self.add_variable("draws", (), 0, dtype="int64")

    def mean_scale_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `MeanScaleBalancer.mean_scale_weights`."""
        # Named, as CPU and GPU would choose different generators.
        draws = tf.random.stateless_normal(losses.shape, self.next_seed(), alg="philox")
        return masked_softmax(draws, present)


@_register
class UWSO(MeanScaleBalancer):
    """Analytic uncertainty with a soft optimum: softmax(1 / (L_i τ)).

    Kirchdorfer et al., "Analytical Uncertainty-Based Loss Weighting in Multi-Task
    Learning", arXiv 2408.07985. A negative loss counts as the smallest positive
    number, which gives its task all the weight; a task whose loss is exactly 0 is
    left out.

    Cost: 1 backward; needs: positive losses.
    Choose it when `uncertainty` would do, and nothing should be learned; its
    temperature needs tuning: where one loss is far below the others, it takes all the
    weight unless τ is about its inverse.

    Args:
        temperature: τ; the larger, the closer to equal weights.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"weighted"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.UWSO(temperature=1.0)
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([4.0, 1.0]), tf.constant([True, True])
    >>> balancer.weights(losses, present).numpy().round(3)
    array([0.642, 1.358], dtype=float32)
    ```
    """

    method = "uw_so"
    search_space = {"temperature": {"min": 0.2, "max": 100.0, "log": True}}  # noqa: RUF012

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(scale=scale, task_specific=task_specific, seed=seed, name=name)
        self.temperature = check_number("temperature", temperature, low=1e-6)

    def mean_scale_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `MeanScaleBalancer.mean_scale_weights`."""
        inverse = 1.0 / tf.maximum(losses, 1e-30) / self.temperature
        return masked_softmax(tf.minimum(inverse, 1e30), present)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "temperature": self.temperature}


@_register
class GLS(MeanScaleBalancer):
    """Geometric mean of the losses, (∏ L_i)^(1/T).

    Chennupati et al., "MultiNet++", CVPR Workshops 2019, arXiv 1904.08492. Computed
    as exp(mean log L), so that no product under- or overflows. Losses below 1e-24
    of the largest are taken as that, and a task whose loss is exactly 0 is left out,
    so that a finished task does not end the training of the others. Takes the
    arguments of `Balancer`.

    Cost: 1 backward; needs: non-negative losses.
    Choose it when losses differ by orders of magnitude.

    Raises:
        tf.errors.InvalidArgumentError: In the step, for a negative loss. XLA leaves
            such checks out: the weights are then equal.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.GLS()
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([4.0, 1.0]), tf.constant([True, True])
    >>> balancer.weights(losses, present).numpy().round(3)
    array([0.5, 2. ], dtype=float32)
    ```
    """

    method = "gls"

    def mean_scale_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `MeanScaleBalancer.mean_scale_weights`."""
        losses = _non_negative(losses, self, "geometric mean")
        largest = tf.reduce_max(losses)
        logs = tf.math.log(tf.where(present, tf.maximum(losses, 1e-24 * largest), 1.0))
        equal = mean_weights(present, "mean")
        return equal * tf.exp(tf.reduce_sum(equal * logs) - logs)


@_register
class ScaleInvariant(MeanScaleBalancer):
    """Scale-invariant baseline: Σ log L_i, so that no loss's unit counts.

    The weights are 1 / L_i. "SI" of the tables of Navon et al., "Multi-Task Learning as
    a Bargaining Game", ICML 2022, arXiv 2202.01017, and of the later ones that follow
    them. Differs from their code in that a task whose loss is exactly 0 is left out.
    Updates do not shrink with the losses: the learning rate must. `gls` has the same
    direction, at the size of the losses. Takes the arguments of `Balancer`.

    Cost: 1 backward; needs: positive losses.
    Choose it when losses differ in size or unit and `equal` follows some of them; try
    it before methods that cost more.

    Raises:
        tf.errors.InvalidArgumentError: In the step, for a negative loss. XLA leaves
            such checks out: the weights are then equal.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.ScaleInvariant()
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([4.0, 1.0]), tf.constant([True, True])
    >>> balancer.weights(losses, present).numpy().round(3)
    array([0.25, 1.  ], dtype=float32)
    ```
    """

    method = "scale_invariant"

    def mean_scale_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `MeanScaleBalancer.mean_scale_weights`."""
        losses = _non_negative(losses, self, "logarithm")
        equal = mean_weights(present, "mean")
        return tf.where(present, equal / tf.where(present, losses, 1.0), 0.0)


def _non_negative(losses: tf.Tensor, balancer: Balancer, needed_for: str) -> tf.Tensor:
    """Returns the losses `[T]`, after a check that none is negative.

    XLA leaves assertions out: negative losses are not a number there, so that the
    formula has no value.
    """
    check = tf.debugging.assert_non_negative(
        tf.where(tf.math.is_nan(losses), 0.0, losses),
        message=f"Expected non-negative losses for balancing={balancer.method!r}, "
        f"which takes their {needed_for}; the tasks are {list(balancer.tasks)}.",
    )
    with tf.control_dependencies([check] if check is not None else []):
        return tf.where(losses < 0.0, math.nan, losses)


def _length_and_unit(losses: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the norm of the losses `[T]`, whose squares may leave float32's range,
    and the losses over it; zeros for zeros."""
    largest = tf.reduce_max(tf.abs(losses))
    scaled = tf.math.divide_no_nan(losses, largest)
    norm = tf.norm(scaled)
    return largest * norm, tf.math.divide_no_nan(scaled, norm)


class PreferenceBalancer(MeanScaleBalancer):
    """A method with a preference vector; uniform by default."""

    def __init__(
        self,
        preference: PerTask | None = None,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(scale=scale, task_specific=task_specific, seed=seed, name=name)
        self.preference = None if preference is None else plain(preference)

    def build_state(self, num_tasks: int) -> None:
        """Checks the preference against the tasks."""
        values = [1.0] * num_tasks
        if self.preference is not None:
            values = preference_per_task(self.preference, self.tasks)
        self._normalised: Any = [value / sum(values) for value in values]

    def follow(self, preference: keras.Variable) -> None:
        """Reads the preference from a variable from now on; after `build`.

        Args:
            preference: float32 `[T]`, summing to 1.
        """
        self._normalised = preference

    def preferred(self, present: tf.Tensor) -> tf.Tensor:
        """Returns the preference over the present tasks, summing to 1, `[T]`."""
        preference = tf.convert_to_tensor(self._normalised, "float32")
        values = tf.where(present, preference, 0.0)
        return tf.math.divide_no_nan(values, tf.reduce_sum(values))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "preference": self.preference}


@_register
class STCH(PreferenceBalancer):
    """Smooth Tchebycheff scalarisation: μ log Σ exp(λ_i (f_i − z_i) / μ).

    Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization",
    ICML 2024, arXiv 2402.19078. After `warmup_epochs` epochs of Σ log L_i, f_i is
    log(L_i / nadir_i) with the means over the last of these epochs as the nadir, as in
    the authors' multi-task runs (whose warm-up of 4 is 5 epochs here). Without a
    warm-up f_i is L_i itself, as in the paper. λ = T · preference, so that it is 1 for
    equal tasks. A task whose loss is exactly 0 is left out.

    Cost: 1 backward; state: T means, T nadirs; needs: epochs, warm-up.
    Choose it when the worst task matters, or a point of the Pareto front by
    `preference`.

    Args:
        mu: μ, the smoothing; the smaller, the nearer to the maximum.
        warmup_epochs: Epochs before the scalarisation; with 0 it is of the losses
            themselves.
        ideal: z, one number for all tasks, in units of f.
        preference: `{task: number}` or a list; uniform by default.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"weighted"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.STCH()
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([4.0, 1.0]), tf.constant([True, True])
    >>> balancer.weights(losses, present).numpy().round(3)
    array([0.25, 1.  ], dtype=float32)
    ```
    """

    method = "stch"
    search_space = {"mu": {"min": 0.1, "max": 10.0, "log": True}}  # noqa: RUF012

    def __init__(
        self,
        mu: float = 1.0,
        warmup_epochs: int = 4,
        ideal: float = 0.0,
        preference: PerTask | None = None,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            preference, scale=scale, task_specific=task_specific, seed=seed, name=name
        )
        self.mu = check_number("mu", mu, low=1e-9)
        self.warmup_epochs = check_integer("warmup_epochs", warmup_epochs, low=0)
        self.ideal = check_number("ideal", ideal)

    def build_state(self, num_tasks: int) -> None:
        """Creates the epoch means and the nadir."""
        super().build_state(num_tasks)
        self._means = EpochMeans(self.add_variable, num_tasks)
        self._nadir = self.add_variable("nadir", (num_tasks,), 1.0)

    def on_epoch_begin(self) -> None:
        """Takes the nadir when the warm-up ends."""
        self._means.close_epoch()
        ends = tf.equal(self._means.epochs, self.warmup_epochs)
        positive = self._means.last > 0
        self._nadir.assign(
            tf.where(ends & positive, self._means.last, self._nadir)
            if self.warmup_epochs
            else self._nadir
        )

    def mean_scale_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `MeanScaleBalancer.mean_scale_weights`."""
        count = tf.reduce_sum(tf.cast(present, "float32"))
        stress = self.preferred(present) * count
        if self.warmup_epochs == 0:
            return stress * self._soft(stress * (losses - self.ideal), present)
        positive = tf.where(present, tf.maximum(losses, 1e-30), 1.0)
        relative = tf.math.log(positive) - tf.math.log(self._nadir)
        soft = self._soft(stress * (relative - self.ideal), present)
        warming_up = self._means.epochs < self.warmup_epochs
        slopes = tf.where(warming_up, mean_weights(present, "mean"), stress * soft)
        return slopes / positive

    def _soft(self, values: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        return masked_softmax(values / self.mu, present)

    def update(self, step: LossStep) -> None:
        """Adds the batch to the epoch's means."""
        self._means.add(step.losses, step.present)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "mu": self.mu,
            "warmup_epochs": self.warmup_epochs,
            "ideal": self.ideal,
        }


@_register
class COSMOS(PreferenceBalancer):
    """Weighted sum that pulls the losses towards a preference: Σ r_i L_i − λ cos(r, L).

    Ruchte & Grabocka, "Scalable Pareto Front Approximation for Deep Multi-Objective
    Learning", ICDM 2021, arXiv 2103.13392. Differs from the paper in that r is
    fixed: the paper draws it each step and feeds it to the network, as
    `mtl_keras.pareto` does.

    Cost: 1 backward; needs: `preference`.
    Choose it when you have a trade-off in mind, by `preference`.

    Args:
        strength: λ. Weights may become negative when it is large.
        preference: r, `{task: number}` or a list; uniform by default.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"weighted"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.COSMOS()
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([4.0, 1.0]), tf.constant([True, True])
    >>> balancer.weights(losses, present).numpy().round(3)
    array([1.061, 0.758], dtype=float32)
    ```
    """

    method = "cosmos"
    search_space = {"strength": {"min": 0.1, "max": 10.0, "log": True}}  # noqa: RUF012

    def __init__(
        self,
        strength: float = 1.0,
        preference: PerTask | None = None,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            preference, scale=scale, task_specific=task_specific, seed=seed, name=name
        )
        self.strength = check_number("strength", strength, low=0.0)

    def mean_scale_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `MeanScaleBalancer.mean_scale_weights`."""
        preference = self.preferred(present)
        direction = tf.math.divide_no_nan(preference, tf.norm(preference))
        length, unit = _length_and_unit(losses)
        cosine = tf.reduce_sum(direction * unit)
        slope = tf.math.divide_no_nan(direction - cosine * unit, length)
        return preference - self.strength * slope

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "strength": self.strength}


@_register
class EPOLike(PreferenceBalancer):
    """EPO-like scalarisation: Σ u_i + λ Σ u_i log(u_i / ū), u_i = r_i L_i of mean ū.

    The second sum is S · KL(u / S ‖ 1 / T) with S = Σ u_i, the non-uniformity that
    exact Pareto optimal search (EPO) brings down: Mahapatra & Rajan, "Multi-Task
    Learning with User Preferences: Gradient Descent with Controlled Ascent in Pareto
    Optimization", ICML 2020. It is zero where all r_i L_i are equal: the larger r_i,
    the smaller L_i is to be. The weights are r_i (1 + λ log(u_i / ū)). A u_i below
    e^(−1/λ) ū counts as that, so that the scalar never falls as a loss rises: no weight
    is negative, and the update is zero at Pareto-stationary points only. Where all
    tasks have weight in such a point, each r_i L_i is e^(−1/λ) of their mean or more. A
    common factor of the losses changes nothing. Linear scalarisation for λ → 0, T times
    Tchebycheff's max u_i for λ → ∞.

    Differs from the paper in that both aims are in one scalar: EPO takes the T task
    gradients, and each step solves a linear program on their Gram matrix for weights
    that bring the non-uniformity down, or, where that is small, the losses. Its
    solutions have equal r_i L_i, those of a finite λ nearly so.

    Cost: 1 backward; needs: `preference`, non-negative losses.
    Choose it when the products of losses and preferences should be alike.

    Args:
        strength: λ.
        preference: r, `{task: number}` or a list; uniform by default.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"weighted"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        tf.errors.InvalidArgumentError: In the step, for a negative loss. XLA leaves
            such checks out: the weights are then equal.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.EPOLike(strength=1.0)
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([3.0, 2.0]), tf.constant([True, True])
    >>> balancer.weights(losses, present).numpy().round(3)
    array([1.182, 0.777], dtype=float32)
    ```
    """

    method = "epo_like"
    search_space = {"strength": {"min": 0.5, "max": 50.0, "log": True}}  # noqa: RUF012

    def __init__(
        self,
        strength: float = 10.0,
        preference: PerTask | None = None,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            preference, scale=scale, task_specific=task_specific, seed=seed, name=name
        )
        self.strength = check_number("strength", strength, low=1e-3)

    def mean_scale_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `MeanScaleBalancer.mean_scale_weights`."""
        losses = _non_negative(losses, self, "logarithm")
        preference = self.preferred(present)
        products = preference * tf.where(present, losses, 0.0)
        count = tf.reduce_sum(tf.cast(present, "float32"))
        # ū with the n largest as they are and the others at their bound. Of its values
        # for all n the largest is the one whose bound the n largest do not fall below.
        bound = math.exp(-1.0 / self.strength)
        largest = tf.cumsum(tf.sort(products, direction="DESCENDING"))
        taken = tf.range(1.0, losses.shape[0] + 1.0)
        mean = tf.reduce_max(largest / (count - (count - taken) * bound))
        slopes = 1.0 + self.strength * tf.math.log(products / mean)
        return preference * tf.maximum(slopes, 0.0)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "strength": self.strength}


@_register
class PBI(PreferenceBalancer):
    """Penalty-based boundary intersection: d₁ + θ d₂.

    d₁ is the length of the loss vector along the preference r, d₂ its distance from
    that ray. Zhang & Li, "MOEA/D", IEEE Transactions on Evolutionary Computation
    2007. Times ‖r‖ (with Σ r = 1), so that equal losses give weights of 1 / T.

    Differs from the paper in the default of θ, 5 there. A large θ drives up losses
    that are small against their preference; up to 0.5, five equally preferred tasks
    keep positive weights whatever their losses.

    Cost: 1 backward; needs: `preference`.
    Choose it when losses should keep given ratios.

    Args:
        penalty: θ.
        preference: r, `{task: number}` or a list; uniform by default.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"weighted"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.PBI()
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([4.0, 1.0]), tf.constant([True, True])
    >>> balancer.weights(losses, present).numpy().round(3)
    array([1.5, 0.5], dtype=float32)
    ```
    """

    method = "pbi"
    search_space = {"penalty": {"min": 0.05, "max": 5.0, "log": True}}  # noqa: RUF012

    def __init__(
        self,
        penalty: float = 0.5,
        preference: PerTask | None = None,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            preference, scale=scale, task_specific=task_specific, seed=seed, name=name
        )
        self.penalty = check_number("penalty", penalty, low=0.0)

    def mean_scale_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `MeanScaleBalancer.mean_scale_weights`."""
        preference = self.preferred(present)
        length = tf.norm(preference)
        direction = tf.math.divide_no_nan(preference, length)
        _, unit = _length_and_unit(losses)
        offset = unit - tf.reduce_sum(unit * direction) * direction
        away = tf.math.divide_no_nan(offset, tf.norm(offset))
        return length * (direction + self.penalty * away)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "penalty": self.penalty}
