"""Check that a graph holds stock TensorFlow operations only."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.framework import kernel_def_pb2

from mtl_keras.errors import InputError


def check_stock(signature: str, function: Any, model: keras.Model) -> None:
    """Raises an InputError where a function needs more than TensorFlow itself.

    A server knows TensorFlow's own operations. It has neither those of a library of
    one's own nor a Python interpreter for those that call back into Python.

    Args:
        signature: Name of the signature, for the message.
        function: The concrete function that it runs.
        model: The model in it, for the names of its layers.

    Raises:
        InputError: Names the operation and the layer that uses it.
    """
    graph = function.graph.as_graph_def()
    library = {f.signature.name: f.node_def for f in graph.library.function}
    for node in graph.node:
        foreign = _foreign(node, library, set())
        if foreign is not None:
            raise InputError(
                f"Expected stock TensorFlow operations only. The layer "
                f"{_layer(node.name, layer_names(model))!r}, which {signature!r} runs, "
                f"uses {foreign!r}, which a server does not have. Give the layer a "
                "method `serving_call` that does without, or leave its task out."
            )


@contextlib.contextmanager
def without_cudnn(models: Iterable[keras.Model]) -> Iterator[None]:
    """Has recurrent layers traced within take operations that every device has.

    Where a GPU is visible Keras takes cuDNN's, which a server on a CPU cannot run.
    """
    layers = [
        layer
        for model in models
        for layer in model._flatten_layers()
        if hasattr(layer, "use_cudnn")
    ]
    before = [layer.use_cudnn for layer in layers]
    try:
        for layer in layers:
            layer.use_cudnn = False
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.use_cudnn = value


def nodes(graph: Any) -> list[Any]:
    """Returns all nodes of a `GraphDef`, functions included, but calls of these."""
    every = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    functions = {f.signature.name for f in graph.library.function}
    return [node for node in every if node.op not in functions]


def _foreign(node: Any, library: Mapping[str, Any], seen: set[str]) -> str | None:
    """Returns the first operation that is not stock, in a node or its functions."""
    called = [node.op] if node.op in library else []
    if not called and node.op not in stock_operations():
        return node.op
    for value in node.attr.values():
        called += [f.name for f in (value.func, *value.list.func) if f.name in library]
    for name in called:
        if name in seen:
            continue
        seen.add(name)
        for inner in library[name]:
            foreign = _foreign(inner, library, seen)
            if foreign is not None:
                return foreign
    return None


def _layer(node: str, layers: Set[str]) -> str:
    """Returns the path of layers out of a node's name, outermost first."""
    # TensorFlow numbers scopes that it has seen before.
    parts = [
        part if part in layers else re.sub(r"_\d+$", "", part)
        for part in node.split("/")
    ]
    return "/".join(part for part in parts if part in layers) or node


def layer_names(model: keras.Model) -> set[str]:
    """Returns the names of all layers, those of models within included."""
    names = set()
    for layer in model.layers:
        names.add(layer.name)
        if isinstance(layer, keras.Model):
            names |= layer_names(layer)
    return names


@functools.cache
def stock_operations() -> frozenset[str]:
    """Returns the operations that TensorFlow's C++ library has CPU kernels for.

    Asked of a process that loads this library and nothing else: this process may
    have registered more, such as operations of a library of one's own, and
    `import tensorflow` does register more, such as those that call back into Python.
    """
    library = pathlib.Path(tf.sysconfig.get_lib()) / "libtensorflow_cc.so.2"
    done = subprocess.run(
        [sys.executable, "-c", _LIST_KERNELS, str(library)],
        capture_output=True,
        check=True,
    )
    kernels = kernel_def_pb2.KernelList.FromString(done.stdout)
    return frozenset(
        kernel.op
        for kernel in kernels.kernel
        if kernel.device_type in ("CPU", "DEFAULT")
    )


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
