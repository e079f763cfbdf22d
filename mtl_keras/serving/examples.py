"""Inputs of a model as serialized `tf.train.Example`s, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from mtl_keras.errors import InputError


def parsing_spec(
    inputs: Mapping[str, tf.TensorSpec], missing: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Returns the feature of a `tf.train.Example` that each input is read from.

    Integers and booleans are int64 features, floats are float features, strings are
    bytes features. A feature may be left out: it then counts as `missing` says, as
    zeros, as empty strings, or as a sequence of length 0. Sequences are padded in the
    same way to the longest of the batch.

    Args:
        inputs: Specs with a free batch dimension.
        missing: What inputs of numbers are filled with where not with zeros.

    Raises:
        InputError: For an input with a free dimension other than its first two,
            which an example cannot hold.
    """
    spec: dict[str, Any] = {}
    for name, wanted in inputs.items():
        shape = wanted.shape[1:].as_list()
        dtype = _stored(wanted.dtype)
        empty = "" if dtype == tf.string else (missing or {}).get(name, 0)
        if None not in shape:
            default = np.full(shape, empty, dtype.as_numpy_dtype)
            spec[name] = tf.io.FixedLenFeature(shape, dtype, default)
        elif None not in shape[1:]:
            spec[name] = tf.io.FixedLenSequenceFeature(
                shape[1:], dtype, allow_missing=True, default_value=empty
            )
        else:
            raise InputError(
                f"Expected the input {name!r} to be of a fixed shape, or a sequence of "
                f"steps of a fixed shape. Received: {wanted.shape}, which no "
                "tf.train.Example can hold; `examples=False` leaves them out."
            )
    return spec


def parse(
    serialized: tf.Tensor,
    inputs: Mapping[str, tf.TensorSpec],
    missing: Mapping[str, float] | None = None,
) -> dict[str, tf.Tensor]:
    """Parses serialized examples, `[batch]`, into the model's inputs.

    Numbers beyond the range of an input's dtype become the nearest within.
    """
    parsed = tf.io.parse_example(serialized, parsing_spec(inputs, missing))
    return {name: _restored(parsed[name], inputs[name].dtype) for name in inputs}


def serialize(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns one serialized `tf.train.Example` for each sample, `[batch]`."""
    count = len(next(iter(inputs.values())))
    examples = np.empty(count, object)
    for index in range(count):
        feature = {name: _feature(values[index]) for name, values in inputs.items()}
        features = tf.train.Features(feature=feature)
        examples[index] = tf.train.Example(features=features).SerializeToString()
    return examples


def _feature(value: np.ndarray) -> tf.train.Feature:
    flat = np.asarray(value).ravel()
    if flat.dtype.kind in "biu":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=flat.tolist()))
    if flat.dtype.kind == "f":
        return tf.train.Feature(float_list=tf.train.FloatList(value=flat.tolist()))
    texts = [text.encode() if isinstance(text, str) else text for text in flat]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=texts))


def _stored(dtype: tf.DType) -> tf.DType:
    if dtype.is_integer or dtype.is_bool:
        return tf.int64
    return tf.float32 if dtype.is_floating else tf.string


def _restored(value: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    if dtype == value.dtype:
        return value
    return tf.saturate_cast(value, dtype) if dtype.is_integer else tf.cast(value, dtype)
