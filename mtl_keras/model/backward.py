"""Backward passes of one training step, and what replicas agree on of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mtl_keras import ops
from mtl_keras.balancing.base import agreed
from mtl_keras.model.gradient_lists import Gradient, scaled, sum_rows
from mtl_keras.model.labels import replicas, sum_over_replicas
from mtl_keras.model.step import Step
from mtl_keras.model.task_variables import TaskVariables


def task_rows(
    tape: tf.GradientTape,
    losses: Sequence[tf.Tensor],
    sources: Sequence[Any],
    upstream: Sequence[tf.Tensor],
) -> list[list[Gradient]]:
    """One backward pass a task: gradients by task on the sources.

    Of a group of tasks in a loop of the graph, which is traced once.

    Args:
        tape: A persistent tape.
        losses: By output, scalars or `[tasks of the output]`.
        sources: Tensors or variables to differentiate by.
        upstream: By output, in the shapes of the losses.
    """
    rows: list[list[Gradient]] = []
    for loss, factor in zip(losses, upstream, strict=True):
        if loss.shape.rank == 0:
            rows.append(tape.gradient(loss, list(sources), factor))
            continue
        connected = [g is not None for g in tape.gradient(loss, list(sources))]
        reached = [v for v, is_any in zip(sources, connected, strict=True) if is_any]

        def one(
            column: tf.Tensor,
            loss: tf.Tensor = loss,
            reached: Sequence[Any] = reached,
        ) -> list[tf.Tensor]:
            gradients = tape.gradient(loss, reached, column)
            return [tf.convert_to_tensor(gradient) for gradient in gradients]

        dtypes = [tf.as_dtype(variable.dtype) for variable in reached]
        stacked = tf.map_fn(one, tf.linalg.diag(factor), fn_output_signature=dtypes)
        columns = iter([tf.unstack(rows_of, loss.shape[0]) for rows_of in stacked])
        by_source = [next(columns) if is_any else None for is_any in connected]
        rows += [
            [None if of_source is None else of_source[index] for of_source in by_source]
            for index in range(loss.shape[0])
        ]
    return rows


def own_gradients(
    step: Step, variables: TaskVariables, upstream: list[tf.Tensor]
) -> list[list[Gradient]]:
    """One backward pass through the heads: gradients by output on own variables."""
    own = list(itertools.chain(*variables.own.values()))
    gradients = iter(step.tape.gradient(step.losses.values, own, upstream))
    return [[next(gradients) for _ in task] for task in variables.own.values()]


def below_representation(
    step: Step, variables: TaskVariables, update: list[Gradient]
) -> list[Gradient]:
    """One backward pass through the backbone, for an update of the representation."""
    upstream = [
        tf.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(step.sources, update, strict=True)
    ]
    return step.tape.gradient(step.sources, variables.shared, upstream)


def of_whole_batch(
    step: Step, variables: TaskVariables, update: list[Gradient]
) -> list[Gradient]:
    """Returns an update that each replica has of the whole batch, for the optimizer.

    Which is not to sum it over replicas, but where the gradients of added losses, each
    replica's share, come on top, or norms of such shares are clipped together with it.
    """
    if step.added or step.clips:
        return [scaled(gradient, 1.0 / replicas()) for gradient in update]
    step.summed = list(variables.shared)
    return update


def of_all_replicas(step: Step, squares: tf.Tensor) -> tf.Tensor:
    """Returns squares of norms over the whole batch, the same on each replica.

    Gradients of a representation are those of a replica's own samples, those of
    variables are of all samples already.
    """
    is_share = step.representation is not None
    return sum_over_replicas(squares) if is_share else agreed(squares)


def norm_of(gradients: list[Gradient]) -> tf.Tensor:
    """Returns the norm of gradients of the whole batch, float64 scalar."""
    return tf.sqrt(agreed(ops.gramian(sum_rows([gradients])))[0, 0])


def column_norms(gradients: list[Gradient]) -> tf.Tensor:
    """Returns norms over all axes but the last, of the tasks of a group, `[T]`."""
    squares = []
    for gradient in sum_rows([gradients])[0]:
        values = tf.cast(tf.convert_to_tensor(gradient), "float64")
        axes = list(range(len(values.shape) - 1))
        squares.append(tf.reduce_sum(tf.square(values), axes))
    return tf.sqrt(agreed(tf.add_n(squares)))


def norms_on_last_shared_layer(
    step: Step, variables: Sequence[keras.Variable]
) -> tf.Tensor:
    """Returns ‖∇ L_i‖ on the shared layer next to the heads, float32 `[T]`.

    The gradients are those of the unweighted losses over all replicas.

    Args:
        step: Its tape is persistent.
        variables: Those of the layer; ones are returned for none.
    """
    losses = step.losses.values
    if not variables:
        return tf.ones(step.present.shape)
    upstream = [tf.fill(loss.shape, step.loss_scale) for loss in losses]
    rows = task_rows(step.tape, losses, variables, upstream)
    gramian = agreed(ops.gramian(sum_rows(rows)))
    norms = tf.sqrt(tf.linalg.diag_part(gramian))
    return tf.cast(norms, "float32") / step.loss_scale
