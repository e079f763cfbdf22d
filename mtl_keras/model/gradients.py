"""Gradients of one training step: by task where a balancer needs them so."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from mtl_keras import ops
from mtl_keras.balancing.base import GradientStep, GramBalancer
from mtl_keras.balancing.pipeline import Pipeline
from mtl_keras.model.labels import replicas
from mtl_keras.model.task_variables import TaskVariables

Gradient = Any  # tf.Tensor | tf.IndexedSlices | None


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


def step_objectives(
    losses: list[tf.Tensor],
    added: list[tf.Tensor],
    loss_weights: tf.Tensor,
    pipeline: Pipeline,
    loss_scale: tf.Tensor,
) -> Objectives:
    """Returns what to differentiate, with the loss balancer's weights in it.

    Args:
        losses: T scalars.
        added: Further scalars, not balanced.
        loss_weights: float32 `[T]` from the loss balancer.
        pipeline: The balancing.
        loss_scale: Scalar.
    """
    weighted = tf.unstack(loss_weights * loss_scale)
    own = weighted
    if pipeline.own_losses_unweighted:
        own = [loss_scale] * len(losses)
    return Objectives(losses, weighted, own, added, loss_scale)


class StepContext(NamedTuple):
    """What gradient balancing reads of a step, beside the gradients."""

    losses: tf.Tensor
    """float32 `[T]`, the weighted losses of the whole batch."""
    present: tf.Tensor
    """bool `[T]`."""
    loss_scale: tf.Tensor
    """Scalar, the loss scale of mixed precision."""
    representation: list[tf.Tensor] | None
    """Tensors between shared and task-specific layers, where the step took them."""
    sub_batches: list[list[tf.Tensor]]
    """Task losses of disjoint parts of the batch, where the balancer wants them."""


class StepGradients(NamedTuple):
    """Gradients of one step."""

    shared: list[Gradient]
    """By shared variable."""
    own: list[list[Gradient]]
    """By task, then by task-specific variable."""
    weights: tf.Tensor
    """float32 `[T]`, the gradient balancer's weights."""


def step_gradients(
    tape: tf.GradientTape,
    objectives: Objectives,
    variables: TaskVariables,
    pipeline: Pipeline,
    context: StepContext,
) -> tuple[dict[int, Gradient], tf.Tensor]:
    """Returns the gradient of every trainable variable, by its id.

    Args:
        tape: The step's tape, persistent where the pipeline says so.
        objectives: `step_objectives`' result.
        variables: The split of the trainable variables.
        pipeline: The balancing.
        context: The rest of the step.

    Returns:
        The gradients, and the gradient balancer's weights, float32 `[T]` (ones
        without one, and where tasks share nothing that it could balance).
    """
    balancer = pipeline.gradient_balancer
    if balancer is None or not variables.shared:
        if pipeline.monitor is not None and variables.shared:
            rows, _ = _by_task(tape, objectives, variables.shared, variables)
            pipeline.monitor.update_state(
                GradientStep(
                    _sum_over_replicas(rows),
                    context.losses,
                    context.present,
                    context.loss_scale,
                ).gramian
            )
        gradients = _of_weighted_losses(tape, objectives, variables)
        return gradients, tf.ones_like(context.losses)
    if context.representation is not None:
        step = _through_representation(tape, objectives, variables, pipeline, context)
    elif (
        isinstance(balancer, GramBalancer)
        and balancer.update_every > 1
        and replicas() == 1
    ):
        step = _every_kth_step(tape, objectives, variables, pipeline, context)
    else:
        step = _through_backbone(tape, objectives, variables, pipeline, context)
    balancer.after_step(step.weights)

    gradients = _by_id(variables.shared, step.shared)
    for index, own_variables in enumerate(variables.own.values()):
        own = step.own[index]
        if balancer.task_specific == "weighted":
            own = [_scaled(gradient, step.weights[index]) for gradient in own]
        gradients |= _by_id(own_variables, own)
    gradients |= _by_id(variables.unused, [None] * len(variables.unused))
    if objectives.added:
        everything = [*variables.shared, *itertools.chain(*variables.own.values())]
        everything += variables.unused
        upstream = [objectives.loss_scale] * len(objectives.added)
        added = tape.gradient(objectives.added, everything, upstream)
        for variable, gradient in zip(everything, added, strict=True):
            gradients[id(variable)] = _add(gradients[id(variable)], gradient)
    return gradients, step.weights


def _through_backbone(
    tape: tf.GradientTape,
    objectives: Objectives,
    variables: TaskVariables,
    pipeline: Pipeline,
    context: StepContext,
) -> StepGradients:
    """T backward passes through everything: the exact task gradients."""
    rows, own = _by_task(tape, objectives, variables.shared, variables)
    sub_batches = [
        [
            tape.gradient(loss, variables.shared, factor)
            for loss, factor in zip(losses, objectives.shared, strict=True)
        ]
        for losses in context.sub_batches
    ]
    step = GradientStep(
        _sum_over_replicas(rows),
        context.losses,
        context.present,
        context.loss_scale,
        sub_batches=[_sum_over_replicas(part) for part in sub_batches],
    )
    update, weights = pipeline.aggregate(step)
    # The optimizer sums over replicas, each of which has the whole update.
    update = [_scaled(gradient, 1.0 / replicas()) for gradient in update]
    return StepGradients(update, own, weights)


