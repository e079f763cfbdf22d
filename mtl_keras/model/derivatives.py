"""Check that a backward pass can be differentiated, as running solves need it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from mtl_keras.errors import InputError

# Function calls, differentiated through the operations of the function.
_CALLS = (
    "Case",
    "If",
    "PartitionedCall",
    "StatefulPartitionedCall",
    "StatelessCase",
    "StatelessIf",
    "StatelessWhile",
    "While",
)
# Operations that TensorFlow gives no derivative, as it is zero.
_CONSTANT = ("OnesLike", "ZerosLike")

_WAY_OUT = (
    'use solve="running_difference", which takes a difference quotient of the losses, '
    'or solve="exact"'
)


def check_derivatives(
    model: keras.Model, variables: Sequence[keras.Variable] | None
) -> None:
    """Raises `InputError` naming a layer whose gradient has no derivative.

    Traces the gradients of the outputs once, and asks each kind of operation in them
    for its derivative.

    Args:
        model: A functional model.
        variables: The variables to differentiate by, trainable ones of the model;
            None for its inputs.
    """
    wanted = {id(v) for v in variables or ()}
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in model.inputs]

    def trace(*inputs: tf.Tensor) -> None:
        weights = [tf.zeros(v.shape, v.dtype) for v in model.trainable_variables]
        state = [tf.zeros(v.shape, v.dtype) for v in model.non_trainable_variables]
        batch = keras.tree.pack_sequence_as(model.input, list(inputs))
        with tf.GradientTape() as tape:
            tape.watch(weights)
            tape.watch([tensor for tensor in inputs if tensor.dtype.is_floating])
            y_pred, _ = model.stateless_call(weights, state, batch, training=True)
            outputs = keras.tree.flatten(y_pred)
        outputs = [tensor for tensor in outputs if tensor.dtype.is_floating]
        sources = [
            weight
            for variable, weight in zip(model.trainable_variables, weights, strict=True)
            if id(variable) in wanted
        ]
        if variables is None:
            sources = [tensor for tensor in inputs if tensor.dtype.is_floating]
        upstream = [tf.identity(tf.ones_like(tensor)) for tensor in outputs]
        gradients = tape.gradient(outputs, sources, upstream)
        flat = tf.nest.flatten(gradients, expand_composites=True)
        flat = [gradient for gradient in flat if gradient is not None]
        for operation in _undifferentiable(upstream, flat):
            raise InputError(
                f"Expected layers whose gradient TensorFlow can differentiate for "
                f'solve="running". Received {_layer(model, operation)!r}, whose '
                f"operation {operation.type} has no derivative; {_WAY_OUT}."
            )

    tf.function(trace, autograph=False).get_concrete_function(*specs)


@contextlib.contextmanager
def explained_derivatives() -> Iterator[None]:
    """Context manager: one clear line for a gradient without a derivative.

    Raises:
        InputError: In place of TensorFlow's `LookupError`.
    """
    try:
        yield
    except LookupError as error:
        raise InputError(
            "Expected losses and layers whose gradient TensorFlow can differentiate "
            f'for solve="running"; {_WAY_OUT}. Received: {error}.'
        ) from None


def _undifferentiable(
    starts: Sequence[tf.Tensor], ends: Sequence[tf.Tensor]
) -> Iterator[tf.Operation]:
    """Yields operations on the way that TensorFlow cannot differentiate."""
    operations = ends[0].graph.get_operations()
    after = {tensor.op for tensor in starts}
    for operation in operations:
        if any(t.op in after and t.dtype.is_floating for t in operation.inputs):
            after.add(operation)
    before = {tensor.op for tensor in ends}
    for operation in reversed(operations):
        if operation in before:
            before.update(tensor.op for tensor in operation.inputs)
    on_the_way = after & before - {tensor.op for tensor in starts}
    known = {*_CALLS, *_CONSTANT}
    for operation in operations:
        if operation not in on_the_way or operation.type in known:
            continue
        known.add(operation.type)
        if not _is_differentiable(operation, after):
            yield operation


def _is_differentiable(operation: tf.Operation, after: set[tf.Operation]) -> bool:
    results = [tensor for tensor in operation.outputs if tensor.dtype.is_floating]
    sources = [t for t in operation.inputs if t.op in after and t.dtype.is_floating]
    if not results or not sources:
        return True
    try:
        return any(g is not None for g in tf.gradients(results, sources))
    except LookupError:
        return False


def _layer(model: keras.Model, operation: tf.Operation) -> str:
    """Returns the name of the innermost layer that an operation's name tells."""
    names: set[str] = set()
    models = [model]
    while models:
        layers = models.pop().layers
        names.update(layer.name for layer in layers)
        models += [layer for layer in layers if isinstance(layer, keras.Model)]
    # A graph numbers scopes of one name.
    scopes = [
        re.sub(r"_\d+$", "", s) if s not in names else s
        for s in operation.name.split("/")
    ]
    known = [scope for scope in scopes if scope in names]
    return known[-1] if known else operation.name
