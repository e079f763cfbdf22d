"""Shared and own variables of tasks, by the graph and by a step's operations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from mtl_keras.model.keras_compat import GraphNode, inlined_graph_nodes


class TaskVariables(NamedTuple):
    """Trainable variables split by the tasks whose outputs they reach."""

    shared: list[keras.Variable]
    """Reached by two or more tasks."""
    own: dict[str, list[keras.Variable]]
    """By output, reached by this task alone; of a group of tasks, those that have an
    axis of the tasks."""
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
    model: keras.Model,
    reached: Mapping[str, set[int]],
    groups: Collection[str] = (),
    by_column: Collection[int] = (),
) -> TaskVariables:
    """Splits `model.trainable_variables`, in their order.

    Args:
        model: The model.
        reached: `reached_variables`' result for the outputs that have a loss.
        groups: The outputs that are groups of tasks.
        by_column: Ids of variables with an axis of a group's tasks; all else that a
            group reaches its tasks share.
    """
    split = TaskVariables([], {task: [] for task in reached}, [])
    for variable in model.trainable_variables:
        owners = [task for task, ids in reached.items() if id(variable) in ids]
        of_group = owners and owners[0] in groups and id(variable) not in by_column
        if len(owners) > 1 or of_group:
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

    As far as the functional graph shows them; see `reached_in_step`.

    Args:
        model: A functional model.
        outputs: `{task: KerasTensor}`, outputs of the model.
    """
    nodes = inlined_graph_nodes(model)
    return {
        task: {
            id(variable)
            for index in reached_nodes(nodes, output)
            for variable in nodes[index].variables
        }
        for task, output in outputs.items()
    }


def ids_of_several_outputs(model: keras.Model) -> set[int]:
    """Returns the ids of the variables of all layers that give several outputs.

    The functional graph does not show which of them an output depends on.

    Args:
        model: A functional model.
    """
    nodes = inlined_graph_nodes(model)
    return {id(v) for node in nodes if len(node.outputs) > 1 for v in node.variables}


def tasks_by_operation(
    model: keras.Model, outputs: Mapping[str, keras.KerasTensor]
) -> dict[int, list[str]]:
    """Returns the tasks that depend on each layer, by the id of the layer.

    A layer of a nested model of several outputs has tasks of its own, such a model
    those of all its layers, and a layer of any other nested model those of the model.

    Args:
        model: A functional model.
        outputs: `{task: KerasTensor}`, outputs of the model.
    """
    nodes = inlined_graph_nodes(model)
    tasks: dict[int, set[str]] = {}
    for task, output in outputs.items():
        for index in reached_nodes(nodes, output):
            tasks.setdefault(id(nodes[index].operation), set()).add(task)
    _add_nested(model.operations, tasks)
    return {key: [t for t in outputs if t in of_key] for key, of_key in tasks.items()}


def _add_nested(layers: Sequence[keras.Operation], tasks: dict[int, set[str]]) -> None:
    """Adds what is within models, and models whose layers are there alone."""
    for layer in layers:
        within = getattr(layer, "layers", None) or []
        is_one_call = id(layer) in tasks
        for inner in within if is_one_call else ():
            tasks[id(inner)] = tasks.get(id(inner), set()) | tasks[id(layer)]
        _add_nested(within, tasks)
        if within and not is_one_call:
            tasks[id(layer)] = set().union(
                *(tasks.get(id(inner), set()) for inner in within)
            )


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


def reached_in_step(
    model: keras.Model,
    tape: tf.GradientTape,
    losses: Mapping[str, tf.Tensor],
    reached: Mapping[str, set[int]],
) -> dict[str, set[int]]:
    """Returns `reached` as the operations of a recorded step correct it.

    The functional graph does not show what a closure reads (a `Lambda` with another
    head's kernel) nor a loss's own variables, and attributes all variables of a
    layer of several outputs to each of them.

    Args:
        model: A functional model.
        tape: A persistent tape that recorded the step.
        losses: `{task: scalar}`.
        reached: `reached_variables`' result.

    Returns:
        The ids of variables by task: those of `reached` but for variables from which
        no operation leads to the task's loss, and all others with a gradient. Eager
        operations are not to be read: there a variable of a layer of several outputs
        is reached by the tasks whose loss has a gradient of it, if any has.
    """
    variables = model.trainable_variables
    if tf.executing_eagerly():
        uncertain = ids_of_several_outputs(model)
        certain = {task: ids - uncertain for task, ids in reached.items()}
        found = found_in_step(tape, losses, variables, certain, flow=None)
        corrected = uncertain & set().union(*found.values())
        return {task: ids | (reached[task] - corrected) for task, ids in found.items()}
    flow = DataFlow(losses)
    added = found_in_step(tape, losses, variables, reached, flow)
    return {
        task: ids
        | {id(v) for v in variables if id(v) in reached[task] and flow.leads(v, task)}
        for task, ids in added.items()
    }


def found_in_step(
    tape: tf.GradientTape,
    targets: Mapping[str, Any],
    variables: Sequence[keras.Variable],
    known: Mapping[str, set[int]],
    flow: DataFlow | None,
) -> dict[str, set[int]]:
    """Returns the ids of variables, beside the known ones, with a gradient.

    A traced step pays nothing for it: the gradients are no part of its results, and
    where the data flow excludes all variables none is traced at all. In eager mode it
    takes a backward pass for each target.

    Args:
        tape: A persistent tape that recorded the step.
        targets: `{name: tensor or list of tensors}` to differentiate.
        variables: Candidates.
        known: Ids of the variables to leave out, by target.
        flow: The data flow to the targets; None in eager mode.
    """
    ids = {}
    for name, target in targets.items():
        others = [
            v
            for v in variables
            if id(v) not in known[name] and (flow is None or flow.leads(v, name))
        ]
        gradients = tape.gradient(target, others) if others else []
        ids[name] = {
            id(v) for v, g in zip(others, gradients, strict=True) if g is not None
        }
    return ids


class DataFlow:
    """Data flow of a traced graph: the variables on the way to some tensors.

    Args:
        targets: `{name: tensor or list of tensors}` of one graph.
        cut: Tensors beyond which not to look.
    """

    def __init__(self, targets: Mapping[str, Any], cut: Sequence[tf.Tensor] = ()):
        self._names = list(targets)
        flags: dict[tf.Operation, int] = {}
        for index, target in enumerate(targets.values()):
            for tensor in keras.tree.flatten(target):
                flags[tensor.op] = flags.get(tensor.op, 0) | 1 << index
                graph = tensor.graph
        ends = {tensor.op for tensor in cut}
        # A graph lists its operations in the order of creation.
        for operation in reversed(graph.get_operations()):
            flag = flags.get(operation, 0)
            if flag and operation not in ends:
                for tensor in operation.inputs:
                    flags[tensor.op] = flags.get(tensor.op, 0) | flag
        self._flags = {
            id(outside): flags.get(inside.op, 0) for outside, inside in graph.captures
        }

    def leads(self, variable: keras.Variable, name: str) -> bool:
        """Returns False if no operation leads from the variable to the target."""
        flag = self._flags.get(id(getattr(variable.value, "handle", None)))
        # A variable that the graph does not hold under its own handle is left to the
        # tape.
        return flag is None or bool(flag >> self._names.index(name) & 1)