def _through_representation(
    tape: tf.GradientTape,
    objectives: Objectives,
    variables: TaskVariables,
    pipeline: Pipeline,
    context: StepContext,
) -> StepGradients:
    """T backward passes through the heads and one through the backbone."""
    assert context.representation is not None
    # Tokens or indices may cross the boundary, too; they have no gradient.
    representation = [t for t in context.representation if t.dtype.is_floating]
    rows, own = _by_task(tape, objectives, representation, variables)
    step = GradientStep(
        rows, context.losses, context.present, context.loss_scale, summed=False
    )
    update, weights = pipeline.aggregate(step)
    upstream = [
        tf.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(representation, update, strict=True)
    ]
    shared = tape.gradient(representation, variables.shared, upstream)
    return StepGradients(shared, own, weights)


def _every_kth_step(
    tape: tf.GradientTape,
    objectives: Objectives,
    variables: TaskVariables,
    pipeline: Pipeline,
    context: StepContext,
) -> StepGradients:
    """Solves every k-th step; in between one backward pass with the kept weights."""
    balancer = pipeline.gradient_balancer
    assert isinstance(balancer, GramBalancer)
    # A branch cannot return None. Both leave out the same gradients.
    connected: list[bool] = []

    def packed(step: StepGradients) -> tuple[list[Gradient], tf.Tensor]:
        flat = [*step.shared, *itertools.chain(*step.own)]
        connected[:] = [gradient is not None for gradient in flat]
        return [gradient for gradient in flat if gradient is not None], step.weights

    def solve() -> tuple[list[Gradient], tf.Tensor]:
        return packed(_through_backbone(tape, objectives, variables, pipeline, context))

    def keep() -> tuple[list[Gradient], tf.Tensor]:
        weights = balancer.kept_weights()
        factors = [
            weight * factor
            for weight, factor in zip(
                tf.unstack(weights), objectives.shared, strict=True
            )
        ]
        shared = tape.gradient(objectives.losses, variables.shared, factors)
        own = [
            tape.gradient(loss, own_variables, factor)
            for loss, own_variables, factor in zip(
                objectives.losses, variables.own.values(), objectives.own, strict=True
            )
        ]
        return packed(StepGradients(shared, own, weights))

    flat, weights = tf.cond(balancer.is_due(), solve, keep)
    given = iter(flat)
    everything = [next(given) if there else None for there in connected]
    shared = everything[: len(variables.shared)]
    rest = iter(everything[len(variables.shared) :])
    own = [[next(rest) for _ in task] for task in variables.own.values()]
    return StepGradients(shared, own, weights)


def _of_weighted_losses(
    tape: tf.GradientTape, objectives: Objectives, variables: TaskVariables
) -> dict[int, Gradient]:
    """One backward pass; one more through the heads if these are unweighted."""
    # A tape differentiates a list of scalars as their sum.
    scalars = [*objectives.losses, *objectives.added]
    added = [objectives.loss_scale] * len(objectives.added)
    own_variables = list(itertools.chain(*variables.own.values()))
    shared_variables = [*variables.shared, *variables.unused]
    weighted = [*objectives.shared, *added]
    if objectives.own is objectives.shared:
        everything = [*shared_variables, *own_variables]
        return _by_id(everything, tape.gradient(scalars, everything, weighted))
    shared = tape.gradient(scalars, shared_variables, weighted)
    own = tape.gradient(scalars, own_variables, [*objectives.own, *added])
    return _by_id(shared_variables, shared) | _by_id(own_variables, own)


def _by_task(
    tape: tf.GradientTape,
    objectives: Objectives,
    sources: Sequence[Any],
    variables: TaskVariables,
) -> tuple[list[list[Gradient]], list[list[Gradient]]]:
    """One backward pass a task: gradients on `sources`, and on its own variables."""
    rows, owns = [], []
    for loss, shared, own, own_variables in zip(
        objectives.losses,
        objectives.shared,
        objectives.own,
        variables.own.values(),
        strict=True,
    ):
        if own is shared:
            both = tape.gradient(loss, [*sources, *own_variables], shared)
            rows.append(both[: len(sources)])
            owns.append(both[len(sources) :])
        else:
            rows.append(tape.gradient(loss, list(sources), shared))
            owns.append(tape.gradient(loss, own_variables, own))
    return rows, owns


def _by_id(
    variables: Sequence[keras.Variable], gradients: Sequence[Gradient]
) -> dict[int, Gradient]:
    return {id(v): g for v, g in zip(variables, gradients, strict=True)}


def norms_on_last_shared_layer(
    tape: tf.GradientTape, objectives: Objectives, variables: TaskVariables
) -> tf.Tensor:
    """Returns ‖∇ L_i‖ on the shared layer next to the heads, float32 `[T]`.

    The gradients are those of the unweighted losses over all replicas. Ones where
    tasks share nothing.
    """
    if not variables.shared:
        return tf.ones((len(objectives.losses),))
    layer = variables.shared[-1].path.rpartition("/")[0]
    last = [v for v in variables.shared if v.path.rpartition("/")[0] == layer]
    rows = [
        tape.gradient(loss, last, objectives.loss_scale) for loss in objectives.losses
    ]
    gramian = ops.gramian(_sum_over_replicas(rows))
    norms = tf.sqrt(tf.linalg.diag_part(gramian))
    return tf.cast(norms, "float32") / objectives.loss_scale


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
