"""The boundary between shared and task-specific layers of a functional model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras

from mtl_keras.errors import InputError
from mtl_keras.model.keras_compat import GraphNode, graph_nodes, identity_with_mask
from mtl_keras.model.task_variables import reached_nodes


class SplitModel(NamedTuple):
    """A model cut in two at its representation; both halves share its layers."""

    trunk: keras.Model
    """Inputs to a list of representation tensors."""
    heads: keras.Model
    """Representation tensors, then the model's inputs that a head reads, to
    `{task: output}` of the tasks that `direct` leaves."""
    passed: list[int]
    """Which of the model's flat inputs a head reads."""
    direct: dict[str, int]
    """Tasks whose output other tasks read, and so is part of the representation:
    its index there."""

    def call(self, inputs: Any) -> tuple[list[Any], dict[str, Any]]:
        """Runs both halves in training mode.

        Returns:
            The representation and the outputs by task. The tensors are copies that
            only the heads read, so that a gradient on one of them does not count
            its way through the trunk to another.
        """
        trunk = keras.tree.flatten(self.trunk(inputs, training=True))
        representation = [identity_with_mask(tensor) for tensor in trunk]
        flat = keras.tree.flatten(inputs)
        passed = [flat[index] for index in self.passed]
        outputs = self.heads([*representation, *passed], training=True)
        direct = {task: representation[index] for task, index in self.direct.items()}
        return representation, {**outputs, **direct}


def split_at_representation(
    model: keras.Model, outputs: Mapping[str, keras.KerasTensor]
) -> SplitModel:
    """Cuts a model where layers that serve several tasks feed others.

    Args:
        model: A functional model.
        outputs: `{task: KerasTensor}`.

    Returns:
        The two halves. The representation are all outputs of shared calls that a
        task-specific call reads, or that are outputs themselves.

    Raises:
        InputError: When a trainable variable that tasks share is used above the
            boundary, as by one layer called once for each task, or when nothing
            is shared.
    """
    nodes = graph_nodes(model)
    tasks = _tasks_by_node(nodes, outputs)
    shared = {index for index, names in enumerate(tasks) if len(names) > 1}
    _check_not_called_for_each(nodes, tasks)
    inputs = keras.tree.flatten(model.inputs)
    input_ids = {id(tensor): index for index, tensor in enumerate(inputs)}
    from_shared = {
        id(tensor): tensor
        for index in shared
        for tensor in nodes[index].outputs
        if id(tensor) not in input_ids
    }
    read_above = [
        tensor
        for index, node in enumerate(nodes)
        if index not in shared
        for tensor in node.inputs
    ]
    read_above += [t for t in outputs.values() if id(t) in from_shared]
    boundary = {id(t): t for t in read_above if id(t) in from_shared}
    passed = sorted({input_ids[id(t)] for t in read_above if id(t) in input_ids})
    if not boundary:
        raise InputError(
            'Expected layers that tasks share for gradients_of="representation". '
            "Received a model without any."
        )
    representation = list(boundary.values())
    index_of = {tensor_id: index for index, tensor_id in enumerate(boundary)}
    direct = {t: index_of[id(o)] for t, o in outputs.items() if id(o) in index_of}
    above = {task: o for task, o in outputs.items() if task not in direct}
    trunk = keras.Model(model.inputs, representation)
    heads = keras.Model([*representation, *(inputs[i] for i in passed)], above)
    return SplitModel(trunk, heads, passed, direct)


def check_shared_below(split: SplitModel, shared: Sequence[keras.Variable]) -> None:
    """Raises `InputError` if the heads use a variable that tasks share."""
    above = {id(variable) for variable in split.heads.trainable_variables}
    for variable in shared:
        if id(variable) in above:
            raise _shared_above(variable)


def _check_not_called_for_each(
    nodes: Sequence[GraphNode], tasks: Sequence[set[str]]
) -> None:
    """Raises `InputError` for a layer with weights called once for each task."""
    of_layer: dict[int, set[str]] = {}
    for node, names in zip(nodes, tasks, strict=True):
        of_layer.setdefault(id(node.operation), set()).update(names)
    for node, names in zip(nodes, tasks, strict=True):
        variables = getattr(node.operation, "trainable_variables", ())
        if variables and len(names) == 1 and len(of_layer[id(node.operation)]) > 1:
            raise _shared_above(variables[0])


def _shared_above(variable: keras.Variable) -> InputError:
    return InputError(
        "Expected shared variables below the heads for gradients_of="
        f'"representation". Received a model whose heads share '
        f'{variable.path!r}; use gradients_of="shared".'
    )


def _tasks_by_node(
    nodes: Sequence[GraphNode], outputs: Mapping[str, keras.KerasTensor]
) -> list[set[str]]:
    """Returns for each call the outputs that depend on it."""
    tasks: list[set[str]] = [set() for _ in nodes]
    for task, output in outputs.items():
        for index in reached_nodes(nodes, output):
            tasks[index].add(task)
    return tasks
