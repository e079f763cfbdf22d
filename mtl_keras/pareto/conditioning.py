"""Conditioning of a functional model on a preference over its tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from mtl_keras.errors import InputError, check_integer, unknown_name
from mtl_keras.model import MultiTaskModel
from mtl_keras.model.keras_compat import (
    call_again,
    flat_inputs,
    functional_of,
    inlined_graph_nodes,
    input_names,
)
from mtl_keras.model.task_variables import reached_nodes
from mtl_keras.pareto.layers import Simplex, conditioned, is_conditionable
from mtl_keras.pareto.model import PREFERENCE, PreferenceModel


def hypernetwork(
    model: keras.Model,
    hidden: Sequence[int] = (32, 32),
    *,
    rank: int | None = None,
    layers: str | Sequence[str] | None = None,
    num_tasks: int | None = None,
) -> PreferenceModel:
    """Returns the model with kernels that a hypernetwork makes of the preference.

    A small network of `Dense` layers reads the preference p. With h its features, the
    kernel of each conditioned layer is W + Σ_j h_j(p) D_j, its bias likewise: Navon
    et al., "Learning the Pareto Front with Hypernetworks", ICLR 2021, arXiv
    2010.04104 (PHN). With `rank` the changes D_j are B_j A_j.

    Differs from the paper in that the network's last layer starts as the model's own
    kernels: at first the model answers as the given one at every preference; in that
    its features end in a ReLU, and are fewer than the paper's 100; and in that
    normalisation and recurrent layers do not depend on the preference.

    Cost: each full kernel `hidden[-1]` times more; products as before at one
    preference for the batch, else `hidden[-1]` times as many. Choose it when
    solutions change with the preference in ways that no mean of weights follows, or
    for a few layers; `manifold` is smaller.

    Args:
        model: A functional model whose outputs are a dict by task. Its layers are
            taken over, those of nested models too, and train with the result; of the
            conditioned ones the weights are copied, and of a frozen one the copy is
            frozen while its changes train.
        hidden: Widths of the network's layers.
        rank: Rank of each change; None for full kernels.
        layers: Names of the layers to condition, also in nested models; None for
            every `Dense` and convolution there (not of subclasses, nor with channels
            first); `"heads"` for the last of each output's own. Heads alone trade
            tasks off only as far as they share weights: each could be best for its
            own task.
        num_tasks: Entries of the preference; None for the tasks of a compiled
            `MultiTaskModel`, else the number of outputs. The tasks that `compile`
            finds must be as many.

    Raises:
        InputError: For another kind of model, an input named `preference`, an unknown
            layer, nothing to condition, or with `"heads"` an output without a layer
            of its own.

    Example:

    ```python
    conditioned = mtl_keras.pareto.hypernetwork(model)
    conditioned.compile("adam", loss="mse")
    outputs = conditioned(conditioned.with_preference(x, [0.9, 0.1]))
    ```
    """
    if not hidden:
        raise InputError(
            f"Expected `hidden` to be at least one width. Received: hidden={hidden!r}."
        )
    network = [
        keras.layers.Dense(
            check_integer("hidden", width, low=1),
            "relu",
            name=f"preference_hidden_{index}",
        )
        for index, width in enumerate(hidden)
    ]

    def features(preference: Any) -> Any:
        for layer in network:
            preference = layer(preference)
        return preference

    return _conditioned_model(model, layers, features, rank, num_tasks)


def manifold(
    model: keras.Model,
    rank: int | None = 4,
    *,
    layers: str | Sequence[str] | None = None,
    num_tasks: int | None = None,
) -> PreferenceModel:
    """Returns the model with kernels that are mixed by the preference p.

    Each `Dense` and convolution has the kernel W + Σ_i p_i B_i A_i with one low-rank
    change for each task, and the bias b + Σ_i p_i b_i: Chen & Kwok, "Efficient Pareto
    Manifold Learning with Low-Rank Structure", ICML 2024, arXiv 2407.20734
    (LORPMAN). With `rank=None` the change is a full kernel D_i: Dimitriadis, Frossard
    & Fleuret, "Pareto Manifold Learning: Tackling multiple tasks via ensembles of
    single-task models", ICML 2023, arXiv 2210.09759 (PaMaL).

    Differs from LORPMAN in that there is no orthogonal regularisation and no scaling
    factor, and from PaMaL in that the T members are written as changes W + D_i of a
    common kernel, from which they start, and that a step has one preference, without
    the regularisation over several. Both: normalisation layers do not depend on the
    preference. Changes start at 0: at first the model answers as the given one at
    every preference.

    Cost: per layer a kernel of T · rank outputs and a product with a matrix from them;
    with `rank=None` T kernels, whose products cost nothing more at one preference for
    the batch. Choose it as the first; many tasks want a low rank.

    Args:
        model: See `hypernetwork`.
        rank: Rank of each task's change; None for full kernels.
        layers: See `hypernetwork`.
        num_tasks: See `hypernetwork`.

    Raises:
        InputError: See `hypernetwork`.

    Example:

    ```python
    conditioned = mtl_keras.pareto.manifold(model, rank=2)
    conditioned.compile("adam", loss="mse")
    outputs = conditioned(conditioned.with_preference(x, {"a": 1.0}))
    ```
    """
    return _conditioned_model(model, layers, lambda p: p, rank, num_tasks)


def _conditioned_model(
    model: keras.Model,
    layers: str | Sequence[str] | None,
    coefficients_of: Callable[[keras.KerasTensor], keras.KerasTensor],
    rank: int | None,
    num_tasks: int | None,
) -> PreferenceModel:
    """Returns the model with some layers conditioned.

    Args:
        model: The model.
        layers: Names of the layers to condition, `"heads"`, or None for all.
        coefficients_of: From the normalised preference to the coefficients.
        rank: See `Conditioned`.
        num_tasks: Entries of the preference, or None.
    """
    if rank is not None:
        check_integer("rank", rank, low=1)
    if not isinstance(getattr(model, "output", None), dict):
        raise InputError(
            "Expected a functional model whose outputs are a dict {task: output}. "
            f"Received: {model!r}."
        )
    names = input_names(model)
    if PREFERENCE in names:
        raise InputError(
            f"Expected a model without an input {PREFERENCE!r}, the name of the "
            f"preference. Received: inputs {names}."
        )
    if num_tasks is None:
        is_ours = isinstance(model, MultiTaskModel)
        num_tasks = len(model.tasks if is_ours else model.output)
    inputs = {
        name: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=name)
        for name, x in zip(names, model.inputs, strict=True)
    }
    inputs[PREFERENCE] = keras.Input((num_tasks,), dtype="float32", name=PREFERENCE)
    chosen = _chosen(model, layers)
    simplex = Simplex(name="preference_simplex", dtype="float32")
    coefficients = coefficients_of(simplex(inputs[PREFERENCE]))
    by_layer = {id(layer): conditioned(layer, rank) for layer in chosen}
    before = keras.tree.pack_sequence_as(model.input, [inputs[name] for name in names])
    outputs = call_again(model, before, _calls(coefficients, by_layer, {}))
    return PreferenceModel(inputs, outputs, name=model.name)


def _calls(
    coefficients: keras.KerasTensor,
    by_layer: Mapping[int, keras.layers.Layer],
    by_model: dict[int, keras.Model],
) -> Callable[[keras.Operation], Callable[..., Any]]:
    """Returns a function from an operation to what is called in its place.

    Args:
        coefficients: The coefficients of conditioned layers, in the present graph.
        by_layer: The conditioned layers by the id of those that they replace.
        by_model: Nested models with an input for the coefficients by the id of those
            that they replace; this adds to them.
    """

    def nested(operation: keras.Operation, inner: keras.Model) -> keras.Model:
        if id(operation) not in by_model:
            inputs = [
                keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in inner.inputs
            ]
            within = keras.Input(coefficients.shape[1:], dtype=coefficients.dtype)
            packed = keras.tree.pack_sequence_as(inner.input, inputs)
            outputs = call_again(inner, packed, _calls(within, by_layer, by_model))
            by_model[id(operation)] = keras.Model(
                [*inputs, within], outputs, name=operation.name
            )
        return by_model[id(operation)]

    def called_for(operation: keras.Operation) -> Callable[..., Any]:
        inner = functional_of(operation)
        if id(operation) in by_layer:
            layer = by_layer[id(operation)]
            return lambda x, **options: layer(x, coefficients)
        if inner is not None and any(id(x) in by_layer for x in _parts(inner)):
            model = nested(operation, inner)
            return lambda x, **options: model(
                [*flat_inputs(inner, x), coefficients], **options
            )
        return operation

    return called_for


def _parts(model: keras.Model) -> list[keras.Operation]:
    """Returns a model's operations and those of models nested in it."""
    parts = []
    for operation in model.operations:
        inner = functional_of(operation)
        parts += [operation] if inner is None else _parts(inner)
    return parts


