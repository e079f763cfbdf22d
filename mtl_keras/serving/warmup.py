"""Warm-up records: requests that TensorFlow Serving runs before it goes live.

Each record also holds what the Keras model answered, so that an export can be checked
wherever it is, without the Keras model.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import message

from mtl_keras import optional
from mtl_keras.errors import InputError
from mtl_keras.serving.signatures import Signature

with optional.extra("serving", "tensorflow-serving-api", "mtl_keras.serving"):
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

FILE = pathlib.PurePath("assets.extra", "tf_serving_warmup_requests")


def as_inputs(
    specs: Mapping[str, tf.TensorSpec], samples: Any
) -> dict[str, np.ndarray]:
    """Returns a batch of samples in the dtypes and ranks of the inputs.

    Numbers are cast and a last axis of length 1 is added or removed where Keras's
    `fit` does so.

    Args:
        specs: `{input: spec}`, the batch dimension first.
        samples: `{input: array, tensor or list}`, other keys are ignored; an array
            alone for one input.

    Returns:
        `{input: array}`, one or more samples, as many of each input.

    Raises:
        InputError: If an input has no samples, or samples that `fit` would not take;
            in one line.
    """
    if not isinstance(samples, Mapping):
        if len(specs) > 1:
            raise InputError(
                f"Expected samples by input, {{name: batch}}, for {sorted(specs)}. "
                f"Received: {type(samples).__name__}."
            )
        samples = dict.fromkeys(specs, samples)
    missing = sorted(set(specs) - set(samples))
    if missing:
        raise InputError(
            f"Expected samples of the inputs {sorted(specs)}. Received none of "
            f"{missing}."
        )
    arrays = {name: _as_input(spec, samples[name]) for name, spec in specs.items()}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise InputError(
            "Expected at least one sample, and as many of each input. Received: "
            f"{', '.join(f'{count} of {name}' for name, count in counts.items())}."
        )
    return arrays


def _as_input(spec: tf.TensorSpec, values: Any) -> np.ndarray:
    array = _as_array(spec, values)
    shape = spec.shape
    if array.ndim == shape.rank + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    elif array.ndim == shape.rank - 1 and shape[-1] == 1:
        array = array[..., np.newaxis]
    if not shape.is_compatible_with(array.shape):
        raise InputError(
            f"Expected samples of {spec.name!r} of shape {tuple(shape)}. Received: "
            f"shape {array.shape}."
        )
    return array


def _as_array(spec: tf.TensorSpec, values: Any) -> np.ndarray:
    """Returns samples as an array of the input's dtype, strings as bytes objects."""
    kinds = "OSU" if spec.dtype == tf.string else "biuf"
    try:
        if isinstance(values, (tf.RaggedTensor, tf.SparseTensor)):
            raise TypeError(f"a {type(values).__name__}")
        array = np.asarray(values)
        if isinstance(values, tf.Tensor) and array.dtype.kind == "V":
            # NumPy itself knows no bfloat16.
            array = tf.cast(values, tf.float32).numpy()
        if array.dtype.kind not in kinds:
            raise TypeError(f"dtype {array.dtype}")
        if spec.dtype != tf.string:
            return array.astype(spec.dtype.as_numpy_dtype)
        texts = [_as_bytes(text) for text in array.ravel()]
        return np.array(texts, object).reshape(array.shape)
    # NumPy raises ValueError for lists of different lengths.
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Expected samples of {spec.name!r} as an array of "
            f"{'strings' if spec.dtype == tf.string else 'numbers'} that casts to "
            f"{spec.dtype.name}. Received: {' '.join(str(error).split()).rstrip('.')}."
        ) from error


def _as_bytes(text: Any) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, bytes):
        return text
    raise TypeError(f"{text!r} of type {type(text).__name__}")


def predict_request(
    model: str, signature: str, inputs: Mapping[str, np.ndarray]
) -> predict_pb2.PredictRequest:
    """Returns the message that a client sends.

    Args:
        model: Name of the model on the server.
        signature: Name of the signature.
        inputs: `{input: array}`.
    """
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def arrays(tensors: Mapping[str, tf.compat.v1.TensorProto]) -> dict[str, np.ndarray]:
    """Returns the tensors of a PredictRequest or PredictResponse as arrays.

    Raises:
        InputError: If one of them holds other values than it says.
    """
    values = {}
    for name, proto in tensors.items():
        size = math.prod(dim.size for dim in proto.tensor_shape.dim)
        if size > proto.ByteSize():
            # One value for many: in a record a way to ask for all memory.
            raise InputError(f"The warm-up records hold {name!r} in part only.")
        try:
            values[name] = tf.make_ndarray(proto)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"The warm-up records hold {name!r} as another tensor than they say."
            ) from error
    return values


def write_records(
    version: pathlib.Path,
    model: str,
    signatures: Sequence[Signature],
    batches: Sequence[Mapping[str, np.ndarray]],
) -> None:
    """Writes a record for each signature and batch, with the Keras model's answer.

    Args:
        version: Folder of the SavedModel.
        model: Name of the model on the server.
        signatures: The signatures.
        batches: Raw inputs of the model.
    """
    file = version / FILE
    file.parent.mkdir()
    with tf.io.TFRecordWriter(str(file)) as writer:
        for inputs in batches:
            # Some signatures differ in the form of their requests alone.
            answers: dict[tuple[int, bool], dict[str, np.ndarray]] = {}
            for signature in signatures:
                same = (id(signature.model), signature.classify)
                if same not in answers:
                    answers[same] = signature.keras_answer(inputs)
                request = predict_request(
                    model, signature.name, signature.request(inputs)
                )
                writer.write(_record(request, answers[same]).SerializeToString())


def _record(
    request: predict_pb2.PredictRequest, answer: Mapping[str, np.ndarray]
) -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictLog(request=request)
    log.response.model_spec.CopyFrom(request.model_spec)
    for name, value in answer.items():
        log.response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
    return prediction_log_pb2.PredictionLog(predict_log=log)


def read_records(version: pathlib.Path) -> list[prediction_log_pb2.PredictLog]:
    """Reads the records of an export.

    Raises:
        InputError: If there are none, or the file is broken.
    """
    file = version / FILE
    try:
        records = [
            prediction_log_pb2.PredictionLog.FromString(record.numpy())
            for record in tf.data.TFRecordDataset(str(file))
        ]
    except tf.errors.NotFoundError as error:
        raise InputError(
            f"{str(version)!r} has no warm-up records, {FILE}: it was not exported by "
            "mtl_keras."
        ) from error
    except (tf.errors.DataLossError, message.DecodeError) as error:
        raise InputError(f"The warm-up records {str(file)!r} are broken.") from error
    return [record.predict_log for record in records]
