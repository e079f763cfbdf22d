"""The balancing of one compiled model: a loss and/or a gradient balancer."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from mtl_keras.balancing.base import (
    Balancer,
    GradientBalancer,
    LossBalancer,
    LossStep,
)
from mtl_keras.errors import InputError


class TaskWeights(keras.metrics.Metric):
    """Mean weight of each task over the steps in which it took part.

    Args:
        tasks: Task names; the result's keys are `<task>_weight`.
    """

    def __init__(self, tasks: Sequence[str], name: str = "task_weights"):
        super().__init__(name=name, dtype="float32")
        self._tasks = tuple(tasks)
        shape = (len(self._tasks),)
        self._total = self.add_weight(shape=shape, initializer="zeros", name="total")
        self._count = self.add_weight(shape=shape, initializer="zeros", name="count")

    def update_state(self, weights: tf.Tensor, present: tf.Tensor) -> None:
        """Adds one step: float32 `[T]` weights, bool `[T]` present."""
        self._total.assign_add(tf.where(present, weights, 0.0))
        self._count.assign_add(tf.cast(present, "float32"))

    def result(self) -> dict[str, tf.Tensor]:
        """Returns `{<task>_weight: mean}`; 0 before the first step."""
        means = tf.math.divide_no_nan(
            tf.convert_to_tensor(self._total), tf.convert_to_tensor(self._count)
        )
        return {
            f"{task}_weight": mean
            for task, mean in zip(self._tasks, tf.unstack(means), strict=True)
        }


class Pipeline:
    """Loss balancer first, gradient balancer on the losses it weighted.

    Args:
        balancers: One balancer, or one of each kind in any order.

    Raises:
        InputError: For none, or two of the same kind.
    """

    def __init__(self, balancers: Sequence[Balancer]):
        losses = [b for b in balancers if isinstance(b, LossBalancer)]
        gradients = [b for b in balancers if isinstance(b, GradientBalancer)]
        if len(losses) > 1 or len(gradients) > 1 or not balancers:
            raise InputError(
                "Expected `balancing` to be one method, or a loss balancer and a "
                "gradient balancer. "
                f"Received: {[b.name for b in balancers]}."
            )
        self.balancers = tuple(balancers)
        self.loss_balancer = losses[0] if losses else None
        self.gradient_balancer = gradients[0] if gradients else None
        self.task_weights: TaskWeights | None = None

    @property
    def own_losses_unweighted(self) -> bool:
        """Whether the loss balancer leaves task-specific variables alone."""
        return (
            self.loss_balancer is not None and self.loss_balancer.task_specific == "own"
        )

    @property
    def needs_several_gradients(self) -> bool:
        """Whether one step differentiates more than one scalar."""
        return self.gradient_balancer is not None or self.own_losses_unweighted

    @property
    def gradients_of_representation(self) -> bool:
        """Whether task gradients are taken at the representation."""
        return (
            self.gradient_balancer is not None
            and self.gradient_balancer.gradients_of == "representation"
        )

    def build(self, tasks: Sequence[str]) -> None:
        """Creates all state for these tasks."""
        for balancer in self.balancers:
            balancer.build(tasks)
        self.task_weights = TaskWeights(tasks)

    def loss_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """Returns the loss balancer's weights, float32 `[T]`; 0 for absent tasks."""
        if self.loss_balancer is None:
            return tf.cast(present, "float32")
        return tf.stop_gradient(self.loss_balancer.weights(losses, present))

    def update(self, step: LossStep) -> None:
        """Lets the loss balancer learn from the step."""
        if self.loss_balancer is not None:
            self.loss_balancer.update(step)

    @property
    def state(self) -> dict[str, keras.Variable]:
        """All variables that a checkpoint must hold, by a stable key."""
        return {
            f"balancing.{balancer.name}.{name}": variable
            for balancer in self.balancers
            for name, variable in balancer.variables.items()
        }

    def on_epoch_begin(self) -> None:
        """Tells the balancers that an epoch of `fit` starts."""
        for balancer in self.balancers:
            balancer.on_epoch_begin()
