"""A SavedModel in a session, which runs the exported graph as TensorFlow Serving does.

The graph and its variables come from the files of the export. Neither Keras nor a
function that was traced in this process has a part in its answers.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from mtl_keras.errors import InputError

TAG = "serve"


class RefusedError(RuntimeError):
    """Error of the runtime for a refused model or request, with its message.

    Example:

    ```python
    with mtl_keras.serving.Runtime(version) as runtime:
        try:
            runtime.predict("a", {})
        except mtl_keras.serving.RefusedError as error:
            print(error)
    ```
    """


class Runtime:
    """A SavedModel, loaded and ready to answer.

    Args:
        version: Folder of the SavedModel.

    Attributes:
        meta_graph: The `MetaGraphDef` with the tag `serve`.
        signatures: The `SignatureDef`s that clients may ask for, by name.

    Raises:
        InputError: If the folder holds no SavedModel that the loader takes.

    Example:

    ```pycon
    >>> with mtl_keras.serving.Runtime(version) as runtime:
    ...     answer = runtime.predict("a", {"x": x})
    >>> answer["a"].shape
    (8, 1)
    ```
    """

    def __init__(self, version: str | pathlib.Path):
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            with self._session.graph.as_default(), _without_warnings():
                self.meta_graph = tf.compat.v1.saved_model.load(
                    self._session, [TAG], str(version)
                )
        # Whatever the loader raises on files that are damaged.
        except Exception as error:
            self.close()
            raise InputError(
                f"{str(version)!r} holds no SavedModel that TensorFlow's loader takes: "
                f"{_message(error).splitlines()[0]}"
            ) from error
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
        self._session.close()

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
            RefusedError: The signature, or an input's name, dtype or shape is wrong, or
                the runtime refuses the request; with its message.
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
        for name, value in inputs.items():
            _check_input(name, value, definition.inputs[name])
        feeds = {definition.inputs[name].name: inputs[name] for name in inputs}
        outputs = sorted(definition.outputs.items())
        fetches = {name: tensor.name for name, tensor in outputs}
        try:
            return self._session.run(fetches, feeds)
        except (tf.errors.OpError, UnicodeDecodeError) as error:
            raise RefusedError(_message(error)) from error


def _check_input(
    name: str, value: np.ndarray, expected: tf.compat.v1.saved_model.TensorInfo
) -> None:
    """Raises RefusedError for a wrong dtype or shape, which a session would cast."""
    dtype = tf.dtypes.as_dtype(expected.dtype)
    received = tf.dtypes.as_dtype(value.dtype)
    if received != dtype:
        raise RefusedError(
            f"Expected {name!r} to be {dtype.name}. Received: {received.name}."
        )
    shape = tf.TensorShape(expected.tensor_shape)
    if not shape.is_compatible_with(value.shape):
        raise RefusedError(
            f"The shape {_text(value.shape)} of {name!r} is not compatible with "
            f"{_text(shape)}."
        )


def _text(shape: tf.TensorShape | tuple[int, ...]) -> str:
    sizes = ("?" if size is None else str(size) for size in tuple(shape))
    return f"[{','.join(sizes)}]"


def _message(error: Exception) -> str:
    """Returns the runtime's own message, to which a session adds where a node is."""
    if isinstance(error, UnicodeDecodeError):
        # The message quotes bytes of the request, which Python cannot make text of.
        return error.object.decode(errors="replace")
    if isinstance(error.__context__, tf.errors.OpError):
        error = error.__context__
    return error.message if isinstance(error, tf.errors.OpError) else str(error)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Context manager: hides the loader's messages on TensorFlow 1 and restoring."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)
