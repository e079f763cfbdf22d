"""Checks of the arguments of `compile` and `fit` by task."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from mtl_keras.errors import InputError, unknown_name


def arrange_losses(
    loss: Any, loss_weights: Any, outputs: Sequence[str]
) -> tuple[Any, Any, tuple[str, ...]]:
    """Returns `loss` and `loss_weights` as Keras takes them, and the trained outputs.

    An output may have a list of losses, also a nested one: its task's loss is their
    sum. A weight for an output is one for each of its losses.

    Args:
        loss: As `compile` takes it.
        loss_weights: As `compile` takes it.
        outputs: Names of all outputs, sorted.

    Raises:
        InputError: For no loss, an output without an entry, an entry for none, or a
            loss of several outputs together.
    """
    check_names("loss_weights", loss_weights, outputs)
    if loss is None:
        raise InputError(
            f"Expected a loss for the outputs {outputs}. Received: loss=None."
        )
    if isinstance(loss, (list, tuple)):
        by_output = _by_output(loss, outputs)
        # A flat list is left to Keras.
        if any(isinstance(value, (list, tuple)) for value in by_output.values()):
            loss = by_output
            if isinstance(loss_weights, (list, tuple)) and len(loss_weights) == len(
                outputs
            ):
                loss_weights = dict(zip(outputs, loss_weights, strict=True))
    elif isinstance(loss, dict):
        check_names("loss", loss, outputs)
        missing = [task for task in outputs if task not in loss]
        if missing:
            raise InputError(
                f"Expected a loss for every output; {missing} have none. Give them "
                "one, or None to leave them untrained. "
                f"Received losses for {sorted(loss)}."
            )
        by_output = loss
    else:
        by_output = dict.fromkeys(outputs, loss)
    for output, value in by_output.items():
        _check_losses(output, value)
    tasks = tuple(task for task in outputs if by_output[task] is not None)
    if isinstance(loss_weights, dict) and loss_weights:
        if not isinstance(loss, (dict, list, tuple)):
            loss = by_output
        loss_weights = {
            task: _for_each_loss(loss_weights.get(task, 1.0), by_output[task])
            for task in tasks
        }
    return loss, loss_weights, tasks


def _by_output(losses: Sequence[Any], outputs: Sequence[str]) -> dict[str, Any]:
    if any(isinstance(value, dict) for value in losses):
        raise InputError(
            f"Expected a loss, or a list of losses, for each of the outputs {outputs}, "
            "as a loss of several outputs together belongs to no task. "
            f"Received: loss={losses!r}."
        )
    if len(losses) == len(outputs):
        return dict(zip(outputs, losses, strict=True))
    if len(outputs) == 1:
        return {outputs[0]: losses}
    raise InputError(
        f"Expected a loss for each of the outputs {outputs}, in this "
        f"order. Received a list of {len(losses)}."
    )


def _check_losses(output: str, value: Any) -> None:
    if isinstance(value, (list, tuple)):
        losses = keras.tree.flatten(value)
        if losses and not any(loss is None for loss in losses):
            return
    elif not isinstance(value, dict):
        return
    raise InputError(
        f"Expected a loss or a list of losses for the output {output!r}. "
        f"Received: {value!r}."
    )


def _for_each_loss(weight: Any, losses: Any) -> Any:
    if isinstance(losses, (list, tuple)) and not keras.tree.is_nested(weight):
        return keras.tree.map_structure(lambda _: weight, losses)
    return weight


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


@contextlib.contextmanager
def naming_output(index: int, outputs: Sequence[str]) -> Iterator[None]:
    """Context manager: names the output in errors about its labels or weights.

    In eager mode directly; in a graph by the name scope in TensorFlow's message,
    which `explained` reads.

    Args:
        index: Of the output.
        outputs: Names of all outputs, sorted.
    """
    with tf.name_scope(f"of_output_{index}"), explained(outputs, index):
        yield


@contextlib.contextmanager
def explained(outputs: Sequence[str], index: int | None = None) -> Iterator[None]:
    """Context manager: one clear line for TensorFlow's errors about labels.

    Args:
        outputs: Names of all outputs, sorted.
        index: Of the output; None where the error itself tells.

    Raises:
        InputError: In place of the error, where its output is known.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if index is None:
            scope = re.search(r"of_output_(\d+)", error.message)
            if scope is None:
                raise
            index = int(scope[1])
        raise InputError(
            "Expected labels and sample weights that the losses and metrics of "
            f"{outputs[index]!r} take. {_reason(error.message).rstrip('.')}."
        ) from None


def _reason(message: str) -> str:
    """Returns an operation's own message, without its name and place in the code."""
    asserted = re.search(r"assertion failed: \[(.*?)\]", message)
    if asserted:
        return asserted[1]
    message = re.sub(r"\{\{function_node.*?\}\}|\[Op:.*|\[\[\{\{.*", "", message)
    lines = [line.strip() for line in message.splitlines()]
    of_operation = [
        line
        for line in lines
        if line and not line.startswith(("File ", "Graph execution", "Detected at"))
    ]
    return of_operation[0] if of_operation else message