def _chosen(
    model: keras.Model, layers: str | Sequence[str] | None
) -> list[keras.layers.Layer]:
    """Returns the layers to condition, of the model and of those nested in it."""
    if layers == "heads":
        return _last_of_heads(model)
    if isinstance(layers, str):
        raise InputError(
            "Expected `layers` to be None, 'heads' or a list of names. "
            f"Received: layers={layers!r}."
        )
    known = [x for x in _parts(model) if is_conditionable(x)]
    names = {x.name for x in known}
    for name in layers if layers is not None else ():
        if name not in names:
            raise unknown_name("Dense or convolution of the model", name, names)
    chosen = [x for x in known if layers is None or x.name in layers]
    if not chosen:
        raise InputError(
            "Expected Dense or convolutional layers to condition. "
            f"Received: layers={layers}, a model with {sorted(names)}."
        )
    return chosen


def _last_of_heads(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns for each output the last layer to condition that it alone depends on."""
    nodes = inlined_graph_nodes(model, every=True)
    reached = {task: reached_nodes(nodes, x) for task, x in model.output.items()}
    users: dict[int, set[str]] = {}
    for task, indices in reached.items():
        for index in indices:
            users.setdefault(id(nodes[index].operation), set()).add(task)
    chosen = []
    for task, indices in reached.items():
        own = [
            nodes[index].operation
            for index in sorted(indices)
            if is_conditionable(nodes[index].operation)
            and users[id(nodes[index].operation)] == {task}
        ]
        if not own:
            raise InputError(
                f"Expected a Dense or convolutional layer that {task!r} alone depends "
                "on, for the hypernetwork to make its kernel. Received a model in "
                "which it has none."
            )
        chosen.append(own[-1])
    return chosen
