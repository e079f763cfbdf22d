"""The compiled ops: where they are, and whether to use them.

The C++ kernels run on the CPU. Programs of XLA call the solvers, as custom calls with
the same C++ code beneath, on the CPU and, operands copied, from a GPU. For the ops on
gradients and features the TensorFlow versions serve there, and for all of them where no
library was built.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import kernels
from tensorflow.python.ops import control_flow_util

IMPLEMENTATIONS = ("auto", "native", "tensorflow")

_FILE = "libmtl_keras_ops.so"
_ENVIRONMENT = "MTL_KERAS_OPS"
_log = logging.getLogger("mtl_keras")


class _Choice:
    """Requested implementation, of all threads, as replicas are traced in several."""

    name = os.environ.get(_ENVIRONMENT, "auto")


def native_available() -> bool:
    """Returns whether the compiled ops are there and fit the TensorFlow that runs."""
    return library() is not None


def native_in_use() -> bool:
    """Returns whether ops called now run in C++; with a GPU or XLA, solvers alone."""
    return solvers_in_use() is not None


@functools.cache
def custom_calls_available() -> bool:
    """Returns whether XLA compiles the solvers' ops, to calls of the C++ code.

    It does where the library was built with TensorFlow's headers for XLA, which has it
    register kernels for XLA's devices.
    """
    if library() is None:
        return False
    registered = kernels.get_registered_kernels_for_op("MtlKeras>MinNorm").kernel
    return any(kernel.device_type == "XLA_CPU_JIT" for kernel in registered)


@contextlib.contextmanager
def implementation(name: str) -> Iterator[None]:
    """Chooses the implementation of the ops called, or traced, in its context.

    A traced `tf.function` keeps the implementation it was traced with. The
    environment variable `MTL_KERAS_OPS` chooses for a whole process.

    Args:
        name: `"native"` (C++; under XLA it fails for other ops than the solvers),
            `"tensorflow"`, or `"auto"`: C++, but under XLA and with a visible GPU for
            the solvers alone.

    Raises:
        ValueError: For another name.
        RuntimeError: For `"native"` without the compiled ops.
    """
    _check(name)
    before = _Choice.name
    _Choice.name = name
    try:
        yield
    finally:
        _Choice.name = before


def solvers_in_use() -> Any | None:
    """Returns the compiled ops for `[T, T]` operands, or None for TensorFlow's.

    A GPU does not matter: copies of so few numbers cost less than the kernels of the
    TensorFlow versions. XLA neither, where `custom_calls_available()`.
    """
    if _Choice.name == "tensorflow":
        return None
    if _Choice.name != "auto":
        _check(_Choice.name)
        return library()
    return None if in_xla() and not custom_calls_available() else library()


def in_use() -> Any | None:
    """Returns the compiled ops for gradients and features, or None for TensorFlow's.

    Raises:
        RuntimeError: If `"native"` is asked for and a GPU is visible: each step would
            copy all task gradients to the host.
    """
    if _Choice.name == "auto" and in_xla():
        return None
    compiled = solvers_in_use()
    if compiled is None or not tf.config.get_visible_devices("GPU"):
        return compiled
    if _Choice.name == "native":
        raise RuntimeError(
            "Expected no visible GPU with the compiled ops for task gradients, which "
            "run on the CPU. Received: the implementation 'native'. Take 'auto'."
        )
    return None


def _check(name: str) -> None:
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"Expected an implementation of the ops in {IMPLEMENTATIONS}. "
            f"Received: {name!r}."
        )
    if name == "native" and library() is None:
        raise RuntimeError("The compiled ops are not available: see the log.")


def in_xla() -> bool:
    """Returns whether a function with `jit_compile=True` is being traced.

    TensorFlow has no public way to ask. Which function compiles is written on the
    graphs around the present one.
    """
    if tf.executing_eagerly():
        return False
    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)


@functools.cache
def library() -> Any | None:
    """Loads the library, once; says in one line why it cannot."""
    path = _find()
    if path is None:
        _log.info("No compiled ops in this installation: using TensorFlow's own.")
        return None
    if (reason := _misfit(path)) is not None:
        _log.warning(
            "The compiled ops in %s were built %s: using TensorFlow's own. Reinstall "
            "mtl_keras to build them anew.",
            path,
            reason,
        )
        return None
    try:
        return tf.load_op_library(str(path))
    except (tf.errors.OpError, OSError) as error:
        _log.warning(
            "The compiled ops cannot be loaded (%s): using TensorFlow's own.", error
        )
        return None


def _find() -> pathlib.Path | None:
    # In an editable installation sources and library lie in different folders.
    import mtl_keras.ops

    for folder in mtl_keras.ops.__path__:
        path = pathlib.Path(folder) / _FILE
        if path.exists():
            return path
    return None


def _misfit(path: pathlib.Path) -> str | None:
    """Returns from or for what else a library was built, or None if it fits."""
    # As csrc/tensorflow/binding.cc writes it; libraries of old name no sources.
    match = re.search(
        rb"mtl_keras ops built for TensorFlow ([\w.+-]+)(?: from sources (\w+))?",
        path.read_bytes(),
    )
    version = match[1].decode() if match else "unknown"
    sources = match[2].decode() if match and match[2] else None
    if _minor(version) != _minor(tf.__version__):
        return f"for TensorFlow {version}, not {tf.__version__}"
    # An installed package has no sources beside it: its library came with it.
    folder = pathlib.Path(__file__).parents[2] / "csrc"
    present = (folder / "tensorflow" / "binding.cc").exists()
    if sources is None or (present and sources != sources_digest(folder)):
        return "from other sources than this version's"
    return None


def sources_digest(folder: pathlib.Path) -> str:
    """Returns a digest of the ops' sources, as CMakeLists.txt makes it."""
    files = (
        path.relative_to(folder)
        for suffix in ("cc", "h", "inc")
        for path in folder.rglob(f"*.{suffix}")
    )
    lines = (
        f"{path} {hashlib.sha256((folder / path).read_bytes()).hexdigest()}\n"
        for path in sorted(map(pathlib.PurePath.as_posix, files))
        if not path.startswith("tests/")
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
