"""Any functional model, such as those of keras.applications, as stages."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from mtl_keras.errors import InputError, unknown_name
from mtl_keras.model.keras_compat import GraphNode, call_between, graph_nodes


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

    A model may have several inputs, such as the token ids and the padding mask of a
    text encoder. Its first stage takes those that it reads; a later one takes the
    features of the stage before and then those inputs that it reads itself:

    ```python
    ids = keras.Input((9,), dtype="int32", name="ids")
    mask = keras.Input((9,), name="mask")
    x = keras.layers.Embedding(50, 8, name="embedding")(ids)
    x = keras.layers.Multiply()([x, keras.layers.Reshape((9, 1))(mask)])
    encoder = keras.Model([ids, mask], keras.layers.GlobalAveragePooling1D()(x))
    stages = mtl_keras.backbones.stages_of(encoder, at=["embedding"])
    features = mtl_keras.sharing.get("hard")([ids, mask], stages, ["a", "b"])
    ```

    Args:
        model: A functional model of one output.
        at: Names of layers whose outputs end a stage, in the model's order; the
            model's own output ends the last. `None` cuts before each change of an
            image's height and width.

    Returns:
        Functional models that together are the model.

    Raises:
        InputError: For several outputs, a layer that does not exist, or one that a
            connection from another layer with weights passes by.
    """
    if len(model.outputs) != 1:
        raise InputError(
            "Expected a functional model of one output. Received: "
            f"{model.name!r} with {len(model.outputs)}."
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
    begin = None
    for index, end in enumerate([*cuts, model.outputs[0]]):
        stage = _part(model, begin, end, f"{model.name}_stage_{index}")
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
    model: keras.Model,
    begin: keras.KerasTensor | None,
    end: keras.KerasTensor,
    name: str,
) -> keras.Model | None:
    """Returns the part of a model from a tensor, or its inputs, to another.

    None where there is no such part: the end does not depend on the beginning, or on
    an earlier layer with weights too.
    """
    nodes = graph_nodes(model)
    maker = {id(tensor): node for node in nodes for tensor in node.outputs}
    before = set() if begin is None else set(map(id, _upstream(maker, begin, None)))
    upstream = _upstream(maker, end, begin)
    if begin is not None:
        if all(tensor is not begin for tensor in upstream):
            return None
        for tensor in upstream:
            passed_by = tensor is not begin and id(tensor) in before
            if passed_by and (len(model.inputs) == 1 or maker[id(tensor)].variables):
                return None
    read = {id(tensor) for tensor in upstream}
    sources = [tensor for tensor in model.inputs if id(tensor) in read]
    if begin is not None:
        sources = [begin, *(tensor for tensor in sources if tensor is not begin)]
    # Keras's own clone of a part confuses inputs with the features beside them.
    inputs = [
        keras.Input(
            batch_shape=source.shape,
            dtype=source.dtype,
            name=None if source is begin else source.name,
        )
        for source in sources
    ]
    tensors = {id(s): i for s, i in zip(sources, inputs, strict=True)}
    output = call_between(model, tensors, read, end)
    return keras.Model(inputs[0] if len(inputs) == 1 else inputs, output, name=name)


def _upstream(
    maker: dict[int, GraphNode], end: keras.KerasTensor, begin: keras.KerasTensor | None
) -> list[keras.KerasTensor]:
    """Returns all tensors that a tensor is made of, up to `begin`, both included."""
    visited: dict[int, keras.KerasTensor] = {}
    waiting = [end]
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in visited:
            visited[id(tensor)] = tensor
            if tensor is not begin:
                waiting += maker[id(tensor)].inputs
    return list(visited.values())


def _before_smaller_images(model: keras.Model) -> list[keras.KerasTensor]:
    """Returns the last possible cut of each size of image but the last."""
    by_size: dict[tuple, list[keras.KerasTensor]] = {}
    for layer in model.layers[1:]:
        if isinstance(layer.output, keras.KerasTensor) and layer.output.ndim == 4:
            by_size.setdefault(layer.output.shape[1:3], []).append(layer.output)
    cuts: list[keras.KerasTensor] = []
    begin: keras.KerasTensor | None = None
    output = model.outputs[0]
    for tensors in list(by_size.values())[:-1]:
        for tensor in reversed(tensors):
            rest = _part(model, tensor, output, "rest")
            if rest and _part(model, begin, tensor, "stage"):
                cuts.append(tensor)
                begin = tensor
                break
    return cuts
