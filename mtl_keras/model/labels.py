"""Labels and sample weights of a batch, task by task, and which are absent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from mtl_keras.errors import InputError, unknown_name


class Labels(NamedTuple):
    """One batch's labels; every dict is keyed by task."""

    y: dict[str, Any]
    """Labels, zeros where absent; None for an output without a loss."""
    weights: dict[str, Any]
    """Sample weights as given, or None."""
    labelled: dict[str, tf.Tensor | None]
    """bool `[batch]`; None where no weight was given, so all are labelled."""


def arrange_labels(
    y: Any, sample_weight: Any, y_pred: dict[str, Any], tasks: Sequence[str]
) -> Labels:
    """Brings labels and weights, in any of Keras's forms, into dicts by task.

    A sample weight of exactly 0 marks an absent label. Its place is filled with
    zeros, so that a filler such as −1 or NaN neither raises nor spreads.

    Args:
        y: Labels: a dict by output, or a list in Keras's order of the outputs
            (sorted by name), or the bare label of a single output.
        sample_weight: None, one weight for all outputs, a dict or a list.
        y_pred: The model's outputs.
        tasks: Outputs that have a loss.

    Raises:
        InputError: For labels or weights of no output, or missing labels.
    """
    y = _by_output(y, y_pred, "labels", required=tasks)
    weights = _by_output(sample_weight, y_pred, "sample weights", required=())
    labelled: dict[str, tf.Tensor | None] = {}
    for task in y_pred:
        weight = weights[task]
        labelled[task] = None
        if weight is not None and y[task] is not None:
            weights[task] = weight = tf.convert_to_tensor(weight)
            has_label = tf.cast(weight, "bool")
            if len(weight.shape) > 1:
                has_label = tf.reduce_any(
                    has_label, axis=list(range(1, len(weight.shape)))
                )
            labelled[task] = has_label
            y[task] = _without_absent(y[task], has_label)
    return Labels(y, weights, labelled)


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
            mask = with_trailing_axes(inside, len(weight.shape) - 1)
            weights[task] = weight * tf.cast(mask, weight.dtype)
            labelled[task] = inside & labels.labelled[task]
    return Labels(labels.y, weights, labelled)


def without_tasks(labels: Labels, tasks: Iterable[str], size: tf.Tensor) -> Labels:
    """Returns the labels with all of some tasks' marked absent.

    Args:
        labels: The batch's.
        tasks: The tasks to leave out.
        size: Samples in the batch, int32 scalar.
    """
    weights, labelled = dict(labels.weights), dict(labels.labelled)
    for task in tasks:
        weights[task] = tf.zeros([size])
        labelled[task] = tf.zeros([size], "bool")
    return Labels(labels.y, weights, labelled)


def leave_out(
    kept: tf.Tensor, labels: Labels, y_pred: dict[str, Any], tasks: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns outputs and sample weights of a batch as if some tasks were absent.

    Args:
        kept: bool `[T]`: False for the tasks to leave out.
        labels: The batch's labels.
        y_pred: The model's outputs; those left out become zeros.
        tasks: The tasks that `kept` speaks of.
    """
    outputs, weights = dict(y_pred), dict(labels.weights)
    for task, keep in zip(tasks, tf.unstack(kept), strict=True):
        outputs[task] = tf.where(keep, y_pred[task], tf.zeros_like(y_pred[task]))
        weight = weights[task]
        if weight is None:
            weight = tf.ones(tf.shape(y_pred[task])[:1])
        weights[task] = tf.where(keep, weight, tf.zeros_like(weight))
    return outputs, weights


def _by_output(
    value: Any, y_pred: dict[str, Any], what: str, required: Sequence[str]
) -> dict[str, Any]:
    names = sorted(y_pred)
    if isinstance(value, dict):
        for name in value:
            if name not in y_pred:
                raise unknown_name(f"output in the {what}", name, names)
        given = dict(value)
    elif isinstance(value, (list, tuple)):
        if len(value) != len(names):
            raise InputError(
                f"Expected {what} for the outputs {names}. "
                f"Received a list of {len(value)}."
            )
        given = dict(zip(names, value, strict=True))
    elif value is None:
        given = {}
    elif what == "labels" and len(names) > 1:
        raise InputError(
            f"Expected labels as a dict with the keys {names}. "
            f"Received one array of shape {tuple(value.shape)}."
        )
    else:
        given = dict.fromkeys(names, value)
    missing = [name for name in required if given.get(name) is None]
    if missing:
        raise InputError(
            f"Expected {what} for {missing}; a label that is absent needs a filler "
            f"and a sample weight of 0. Received {what} for {sorted(given)}."
        )
    return {name: given.get(name) for name in y_pred}


def _without_absent(label: Any, labelled: tf.Tensor) -> tf.Tensor:
    label = tf.convert_to_tensor(label)
    mask = with_trailing_axes(labelled, len(label.shape) - 1)
    return tf.where(mask, label, tf.zeros_like(label))


def with_trailing_axes(tensor: tf.Tensor, count: int) -> tf.Tensor:
    """Returns a `[batch]` tensor as `[batch, 1, …]` with `count` axes of size 1."""
    for _ in range(count):
        tensor = tf.expand_dims(tensor, -1)
    return tensor


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
