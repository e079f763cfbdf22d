"""What passes between the parts of one training step."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from mtl_keras.model.gradient_lists import Gradient
from mtl_keras.model.labels import Labels
from mtl_keras.model.task_losses import TaskLosses


class Forward(NamedTuple):
    """What a forward pass gives."""

    y_pred: dict[str, Any]
    """The model's outputs."""
    labels: Labels
    """The batch's labels, by task."""
    losses: TaskLosses
    """The losses of the batch."""
    sub_batches: list[list[tf.Tensor]]
    """See `StepContext`."""
    added: list[tf.Tensor]
    """Regularisation and `add_loss` losses."""
    representation: list[tf.Tensor] | None
    """See `StepContext`."""
    heads_tape: tf.GradientTape | None
    """Where the step took a representation: recorded the heads and losses alone."""


class Objectives(NamedTuple):
    """What a step differentiates: scalars, each with its upstream gradient.

    Weights and the loss scale of mixed precision come in as upstream gradients, so
    that one recorded forward pass serves any weighting.
    """

    losses: list[tf.Tensor]
    """T task losses."""
    shared: list[tf.Tensor]
    """T factors of the losses, for the shared variables."""
    own: list[tf.Tensor]
    """T factors of the losses, for the task-specific variables."""
    added: list[tf.Tensor]
    """Regularisation and `add_loss` losses."""
    loss_scale: tf.Tensor
    """Scalar, the loss scale."""


class StepContext(NamedTuple):
    """What a step's gradients are made from."""

    values: list[tf.Tensor]
    """T task losses to differentiate, this replica's share."""
    added: list[tf.Tensor]
    """Regularisation and `add_loss` losses."""
    losses: tf.Tensor
    """float32 `[T]`, the task losses of the whole batch; 0 where absent."""
    present: tf.Tensor
    """bool `[T]`."""
    loss_scale: tf.Tensor
    """Scalar, the loss scale of mixed precision."""
    may_overflow: tf.Tensor | bool
    """Whether gradients that are not finite are the loss scale's doing."""
    representation: list[tf.Tensor] | None
    """Tensors between shared and task-specific layers, where the step took them."""
    sub_batches: list[list[tf.Tensor]]
    """Task losses of disjoint parts of the batch, where the balancer wants them."""


class TaskGradients(NamedTuple):
    """Gradients of the task losses, times the loss balancer's weights."""

    rows: list[list[Gradient]]
    """By task, then by shared variable or tensor of the representation."""
    own: list[list[Gradient]]
    """By task, then by task-specific variable."""
    sub_batches: list[list[list[Gradient]]]
    """As `rows`, by part of the batch."""
    present: tf.Tensor
    """bool `[T]`: which tasks take part."""
    loss_weights: tf.Tensor
    """float32 `[T]`."""
    finite: tf.Tensor
    """bool `[T]`: whose gradients came out finite."""


class StepGradients(NamedTuple):
    """Gradients of one step, balanced."""

    shared: list[Gradient]
    """By shared variable."""
    own: list[list[Gradient]]
    """By task, then by task-specific variable."""
    weights: tf.Tensor
    """float32 `[T]`, the gradient balancer's weights."""
    loss_weights: tf.Tensor
    """float32 `[T]`, the loss balancer's weights."""
    present: tf.Tensor
    """bool `[T]`: which tasks took part."""
    finite: tf.Tensor
    """bool `[T]`: whose gradients came out finite, as far as the step looked."""


class BalancedGradients(NamedTuple):
    """What a step hands to the optimizer, and to the logs."""

    by_id: dict[int, Gradient]
    """The gradient of every trainable variable, by its id."""
    weights: tf.Tensor
    """float32 `[T]`, the task weights of both balancers together."""
    present: tf.Tensor
    """bool `[T]`: which tasks took part."""
    finite: tf.Tensor
    """bool `[T]`: whose gradients are finite."""
    rest_finite: tf.Tensor
    """bool scalar: whether the gradients of no single task are finite."""
