"""Preferences drawn in training, and the losses' scalarisation by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from mtl_keras import balancing
from mtl_keras.balancing.arguments import PerTask, per_task, plain
from mtl_keras.balancing.base import LossBalancer, LossStep
from mtl_keras.balancing.loss_scalarising import (
    COSMOS,
    STCH,
    EPOLike,
    PreferenceBalancer,
)
from mtl_keras.errors import InputError, check_number, is_number

SCALARISATIONS = ("linear", "cosmos", "smooth_tchebycheff", "epo_like")

# Of the candidates of one draw each is accepted with probability 0.95 or more.
_CANDIDATES = 16


@keras.saving.register_keras_serializable(package="mtl_keras")
class SampledPreference(LossBalancer):
    """Balancer that draws a preference r ~ Dirichlet(α) for each training step.

    The step's losses are folded into one scalar by r, one for the whole batch:
    Σ r_i L_i (`"linear"`), Σ r_i L_i − λ cos(r, L) (`"cosmos"`),
    μ log Σ exp(T r_i L_i / μ) (`"smooth_tchebycheff"`), or with u_i = r_i L_i the sum
    Σ u_i + λ Σ u_i log(u_i / ū) (`"epo_like"`). A `PreferenceModel` also reads r as its
    input, so that one model learns the solutions of all of them: Navon et al.,
    "Learning the Pareto Front with Hypernetworks", ICLR 2021, arXiv 2010.04104, for
    linear scalarisation and for EPO; Ruchte & Grabocka, "Scalable Pareto Front
    Approximation for Deep Multi-Objective Learning", ICDM 2021, arXiv 2103.13392.

    Linear scalarisation reaches convex parts of a front only. COSMOS keeps the losses
    near the ray of r, which tells solutions apart where Σ r_i L_i has the same
    minimum for many r; smooth Tchebycheff scalarisation reaches any part (Lin et al.,
    ICML 2024, arXiv 2402.19078), and the smaller r_i, the larger L_i may be. So does
    the EPO-like one, which makes all r_i L_i nearly equal whatever the unit of the
    losses. The linear and COSMOS ones are `COSMOS`, the third is `STCH` without
    warm-up, the last `EPOLike`; other arguments of theirs are given by an instance.

    Differs from the papers in that weights are T r_i with `scale="sum"`, that losses of
    absent tasks leave the scalarisation while the model's input stays r, and in what
    the docstrings of the four say.

    Args:
        scalarisation: One of the four names, or `COSMOS`, `STCH`, `EPOLike` or `PBI`,
            whose own `preference` and `scale` are not read: a balancer or its
            configuration.
        alpha: α, a positive number, or one for each task. 1 draws uniformly; less
            draws more often near single tasks, more near their mean.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"weighted"`.
        seed: Of the draws; see `Balancer`.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: For an unknown scalarisation, or at `build` for an `alpha` that
            does not fit the tasks.

    Example:

    ```pycon
    >>> balancer = mtl_keras.pareto.SampledPreference("linear", seed=0)
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([4.0, 1.0]), tf.constant([True, True])
    >>> weights = balancer.weights(losses, present)
    >>> bool(tf.reduce_all(weights == 2.0 * balancer.preference))
    True
    ```
    """

    method = "sampled_preference"
    uses_seed = True

    def __init__(
        self,
        scalarisation: Any = "linear",
        alpha: float | PerTask = 1.0,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(scale=scale, task_specific=task_specific, seed=seed, name=name)
        self.scalarisation = _scalarisation(scalarisation)
        self.scalarisation.scale = scale
        self.alpha: Any = (
            plain(alpha)
            if isinstance(alpha, (Mapping, list, tuple))
            else check_number("alpha", alpha, 1e-3)
        )

    def fresh_copy(self) -> SampledPreference:
        """See `Balancer.fresh_copy`; the scalarisation is copied, too."""
        other = super().fresh_copy()
        other.scalarisation = self.scalarisation.fresh_copy()
        return other

    @property
    def preference(self) -> keras.Variable:
        """The present step's preference, float32 `[T]`; sums to 1. After `build`."""
        return self._variables["preference"]

    def build_state(self, num_tasks: int) -> None:
        """Creates the preference of the first step and the scalarisation's state."""
        alphas = [self.alpha] * num_tasks
        if not is_number(self.alpha):
            alphas = per_task("alpha", self.alpha, self.tasks, 1.0)
            alphas = [check_number("alpha", alpha, 1e-3) for alpha in alphas]
        self._alphas = alphas
        # The first draw is here.
        self.add_variable("draws", (), 1, dtype="int64")
        first = dirichlet(alphas, tf.constant([self.seed, 0], "int64"))
        variable = self.add_variable(
            "preference", (num_tasks,), lambda shape, dtype: tf.cast(first, dtype)
        )
        self.scalarisation.build(self.tasks)
        self.scalarisation.follow(variable)
        for key, value in self.scalarisation.variables.items():
            self._variables[f"scalarisation.{key}"] = value

    def on_epoch_begin(self) -> None:
        """See `Balancer.on_epoch_begin`."""
        self.scalarisation.on_epoch_begin()

    def weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `LossBalancer.weights`."""
        return self.scalarisation.weights(losses, present)

    def update(self, step: LossStep) -> None:
        """Draws the preference of the next step."""
        self.scalarisation.update(step)
        self.preference.assign(dirichlet(self._alphas, self.next_seed()))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        inner = keras.saving.serialize_keras_object(self.scalarisation)
        return {**super().get_config(), "scalarisation": inner, "alpha": self.alpha}


def _scalarisation(identifier: Any) -> PreferenceBalancer:
    if identifier == "linear":
        return COSMOS(strength=0.0)
    if identifier == "smooth_tchebycheff":
        return STCH(warmup_epochs=0)
    if identifier == "cosmos":
        return COSMOS()
    if identifier == "epo_like":
        return EPOLike()
    balancer = identifier
    if isinstance(identifier, Mapping):
        balancer = balancing.deserialize(dict(identifier))
    if not isinstance(balancer, PreferenceBalancer):
        raise InputError(
            f"Expected `scalarisation` to be one of {list(SCALARISATIONS)}, or a "
            "balancer with a preference such as COSMOS(strength=4.0). "
            f"Received: scalarisation={identifier!r}."
        )
    return balancer.fresh_copy()


def dirichlet(alpha: list[float], seed: tf.Tensor) -> tf.Tensor:
    """Returns a draw of Dirichlet(α), float32 `[T]`; also within XLA.

    Normalised gamma variables, in logarithms as they may underflow. Of shape a they
    are those of shape a + 1 times u^(1/a) (u uniform), which are drawn by rejection:
    Marsaglia & Tsang, "A Simple Method for Generating Gamma Variables", ACM
    Transactions on Mathematical Software 2000. XLA has no gamma variables of
    TensorFlow's own, nor loops over rejected candidates of unknown length.

    Args:
        alpha: T positive numbers.
        seed: int64 `[2]`.
    """
    shapes = tf.constant(alpha, "float32")
    # Named, as CPU and GPU would choose different generators.
    seeds = [
        tf.random.experimental.stateless_fold_in(seed, part, alg="philox")
        for part in range(3)
    ]
    size = (_CANDIDATES, len(alpha))
    normal = tf.random.stateless_normal(size, seeds[0], alg="philox")
    # In (0, 1], so that it has a logarithm.
    uniform = 1.0 - tf.random.stateless_uniform(size, seeds[1], alg="philox")
    boost = 1.0 - tf.random.stateless_uniform(size[1:], seeds[2], alg="philox")
    scale = shapes + 2.0 / 3.0
    cube = tf.pow(1.0 + normal / tf.sqrt(9.0 * scale), 3)
    positive = cube > 0.0
    log_cube = tf.math.log(tf.where(positive, cube, 1.0))
    bound = 0.5 * tf.square(normal) + scale * (1.0 - cube + log_cube)
    accepted = positive & (tf.math.log(uniform) < bound)
    first = accepted & tf.equal(tf.cumsum(tf.cast(accepted, "int32")), 1)
    # log d does not differ between candidates; none accepted counts as the mode.
    drawn = tf.reduce_sum(tf.where(first, log_cube, 0.0), axis=0)
    return tf.nn.softmax(tf.math.log(scale) + drawn + tf.math.log(boost) / shapes)
