"""Which variables tasks share, read from the functional graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras

from mtl_keras.model.keras_compat import GraphNode, graph_nodes


class TaskVariables(NamedTuple):
    """Trainable variables split by the tasks whose outputs they reach."""

    shared: list[keras.Variable]
    """Reached by two or more tasks."""
    own: dict[str, list[keras.Variable]]
    """Reached by this task alone."""
    unused: list[keras.Variable]
    """Reached by no task with a loss."""


def compute_dtypes(model: keras.Model) -> list[str]:
    """Returns the names of the dtypes in which the layers compute, sorted.

    Under mixed precision these are coarser than the gradients' own, which are cast to
    the dtype of their variables.
    """
    names: set[str] = set()
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            names.update(compute_dtypes(layer))
        elif not isinstance(layer, keras.layers.InputLayer):
            names.add(layer.compute_dtype)
    return sorted(name for name in names if keras.backend.is_float_dtype(name))


def split_variables(
    model: keras.Model, reached: Mapping[str, set[int]]
) -> TaskVariables:
    """Splits `model.trainable_variables`, in their order.

    Args:
        model: The model.
        reached: `reached_variables`' result for the tasks that have a loss.
    """
    split = TaskVariables([], {task: [] for task in reached}, [])
    for variable in model.trainable_variables:
        owners = [task for task, ids in reached.items() if id(variable) in ids]
        if len(owners) > 1:
            split.shared.append(variable)
        elif owners:
            split.own[owners[0]].append(variable)
        else:
            split.unused.append(variable)
    return split


def reached_variables(
    model: keras.Model, outputs: Mapping[str, keras.KerasTensor]
) -> dict[str, set[int]]:
    """Returns the ids of all variables on the way from the inputs to each output.

    Args:
        model: A functional model.
        outputs: `{task: KerasTensor}`, outputs of the model.
    """
    nodes = graph_nodes(model)
    return {
        task: {
            id(variable)
            for index in reached_nodes(nodes, output)
            for variable in getattr(nodes[index].operation, "variables", ())
        }
        for task, output in outputs.items()
    }


def reached_nodes(
    nodes: Sequence[GraphNode], output: keras.KerasTensor, *, auxiliary: bool = False
) -> set[int]:
    """Returns the indices of the calls that an output depends on.

    Args:
        nodes: `graph_nodes`' result.
        output: A tensor that one of them makes.
        auxiliary: Whether to follow inputs that a layer only reads for a loss of its
            own (`auxiliary_inputs`): the output does not depend on them, but cannot
            be computed without.
    """
    maker = {id(t): index for index, node in enumerate(nodes) for t in node.outputs}
    reached: set[int] = set()
    waiting = [maker[id(output)]]
    while waiting:
        index = waiting.pop()
        if index not in reached:
            reached.add(index)
            node = nodes[index]
            inputs = node.inputs if auxiliary else node.used_inputs
            waiting += [maker[id(t)] for t in inputs]
    return reached
