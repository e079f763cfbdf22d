"""Examples in docstrings: `python` blocks run, `pycon` blocks are doctests."""

from __future__ import annotations

import doctest
import inspect
import re
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mtl_keras

_BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def namespace() -> dict[str, Any]:
    """Returns the names that an example may use without defining them.

    `model` has tasks `a` and `b` and is not compiled; `x` and `y` are samples for it.
    """
    inputs = keras.Input((4,), name="x")
    features = keras.layers.Dense(8, "relu")(inputs)
    outputs = {task: keras.layers.Dense(1, name=task)(features) for task in "ab"}
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    return {
        "keras": keras,
        "model": mtl_keras.MultiTaskModel(inputs, outputs),
        "mtl_keras": mtl_keras,
        "np": np,
        "tf": tf,
        "x": x,
        "y": {"a": x[:, :1] ** 2 + 1.0, "b": x[:, 1:2] ** 2 + 1.0},
    }


def run_examples(name: str, value: Any, names: dict[str, Any]) -> int:
    """Runs the examples of an object's docstring and returns how many there are.

    Args:
        name: Its name, for messages.
        value: The object.
        names: `namespace`'s result.

    Raises:
        AssertionError: Where a `pycon` block gives something else than it says.
    """
    blocks = _BLOCK.findall(inspect.getdoc(value) or "")
    for language, code in blocks:
        if language == "python":
            exec(compile(code, name, "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(code, names, name, None, None)
        messages: list[str] = []
        failed, _ = doctest.DocTestRunner().run(
            test, out=messages.append, clear_globs=False
        )
        assert not failed, "".join(messages)
    return len(blocks)
