"""Errors that tell a user what to change."""

from __future__ import annotations

import difflib
import inspect
import math
import re
import warnings
from collections.abc import Iterable
from typing import Any

LARGEST_COUNT = 2**31 - 1

_OWN = ("mtl_keras", "mtl_keras_cli", "keras")
# What CUDA's libraries say where a GPU's memory is full, in errors of several types.
_FULL_GPU = re.compile(
    r"CUDA_ERROR_OUT_OF_MEMORY|create cu\w+ handle|No algorithm worked"
    r"|DNN library initialization failed"
)
_CUDA = re.compile(r"CUDA|CUDNN|CUBLAS", re.IGNORECASE)


class InputError(ValueError):
    """The caller's input is wrong; the message names what and the way out.

    A `ValueError`, so that library users catch it as they would Keras's own.
    The command line prints it as one line and exits with code 2: line breaks and
    control characters, which names from a user's files may have, are escaped.
    """

    def __init__(self, message: str = ""):
        super().__init__(
            "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        )


class NonFiniteError(ArithmeticError):
    """Training met a number that is not finite; the message says where.

    The command line prints it as one line and exits with code 2.
    """


class MissingExtraError(ImportError):
    """A package of an extra is not installed; the message says how to install it.

    The command line prints it as one line and exits with code 2.
    """


class WorkerError(RuntimeError):
    """Another process of the same training is gone; the message says what to do.

    The command line prints it as one line and exits with code 2.
    """


def unknown_name(kind: str, received: object, known: Iterable[str]) -> InputError:
    """Returns the error for a name that is not in a registry.

    Args:
        kind: Kind of the named thing, for example `"balancing method"`.
        received: The name that was given.
        known: All names that would have been accepted.

    Returns:
        An `InputError` that offers the nearest known names.
    """
    options = sorted(known)
    near = difflib.get_close_matches(str(received), options, n=3, cutoff=0.5)
    hint = f"Did you mean {', '.join(map(repr, near))}? " if near else ""
    return InputError(
        f"Unknown {kind}. {hint}Expected one of: {', '.join(options)}. "
        f"Received: {received!r}."
    )


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type's name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def system_reason(error: Exception) -> str:
    """Returns the system's message, out of an `OSError` or TensorFlow's own."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # TensorFlow puts the operation and the file around it.
    first = str(getattr(error, "message", error)).splitlines()[0]
    message = re.sub(r"\{\{.*?\}\}|\[Op:.*?\]", "", first)
    return message.rpartition("; ")[2].strip()


def is_of_full_gpu(error: BaseException) -> bool:
    """Returns whether CUDA failed for want of memory on the GPU."""
    return _FULL_GPU.search(str(error)) is not None


def is_of_cuda(error: BaseException) -> bool:
    """Returns whether CUDA or one of its libraries failed, of which few recover."""
    return _CUDA.search(str(error)) is not None


def check_integer(
    argument: str, value: Any, low: int, high: int = LARGEST_COUNT
) -> int:
    """Returns `value`; raises `InputError` unless it is an integer in [low, high]."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not low <= value <= high
    ):
        limit = f"at most {high}" if isinstance(value, int) and value > high else ""
        raise InputError(
            f"Expected `{argument}` to be an integer of {limit or f'at least {low}'}. "
            f"Received: {argument}={value!r:.100}."
        )
    return value


def is_number(value: Any) -> bool:
    """Returns whether a value is an int or float, and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def warn_caller(message: str) -> None:
    """Warns at the line outside of this package and of Keras that led to the call."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals["__name__"].split(".")[0] in _OWN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def check_number(
    argument: str, value: Any, low: float = -math.inf, high: float = math.inf
) -> float:
    """Returns `value` as a float; raises `InputError` unless low <= value <= high."""
    if not is_number(value) or not low <= value <= high:
        raise InputError(
            f"Expected `{argument}` to be a number from {low} to {high}. "
            f"Received: {argument}={value!r}."
        )
    return float(value)
