"""Gram matrix of task gradients, and their weighted combination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import tensorflow as tf

from mtl_keras.ops import native, native_gram
from mtl_keras.ops.segments import segments

Gradient: TypeAlias = "tf.Tensor | tf.IndexedSlices | None"


def gramian(
    task_gradients: Sequence[Sequence[Gradient]], check_finite: bool = False
) -> tf.Tensor:
    """Returns the inner products between the gradients of all tasks.

    Products are formed and added in float64, variable by variable, so that no
    copy of all gradients is ever made. Sparse gradients (`tf.IndexedSlices`, as
    embedding layers give) stay sparse: duplicate ids inside one gradient are
    added, ids are matched across tasks, and the cost follows the number of ids,
    not the size of the table. Compiles under XLA in both forms; rows of the distinct
    ids of a sparse variable are then as many as all its ids, most of them zeros.

    Args:
        task_gradients: One list per task, with one entry per variable: a tensor,
            a `tf.IndexedSlices`, or None where the task does not depend on the
            variable. Any floating dtype; shapes agree across tasks.
        check_finite: Whether gradients that are not finite are an error. Without
            it they make the matrix not finite, which solvers answer with the mean.
            Not checked under XLA.

    Returns:
        float64 tensor of shape `[tasks, tasks]`, symmetric.

    Raises:
        ValueError: If there are no tasks, if tasks have different numbers of
            gradients, or if shapes differ; the message names task and variable.
        tf.errors.InvalidArgumentError: If shapes turn out to differ when the
            gradients are there, or are not finite with `check_finite`.
    """
    columns = _columns(task_gradients)
    num_tasks = len(task_gradients)
    library = native.in_use()
    if library is None:
        return _gramian(columns, range(len(columns)), num_tasks, check_finite)
    dense, sparse, others = native_gram.split(columns, num_tasks, one_dtype=False)
    terms = native_gram.gramian_terms(library, dense, sparse, check_finite)
    if others or not terms:
        terms.append(_gramian(columns, others, num_tasks, check_finite))
    return tf.add_n(terms) if len(terms) > 1 else terms[0]


def _gramian(
    columns: Sequence[Sequence[Gradient]],
    variables: Sequence[int],
    num_tasks: int,
    check_finite: bool,
) -> tf.Tensor:
    """The Gram matrix over some of the variables, by TensorFlow's own ops."""
    # Blocks of the same tasks are added before they are spread over the matrix.
    blocks: dict[tuple[int, ...], list[tf.Tensor]] = {}
    for variable in variables:
        column = columns[variable]
        present = tuple(t for t, g in enumerate(column) if g is not None)
        if not present:
            continue
        if check_finite:
            column = _check_finite(column, variable)
        gradients = [g for g in column if g is not None]
        if any(isinstance(g, tf.IndexedSlices) for g in gradients):
            block = _mixed_block(gradients)
        else:
            block = _self_product(_rows(gradients))
        blocks.setdefault(present, []).append(block)
    total = tf.zeros([num_tasks, num_tasks], tf.float64)
    for present, terms in blocks.items():
        block = tf.add_n(terms)
        if len(present) < num_tasks:
            spread = tf.one_hot(present, num_tasks, dtype=tf.float64)
            block = tf.matmul(spread, block @ spread, transpose_a=True)
        total += block
    return total


