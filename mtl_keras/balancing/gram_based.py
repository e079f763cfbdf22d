"""Methods whose task weights follow from the Gram matrix of the gradients."""

from __future__ import annotations

import keras
import tensorflow as tf

from mtl_keras.balancing.base import GramBalancer
from mtl_keras.ops import solvers

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class MGDA(GramBalancer):
    """The shortest vector in the convex hull of the task gradients.

    min over the simplex of ‖Σ w_i g_i‖². Sener & Koltun, "Multi-Task Learning as
    Multi-Objective Optimization", NeurIPS 2018, arXiv 1810.04650. Differs from the
    paper in that the small quadratic program is solved exactly, where the paper
    (and public code) stops Frank–Wolfe early. At a Pareto-stationary point the
    update is zero by the method's own definition.

    Args:
        **kwargs: See `Balancer`. The paper's scale is `"mean"` (weights sum to 1).
    """

    method = "mgda"
    natural_scale = "mean"

    def weights(self, gramian: tf.Tensor) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        weights, converged = solvers.min_norm(gramian)
        self.count_fallback(~converged)
        return weights


@_register
class PCGrad(GramBalancer):
    """Projects each gradient off those it conflicts with, in random order.

    For each i, over j ≠ i in a random order: where ⟨g_i, g_j⟩ < 0 the part of g_i
    along the original g_j is taken out; the update is the sum. Yu et al., "Gradient
    Surgery for Multi-Task Learning", NeurIPS 2020, arXiv 2001.06782. Computed in
    the T × T space of coefficients, which gives the same update.

    Args:
        **kwargs: See `Balancer`. The paper's scale is `"sum"`. `seed` draws the
            orders.
    """

    method = "pcgrad"
    natural_scale = "sum"
    uses_seed = True

    def build_state(self, num_tasks: int) -> None:
        """Creates the step count from which the orders are drawn."""
        self._step = self.add_variable("step", (), 0, dtype="int64")

    def weights(self, gramian: tf.Tensor) -> tf.Tensor:
        """See `GramBalancer.weights`."""
        num_tasks = gramian.shape[0]
        step = tf.convert_to_tensor(self._step) if self.built else tf.zeros((), "int64")
        draws = tf.random.stateless_uniform(
            (num_tasks, num_tasks), seed=tf.stack([self.seed, step])
        )
        if self.built:
            self._step.assign_add(1)
        weights, converged = solvers.pcgrad(gramian, tf.argsort(draws, axis=1))
        self.count_fallback(~converged)
        return weights
