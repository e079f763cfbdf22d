"""The state of one training step."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from mtl_keras.model.labels import Labels
from mtl_keras.model.probe import BatchProbe
from mtl_keras.model.task_losses import TaskLosses


@dataclasses.dataclass
class Step:
    """The state of one training step, to which each of its parts adds.

    Weights and the loss scale of mixed precision come in as upstream gradients of the
    losses, so that one recorded forward pass serves any weighting.
    """

    tape: tf.GradientTape
    """Recorded the forward pass and the losses."""
    heads_tape: tf.GradientTape | None
    """Where the step is cut at a boundary: recorded the heads and losses alone."""
    boundary: list[Any] | None
    """Tensors between shared and task-specific layers, where the step is cut there."""
    representation: list[Any] | None
    """`boundary`, where task gradients are taken on it; else None."""
    y_pred: dict[str, Any]
    """The model's outputs."""
    labels: Labels
    """The batch's labels, by output."""
    losses: TaskLosses
    """The task losses, this replica's share of them."""
    sub_batches: list[list[tf.Tensor]]
    """Task losses of disjoint parts of the batch, where the balancer wants them."""
    added: list[tf.Tensor]
    """Regularisation and `add_loss` losses."""
    totals: tf.Tensor
    """float32 `[T]`, the task losses of the whole batch."""
    present: tf.Tensor
    """bool `[T]`: the tasks that take part. Those with a label and a finite loss; then
    without those that the guard excludes for their gradient; none if it skips the
    step."""
    loss_scale: tf.Tensor
    """Scalar, the loss scale of mixed precision."""
    may_overflow: tf.Tensor | bool
    """Whether non-finite gradients count as an overflow of the loss scale."""
    probe: BatchProbe | None = None
    """The batch at other weights, where a balancer wants it."""
    clips: bool = False
    """Whether the optimizer clips what it has not yet summed over replicas."""
    summed: list[keras.Variable] = dataclasses.field(default_factory=list)
    """Variables whose gradients each replica has of the whole batch."""
    loss_weights: tf.Tensor = dataclasses.field(init=False)
    """float32 `[T]`, the loss balancer's weights."""
    weights: tf.Tensor = dataclasses.field(init=False)
    """float32 `[T]`, the gradient balancer's weights; ones without one."""
    finite: tf.Tensor = dataclasses.field(init=False)
    """bool `[T]`: False for a task with a gradient that is not finite."""
    rest_finite: tf.Tensor = dataclasses.field(init=False)
    """bool scalar: whether gradients not attributable to one task are finite."""

    @property
    def batch_losses(self) -> tf.Tensor:
        """`totals` of the tasks that take part, 0 for the others."""
        return tf.where(self.present, self.totals, 0.0)

    @property
    def sources(self) -> list[tf.Tensor]:
        """The tensors of the boundary that have a gradient.

        Tokens or indices may cross the boundary, too.
        """
        return [t for t in self.boundary or () if t.dtype.is_floating]
