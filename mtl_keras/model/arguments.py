"""Checks of what `compile` and `fit` are given by task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import keras

from mtl_keras.errors import InputError, unknown_name


def tasks_with_loss(loss: Any, outputs: Sequence[str]) -> tuple[str, ...]:
    """Returns the outputs that a `loss` argument trains.

    Args:
        loss: As `compile` takes it.
        outputs: Names of all outputs, sorted.

    Raises:
        InputError: For no loss, an output without an entry, or an entry for none.
    """
    if loss is None:
        raise InputError(
            f"Expected a loss for the outputs {outputs}. Received: loss=None."
        )
    if isinstance(loss, (list, tuple)):
        if len(loss) != len(outputs):
            raise InputError(
                f"Expected a loss for each of the outputs {outputs}, in this "
                f"order. Received a list of {len(loss)}."
            )
        loss = dict(zip(outputs, loss, strict=True))
    if not isinstance(loss, dict):
        return tuple(outputs)
    check_names("loss", loss, outputs)
    missing = [task for task in outputs if task not in loss]
    if missing:
        raise InputError(
            f"Expected a loss for every output; {missing} have none. Give them "
            "one, or None to leave them untrained. "
            f"Received losses for {sorted(loss)}."
        )
    return tuple(task for task in outputs if loss[task] is not None)


def check_names(argument: str, value: Any, outputs: Sequence[str]) -> None:
    """Raises `InputError` if a dict has a key that is no output."""
    if isinstance(value, dict):
        for name in value:
            if name not in outputs:
                raise unknown_name(f"output in `{argument}`", name, outputs)


def check_task_names(outputs: Sequence[str]) -> None:
    """Raises `InputError` for a name of an output that no TensorFlow scope can have."""
    for name in outputs:
        if not re.fullmatch(r"[A-Za-z0-9_./\\>-]*", name):
            raise InputError(
                "Expected task names out of the letters a to z, digits, '_', '.', '/' "
                f"and '-', which TensorFlow takes in names. Received: {name!r}."
            )


def as_list(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Returns the callbacks of `fit` as a list."""
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