def combine(
    weights: tf.Tensor, task_gradients: Sequence[Sequence[Gradient]]
) -> list[Gradient]:
    """Returns the weighted sum of the task gradients, variable by variable.

    Sums are formed in the dtype of the gradients, but at least in float32, so
    that large weights on small float16 gradients do not overflow.

    Args:
        weights: Tensor of shape `[tasks]`, any floating dtype.
        task_gradients: As in `gramian`.

    Returns:
        One entry per variable, in the dtype of the first task's gradient: None
        where no task has a gradient, `tf.IndexedSlices` where all gradients are
        sparse (one row for each id, in any order, and under XLA rows of zeros), else
        a tensor.

    Raises:
        ValueError: As in `gramian`, or if `weights` does not have one entry per
            task.
    """
    columns = _columns(task_gradients)
    weights = tf.convert_to_tensor(weights)
    if not weights.shape.is_compatible_with([len(task_gradients)]):
        raise ValueError(
            f"Expected one weight for each of the {len(task_gradients)} tasks. "
            f"Received: weights of shape {tuple(weights.shape)}."
        )
    update: dict[int, Gradient] = {}
    library = native.in_use()
    if library is not None:
        dense, sparse, _ = native_gram.split(
            columns, len(task_gradients), one_dtype=True
        )
        update = native_gram.combined(library, weights, dense, sparse)
    shares = tf.unstack(weights, num=len(task_gradients))
    return [
        update[variable] if variable in update else _combine_column(shares, column)
        for variable, column in enumerate(columns)
    ]


def _columns(
    task_gradients: Sequence[Sequence[Gradient]],
) -> list[tuple[Gradient, ...]]:
    """Checks the structure and turns tasks × variables into variables × tasks."""
    if not task_gradients:
        raise ValueError("Expected the gradients of at least one task. Received: none.")
    num_variables = len(task_gradients[0])
    for task, gradients in enumerate(task_gradients):
        if len(gradients) != num_variables:
            raise ValueError(
                "Expected the same number of gradients for every task: task 0 has "
                f"{num_variables}. Received: {len(gradients)} for task {task}."
            )
    task_gradients = [
        [
            g
            if g is None or isinstance(g, tf.IndexedSlices)
            else tf.convert_to_tensor(g)
            for g in gradients
        ]
        for gradients in task_gradients
    ]
    columns = list(zip(*task_gradients, strict=True))
    for variable, column in enumerate(columns):
        first: tuple[int, tf.TensorShape] | None = None
        for task, gradient in enumerate(column):
            if gradient is None:
                continue
            shape = _variable_shape(gradient)
            if first is None:
                first = (task, shape)
            elif not shape.is_compatible_with(first[1]):
                raise ValueError(
                    f"Expected gradients of one shape for variable {variable}: task "
                    f"{first[0]} has {first[1]}. Received: {shape} for task {task}."
                )
    return columns


def _variable_shape(gradient: tf.Tensor | tf.IndexedSlices) -> tf.TensorShape:
    """The static shape, with the unknown number of rows of a sparse gradient."""
    if isinstance(gradient, tf.IndexedSlices):
        if gradient.values.shape.rank is None:
            return tf.TensorShape(None)
        return tf.TensorShape([None]).concatenate(gradient.values.shape[1:])
    return gradient.shape


def _check_finite(column: Sequence[Gradient], variable: int) -> tuple[Gradient, ...]:
    def checked(gradient: Gradient, task: int) -> Gradient:
        message = (
            "Expected finite gradients. Received: not so for variable "
            f"{variable}, task {task}."
        )
        if gradient is None:
            return None
        if isinstance(gradient, tf.IndexedSlices):
            values = tf.debugging.check_numerics(gradient.values, message)
            return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
        return tf.debugging.check_numerics(gradient, message)

    return tuple(checked(gradient, task) for task, gradient in enumerate(column))


