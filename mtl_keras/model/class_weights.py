"""Sample weights by the class of the label, output by output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import tensorflow as tf

from mtl_keras.errors import InputError
from mtl_keras.model.arguments import check_names
from mtl_keras.model.labels import by_output


def is_by_output(class_weight: Any) -> bool:
    """Returns whether `class_weight` has entries for outputs, not for classes."""
    return isinstance(class_weight, Mapping) and any(
        isinstance(key, str) for key in class_weight
    )


def checked(
    class_weight: Mapping[str, Mapping[int, float]], outputs: Sequence[str]
) -> dict[str, dict[int, float]]:
    """Returns `{output: {class id: weight}}`.

    Args:
        class_weight: As `fit` takes it.
        outputs: Names of all outputs, sorted.

    Raises:
        InputError: For no output, a class id that is no integer of at least 0, or a
            weight that is no number of at least 0.
    """
    check_names("class_weight", class_weight, outputs)
    for output, weights in class_weight.items():
        if not isinstance(weights, Mapping) or not all(
            isinstance(key, Integral)
            and key >= 0
            and isinstance(weight, Real)
            and 0 <= weight < math.inf
            for key, weight in weights.items()
        ):
            raise InputError(
                f"Expected `class_weight` of the output {output!r} as a dict from "
                "class ids, integers of at least 0, to weights, numbers of at least "
                f"0. Received: {weights!r}."
            )
    return {
        output: {int(key): float(weight) for key, weight in weights.items()}
        for output, weights in class_weight.items()
        if weights
    }


def with_class_weight(
    y: Any,
    sample_weight: Any,
    class_weight: Mapping[str, Mapping[int, float]],
    outputs: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the sample weights of a batch by output, those of the classes among them.

    Args:
        y: Labels, in a form that `fit` takes.
        sample_weight: As in `fit`.
        class_weight: `checked`'s result.
        outputs: The model's outputs.

    Raises:
        InputError: For an output with both sample weights and class weights.
    """
    labels = by_output(y, outputs, "labels", required=tuple(class_weight))
    weights = by_output(sample_weight, outputs, "sample weights", required=())
    for output, of_classes in class_weight.items():
        if weights[output] is not None:
            raise InputError(
                "Expected `class_weight` or `sample_weight` of an output, and not "
                f"both at the same time. Received both of {output!r}."
            )
        rank = len(outputs[output].shape)
        ids = _class_ids(tf.convert_to_tensor(labels[output]), rank)
        size = max(of_classes) + 1
        table = tf.constant([of_classes.get(i, 1.0) for i in range(size)], "float32")
        known = (ids >= 0) & (ids < size)
        weight = tf.gather(table, tf.where(known, ids, 0))
        weights[output] = tf.where(known, weight, 1.0)
    return weights


def _class_ids(label: tf.Tensor, rank: int) -> tf.Tensor:
    """Returns int32 class ids of labels for an output of this rank, as Keras's."""
    if len(label.shape) > 1 and label.shape[-1] == 1:
        label = tf.squeeze(label, -1)
    elif len(label.shape) > 1 and len(label.shape) == rank:
        return tf.argmax(label, axis=-1, output_type="int32")
    return tf.cast(tf.round(label) if label.dtype.is_floating else label, "int32")
