"""Functions that the tests of the scheduler have called in its processes."""

from __future__ import annotations

import os
import sys

import tensorflow as tf


def pid(folder, settings):
    """Prints to both streams, from Python and from beneath it."""
    print("printed", flush=True)
    os.write(2, b"written\n")
    return {"pid": os.getpid(), "settings": settings, "none": float("nan")}


def fail(folder, settings):
    raise ValueError("no\nway")


def break_gpu(folder, settings):
    raise tf.errors.InternalError(None, None, "Launch: CUDA_ERROR_ILLEGAL_ADDRESS")


def leave(folder, settings):
    sys.exit(3)


def abort(folder, settings):
    os.abort()


GROWN = []


def grow(folder, settings):
    """Holds 300 MB more after each call."""
    GROWN.append(b"x" * 300_000_000)
    return os.getpid()


def threads(folder, settings):
    return {name: os.environ.get(name) for name in settings["names"]}
