"""Samples of several sources in one form: what a source lacks is filled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from mtl_keras.errors import InputError

Specs = dict[str, tf.TensorSpec]


class Form(NamedTuple):
    """The specs of a mixture's samples, by name."""

    inputs: Specs
    labels: Specs
    weights: Specs
    lacked: tuple[str, ...]
    """Inputs that some source lacks."""


def common_form(sources: Mapping[str, tf.data.Dataset]) -> Form:
    """Returns the form that holds the samples of every source.

    Args:
        sources: Unbatched data sets of `(inputs, labels)` or `(inputs, labels,
            sample weights)`, dicts of tensors.

    Raises:
        InputError: A source has another form, or two sources disagree.
    """
    inputs: Specs = {}
    labels: Specs = {}
    weights: Specs = {}
    own_inputs = []
    for name, source in sources.items():
        own, own_labels, own_weights = _specs(name, source)
        _merge(name, inputs, own)
        _merge(name, labels, own_labels)
        _merge(name, weights, own_weights)
        own_inputs.append(own)
    for task in labels:
        weights.setdefault(task, tf.TensorSpec((), tf.float32))
    for task in weights:
        if task not in labels:
            raise InputError(
                f"Expected sample weights of labels. Received weights of {task!r}, "
                "of which no source has labels."
            )
    lacked = [name for name in inputs if any(name not in own for own in own_inputs)]
    return Form(inputs, labels, weights, tuple(lacked))


def completed(
    source: tf.data.Dataset, form: Form, presence: str | None
) -> tf.data.Dataset:
    """Returns a source's samples in the form, absent parts filled.

    Args:
        source: One of the sources that `form` was made from.
        form: `common_form`'s result.
        presence: Suffix of the flags of inputs that some source lacks, or `None`
            for no flags.

    Returns:
        Samples `(inputs, labels, sample weights)`. Absent inputs and labels are
        zeros or empty strings, of length 0 along axes of unknown length; absent
        labels weigh 0, others 1 unless the source says otherwise.
    """

    def complete(inputs: Any, labels: Any, weights: Any = None) -> Any:
        sample_weights = dict(weights or {})
        for task in labels:
            if task not in sample_weights:
                sample_weights[task] = _ones(form.weights[task], labels[task])
        whole = _filled(inputs, form.inputs)
        if presence is not None:
            for name in form.lacked:
                whole[name + presence] = tf.constant(name in inputs)
        return (
            whole,
            _filled(labels, form.labels),
            _filled(sample_weights, form.weights),
        )

    return source.map(complete, num_parallel_calls=tf.data.AUTOTUNE)


def _specs(name: str, source: tf.data.Dataset) -> tuple[Specs, Specs, Specs]:
    spec = source.element_spec
    parts = list(spec) if isinstance(spec, tuple) else []
    if len(parts) == 2:
        parts.append({})
    if len(parts) != 3 or not all(
        isinstance(part, dict)
        and all(isinstance(leaf, tf.TensorSpec) for leaf in part.values())
        for part in parts
    ):
        raise InputError(
            f"Expected the source {name!r} to give (inputs, labels) or (inputs, "
            f"labels, sample weights), dicts of dense tensors. Received: {spec}."
        )
    return parts[0], parts[1], parts[2]


def _merge(source: str, merged: Specs, specs: Specs) -> None:
    for name, spec in specs.items():
        other = merged.get(name, spec)
        if other.dtype != spec.dtype or other.shape.rank != spec.shape.rank:
            raise InputError(
                f"Expected {name!r} to have one dtype and rank in all sources. "
                f"Received: {spec.dtype.name} {spec.shape} in {source!r}, "
                f"{other.dtype.name} {other.shape} before."
            )
        shape = other.shape.most_specific_compatible_shape(spec.shape)
        merged[name] = tf.TensorSpec(shape, spec.dtype)


def _ones(weight: tf.TensorSpec, label: tf.Tensor) -> tf.Tensor:
    # Another source may weigh this task's elements one by one.
    return tf.ones(tf.shape(label)[: weight.shape.rank], weight.dtype)


def _filled(tensors: Mapping[str, tf.Tensor], specs: Specs) -> dict[str, tf.Tensor]:
    """Returns the given tensors, with fillers for those of `specs` that lack."""
    return {
        name: tensors[name]
        if name in tensors
        else tf.zeros([size or 0 for size in spec.shape], spec.dtype)
        for name, spec in specs.items()
    }
