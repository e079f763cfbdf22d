"""The signatures of a served model, and Keras's answers to the same requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtl_keras.serving import examples
from mtl_keras.serving.served_model import (
    CLASSIFY,
    DEFAULT,
    EXAMPLES,
    FEATURES,
    ServedModel,
    label_name,
    tensor_spec,
)

SERIALIZED = "inputs"
"""Input of signatures that take examples; TensorFlow Serving's Classify wants it."""
SCORES, CLASSES = "scores", "classes"


@dataclasses.dataclass(frozen=True)
class Signature:
    """One signature: a part of the model, and the form of its requests and answers.

    Attributes:
        name: Name in a client's request.
        model: From the inputs, by name, to the outputs, by name.
        class_names: Names of the classes, for outputs that have some.
        from_examples: Whether requests hold serialized `tf.train.Example`s.
        classify: Whether the answer is that of a Classify request: scores and
            classes of the one output.
        missing_values: What the model is given for inputs that an example leaves out,
            where not zeros.
    """

    name: str
    model: keras.Model
    class_names: Mapping[str, tuple[str, ...]]
    from_examples: bool = False
    classify: bool = False
    missing_values: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, tf.TensorSpec]:
        """The model's inputs, whatever the form of the requests."""
        return {name: tensor_spec(name, x) for name, x in self.model.input.items()}

    def function(self) -> tf.types.experimental.ConcreteFunction:
        """Returns the traced graph that a server runs."""
        inputs = self.inputs
        if not self.from_examples:
            spec = inputs

            def serve(tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
                # The runtime itself takes tensors of any shape.
                return self._answer(
                    {
                        name: tf.ensure_shape(tensors[name], inputs[name].shape)
                        for name in inputs
                    }
                )
        else:
            spec = {SERIALIZED: tf.TensorSpec([None], tf.string, name=SERIALIZED)}

            def serve(tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
                serialized = tf.ensure_shape(tensors[SERIALIZED], [None])
                return self._answer(
                    examples.parse(serialized, inputs, self.missing_values)
                )

        # One dict: names of arguments would have to be Python's.
        return tf.function(serve, autograph=False).get_concrete_function(spec)

    def _answer(self, tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        answer = self.model(tensors, training=False)
        if self.classify:
            (output,) = answer.values()
            names = tf.constant(next(iter(self.class_names.values())))
            if output.shape[-1] == 1:
                output = tf.concat([1 - output, output], axis=-1)
            classes = tf.tile(names[None], [tf.shape(output)[0], 1])
            return {SCORES: output, CLASSES: classes}
        for name, names in self.class_names.items():
            output = answer[name]
            if output.shape[-1] == 1:
                index = tf.cast(output[:, 0] > 0.5, tf.int32)
            else:
                index = tf.argmax(output, axis=-1, output_type=tf.int32)
            answer[label_name(name)] = tf.gather(tf.constant(names), index)
        return answer

    def request(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the request, in this signature's form, for raw inputs.

        Args:
            inputs: At least the inputs that the signature's model needs.
        """
        needed = {name: inputs[name] for name in self.model.input}
        if self.from_examples:
            return {SERIALIZED: examples.serialize(needed)}
        return needed

    def keras_answer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the Keras model's answer; names and classes found by NumPy.

        Args:
            inputs: At least the inputs that the signature's model needs.
        """
        needed = {name: tf.constant(inputs[name]) for name in self.model.input}
        outputs = self.model(needed, training=False)
        answer = {name: np.asarray(value) for name, value in outputs.items()}
        if self.classify:
            (output,) = answer.values()
            (names,) = self.class_names.values()
            if output.shape[-1] == 1:
                output = np.concatenate([1 - output, output], axis=-1)
            return {SCORES: output, CLASSES: _text(np.tile(names, (len(output), 1)))}
        for name, names in self.class_names.items():
            output = answer[name]
            if output.shape[-1] == 1:
                index = (output[:, 0] > 0.5).astype(int)
            else:
                index = output.argmax(axis=-1)
            answer[label_name(name)] = _text(np.asarray(names)[index])
        return answer


def signatures(
    served: ServedModel,
    *,
    with_examples: bool = True,
    missing_values: Mapping[str, float] | None = None,
) -> list[Signature]:
    """Returns the signatures of a model, `serving_default` first.

    One for each output, named after it; `features`, where outputs share a
    representation; `from_examples` for all outputs out of serialized examples; and
    `classify_<output>` for each output `[batch, classes]` with class names.

    Args:
        served: The model.
        with_examples: Whether to include those that take examples.
        missing_values: What inputs are given that an example leaves out, where not
            zeros.

    Raises:
        InputError: For inputs that no example can hold.
    """
    # A name for each sample; a name for each pixel is left to the client.
    named = {
        name: names
        for name, names in served.class_names.items()
        if len(served.outputs[name].shape) == 2
    }
    whole = served.part(served.outputs)
    result = [Signature(DEFAULT, whole, named)]
    for name, output in served.outputs.items():
        own = {name: named[name]} if name in named else {}
        result.append(Signature(name, served.part({name: output}), own))
    if served.features:
        result.append(Signature(FEATURES, served.part(served.features), {}))
    if with_examples:
        examples.parsing_spec(result[0].inputs)
        missing = dict(missing_values or {})
        result.append(
            Signature(
                EXAMPLES, whole, named, from_examples=True, missing_values=missing
            )
        )
        result += [
            Signature(
                f"{CLASSIFY}{name}",
                served.part({name: served.outputs[name]}),
                {name: names},
                from_examples=True,
                classify=True,
                missing_values=missing,
            )
            for name, names in named.items()
        ]
    return result


def empty_inputs(specs: Mapping[str, tf.TensorSpec], count: int) -> dict[str, Any]:
    """Returns a batch of zeros and empty strings; free dimensions are of length 1."""
    batch = {}
    for name, spec in specs.items():
        shape = (count, *(size or 1 for size in spec.shape[1:].as_list()))
        if spec.dtype == tf.string:
            batch[name] = np.full(shape, b"", object)
        else:
            batch[name] = np.zeros(shape, spec.dtype.as_numpy_dtype)
    return batch


def _text(names: np.ndarray) -> np.ndarray:
    return np.array([name.encode() for name in names.ravel()], object).reshape(
        names.shape
    )
