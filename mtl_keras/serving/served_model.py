"""A functional model as clients see it: named inputs, named outputs, class names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from mtl_keras.errors import InputError, unknown_name
from mtl_keras.model.keras_compat import graph_nodes
from mtl_keras.model.representation import split_at_representation
from mtl_keras.model.task_variables import reached_nodes
from mtl_keras.registry import RESERVED_INPUTS

DEFAULT, EXAMPLES, FEATURES, CLASSIFY = (
    "serving_default",
    "from_examples",
    "features",
    "classify_",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_UNNAMED = re.compile(r"keras_tensor(_\d+)?")


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """Symbolic inputs and outputs of a model, from which signatures are made.

    Attributes:
        inputs: Symbolic inputs that an output needs, by name.
        outputs: Symbolic outputs by name.
        features: The shared representation: `features`, or where several tensors
            make it up `features_<layer>`; empty where outputs share nothing.
        class_names: Names of the classes, for outputs that have some.
        columns: Names of the tasks, for outputs `[batch, T]` that are groups of them.
    """

    inputs: dict[str, keras.KerasTensor]
    outputs: dict[str, keras.KerasTensor]
    features: dict[str, keras.KerasTensor]
    class_names: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def part(self, tensors: Mapping[str, keras.KerasTensor]) -> keras.Model:
        """Returns the model of these tensors alone.

        It has the layers on the way to them, and takes the inputs that they need.

        Args:
            tensors: Symbolic tensors of the model, by name.
        """
        whole = keras.Model(self.inputs, dict(tensors))
        needed = _needed(whole, tensors.values())
        inputs = {name: x for name, x in self.inputs.items() if id(x) in needed}
        return keras.Model(inputs, dict(tensors))


def served_model(
    model: keras.Model,
    *,
    tasks: Iterable[str] | None = None,
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> ServedModel:
    """Prepares a model for service.

    Layers with a method `serving_call` are called through it. Where the model was
    compiled with a loss `from_logits=True`, the output becomes probabilities; floats
    of less than 32 bits become float32.

    Args:
        model: A functional model whose outputs are a dict.
        tasks: Outputs to serve; `None` for all. What only the others need is left
            out. A task that is a column of an output gets one of its own,
            `[batch, 1]`.
        class_names: `{output: [name, …]}`; entries for no output are ignored.

    Raises:
        InputError: For another kind of model, unknown tasks, names that no client
            can ask for, or another number of class names than classes.
    """
    if not isinstance(getattr(model, "output", None), dict):
        raise InputError(
            "Expected a functional model whose outputs are a dict {task: output}. "
            f"Received: {model!r}."
        )
    columns = getattr(model, "columns", {})
    # {task that is a column: the output and its column there}.
    owners = {
        name: (output, index)
        for output, names in columns.items()
        for index, name in enumerate(names)
    }
    chosen = _chosen([*model.output, *owners], list(model.output), tasks)
    names = _input_names(model)
    _check_names([*names, *chosen])
    for name in names:
        if name in RESERVED_INPUTS:
            raise InputError(
                "Expected names of inputs that are neither keywords of Python nor "
                f"'self', as signatures cannot have those. Received: {name!r}."
            )
    inputs = [_new_input(name, x) for name, x in zip(names, model.inputs, strict=True)]
    # A stock model of these outputs: no training state is on it.
    sources = dict.fromkeys(owners.get(name, (name, 0))[0] for name in chosen)
    stock = keras.Model(model.inputs, {name: model.output[name] for name in sources})
    called = keras.models.clone_model(
        stock,
        input_tensors=inputs,
        clone_function=lambda layer: layer,
        call_function=_call_for_service,
    )
    losses = getattr(model, "loss", None)
    answers = {
        name: _as_float32(_probabilities(called.output[name], _loss_of(losses, name)))
        for name in sources
    }
    outputs = {name: answers[name] for name in chosen if name in answers}
    for name in chosen:
        if name not in answers:
            output, index = owners[name]
            outputs[name] = answers[output][:, index : index + 1]
    final = keras.Model(inputs, outputs)
    needed = _needed(final, outputs.values())
    used = {x.name: x for x in inputs if id(x) in needed}
    final = keras.Model(used, outputs)
    return ServedModel(
        used,
        outputs,
        _representation(final, outputs),
        _checked_classes(class_names or {}, outputs),
        {name: tuple(n) for name, n in columns.items() if name in outputs},
    )


def merge(models: Sequence[ServedModel]) -> ServedModel:
    """Joins several models into one that answers with the outputs of all.

    Inputs of the same name are one input. Each model keeps its own layers; nothing
    is shared, so there are no `features`.

    Raises:
        InputError: Where two have an output of the same name, or an input of the
            same name but not of the same shape and dtype.
    """
    inputs: dict[str, keras.KerasTensor] = {}
    outputs: dict[str, keras.KerasTensor] = {}
    class_names: dict[str, tuple[str, ...]] = {}
    columns: dict[str, tuple[str, ...]] = {}
    for index, model in enumerate(models):
        for name, x in model.inputs.items():
            known = inputs.setdefault(
                name, keras.Input(batch_shape=x.shape, dtype=x.dtype, name=name)
            )
            if (known.shape, known.dtype) != (x.shape, x.dtype):
                raise InputError(
                    f"Expected models whose inputs {name!r} are alike. Received: "
                    f"{known.dtype} {known.shape} and {x.dtype} {x.shape}."
                )
        twice = sorted(outputs.keys() & model.outputs.keys())
        if twice:
            raise InputError(
                f"Expected each task from one model. Received twice: {twice[0]!r}."
            )
        part = keras.Model(model.inputs, model.outputs, name=f"model_{index}")
        outputs |= part({name: inputs[name] for name in model.inputs})
        class_names |= model.class_names
        columns |= model.columns
    return ServedModel(inputs, outputs, {}, class_names, columns)


def _chosen(
    known: Sequence[str], outputs: list[str], tasks: Iterable[str] | None
) -> list[str]:
    if tasks is None:
        return outputs
    wanted = [tasks] if isinstance(tasks, str) else list(tasks)
    for name in wanted:
        if name not in known:
            raise unknown_name("task of the model", name, known)
    if not wanted:
        raise InputError(
            f"Expected at least one task out of {list(known)}. Received: none."
        )
    return [name for name in known if name in wanted]


def _input_names(model: keras.Model) -> list[str]:
    """Returns a name for each of `model.inputs` that is the same in every process.

    A dict's keys, else the names that the inputs were given; Keras numbers those
    without a name, which become `input`, or `input_0`, `input_1`, ….
    """
    if isinstance(model.input, dict):
        by_id = {id(x): key for key, x in model.input.items()}
        return [by_id[id(x)] for x in model.inputs]
    unnamed = [x for x in model.inputs if _UNNAMED.fullmatch(x.name)]
    names = {
        id(x): "input" if len(unnamed) == 1 else f"input_{index}"
        for index, x in enumerate(unnamed)
    }
    return [names.get(id(x), x.name) for x in model.inputs]


def _new_input(name: str, x: keras.KerasTensor) -> keras.KerasTensor:
    if x.sparse or x.ragged:
        raise InputError(
            f"Expected dense inputs, which clients can send. Received: {name!r}, which "
            f"is {'sparse' if x.sparse else 'ragged'}."
        )
    return keras.Input(batch_shape=(None, *x.shape[1:]), dtype=x.dtype, name=name)


def _call_for_service(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
    return getattr(layer, "serving_call", layer)(*args, **kwargs)


def _needed(model: keras.Model, outputs: Iterable[keras.KerasTensor]) -> set[int]:
    """Returns the ids of all tensors of the calls that the outputs need."""
    nodes = graph_nodes(model)
    return {
        id(tensor)
        for output in outputs
        for index in reached_nodes(nodes, output, auxiliary=True)
        for tensor in nodes[index].outputs
    }


def _loss_of(losses: Any, name: str) -> Any:
    return losses.get(name) if isinstance(losses, Mapping) else losses


def _probabilities(output: keras.KerasTensor, loss: Any) -> keras.KerasTensor:
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    if not config.get("from_logits"):
        return output
    if type(loss).__name__.startswith("Binary"):
        return keras.layers.Activation("sigmoid", dtype="float32")(output)
    return keras.layers.Softmax(config.get("axis", -1), dtype="float32")(output)


def _as_float32(output: keras.KerasTensor) -> keras.KerasTensor:
    if output.dtype in ("float16", "bfloat16"):
        return keras.ops.cast(output, "float32")
    return output


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(
                "Expected names of inputs and tasks out of letters, digits, '_', '.' "
                f"and '-', to be asked for by clients. Received: {name!r}."
            )
        if name in (DEFAULT, EXAMPLES, FEATURES) or name.startswith(CLASSIFY):
            raise InputError(
                "Expected names of inputs and tasks other than those of the "
                f"signatures. Received: {name!r}."
            )


def _representation(
    model: keras.Model, outputs: Mapping[str, keras.KerasTensor]
) -> dict[str, keras.KerasTensor]:
    try:
        split = split_at_representation(model, outputs)
    except InputError:
        # Tasks that share nothing have no shared representation to serve.
        return {}
    tensors = keras.tree.flatten(split.trunk.output)
    if len(tensors) == 1:
        return {FEATURES: _as_float32(tensors[0])}
    maker = {
        id(t): node.operation.name
        for node in graph_nodes(split.trunk)
        for t in node.outputs
    }
    return {f"{FEATURES}_{maker[id(t)]}": _as_float32(t) for t in tensors}


def _checked_classes(
    class_names: Mapping[str, Sequence[str]], outputs: Mapping[str, keras.KerasTensor]
) -> dict[str, tuple[str, ...]]:
    checked = {}
    for name, output in outputs.items():
        if name not in class_names:
            continue
        names = tuple(map(str, class_names[name]))
        expected = max(2, output.shape[-1] or 0)
        if len(names) != expected or any("\n" in text for text in names):
            raise InputError(
                f"Expected {expected} class names of one line each for {name!r}. "
                f"Received: {list(names)}."
            )
        if label_name(name) in outputs:
            raise InputError(
                f"Expected no output {label_name(name)!r} beside {name!r}, whose "
                "likeliest class is answered by this name. Received both."
            )
        checked[name] = names
    return checked


def label_name(output: str) -> str:
    """Returns the name of the answer that holds the name of the likeliest class."""
    return f"{output}_label"


def tensor_spec(name: str, tensor: keras.KerasTensor) -> tf.TensorSpec:
    """Returns the spec of a symbolic input, with a free batch dimension."""
    return tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name=name)
