"""Tasks of a model's outputs: one each, or one for each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtl_keras.errors import InputError, unknown_name
from mtl_keras.model.keras_compat import GraphNode, inlined_graph_nodes

MANY_TASKS = 32
"""Tables make one output of more tasks than these, and reports show them together."""


class TaskLayout:
    """The order of the tasks in every `[T]` tensor.

    Values by output are scalars; of an output that is a group of n tasks, `[n]`.

    Args:
        outputs: Names of the outputs with a loss, in order.
        columns: Names of the tasks of each output that is a group of them.

    Attributes:
        outputs: See `Args`.
        columns: See `Args`.
        tasks: Names of all T tasks.
    """

    def __init__(
        self,
        outputs: Sequence[str] = (),
        columns: Mapping[str, Sequence[str]] | None = None,
    ):
        self.outputs = list(outputs)
        self.columns = {
            output: tuple(names)
            for output, names in (columns or {}).items()
            if output in self.outputs
        }
        self.tasks = [
            task
            for output in self.outputs
            for task in self.columns.get(output, (output,))
        ]

    def size(self, output: str) -> int | None:
        """Returns how many tasks an output is a group of; None for a single task."""
        return len(self.columns[output]) if output in self.columns else None

    def split(self, vector: tf.Tensor) -> list[tf.Tensor]:
        """Returns the parts of a `[T]` tensor by output."""
        if not self.columns:
            return tf.unstack(vector)
        sizes = [self.size(output) for output in self.outputs]
        parts = tf.split(vector, [size or 1 for size in sizes])
        return [
            tf.reshape(part, ()) if size is None else part
            for part, size in zip(parts, sizes, strict=True)
        ]

    def joined(self, values: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns values by output as one tensor `[T]`."""
        if not self.columns:
            return tf.stack(list(values))
        return tf.concat([tf.reshape(value, (-1,)) for value in values], axis=0)

    def named(self, suffix: str, values: tf.Tensor, counts: Any) -> dict[str, Any]:
        """Returns means by output of a `[T]` tensor, to log as `<output><suffix>`.

        Args:
            suffix: Suffix of the names.
            values: float `[T]`.
            counts: `[T]` or a scalar: 0 for the tasks to leave out of a mean.
        """
        if not self.columns:
            by_output = tf.unstack(values)
        else:
            kept = tf.cast(tf.broadcast_to(counts, tf.shape(values)) > 0, values.dtype)
            by_output = [
                tf.math.divide_no_nan(tf.reduce_sum(one * keep), tf.reduce_sum(keep))
                if output in self.columns
                else one
                for output, one, keep in zip(
                    self.outputs, self.split(values), self.split(kept), strict=True
                )
            ]
        return {
            f"{output}{suffix}": value
            for output, value in zip(self.outputs, by_output, strict=True)
        }

    def masks(self, tasks: Sequence[str]) -> dict[str, list[bool] | None]:
        """Returns column masks of some tasks, by output that has any of them.

        None for an output that is a task itself.
        """
        masks: dict[str, list[bool] | None] = {}
        for output in self.outputs:
            names = self.columns.get(output)
            if names is None:
                if output in tasks:
                    masks[output] = None
            elif any(name in tasks for name in names):
                masks[output] = [name in tasks for name in names]
        return masks


def weights_by_output(loss_weights: Any, groups: Mapping[str, Sequence[str]]) -> Any:
    """Returns `loss_weights` by output: of a group float32 `[T]`, if columns have any.

    A column's weight is multiplied by that of the group's output.

    Args:
        loss_weights: As `compile` takes it.
        groups: Names of the columns of each output that is a group.
    """
    if not isinstance(loss_weights, Mapping):
        return loss_weights
    weights = dict(loss_weights)
    for output, names in groups.items():
        own = {name: weights.pop(name) for name in names if name in weights}
        if own:
            by_column = np.array([own.get(name, 1.0) for name in names], np.float32)
            weights[output] = by_column * weights.get(output, 1.0)
    return weights


def check_columns(
    columns: Any, outputs: Mapping[str, keras.KerasTensor]
) -> dict[str, tuple[str, ...]]:
    """Returns `columns` of `compile` as tuples of names.

    Args:
        columns: As `compile` takes it.
        outputs: `{output: KerasTensor}`.

    Raises:
        InputError: For an unknown output, one that is not `[batch, T]`, or names that
            are not as many as columns and all different.
    """
    checked = {}
    for output, names in dict(columns or {}).items():
        if output not in outputs:
            raise unknown_name("output in `columns`", output, sorted(outputs))
        names = (names,) if isinstance(names, str) else tuple(names)
        shape = tuple(outputs[output].shape)
        if len(shape) != 2 or shape[1] != len(names):
            raise InputError(
                f"Expected `columns` of {output!r} to name each of its columns, an "
                f"output [batch, columns]. Received: {len(names)} names for an output "
                f"of shape {shape}."
            )
        checked[output] = names
    # A group of one may have the name of its output.
    others = [output for output in outputs if len(checked.get(output, ())) != 1]
    everything = [*others, *(name for names in checked.values() for name in names)]
    if len(set(everything)) < len(everything):
        twice = sorted({name for name in everything if everything.count(name) > 1})
        raise InputError(
            "Expected the names in `columns` and of the outputs to differ. "
            f"Received twice: {twice[:5]}."
        )
    return checked


# Layers that work entry by entry, so that a column stays one.
_ENTRYWISE = (
    keras.layers.Activation,
    keras.layers.Dropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.LeakyReLU,
    keras.layers.ReLU,
)
_ACROSS_COLUMNS = ("softmax", "log_softmax", "sparsemax", "sparse_plus")


def variables_by_column(
    model: keras.Model, outputs: Mapping[str, keras.KerasTensor]
) -> set[int]:
    """Returns the ids of variables whose last axis are an output's columns.

    Those of a `Dense` layer that makes the columns, each from the features below by
    weights of its own: they belong to one task each.

    Args:
        model: A functional model.
        outputs: `{output: KerasTensor}`, the groups of tasks.
    """
    nodes = inlined_graph_nodes(model) if outputs else []
    maker = {id(t): node for node in nodes for t in node.outputs}
    calls: dict[int, int] = {}
    for node in nodes:
        calls[id(node.operation)] = calls.get(id(node.operation), 0) + 1
    ids: set[int] = set()
    for output in outputs.values():
        node = maker[id(output)]
        while _keeps_columns(node, _ENTRYWISE):
            node = maker[id(node.inputs[0])]
        layer = node.operation
        if _keeps_columns(node, keras.layers.Dense) and calls[id(layer)] == 1:
            kernel = getattr(layer, "_kernel", None)
            ids |= {id(v) for v in (kernel, layer.bias) if v is not None}
    return ids


def _keeps_columns(node: GraphNode, kinds: Any) -> bool:
    activation = getattr(node.operation, "activation", None)
    name = getattr(activation, "__name__", "")
    is_kind = type(node.operation) in (kinds if isinstance(kinds, tuple) else (kinds,))
    # Layers of other modules say so themselves.
    is_kind |= kinds is _ENTRYWISE and getattr(node.operation, "entrywise", False)
    return is_kind and len(node.inputs) == 1 and name not in _ACROSS_COLUMNS
