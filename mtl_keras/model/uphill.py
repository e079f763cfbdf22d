"""Task gradients of sharpness-aware multi-task optimisation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import keras
import tensorflow as tf

from mtl_keras.balancing.gram_sharpness import SAMO
from mtl_keras.model.gradient_lists import Gradient, add, by_id, scaled, sum_rows
from mtl_keras.model.labels import sum_over_replicas
from mtl_keras.model.probe import BatchProbe
from mtl_keras.model.step import Step
from mtl_keras.model.task_variables import TaskVariables


def rows_uphill(
    step: Step,
    variables: TaskVariables,
    balancer: SAMO,
    upstream: Sequence[tf.Tensor],
) -> tuple[list[list[Gradient]], list[list[Gradient]]]:
    """Returns the task gradients at weights that are moved for each task in turn.

    Args:
        step: With the batch's probe.
        variables: The split of the trainable variables.
        balancer: Says where to.
        upstream: Factors of the losses, by output.

    Returns:
        Gradients by task on the shared variables, and by output on its own.
    """
    probe, shared = step.probe, variables.shared
    assert probe is not None
    owned = list(itertools.chain(*variables.own.values()))
    gradients = step.tape.gradient(step.losses.values, [*shared, *owned], upstream)
    (gradients,) = sum_rows([gradients])
    by_variable = {
        id(v): tf.zeros(v.shape) if g is None else tf.convert_to_tensor(g)
        for v, g in zip([*shared, *owned], gradients, strict=True)
    }
    directions = balancer.directions([v.shape for v in shared])
    rises = _rises(probe, shared, directions, balancer.epsilon)
    trainable = probe.model.trainable_variables
    global_gradients = [by_variable[id(v)] for v in shared]
    rows, owns = [], []
    for index, own in enumerate(variables.own.values()):
        moves = by_id(
            [*shared, *own],
            [
                *balancer.shift(global_gradients, directions[index], rises[index]),
                *balancer.uphill([by_variable[id(v)] for v in own]),
            ],
        )
        point = probe.moved(moves)
        with tf.GradientTape() as tape:
            tape.watch(point)
            loss = probe.losses(point)[index]
        # Losses read variables of their own as they are, outside of the model.
        moved, own_of_losses = tape.gradient(loss, [point, trainable], upstream[index])
        at_point = by_id(
            trainable,
            [add(*pair) for pair in zip(moved, own_of_losses, strict=True)],
        )
        rows.append([at_point[id(v)] for v in shared])
        owns.append([at_point[id(v)] for v in own])
    return rows, owns


def _rises(
    probe: BatchProbe,
    shared: Sequence[keras.Variable],
    directions: Sequence[Sequence[tf.Tensor]],
    epsilon: float,
) -> list[tf.Tensor]:
    """Returns L_i(θ + εz_i) − L_i(θ − εz_i) for each task, of all replicas.

    Args:
        probe: The step's.
        shared: The V shared variables θ.
        directions: z, V tensors by task.
        epsilon: ε.
    """
    rises = []
    for index, direction in enumerate(directions):
        ahead, behind = (
            probe.losses(
                probe.moved(by_id(shared, [scaled(z, length) for z in direction]))
            )[index]
            for length in (epsilon, -epsilon)
        )
        rises.append(ahead - behind)
    return tf.unstack(sum_over_replicas(tf.stack(rises)))
