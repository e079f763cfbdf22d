"""Stages of a backbone that reads several inputs, such as token ids and a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import keras

from mtl_keras.errors import InputError

Inputs: TypeAlias = (
    "keras.KerasTensor | Mapping[str, keras.KerasTensor] | Sequence[Any]"
)


class BoundStage:
    """A stage that reads some of the model's inputs beside the features.

    Called on features as any stage is, so that ways to share need not know of the
    other inputs.

    Args:
        layer: A functional model. The inputs of the first stage are inputs of the
            model; of another stage the first is the features, and the others are.
        inputs: The model's inputs by name.
    """

    def __init__(
        self, layer: keras.layers.Layer, inputs: Mapping[str, keras.KerasTensor]
    ):
        self.layer = layer
        self.inputs = inputs

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name

    def arguments(self, x: Any) -> Any:
        """Returns the arguments of the layer's call, a tensor or several.

        Args:
            x: Features, or the model's inputs for the first stage.

        Raises:
            InputError: If the model has no input of a name that the stage reads.
        """
        names = [tensor.name for tensor in getattr(self.layer, "inputs", ())]
        features = []
        if isinstance(x, keras.KerasTensor):
            features, names = [x], names[1:]
        for name in names:
            if name not in self.inputs:
                raise InputError(
                    f"Expected inputs with the name {name!r}, which the stage "
                    f"{self.name!r} reads. Received: {sorted(self.inputs)}."
                )
        arguments = [*features, *(self.inputs[name] for name in names)]
        return arguments[0] if len(arguments) == 1 else arguments

    def __call__(self, x: Any) -> keras.KerasTensor:
        """Returns the stage's output; see `arguments`."""
        return self.layer(self.arguments(x))


def bound(
    stages: Sequence[keras.layers.Layer], inputs: Inputs
) -> tuple[list[Any], Any]:
    """Returns stages that each take one tensor, and the input of the first of them.

    Args:
        stages: The backbone's stages.
        inputs: A tensor, or several as a dict by name or a list of `keras.Input`s.

    Returns:
        The stages, bound to the inputs where these are several, and the inputs, by
        name then.
    """
    if isinstance(inputs, keras.KerasTensor):
        return list(stages), inputs
    if not isinstance(inputs, Mapping):
        inputs = {tensor.name: tensor for tensor in inputs}
    return [BoundStage(stage, inputs) for stage in stages], inputs
