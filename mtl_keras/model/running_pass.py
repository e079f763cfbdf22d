"""The step of a running solve: one backward pass, and the product G w."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from mtl_keras import ops
from mtl_keras.balancing.base import coarsest_spacing
from mtl_keras.balancing.running import RunningBalancer
from mtl_keras.model.backward import (
    below_representation,
    column_norms,
    norm_of,
    of_all_replicas,
    of_whole_batch,
    own_gradients,
)
from mtl_keras.model.derivatives import explained_derivatives
from mtl_keras.model.gradient_lists import (
    Gradient,
    by_id,
    scaled,
    sum_rows,
    unit_upstream,
)
from mtl_keras.model.labels import replicas, sum_over_replicas
from mtl_keras.model.step import Step
from mtl_keras.model.task_variables import TaskVariables


def running_update(
    step: Step,
    variables: TaskVariables,
    balancer: RunningBalancer,
    upstream: tuple[list[tf.Tensor], list[tf.Tensor]],
    compute_dtypes: Sequence[str],
    residual_metric: keras.metrics.Metric | None,
) -> tuple[list[Gradient], list[list[Gradient]]]:
    """Takes one backward pass with weights that follow the solution.

    With J the Jacobian of the T losses and w the weights the pass gives Jᵀw, which
    is linear in w. Its own derivative by w along Jᵀw is J Jᵀw = G w, one pass more.

    Args:
        step: The weights are added to it.
        variables: The split of the trainable variables.
        balancer: Follows the solution.
        upstream: Factors of the losses by output: for shared variables, and for own.
        compute_dtypes: Those of the model's layers.
        residual_metric: Is updated with the residual of the present weights.

    Returns:
        The update of the shared variables; by output, the gradients of its own.
    """
    sources = variables.shared
    if step.representation is not None:
        sources = step.sources
    losses = step.batch_losses * step.loss_weights
    of_shared, of_own = upstream
    own = own_gradients(step, variables, of_own)
    sizes = _sizes(step, own, weighted=of_own is of_shared)
    weights = balancer.running_weights(losses, sizes, step.present)
    with tf.GradientTape(watch_accessed_variables=False) as second:
        second.watch(weights)
        parts = step.losses.layout.split(weights)
        factors = [w * factor for w, factor in zip(parts, of_shared, strict=True)]
        update = step.tape.gradient(step.losses.values, sources, factors)
    reached = [g for g in update if g is not None]
    if step.representation is None:
        (update,) = sum_rows([update])
    totals = [g for g in update if g is not None]
    norm = tf.sqrt(of_all_replicas(step, ops.gramian([totals])[0, 0]))

    def products() -> tf.Tensor:
        if balancer.solve == "running_difference":
            rates = _difference_quotients(step, variables, update, norm, compute_dtypes)
            rates *= step.loss_weights * step.loss_scale
        else:
            along = unit_upstream(reached, totals, norm)
            flat = [g.values if isinstance(g, tf.IndexedSlices) else g for g in reached]
            with explained_derivatives():
                rates = second.gradient(flat, weights, along)
        rates = sum_over_replicas(tf.cast(rates, "float64"))
        return rates * norm / tf.square(tf.cast(step.loss_scale, "float64"))

    due = tf.constant(True)
    if balancer.update_every > 1:
        due = balancer.is_due(step.present)
    if balancer.update_every > 1 and replicas() == 1:
        gw = tf.cond(due, products, lambda: tf.zeros_like(weights, "float64"))
    else:
        gw = products()
    factor = balancer.running_factor(
        norm / tf.cast(step.loss_scale, "float64"), sizes, step.present
    )
    residual, is_any = balancer.follow(gw, losses, sizes, step.present, due)
    if residual_metric is not None:
        residual_metric.update_state(residual, sample_weight=tf.cast(is_any, "float32"))
    step.weights = weights * factor
    if step.representation is not None:
        update = below_representation(step, variables, update)
    else:
        update = of_whole_batch(step, variables, update)
    # Not on the representation, whose dtype may not hold the factor.
    return [scaled(gradient, factor) for gradient in update], own


def _sizes(step: Step, own: list[list[Gradient]], weighted: bool) -> tf.Tensor:
    """Returns norms of the gradients of the tasks' own variables, float64 `[T]`.

    In place of one the size of the loss, of a task without such variables.

    Args:
        step: Its losses are weighted.
        own: By output, this replica's.
        weighted: Whether they are of the weighted losses.
    """
    layout = step.losses.layout
    losses = step.batch_losses * step.loss_weights
    factors = tf.ones_like(losses) / step.loss_scale
    if not weighted:
        factors *= step.loss_weights
    sizes = []
    for loss, factor, row in zip(
        layout.split(losses), layout.split(factors), own, strict=True
    ):
        gradients = [gradient for gradient in row if gradient is not None]
        if not gradients:
            sizes.append(tf.cast(tf.abs(loss), "float64"))
            continue
        norm = norm_of if loss.shape.rank == 0 else column_norms
        sizes.append(norm(gradients) * tf.cast(factor, "float64"))
    return tf.where(step.present, layout.joined(sizes), 0.0)


def _difference_quotients(
    step: Step,
    variables: TaskVariables,
    update: list[Gradient],
    norm: tf.Tensor,
    compute_dtypes: Sequence[str],
) -> tf.Tensor:
    """Returns this replica's share of (L(θ + εv) − L(θ)) / ε, float32 `[T]`.

    Along the update, of unit length; ε is relative to the length of θ, the square
    root of the spacing of the dtype that the losses are computed in.
    """
    assert step.probe is not None
    squares = [
        tf.reduce_sum(tf.square(tf.cast(v.value, "float32"))) for v in variables.shared
    ]
    # The losses themselves are float32 at best.
    spacing = coarsest_spacing(["float32", *compute_dtypes])
    epsilon = math.sqrt(spacing) * tf.sqrt(tf.add_n(squares))
    length = tf.math.divide_no_nan(epsilon, tf.cast(norm, "float32"))
    moves = by_id(variables.shared, [scaled(g, length) for g in update])
    moved = step.probe.moved(moves)
    difference = tf.stack(step.probe.losses(moved)) - step.losses.joined()
    difference = tf.where(step.present, difference, 0.0)
    return tf.math.divide_no_nan(difference, epsilon)
