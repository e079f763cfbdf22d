"""Forward passes that run each output's layers on the samples with its labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from mtl_keras.model.keras_compat import (
    as_one_call,
    mask_of,
    standardized_inputs,
    with_logits,
    with_mask,
)
from mtl_keras.model.labels import by_output, or_the_first


class LabelledSamples:
    """Runs a functional model, each output on the samples that have its labels.

    Where data sets that label one task each meet in a batch, no layer then sees
    another data set's samples, and a backward pass of one task's loss is of its own
    samples alone.

    Args:
        model: The model.
        outputs: `{output: KerasTensor}`.
    """

    def __init__(self, model: keras.Model, outputs: Mapping[str, keras.KerasTensor]):
        self._model = model
        self._outputs = outputs
        self._branches = {
            name: keras.Model(list(model.inputs), output)
            for name, output in outputs.items()
        }
        self._joint: dict[tuple[str, ...], keras.Model] = {}

    def outputs(self, x: Any, sample_weight: Any) -> dict[str, Any]:
        """Returns the outputs of a training step.

        Args:
            x: A batch's inputs.
            sample_weight: As `fit` takes it, 0 where a label is absent; outputs
                without sample weights are computed on all samples, in one pass.

        Returns:
            Outputs of the whole batch, 0 for samples without a label.
        """
        inputs = standardized_inputs(self._model, x)
        weights = by_output(sample_weight, self._branches, "sample weights", ())
        labelled = {name: w for name, w in weights.items() if w is not None}
        always = tuple(name for name in weights if name not in labelled)
        outputs = {}
        with as_one_call(self._model):
            if always:
                outputs.update(self._joint_branch(always)(inputs, training=True))
            for name, weight in labelled.items():
                outputs[name] = _of_some(self._branches[name], inputs, weight)
        return outputs

    def _joint_branch(self, names: tuple[str, ...]) -> keras.Model:
        """Returns the model of some outputs, `{output: tensor}`."""
        if names not in self._joint:
            outputs = {name: self._outputs[name] for name in names}
            self._joint[names] = keras.Model(list(self._model.inputs), outputs)
        return self._joint[names]


def _of_some(branch: keras.Model, inputs: list[Any], weight: Any) -> Any:
    """Returns a branch's output, computed where the sample weights are not 0."""
    labelled = tf.cast(weight, "bool")
    labelled = tf.reduce_any(labelled, list(range(1, labelled.shape.rank)))
    size = tf.shape(labelled)[0]
    rows = tf.where(or_the_first(labelled))
    # One sample serves the whole batch, as a preference does, or is all of it.
    own = [t if t.shape[0] == 1 else tf.gather(t, rows[:, 0]) for t in inputs]
    output = branch(own, training=True)

    def of_batch(entries: Any) -> Any:
        shape = tf.concat([[size], tf.shape(entries)[1:]], axis=0)
        whole = tf.scatter_nd(tf.cast(rows, "int32"), entries, shape)
        whole.set_shape([labelled.shape[0], *entries.shape[1:]])
        return whole

    mask = mask_of(output)
    return with_mask(
        with_logits(of_batch, output), None if mask is None else of_batch(mask)
    )
