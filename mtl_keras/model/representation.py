"""The boundary between shared and task-specific layers of a functional model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from mtl_keras.errors import InputError
from mtl_keras.model.keras_compat import (
    GraphNode,
    graph_nodes,
    identity_with_mask,
    inlined_graph_nodes,
    inlined_outputs,
)
from mtl_keras.model.task_variables import DataFlow, found_in_step, reached_nodes


class SplitModel(NamedTuple):
    """A model cut in two at its representation; both halves share its layers."""

    trunk: keras.Model
    """The model's inputs to a list of representation tensors."""
    heads: keras.Model | None
    """Representation tensors, then the model's inputs that a head reads, to
    `{task: output}` of the tasks that `direct` leaves; None if it leaves none."""
    passed: list[int]
    """Which of the model's flat inputs a head reads."""
    direct: dict[str, int]
    """Tasks whose output is part of the representation, as other tasks read it or
    have the same one, or is an input of the model: its index in the representation
    followed by the inputs."""

    def below(self, inputs: list[Any]) -> list[Any]:
        """Runs the trunk in training mode.

        Args:
            inputs: A batch's tensors in the order of the model's inputs.

        Returns:
            The representation. Its tensors are copies that only the heads read, so
            that a gradient on one of them does not count its way through the trunk
            to another.
        """
        trunk = keras.tree.flatten(self.trunk(inputs, training=True))
        return [identity_with_mask(tensor) for tensor in trunk]

    def above(self, representation: list[Any], inputs: list[Any]) -> dict[str, Any]:
        """Runs the heads in training mode.

        Args:
            representation: `below`'s result.
            inputs: As in `below`.

        Returns:
            The outputs by task.
        """
        everything = [*representation, *inputs]
        outputs = {task: everything[index] for task, index in self.direct.items()}
        if self.heads is not None:
            passed = [inputs[index] for index in self.passed]
            outputs |= self.heads([*representation, *passed], training=True)
        return outputs


def split_at_representation(
    model: keras.Model, outputs: Mapping[str, keras.KerasTensor]
) -> SplitModel:
    """Cuts a model where layers that serve several tasks feed others.

    Args:
        model: A functional model. Models nested in it are cut, too, if they have
            several outputs.
        outputs: `{task: KerasTensor}`.

    Returns:
        The two halves. The representation are all outputs of shared calls that a
        task-specific call reads, or that are outputs themselves.

    Raises:
        InputError: When a trainable variable that tasks share is used above the
            boundary, as by one layer called once for each task, when nothing is
            shared, or when layers of nested models have the same name.
    """
    inputs = list(model.inputs)
    inlined = inlined_outputs(model, outputs)
    if any(inlined[task] is not output for task, output in outputs.items()):
        _check_names_differ(model)
        model, outputs = keras.Model(inputs, inlined), inlined
    nodes = graph_nodes(model)
    tasks = _tasks_by_node(nodes, outputs)
    shared = {index for index, names in enumerate(tasks) if len(names) > 1}
    _check_not_called_for_each(nodes, tasks)
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
    passed = sorted({input_ids[id(t)] for t in read_above if id(t) in input_ids})
    read_above += [t for t in outputs.values() if id(t) in from_shared]
    boundary = {id(t): t for t in read_above if id(t) in from_shared}
    if not boundary:
        raise InputError(
            'Expected layers that tasks share for gradients_of="representation". '
            "Received a model without any."
        )
    representation = list(boundary.values())
    index_of = {id(t): index for index, t in enumerate([*representation, *inputs])}
    direct = {t: index_of[id(o)] for t, o in outputs.items() if id(o) in index_of}
    above = {task: o for task, o in outputs.items() if task not in direct}
    trunk = keras.Model(inputs, representation)
    heads = None
    if above:
        heads = keras.Model([*representation, *(inputs[i] for i in passed)], above)
    return SplitModel(trunk, heads, passed, direct)


def reached_around_representation(
    split: SplitModel,
    tapes: tuple[tf.GradientTape, tf.GradientTape],
    losses: Mapping[str, tf.Tensor],
    representation: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
    reached: Mapping[str, set[int]],
) -> dict[str, set[int]]:
    """Returns `reached` with the variables that a step shows beside the graph.

    Args:
        split: The model's halves.
        tapes: Persistent tapes: of the whole step, and of the heads and losses.
        losses: `{task: scalar}`.
        representation: The representation's tensors of floats.
        variables: The trainable variables.
        reached: `reached_variables`' result.

    Raises:
        InputError: For a variable that several tasks reach and a head or loss reads.
    """
    heads = split.heads.trainable_variables if split.heads is not None else []
    in_heads = {id(v) for v in heads}
    in_trunk = {id(v) for v in split.trunk.trainable_variables}
    whole, upper = tapes
    below_flow = above_flow = None
    if not tf.executing_eagerly():
        below_flow = DataFlow({"": representation})
        above_flow = DataFlow(losses, cut=representation)
    by_graph = {task: ids & in_heads for task, ids in reached.items()}
    above = found_in_step(upper, losses, variables, by_graph, above_flow)
    below = found_in_step(
        whole, {"": list(representation)}, variables, {"": in_trunk}, below_flow
    )[""]
    everything = {task: ids | above[task] | below for task, ids in reached.items()}
    for variable in variables:
        by_task = [id(variable) in ids for ids in everything.values()]
        is_above = any(id(variable) in ids for ids in (in_heads, *above.values()))
        if sum(by_task) > 1 and is_above:
            raise _shared_above(variable)
    return everything


def check_shared_below(split: SplitModel, shared: Sequence[keras.Variable]) -> None:
    """Raises `InputError` if the heads use a variable that tasks share."""
    heads = split.heads.trainable_variables if split.heads is not None else []
    above = {id(variable) for variable in heads}
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


def _check_names_differ(model: keras.Model) -> None:
    """Raises `InputError` if layers of the model and of nested ones share a name."""
    known: dict[str, keras.Operation] = {}
    for node in inlined_graph_nodes(model):
        name = node.operation.name
        if node.inputs and known.setdefault(name, node.operation) is not node.operation:
            raise InputError(
                "Expected layers of different names to cut nested models of several "
                f"outputs at the representation. Received two named {name!r}."
            )


def _shared_above(variable: keras.Variable) -> InputError:
    return InputError(
        "Expected shared variables below the heads for gradients of the "
        f"representation. Received a model whose heads share {variable.path!r}; use "
        'gradients_of="shared", and another method than "consmtl".'
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
