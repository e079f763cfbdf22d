"""Hands lists of gradients to the compiled ops and takes their results apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

_DTYPES = (tf.float16, tf.bfloat16, tf.float32, tf.float64)


class Group(NamedTuple):
    """Columns of one kind, flattened as the ops take them.

    Attributes:
        gradients: All gradients, variable by variable.
        names: The index of each variable in the caller's list.
        places: Attributes that tell which gradient belongs where.
    """

    gradients: list[Any]
    names: list[int]
    places: dict[str, Any]


def split(
    columns: Sequence[Sequence[Any]], num_tasks: int, one_dtype: bool
) -> tuple[Group, Group, list[int]]:
    """Sorts the variables by the ops that support them.

    Args:
        columns: One sequence per variable, one entry per task.
        num_tasks: Number of tasks.
        one_dtype: Whether all gradients of a variable need one dtype.

    Returns:
        The variables with dense gradients only, those with sparse gradients only,
        and the indices of others that have any gradient.
    """
    dense: list[int] = []
    sparse: list[int] = []
    others: list[int] = []
    for variable, column in enumerate(columns):
        present = [g for g in column if g is not None]
        dtypes = {g.dtype for g in present}
        is_sparse = {isinstance(g, tf.IndexedSlices) for g in present}
        if not present:
            continue
        if (
            len(is_sparse) > 1
            or not dtypes.issubset(_DTYPES)
            or (one_dtype and len(dtypes) > 1)
        ):
            others.append(variable)
        else:
            (sparse if is_sparse == {True} else dense).append(variable)
    return (
        _group(columns, dense, num_tasks),
        _group(columns, sparse, num_tasks),
        others,
    )


def _group(columns: Sequence[Sequence[Any]], names: list[int], num_tasks: int) -> Group:
    gradients, tasks, variables = [], [], []
    for place, variable in enumerate(names):
        for task, gradient in enumerate(columns[variable]):
            if gradient is not None:
                gradients.append(gradient)
                tasks.append(task)
                variables.append(place)
    places = {
        "num_tasks": num_tasks,
        "tasks": tasks,
        "variables": variables,
        "names": names,
    }
    return Group(gradients, names, places)


def gramian_terms(
    library: Any, dense: Group, sparse: Group, check_finite: bool
) -> list[tf.Tensor]:
    """Returns the Gram matrices of both groups, without those that are empty."""
    terms = []
    if dense.gradients:
        terms.append(
            library.mtl_keras_task_gramian(
                dense.gradients, **dense.places, check_finite=check_finite
            )
        )
    if sparse.gradients:
        terms.append(
            library.mtl_keras_sparse_task_gramian(
                [g.values for g in sparse.gradients],
                _indices(sparse),
                **sparse.places,
                check_finite=check_finite,
            )
        )
    return terms


def combined(
    library: Any, weights: tf.Tensor, dense: Group, sparse: Group
) -> dict[int, Any]:
    """Returns the weighted sums of both groups, by the index of the variable."""
    weights = tf.cast(weights, tf.float64)
    update: dict[int, Any] = {}
    if dense.gradients:
        sums = library.mtl_keras_combine_task_gradients(
            weights,
            dense.gradients,
            Tout=[first.dtype for first in _firsts(dense)],
            **dense.places,
        )
        update.update(zip(dense.names, sums, strict=True))
    if sparse.gradients:
        firsts = _firsts(sparse)
        sums, ids = library.mtl_keras_combine_sparse_task_gradients(
            weights,
            [g.values for g in sparse.gradients],
            _indices(sparse),
            Tout=[first.dtype for first in firsts],
            V=len(firsts),
            **sparse.places,
        )
        for name, first, values, indices in zip(
            sparse.names, firsts, sums, ids, strict=True
        ):
            indices = tf.cast(indices, first.indices.dtype)
            update[name] = tf.IndexedSlices(values, indices, first.dense_shape)
    return update


def _firsts(group: Group) -> list[Any]:
    """The first task's gradient of every variable."""
    first: dict[int, Any] = {}
    for variable, gradient in zip(
        group.places["variables"], group.gradients, strict=True
    ):
        first.setdefault(variable, gradient)
    return list(first.values())


def _indices(group: Group) -> list[tf.Tensor]:
    """All indices in one dtype."""
    indices = [tf.convert_to_tensor(g.indices) for g in group.gradients]
    if all(i.dtype == tf.int32 for i in indices):
        return indices
    return [tf.cast(i, tf.int64) for i in indices]
