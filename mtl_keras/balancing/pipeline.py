"""The balancing of one compiled model: a loss and/or a gradient balancer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from mtl_keras import ops
from mtl_keras.balancing.arguments import check_choice
from mtl_keras.balancing.base import (
    Balancer,
    GradientBalancer,
    GradientStep,
    LossBalancer,
    LossStep,
)
from mtl_keras.balancing.conflicts import ConflictMonitor
from mtl_keras.balancing.running import RunningBalancer
from mtl_keras.errors import InputError


class TaskWeights(keras.metrics.Metric):
    """Mean weight of each task over the steps in which it took part.

    Args:
        tasks: Task names; the result's keys are `<task>_weight`.
        named: From a suffix, values `[T]` and their counts to what is logged, where
            this is not a number for each task.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        name: str = "task_weights",
        named: Callable[..., dict[str, tf.Tensor]] | None = None,
    ):
        super().__init__(name=name, dtype="float32")
        self._tasks = tuple(tasks)
        self._named = named
        shape = (len(self._tasks),)
        self._total = self.add_weight(shape=shape, initializer="zeros", name="total")
        self._count = self.add_weight(shape=shape, initializer="zeros", name="count")

    def update_state(self, weights: tf.Tensor, present: tf.Tensor) -> None:
        """Adds one step: float32 `[T]` weights, bool `[T]` present."""
        self._total.assign_add(tf.where(present, weights, 0.0))
        self._count.assign_add(tf.cast(present, "float32"))

    def means(self) -> tf.Tensor:
        """Returns the mean weights, float32 `[T]`; 0 before the first step."""
        return tf.math.divide_no_nan(
            tf.convert_to_tensor(self._total), tf.convert_to_tensor(self._count)
        )

    def result(self) -> dict[str, tf.Tensor]:
        """Returns `{<task>_weight: mean}`; 0 before the first step."""
        means = self.means()
        if self._named is not None:
            return self._named("_weight", means, self._count)
        return {
            f"{task}_weight": mean
            for task, mean in zip(self._tasks, tf.unstack(means), strict=True)
        }


