"""Whether a graph holds stock TensorFlow operations only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any

import keras

from mtl_keras.errors import InputError
from mtl_keras.serving.runtime import stock_operations


def check_stock(signature: str, function: Any, model: keras.Model) -> None:
    """Raises an InputError where a function needs more than TensorFlow itself.

    A server knows TensorFlow's own operations. It has neither those of a library of
    one's own nor a Python interpreter for those that call back into Python.

    Args:
        signature: Name of the signature, for the message.
        function: The concrete function that it runs.
        model: The model in it, for the names of its layers.

    Raises:
        InputError: Names the operation and the layer that uses it.
    """
    graph = function.graph.as_graph_def()
    library = {f.signature.name: f.node_def for f in graph.library.function}
    for node in graph.node:
        foreign = _foreign(node, library, set())
        if foreign is not None:
            raise InputError(
                f"Expected stock TensorFlow operations only. The layer "
                f"{_layer(node.name, layer_names(model))!r}, which {signature!r} runs, "
                f"uses {foreign!r}, which a server does not have. Give the layer a "
                "method `serving_call` that does without, or leave its task out."
            )


def nodes(graph: Any) -> list[Any]:
    """Returns all nodes of a `GraphDef`, functions included, but calls of these."""
    every = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    functions = {f.signature.name for f in graph.library.function}
    return [node for node in every if node.op not in functions]


def _foreign(node: Any, library: Mapping[str, Any], seen: set[str]) -> str | None:
    """Returns the first operation that is not stock, in the node or what it calls."""
    called = [node.op] if node.op in library else []
    if not called and node.op not in stock_operations():
        return node.op
    for value in node.attr.values():
        called += [f.name for f in (value.func, *value.list.func) if f.name in library]
    for name in called:
        if name in seen:
            continue
        seen.add(name)
        for inner in library[name]:
            found = _foreign(inner, library, seen)
            if found is not None:
                return found
    return None


def _layer(node: str, layers: Set[str]) -> str:
    """Returns the path of layers out of a node's name, outermost first."""
    # TensorFlow numbers scopes that it has seen before.
    parts = [
        part if part in layers else re.sub(r"_\d+$", "", part)
        for part in node.split("/")
    ]
    return "/".join(part for part in parts if part in layers) or node


def layer_names(model: keras.Model) -> set[str]:
    """Returns the names of all layers, those of models within included."""
    names = set()
    for layer in model.layers:
        names.add(layer.name)
        if isinstance(layer, keras.Model):
            names |= layer_names(layer)
    return names
