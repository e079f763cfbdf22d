"""Labels and sample weights of a batch, task by task, and which are absent."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import tensorflow as tf

from mtl_keras.errors import InputError, unknown_name
from mtl_keras.model.keras_compat import mask_of, with_logits, with_mask

if TYPE_CHECKING:
    from mtl_keras.model.columns import TaskLayout


class Labels(NamedTuple):
    """One batch's labels; every dict is keyed by task."""

    y: dict[str, Any]
    """Labels; None for an output without a loss."""
    weights: dict[str, Any]
    """Sample weights as given, or None."""
    labelled: dict[str, tf.Tensor | None]
    """bool, as the weights; None where no weight was given, so all are labelled."""


def arrange_labels(
    y: Any, sample_weight: Any, y_pred: dict[str, Any], tasks: Sequence[str]
) -> Labels:
    """Returns labels and weights, given in any of Keras's forms, as dicts by task.

    A sample weight of exactly 0 marks an absent label: of a sample, or of an element
    (a token, a pixel) where the weights have more axes. Its filler stays where
    losses and metrics can take it. NaN, infinity, negative integers and class ids
    that the output does not have become 0, so that nothing raises.

    Args:
        y: Labels: a dict by output, or a list in Keras's order of the outputs
            (sorted by name), or the bare label of the only output with a loss.
        sample_weight: None, one weight for all outputs, a dict or a list.
        y_pred: The model's outputs.
        tasks: Outputs that have a loss.

    Raises:
        InputError: For labels or weights of no output, missing labels, or weights
            whose axes are not the first of the labels.
    """
    y = by_output(y, y_pred, "labels", required=tasks)
    weights = by_output(sample_weight, y_pred, "sample weights", required=())
    labelled: dict[str, tf.Tensor | None] = {}
    for task in y_pred:
        weight = weights[task]
        labelled[task] = None
        if weight is not None and y[task] is not None:
            weight = tf.convert_to_tensor(weight)
            labelled[task] = tf.cast(weight, "bool")
            if weight.dtype == tf.bool:
                weight = tf.cast(weight, "float32")
            weights[task] = weight
            y[task] = _with_usable_fillers(task, y[task], labelled[task], y_pred[task])
    return Labels(y, weights, labelled)


