"""A SavedModel in TensorFlow's C++ runtime, through its C API.

`TF_LoadSessionFromSavedModel` calls the C++ loader that TensorFlow Serving calls, and
`TF_SessionRun` the session that it runs requests in. No Python code of TensorFlow or
Keras has a part in either: what answers here is the exported graph.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import kernel_def_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from mtl_keras.errors import InputError

TAG = "serve"
_TSTRING_BYTES = 24
_OK = 0


class _Buffer(ctypes.Structure):
    """`TF_Buffer`: bytes that the library gives back."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    )


class _Output(ctypes.Structure):
    """`TF_Output`: one output of an operation."""

    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


class RefusedError(RuntimeError):
    """What the runtime says when it refuses a model or a request."""


class Runtime:
    """A SavedModel, loaded and ready to answer.

    Args:
        version: Folder of the SavedModel.

    Attributes:
        meta_graph: The `MetaGraphDef` with the tag `serve`.
        signatures: The `SignatureDef`s that clients may ask for, by name.

    Raises:
        InputError: If the folder holds no SavedModel that the loader takes.
    """

    def __init__(self, version: str | pathlib.Path):
        self._library = library = _library()
        self._graph = ctypes.c_void_p(library.TF_NewGraph())
        options = ctypes.c_void_p(library.TF_NewSessionOptions())
        tags = (ctypes.c_char_p * 1)(TAG.encode())
        meta_graph = library.TF_NewBuffer()
        try:
            with _status() as status:
                session = library.TF_LoadSessionFromSavedModel(
                    options,
                    None,
                    str(version).encode(),
                    tags,
                    1,
                    self._graph,
                    meta_graph,
                    status,
                )
        except RefusedError as error:
            raise InputError(
                f"{str(version)!r} holds no SavedModel that TensorFlow's C++ loader "
                f"takes: {str(error).splitlines()[0]}"
            ) from error
        finally:
            library.TF_DeleteSessionOptions(options)
        self._session = ctypes.c_void_p(session)
        buffer = meta_graph.contents
        self.meta_graph = meta_graph_pb2.MetaGraphDef.FromString(
            ctypes.string_at(buffer.data, buffer.length)
        )
        library.TF_DeleteBuffer(meta_graph)
        self.signatures = {
            name: signature
            for name, signature in sorted(self.meta_graph.signature_def.items())
            # How the loader initialises variables; not for clients.
            if name != "__saved_model_init_op"
        }

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the session and frees the model's memory."""
        with _status() as status:
            self._library.TF_CloseSession(self._session, status)
        with _status() as status:
            self._library.TF_DeleteSession(self._session, status)
        self._library.TF_DeleteGraph(self._graph)

    def predict(
        self, signature: str, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Answers one request, as TensorFlow Serving does.

        Args:
            signature: Name of a signature.
            inputs: `{input: array}`, neither more nor fewer than the signature's, in
                its dtypes and shapes, the batch first: `[batch, …]`.

        Returns:
            `{output: array}`, `[batch, …]`; strings as arrays of `bytes` objects.

        Raises:
            RefusedError: The signature or an input's name is wrong, or the runtime
                refuses the request; with its message.
        """
        definition = self.signatures.get(signature)
        if definition is None:
            raise RefusedError(
                f"Expected a signature out of {sorted(self.signatures)}. "
                f"Received: {signature!r}."
            )
        if set(inputs) != set(definition.inputs):
            raise RefusedError(
                f"Expected the inputs {sorted(definition.inputs)} of {signature!r}. "
                f"Received: {sorted(inputs)}."
            )
        feeds = {definition.inputs[name].name: inputs[name] for name in inputs}
        outputs = sorted(definition.outputs)
        fetches = [definition.outputs[name].name for name in outputs]
        return dict(zip(outputs, self._run(feeds, fetches), strict=True))

    def _run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]
    ) -> list[np.ndarray]:
        library = self._library
        given = (ctypes.c_void_p * len(feeds))(*map(_to_tensor, feeds.values()))
        answers = (ctypes.c_void_p * len(fetches))()
        try:
            with _status() as status:
                library.TF_SessionRun(
                    self._session,
                    None,
                    (_Output * len(feeds))(*map(self._output, feeds)),
                    given,
                    len(feeds),
                    (_Output * len(fetches))(*map(self._output, fetches)),
                    answers,
                    len(fetches),
                    None,
                    0,
                    None,
                    status,
                )
            return [_to_array(ctypes.c_void_p(answer)) for answer in answers]
        finally:
            for tensor in (*given, *answers):
                if tensor:
                    library.TF_DeleteTensor(ctypes.c_void_p(tensor))

    def _output(self, tensor: str) -> _Output:
        operation, _, index = tensor.partition(":")
        found = self._library.TF_GraphOperationByName(self._graph, operation.encode())
        return _Output(found, int(index or 0))


@contextlib.contextmanager
def _status() -> Iterator[ctypes.c_void_p]:
    """Gives a `TF_Status`; raises what it holds when the block is through."""
    library = _library()
    status = ctypes.c_void_p(library.TF_NewStatus())
    try:
        yield status
        if library.TF_GetCode(status) != _OK:
            raise RefusedError(library.TF_Message(status).decode(errors="replace"))
    finally:
        library.TF_DeleteStatus(status)


def _to_tensor(array: np.ndarray) -> int:
    """Returns a new `TF_Tensor` with the array's values."""
    library = _library()
    dtype = tf.dtypes.as_dtype(array.dtype)
    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    item = _TSTRING_BYTES if dtype == tf.string else dtype.size
    bytes_ = ctypes.c_size_t(item * array.size)
    tensor = library.TF_AllocateTensor(
        dtype.as_datatype_enum, shape, array.ndim, bytes_
    )
    data = library.TF_TensorData(ctypes.c_void_p(tensor))
    if dtype == tf.string:
        for index, text in enumerate(array.ravel()):
            place = ctypes.c_void_p(data + index * _TSTRING_BYTES)
            text = text.encode() if isinstance(text, str) else bytes(text)
            library.TF_StringInit(place)
            library.TF_StringCopy(place, text, ctypes.c_size_t(len(text)))
    elif array.size:
        contiguous = np.ascontiguousarray(array)
        ctypes.memmove(data, contiguous.ctypes.data, contiguous.nbytes)
    return tensor


def _to_array(tensor: ctypes.c_void_p) -> np.ndarray:
    """Returns a copy of a `TF_Tensor`'s values."""
    library = _library()
    dtype = tf.dtypes.as_dtype(library.TF_TensorType(tensor))
    shape = [library.TF_Dim(tensor, axis) for axis in range(library.TF_NumDims(tensor))]
    data = library.TF_TensorData(tensor)
    if dtype == tf.string:
        texts = np.empty(int(np.prod(shape)), object)
        for index in range(texts.size):
            place = ctypes.c_void_p(data + index * _TSTRING_BYTES)
            start = library.TF_StringGetDataPointer(place)
            texts[index] = ctypes.string_at(start, library.TF_StringGetSize(place))
        return texts.reshape(shape)
    values = ctypes.string_at(data, library.TF_TensorByteSize(tensor))
    return np.frombuffer(values, dtype.as_numpy_dtype).reshape(shape).copy()


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    pointer, number = ctypes.c_void_p, ctypes.c_size_t
    results = {
        "TF_NewStatus": pointer,
        "TF_GetCode": ctypes.c_int,
        "TF_Message": ctypes.c_char_p,
        "TF_NewGraph": pointer,
        "TF_NewSessionOptions": pointer,
        "TF_NewBuffer": ctypes.POINTER(_Buffer),
        "TF_LoadSessionFromSavedModel": pointer,
        "TF_GraphOperationByName": pointer,
        "TF_AllocateTensor": pointer,
        "TF_TensorData": pointer,
        "TF_TensorByteSize": number,
        "TF_TensorType": ctypes.c_int,
        "TF_NumDims": ctypes.c_int,
        "TF_Dim": ctypes.c_int64,
        "TF_StringGetDataPointer": pointer,
        "TF_StringGetSize": number,
    }
    for name, result in results.items():
        getattr(library, name).restype = result
    return library


def library_path() -> pathlib.Path:
    """Returns the path of TensorFlow's C++ library, `libtensorflow_cc.so.2`."""
    return pathlib.Path(tf.sysconfig.get_lib()) / "libtensorflow_cc.so.2"


@functools.cache
def stock_operations() -> frozenset[str]:
    """Returns the operations that TensorFlow's C++ library has kernels for.

    Asked of a process that loads this library and nothing else: this process may
    have registered more, such as operations of a library of one's own, or those
    that call back into Python.
    """
    done = subprocess.run(
        [sys.executable, "-c", _LIST_KERNELS, str(library_path())],
        capture_output=True,
        check=True,
    )
    kernels = kernel_def_pb2.KernelList.FromString(done.stdout)
    return frozenset(kernel.op for kernel in kernels.kernel)


_LIST_KERNELS = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
class Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("length", ctypes.c_size_t))
library.TF_NewStatus.restype = ctypes.c_void_p
library.TF_GetAllRegisteredKernels.restype = ctypes.POINTER(Buffer)
status = ctypes.c_void_p(library.TF_NewStatus())
kernels = library.TF_GetAllRegisteredKernels(status).contents
sys.stdout.buffer.write(ctypes.string_at(kernels.data, kernels.length))
"""
