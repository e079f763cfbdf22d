"""Any functional model, such as those of keras.applications, as stages."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from mtl_keras.errors import InputError, unknown_name


def stages_of(
    model: keras.Model, at: Sequence[str] | None = None
) -> list[keras.layers.Layer]:
    """Cuts a functional model into stages, which share its layers and weights.

    ```python
    model = keras.applications.MobileNetV3Small((96, 96, 3), include_top=False)
    stages = mtl_keras.backbones.stages_of(model)
    ```

    A way to share that copies a stage (`mmoe`, say) gives the copies new weights;
    stages that it leaves whole keep theirs, pretrained ones too.

    Args:
        model: A functional model of one input and one output.
        at: Names of layers whose outputs end a stage, in the model's order; the
            model's own output ends the last. `None` cuts before each change of an
            image's height and width.

    Returns:
        Functional models that together are the model.

    Raises:
        InputError: For several inputs or outputs, a layer that does not exist, or
            one that a connection passes by.
    """
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise InputError(
            "Expected a functional model of one input and one output. Received: "
            f"{model.name!r} with {len(model.inputs)} and {len(model.outputs)}."
        )
    if at is None:
        cuts = _before_smaller_images(model)
    else:
        known = {layer.name: layer for layer in model.layers}
        for name in at:
            if name not in known:
                raise unknown_name(f"layer of {model.name!r}", name, known)
        cuts = [known[name].output for name in at]
    stages = []
    begin = model.inputs[0]
    for index, end in enumerate([*cuts, model.outputs[0]]):
        stage = _part(begin, end, f"{model.name}_stage_{index}")
        if stage is None:
            assert at is not None
            raise InputError(
                f"Expected layers that all connections of {model.name!r} run "
                f"through. Received: at={list(at)}, of which number {index - 1} is "
                "passed by or out of order."
            )
        stages.append(stage)
        begin = end
    return stages


def _part(
    begin: keras.KerasTensor, end: keras.KerasTensor, name: str
) -> keras.Model | None:
    try:
        return keras.Model(begin, end, name=name)
    except ValueError:  # Keras: the end depends on more than the beginning
        return None


def _before_smaller_images(model: keras.Model) -> list[keras.KerasTensor]:
    """Returns the last possible cut of each size of image but the last."""
    by_size: dict[tuple, list[keras.KerasTensor]] = {}
    for layer in model.layers[1:]:
        if isinstance(layer.output, keras.KerasTensor) and layer.output.ndim == 4:
            by_size.setdefault(layer.output.shape[1:3], []).append(layer.output)
    cuts: list[keras.KerasTensor] = []
    begin, output = model.inputs[0], model.outputs[0]
    for tensors in list(by_size.values())[:-1]:
        for tensor in reversed(tensors):
            if _part(tensor, output, "rest") and _part(begin, tensor, "stage"):
                cuts.append(tensor)
                begin = tensor
                break
    return cuts