def _rows(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Stacks dense gradients as the float64 rows of one matrix."""
    flat = [tf.reshape(g, [-1]) for g in gradients]
    if len({g.dtype for g in flat}) > 1:
        flat = [tf.cast(g, tf.float64) for g in flat]
    return tf.cast(tf.stack(flat), tf.float64)


def _self_product(rows: tf.Tensor) -> tf.Tensor:
    return tf.matmul(rows, rows, transpose_b=True)


def _mixed_block(gradients: Sequence[tf.Tensor | tf.IndexedSlices]) -> tf.Tensor:
    """Gram matrix of one variable with at least one sparse gradient."""
    is_sparse = [isinstance(g, tf.IndexedSlices) for g in gradients]
    sparse = [g for g in gradients if isinstance(g, tf.IndexedSlices)]
    dense = [g for g in gradients if not isinstance(g, tf.IndexedSlices)]
    sparse_rows, ids = _sparse_rows(sparse)
    if not dense:
        return _self_product(sparse_rows)

    # Only the rows that a sparse gradient touches matter for the mixed products.
    touched = _rows([tf.gather(g, ids) for g in dense])
    mixed = tf.matmul(sparse_rows, touched, transpose_b=True)
    dense_block = _self_product(_rows(dense))
    block = tf.concat(
        [
            tf.concat([_self_product(sparse_rows), mixed], axis=1),
            tf.concat([tf.transpose(mixed), dense_block], axis=1),
        ],
        axis=0,
    )
    # Back from (sparse tasks, dense tasks) to the order of the tasks.
    order = [t for t, s in enumerate(is_sparse) if s]
    order += [t for t, s in enumerate(is_sparse) if not s]
    place = [order.index(t) for t in range(len(order))]
    return tf.gather(tf.gather(block, place), place, axis=1)


def _sparse_rows(
    gradients: Sequence[tf.IndexedSlices],
) -> tuple[tf.Tensor, tf.Tensor]:
    """One float64 row per sparse gradient over the ids that occur in any of them.

    Returns:
        The rows, `[tasks, distinct ids * row size]`, and the distinct ids.
    """
    ids = tf.concat([tf.cast(g.indices, tf.int64) for g in gradients], axis=0)
    distinct = segments(ids)
    count = distinct.size
    values = tf.concat(
        [
            tf.reshape(tf.cast(g.values, tf.float64), [tf.size(g.indices), -1])
            for g in gradients
        ],
        axis=0,
    )
    task_of_id = tf.concat(
        [tf.fill([tf.size(g.indices)], t) for t, g in enumerate(gradients)], axis=0
    )
    summed = tf.math.unsorted_segment_sum(
        distinct.ordered(values),
        distinct.ordered(task_of_id) * count + distinct.segment,
        len(gradients) * count,
    )
    row_size = tf.shape(values)[1]
    return tf.reshape(summed, [len(gradients), count * row_size]), distinct.ids


def _combine_column(
    shares: Sequence[tf.Tensor], column: Sequence[Gradient]
) -> Gradient:
    terms = [
        (share, g) for share, g in zip(shares, column, strict=True) if g is not None
    ]
    if not terms:
        return None
    sparse = [isinstance(g, tf.IndexedSlices) for _, g in terms]
    if all(sparse):
        first = terms[0][1]
        scaled = [_scaled(share, g.values) for share, g in terms]
        values = tf.concat([tf.cast(v, scaled[0].dtype) for v in scaled], axis=0)
        ids = [tf.cast(g.indices, first.indices.dtype) for _, g in terms]
        # Keras's optimizers take the norm of the rows as they are.
        distinct = segments(tf.concat(ids, axis=0))
        return tf.IndexedSlices(
            tf.cast(distinct.sums_once(values), first.dtype),
            distinct.ids,
            first.dense_shape,
        )
    scaled = [
        _scaled(share, g) for (share, g), s in zip(terms, sparse, strict=True) if not s
    ]
    total = tf.add_n([tf.cast(g, scaled[0].dtype) for g in scaled])
    for (share, g), s in zip(terms, sparse, strict=True):
        if s:
            total = tf.tensor_scatter_nd_add(
                total,
                g.indices[:, tf.newaxis],
                tf.cast(_scaled(share, g.values), total.dtype),
            )
    return tf.cast(total, terms[0][1].dtype)


def _scaled(share: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    wide = values.dtype if values.dtype.size >= 4 else tf.float32
    return tf.cast(share, wide) * tf.cast(values, wide)
