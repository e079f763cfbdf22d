"""Which variables tasks share, read from the functional graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras


class TaskVariables(NamedTuple):
    """Trainable variables split by the tasks whose outputs they reach."""

    shared: list[keras.Variable]
    """Reached by two or more tasks."""
    own: dict[str, list[keras.Variable]]
    """Reached by this task alone."""
    unused: list[keras.Variable]
    """Reached by no task with a loss."""


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
    inputs: Any, outputs: Mapping[str, keras.KerasTensor]
) -> dict[str, set[int]]:
    """Returns the ids of all variables on the way from the inputs to each output.

    Args:
        inputs: The model's inputs.
        outputs: `{task: KerasTensor}`.
    """
    inputs = keras.tree.flatten(inputs)
    return {
        task: {id(v) for v in keras.Model(inputs, output).variables}
        for task, output in outputs.items()
    }