def nan_as_absent(
    y: Any,
    sample_weight: Any,
    y_pred: dict[str, Any],
    tasks: Sequence[str],
    by_element: Callable[[dict[str, Any]], Mapping[str, bool]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns labels and sample weights, 0 where a label of floats is NaN.

    A label with as many axes as its output is absent element by element where its
    losses have a value for each element; else the last axis (a one-hot vector) is
    one label, absent if anything in it is NaN.

    Args:
        y: As `arrange_labels` takes them.
        sample_weight: As `arrange_labels` takes them; 1 where None.
        y_pred: The model's outputs.
        tasks: Outputs that have a loss.
        by_element: From the labels by output to the tasks whose losses have a value
            for each element of an output.

    Raises:
        InputError: See `arrange_labels`.
    """
    y = by_output(y, y_pred, "labels", required=tasks)
    weights = by_output(sample_weight, y_pred, "sample weights", required=())
    elementary = by_element(y)
    for task, label in y.items():
        label = y[task] = None if label is None else tf.convert_to_tensor(label)
        if label is None or not label.dtype.is_floating:
            continue
        absent = tf.math.is_nan(label)
        if not elementary.get(task):
            axes = range(max(1, len(y_pred[task].shape) - 1), len(label.shape))
            absent = tf.reduce_any(absent, list(axes))
        weight = weights[task]
        if weight is None:
            weights[task] = tf.cast(~absent, "float32")
        else:
            weight = tf.convert_to_tensor(weight)
            rank = max(len(weight.shape), len(absent.shape))
            absent, weight = fitted(absent, rank), fitted(weight, rank)
            weights[task] = tf.where(absent, tf.zeros_like(weight), weight)
    return y, weights


def sub_batch(labels: Labels, part: int, parts: int, size: tf.Tensor) -> Labels:
    """Returns the labels of every `parts`-th sample, the others marked absent.

    Args:
        labels: A whole batch's.
        part: Which part, from 0.
        parts: How many parts there are.
        size: Samples in the batch, int32 scalar.
    """
    inside = tf.equal(tf.range(size) % parts, part)
    weights, labelled = dict(labels.weights), dict(labels.labelled)
    for task, weight in labels.weights.items():
        if labels.y[task] is None:
            continue
        if weight is None:
            weights[task] = tf.cast(inside, "float32")
            labelled[task] = inside
        else:
            mask = fitted(inside, len(weight.shape))
            weights[task] = weight * tf.cast(mask, weight.dtype)
            labelled[task] = mask & labels.labelled[task]
    return Labels(labels.y, weights, labelled)


def shared_samples(labels: Labels, layout: TaskLayout, size: tf.Tensor) -> tf.Tensor:
    """Returns how many samples of the batch have labels of two tasks, float32 `[T, T]`.

    Over all replicas; the diagonal has each task's own. A sample counts where any of
    its elements (a token, a pixel) is labelled.

    Args:
        labels: This replica's labels.
        layout: The tasks of each output.
        size: Samples in this replica's batch, int32 scalar.
    """
    columns = []
    for output in layout.outputs:
        labelled, width = labels.labelled[output], layout.size(output)
        if labelled is None:
            columns.append(tf.ones(tf.stack([size, width or 1]), "float32"))
        elif width is None:
            flags = tf.reduce_any(labelled, list(range(1, len(labelled.shape))))
            columns.append(tf.cast(flags[:, tf.newaxis], "float32"))
        else:
            shape = tf.stack([size, width])
            flags = tf.broadcast_to(fitted(labelled, 2), shape)
            columns.append(tf.cast(flags, "float32"))
    samples = tf.concat(columns, axis=1)
    return sum_over_replicas(tf.matmul(samples, samples, transpose_a=True))


def without_tasks(
    labels: Labels, masks: dict[str, list[bool] | None], y_pred: dict[str, Any]
) -> Labels:
    """Returns the labels with all of some tasks' marked absent.

    Args:
        labels: The batch's.
        masks: The tasks to leave out, as `TaskLayout.masks` returns them.
        y_pred: The model's outputs.
    """
    size = batch_size(y_pred)
    weights, labelled = dict(labels.weights), dict(labels.labelled)
    for output, columns in masks.items():
        if columns is None:
            weights[output] = tf.zeros([size])
            labelled[output] = tf.zeros([size], "bool")
            continue
        kept = _of_columns(~tf.constant(columns), weights[output], y_pred[output])
        weights[output] = kept
        labelled[output] = tf.cast(kept, "bool")
    return Labels(labels.y, weights, labelled)


def _of_columns(kept: tf.Tensor, weight: Any, y_pred: Any) -> tf.Tensor:
    """Returns sample weights of a group of tasks, 0 for columns not kept (`[T]`)."""
    if weight is None:
        weight = tf.ones_like(y_pred)
    weight = tf.broadcast_to(fitted(weight, 2), tf.shape(y_pred))
    return tf.where(kept, weight, tf.zeros_like(weight))


def leave_out(
    kept: dict[str, tf.Tensor], labels: Labels, y_pred: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns outputs and sample weights of a batch as if some tasks were absent.

    Args:
        kept: By output, False for the tasks to leave out: a bool scalar, for a group
            of tasks `[T]`.
        labels: The batch's labels.
        y_pred: The model's outputs; those left out become zeros.
    """
    outputs, weights = dict(y_pred), dict(labels.weights)
    for task, keep in kept.items():
        output = with_logits(functools.partial(_zero_unless, keep), y_pred[task])
        outputs[task] = with_mask(output, mask_of(y_pred[task]))
        weight = weights[task]
        if keep.shape.rank:
            weights[task] = _of_columns(keep, weight, y_pred[task])
            continue
        if weight is None:
            weight = tf.ones(tf.shape(y_pred[task])[:1])
        weights[task] = _zero_unless(keep, weight)
    return outputs, weights


def _zero_unless(keep: tf.Tensor, tensor: tf.Tensor) -> tf.Tensor:
    return tf.where(keep, tensor, tf.zeros_like(tensor))


def by_output(
    value: Any, y_pred: Mapping[str, Any], kind: str, required: Sequence[str]
) -> dict[str, Any]:
    """Returns labels or sample weights as a dict with an entry, or None, by output.

    Args:
        value: A dict by output, a list in Keras's order, or one for all.
        y_pred: The model's outputs.
        kind: `"labels"` or `"sample weights"`.
        required: Outputs that need an entry.

    Raises:
        InputError: For an entry of no output, or a missing one.
    """
    names = sorted(y_pred)
    if isinstance(value, dict):
        for name in value:
            if name not in y_pred:
                raise unknown_name(f"output in the {kind}", name, names)
        entries = dict(value)
    elif isinstance(value, (list, tuple)):
        fields = getattr(value, "_fields", None)
        if fields is not None and list(fields) != names:
            raise InputError(
                f"Expected {kind} as a dict with the keys {names}. Received a named "
                f"tuple with the fields {list(fields)}, of which Keras takes the "
                "positions and not the names: pass `._asdict()`."
            )
        if len(value) != len(names):
            raise InputError(
                f"Expected {kind} for the outputs {names}. "
                f"Received a list of {len(value)}."
            )
        entries = dict(zip(names, value, strict=True))
    elif value is None:
        entries = {}
    elif kind == "labels" and len(required) == 1:
        entries = {required[0]: value}
    elif kind == "labels" and len(names) > 1:
        raise InputError(
            f"Expected labels as a dict with the keys {names}. "
            f"Received one array of shape {tuple(value.shape)}."
        )
    else:
        entries = dict.fromkeys(names, value)
    missing = [name for name in required if entries.get(name) is None]
    if missing:
        raise InputError(
            f"Expected {kind} for {missing}; a label that is absent needs a filler "
            f"and a sample weight of 0. Received {kind} for {sorted(entries)}."
        )
    return {name: entries.get(name) for name in y_pred}


def _with_usable_fillers(
    task: str, label: Any, labelled: tf.Tensor, y_pred: Any
) -> tf.Tensor:
    label = tf.convert_to_tensor(label)
    mask = fitted(labelled, len(label.shape))
    if len(mask.shape) > len(label.shape) or not all(
        size in (None, 1) or of_label in (None, size)
        for size, of_label in zip(mask.shape, label.shape, strict=True)
    ):
        raise InputError(
            f"Expected sample weights of {task!r} with the first axes of its labels, "
            f"{tuple(label.shape)}. Received sample weights of shape "
            f"{tuple(labelled.shape)}."
        )
    usable = mask
    if label.dtype.is_floating:
        usable |= tf.math.is_finite(label)
    elif label.dtype.is_integer:
        usable |= label >= 0
    if label.dtype.is_floating or label.dtype.is_integer:
        classes = _classes(label, y_pred)
        if classes is not None:
            in_range = (label >= 0) & (label < tf.cast(classes, label.dtype))
            usable &= mask | in_range
    return tf.where(usable, label, tf.zeros_like(label))


def _classes(label: tf.Tensor, y_pred: Any) -> int | None:
    """Returns how many classes a label may be an id of; None where it is no id."""
    rank, classes = len(y_pred.shape), y_pred.shape[-1] if len(y_pred.shape) else None
    if classes is None or classes < 2:
        return None
    without_axis = len(label.shape) == rank - 1
    with_axis = len(label.shape) == rank and label.shape[-1] == 1
    return classes if without_axis or with_axis else None


def fitted(tensor: tf.Tensor, rank: int) -> tf.Tensor:
    """Returns a tensor with trailing axes of size 1 added or dropped up to a rank.

    Of sample weights, masks and what is labelled the first axes are those of the
    values that they belong to. Axes of another size are never dropped: the result
    has more than `rank` axes then.
    """
    while len(tensor.shape) > rank and tensor.shape[-1] == 1:
        tensor = tf.squeeze(tensor, -1)
    for _ in range(rank - len(tensor.shape)):
        tensor = tf.expand_dims(tensor, -1)
    return tensor


def or_the_first(flags: tf.Tensor) -> tf.Tensor:
    """Returns the flags, with the first one set where none is.

    Not every loss, metric or layer takes no samples: one stands in.
    """
    first = tf.reshape(tf.range(tf.size(flags)) < 1, tf.shape(flags))
    return flags | (first & ~tf.reduce_any(flags))


def gathered(labelled: tf.Tensor, tensor: Any) -> tf.Tensor:
    """Returns the labelled entries of a batch, `[labelled, …]`, with their mask.

    Args:
        labelled: bool, `[batch]` or with more axes, which become one.
        tensor: A tensor that begins with these axes.
    """
    mask = mask_of(tensor)
    entries = with_logits(lambda t: tf.boolean_mask(t, labelled), tensor)
    if mask is None or len(mask.shape) < len(labelled.shape):
        return entries
    return with_mask(entries, tf.boolean_mask(mask, labelled))


def sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """Returns the sum of a tensor over the replicas that train in step."""
    if replicas() == 1:
        return value
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def replicas() -> int:
    """Returns how many replicas train in step; 1 outside of a replica's step."""
    if tf.distribute.in_cross_replica_context():
        return 1
    return tf.distribute.get_strategy().num_replicas_in_sync


def batch_size(y_pred: dict[str, Any]) -> tf.Tensor:
    """Returns the number of samples in this replica's batch, an int32 scalar."""
    return tf.shape(keras.tree.flatten(y_pred)[0])[0]
