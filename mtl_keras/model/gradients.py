"""Gradients of one training step: by task where a balancer needs them so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from mtl_keras.balancing.pipeline import Pipeline
from mtl_keras.model.labels import replicas
from mtl_keras.model.task_variables import TaskVariables

Gradient = Any  # tf.Tensor | tf.IndexedSlices | None


class Objectives(NamedTuple):
    """Scalars of one step, all times the loss scale of mixed precision."""

    shared: list[tf.Tensor]
    """T task losses whose gradients train the shared variables."""
    own: list[tf.Tensor]
    """T task losses whose gradients train the task-specific variables."""
    added: tf.Tensor | None
    """Regularisation and `add_loss` losses."""


def step_objectives(
    losses: Sequence[tf.Tensor],
    added: Sequence[tf.Tensor],
    loss_weights: tf.Tensor,
    pipeline: Pipeline,
    optimizer: keras.optimizers.Optimizer,
) -> Objectives:
    """Returns the scalars to differentiate; called inside of the tape.

    Args:
        losses: T scalars.
        added: Further scalars, not balanced.
        loss_weights: float32 `[T]` from the loss balancer.
        pipeline: The balancing.
        optimizer: Its `scale_loss` is applied.
    """
    weights = tf.unstack(loss_weights)
    weighted = [
        optimizer.scale_loss(weight * loss)
        for weight, loss in zip(weights, losses, strict=True)
    ]
    own = weighted
    if pipeline.own_losses_unweighted:
        own = [optimizer.scale_loss(loss) for loss in losses]
    return Objectives(
        weighted, own, optimizer.scale_loss(tf.add_n(added)) if added else None
    )


def step_gradients(
    tape: tf.GradientTape,
    objectives: Objectives,
    variables: TaskVariables,
    pipeline: Pipeline,
    losses: tf.Tensor,
    present: tf.Tensor,
    gradient_scale: tf.Tensor,
) -> tuple[dict[int, Gradient], tf.Tensor]:
    """Returns the gradient of every trainable variable, by its id.

    Args:
        tape: The step's tape, persistent where the pipeline says so.
        objectives: `step_objectives`' result.
        variables: The split of the trainable variables.
        pipeline: The balancing.
        losses: float32 `[T]`, the weighted losses of the whole batch.
        present: bool `[T]`.
        gradient_scale: Scalar, the loss scale of mixed precision.

    Returns:
        The gradients, and the gradient balancer's weights, float32 `[T]` (ones
        without one).
    """
    if pipeline.gradient_balancer is None:
        gradients = _of_weighted_losses(tape, objectives, variables)
        return gradients, tf.ones_like(losses)
    balancer = pipeline.gradient_balancer
    rows, own = _by_task(tape, objectives, variables)
    update, weights = balancer.aggregate(
        _sum_over_replicas(rows), losses, present, gradient_scale
    )
    # The optimizer sums over replicas, each of which has the whole update.
    update = [_scaled(gradient, 1.0 / replicas()) for gradient in update]
    gradients = _by_id(variables.shared, update)
    for index, task in enumerate(variables.own):
        for variable, gradient in zip(variables.own[task], own[index], strict=True):
            if balancer.task_specific == "weighted":
                gradient = _scaled(gradient, weights[index])
            gradients[id(variable)] = gradient
    gradients.update(_by_id(variables.unused, [None] * len(variables.unused)))
    if objectives.added is not None:
        everything = [*variables.shared, *sum(variables.own.values(), [])]
        everything += variables.unused
        added = tape.gradient(objectives.added, everything)
        for variable, gradient in zip(everything, added, strict=True):
            gradients[id(variable)] = _add(gradients[id(variable)], gradient)
    return gradients, weights


def _of_weighted_losses(
    tape: tf.GradientTape, objectives: Objectives, variables: TaskVariables
) -> dict[int, Gradient]:
    """One backward pass; one more through the heads if these are unweighted."""
    # A tape differentiates a list of scalars as their sum.
    added = [] if objectives.added is None else [objectives.added]
    own_variables = sum(variables.own.values(), [])
    shared_variables = [*variables.shared, *variables.unused]
    weighted = [*objectives.shared, *added]
    if objectives.own is objectives.shared:
        everything = [*shared_variables, *own_variables]
        return _by_id(everything, tape.gradient(weighted, everything))
    gradients = _by_id(shared_variables, tape.gradient(weighted, shared_variables))
    own = tape.gradient([*objectives.own, *added], own_variables)
    return gradients | _by_id(own_variables, own)


def _by_task(
    tape: tf.GradientTape, objectives: Objectives, variables: TaskVariables
) -> tuple[list[list[Gradient]], list[list[Gradient]]]:
    """One backward pass a task; rows on the shared variables, and on its own."""
    rows, owns = [], []
    count = len(variables.shared)
    for shared, own, own_variables in zip(
        objectives.shared, objectives.own, variables.own.values(), strict=True
    ):
        if own is shared:
            both = tape.gradient(shared, [*variables.shared, *own_variables])
            rows.append(both[:count])
            owns.append(both[count:])
        else:
            rows.append(tape.gradient(shared, variables.shared))
            owns.append(tape.gradient(own, own_variables))
    return rows, owns


def _by_id(
    variables: Sequence[keras.Variable], gradients: Sequence[Gradient]
) -> dict[int, Gradient]:
    return {id(v): g for v, g in zip(variables, gradients, strict=True)}


def _add(first: Gradient, second: Gradient) -> Gradient:
    """Returns the sum of two gradients of one variable; None counts as zero."""
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, tf.IndexedSlices) and isinstance(second, tf.IndexedSlices):
        return tf.IndexedSlices(
            tf.concat([first.values, second.values], 0),
            tf.concat([first.indices, second.indices], 0),
            first.dense_shape,
        )
    return tf.convert_to_tensor(first) + tf.convert_to_tensor(second)


def _scaled(gradient: Gradient, factor: Any) -> Gradient:
    """Returns a gradient times a scalar."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(
            gradient.values * tf.cast(factor, gradient.values.dtype),
            gradient.indices,
            gradient.dense_shape,
        )
    return gradient * tf.cast(factor, gradient.dtype)


def _sum_over_replicas(rows: list[list[Gradient]]) -> list[list[Gradient]]:
    """Returns the task gradients of the whole batch: summed over replicas."""
    if replicas() == 1:
        return rows
    context = tf.distribute.get_replica_context()
    flat = [gradient for row in rows for gradient in row if gradient is not None]
    reduced = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, flat))
    return [[None if g is None else next(reduced) for g in row] for row in rows]