class Pipeline:
    """Loss balancer first, gradient balancer on the losses it weighted.

    Args:
        balancers: One balancer, or one of each kind in any order.
        monitor: `None`, `"conflicts"`, or `"residual"` for running solves.

    Raises:
        InputError: For none, two of the same kind or of the same name, a loss balancer
            beside one with `compares_losses`, or a residual of no running solve.
    """

    def __init__(self, balancers: Sequence[Balancer], monitor: str | None = None):
        check_choice("monitor", monitor, (None, "conflicts", "residual"))
        losses = [b for b in balancers if isinstance(b, LossBalancer)]
        gradients = [b for b in balancers if isinstance(b, GradientBalancer)]
        if len(losses) > 1 or len(gradients) > 1 or not balancers:
            raise InputError(
                "Expected `balancing` to be one method, or a loss balancer and a "
                "gradient balancer. "
                f"Received: {[b.name for b in balancers]}."
            )
        if len({b.name for b in balancers}) < len(balancers):
            raise InputError(
                "Expected balancers of different names, by which their state is saved. "
                f"Received: {[b.name for b in balancers]}."
            )
        if losses and any(b.compares_losses for b in gradients):
            raise InputError(
                "Expected no loss balancer beside one that compares losses with "
                "`baselines`, as it would see them weighted. "
                f"Received: balancing={[b.name for b in balancers]}."
            )
        self.balancers = tuple(balancers)
        self.loss_balancer = losses[0] if losses else None
        self.gradient_balancer = gradients[0] if gradients else None
        self.monitored = monitor
        self.task_weights: TaskWeights | None = None
        self.monitor: ConflictMonitor | None = None
        self.residual: keras.metrics.Mean | None = None
        if monitor == "residual" and self.running_balancer is None:
            raise InputError(
                'Expected a balancer with solve="running" for monitor="residual". '
                f"Received: balancing={[b.name for b in balancers]}."
            )

    @property
    def running_balancer(self) -> RunningBalancer | None:
        """The gradient balancer, if its weights follow the solution."""
        balancer = self.gradient_balancer
        if isinstance(balancer, RunningBalancer) and balancer.is_running:
            return balancer
        return None

    @property
    def own_losses_unweighted(self) -> bool:
        """Whether the loss balancer leaves task-specific variables alone."""
        return (
            self.loss_balancer is not None and self.loss_balancer.task_specific == "own"
        )

    @property
    def needs_several_gradients(self) -> bool:
        """Whether one step differentiates more than one scalar."""
        return (
            self.gradient_balancer is not None
            or self.own_losses_unweighted
            or self.monitored is not None
            or self.needs_gradient_norms
        )

    @property
    def needs_gradient_norms(self) -> bool:
        """Whether the loss balancer reads gradient norms."""
        return (
            self.loss_balancer is not None and self.loss_balancer.needs_gradient_norms
        )

    @property
    def needs_probe(self) -> bool:
        """Whether a balancer evaluates the batch again."""
        running = self.running_balancer
        methods = (self.loss_balancer, self.gradient_balancer)
        return any(method is not None and method.needs_probe for method in methods) or (
            running is not None and running.solve == "running_difference"
        )

    @property
    def num_sub_batches(self) -> int:
        """Into how many parts the gradient balancer wants the batch split."""
        if self.gradient_balancer is None:
            return 0
        return self.gradient_balancer.num_sub_batches

    @property
    def gradients_of_representation(self) -> bool:
        """Whether task gradients are taken at the representation."""
        return (
            self.gradient_balancer is not None
            and self.gradient_balancer.gradients_of == "representation"
        )

    @property
    def needs_boundary(self) -> bool:
        """Whether a step differentiates by the representation."""
        balancer = self.gradient_balancer
        return balancer is not None and balancer.needs_boundary

    @property
    def takes_columns(self) -> bool:
        """Whether tasks may be columns of one output."""
        balancer = self.gradient_balancer
        return balancer is None or not (self.needs_boundary or balancer.needs_probe)

    def build(
        self,
        tasks: Sequence[str],
        shared: Sequence[keras.Variable],
        named: Callable[..., dict[str, tf.Tensor]] | None = None,
    ) -> None:
        """Creates all state for these tasks and shared variables.

        Args:
            tasks: Names of the T tasks.
            shared: The variables that they share.
            named: See `TaskWeights`.
        """
        for balancer in self.balancers:
            balancer.build(tasks)
        self.build_variables(shared)
        self.task_weights = TaskWeights(tasks, named=named)
        if self.monitored == "conflicts":
            self.monitor = ConflictMonitor(len(tasks))
        if self.monitored is not None and self.running_balancer is not None:
            self.residual = keras.metrics.Mean(name="residual")

    def build_variables(self, shared: Sequence[keras.Variable]) -> None:
        """Creates the state that belongs to the shared variables."""
        if self.gradient_balancer is not None:
            self.gradient_balancer.build_variables(shared)

    def aggregate(self, step: GradientStep) -> tuple[list[Any], tf.Tensor]:
        """Combines the task gradients, and updates the monitor of conflicts with them.

        Returns:
            The V gradients, and the gradient balancer's weights, float32 `[T]`;
            without one the sum, and ones.
        """
        self.watch(step)
        if self.gradient_balancer is None:
            ones = tf.ones_like(step.losses)
            return ops.combine(ones, step.gradients), ones
        return self.gradient_balancer.aggregate(step)

    def watch(self, step: GradientStep) -> None:
        """Updates the monitor of conflicts with the task gradients, if there is one."""
        if self.monitor is not None:
            self.monitor.update_state(step.gramian, step.shared_samples)

    def logs(self) -> dict[str, tf.Tensor]:
        """Returns a step's logs of the balancing, scalars by name."""
        assert self.task_weights is not None
        logs = self.task_weights.result()
        if self.monitor is not None:
            logs |= self.monitor.result()
        if self.residual is not None:
            logs["residual"] = self.residual.result()
        if self.monitored is not None and self.gradient_balancer is not None:
            counts = [
                tf.cast(tf.convert_to_tensor(variable), "float32")
                for name, variable in self.gradient_balancer.variables.items()
                if name.endswith("fallbacks")  # A wrapped method has its own.
            ]
            logs["fallbacks"] = tf.add_n(counts)
        return logs

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The means of an epoch that are logged."""
        everything = (self.task_weights, self.monitor, self.residual)
        return [m for m in everything if m is not None]

    def reset_metrics(self) -> None:
        """Starts the means of an epoch anew."""
        for metric in self.metrics:
            metric.reset_state()

    def loss_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """Returns the loss balancer's weights, float32 `[T]`; 0 for absent tasks."""
        if self.loss_balancer is None:
            return tf.cast(present, "float32")
        return tf.stop_gradient(self.loss_balancer.weights(losses, present))

    def update(self, step: LossStep) -> None:
        """Updates the state of the loss balancer from the step."""
        if self.loss_balancer is not None:
            self.loss_balancer.update(step)

    @property
    def loss_state(self) -> list[keras.Variable]:
        """The variables of the loss balancer."""
        if self.loss_balancer is None:
            return []
        return list(self.loss_balancer.variables.values())

    @property
    def state(self) -> dict[str, keras.Variable]:
        """All variables that a checkpoint must hold, by a stable key."""
        return {
            f"balancing.{balancer.name}.{name}": variable
            for balancer in self.balancers
            for name, variable in balancer.variables.items()
        }

    def on_epoch_begin(self) -> None:
        """Calls the balancers' `on_epoch_begin`, at the start of an epoch of `fit`."""
        for balancer in self.balancers:
            balancer.on_epoch_begin()
