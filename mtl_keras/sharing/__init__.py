"""Ways to share a backbone between tasks."""

from __future__ import annotations

from typing import Any

import keras

from mtl_keras.errors import InputError
from mtl_keras.registry import deserialize_named, named_class
from mtl_keras.sharing.aitm import AITM
from mtl_keras.sharing.base import Sharing
from mtl_keras.sharing.branching import Branching, hard_branches
from mtl_keras.sharing.cross_stitch import CrossStitchNetwork
from mtl_keras.sharing.diagnostics import (
    ExpertMetrics,
    ExpertUtilisation,
    GateEntropy,
    usage,
)
from mtl_keras.sharing.dselect_k import DSelectK
from mtl_keras.sharing.esmm import ESMM
from mtl_keras.sharing.hard import Hard
from mtl_keras.sharing.mmoe import MMoE, OMoE
from mtl_keras.sharing.mtan import MTAN
from mtl_keras.sharing.ple import CGC, PLE
from mtl_keras.sharing.sluice import Sluice

__all__ = [
    "AITM",
    "CGC",
    "ESMM",
    "MTAN",
    "PLE",
    "Branching",
    "CrossStitchNetwork",
    "DSelectK",
    "ExpertMetrics",
    "ExpertUtilisation",
    "GateEntropy",
    "Hard",
    "MMoE",
    "OMoE",
    "Sharing",
    "Sluice",
    "deserialize",
    "get",
    "get_class",
    "hard_branches",
    "names",
    "serialize",
    "usage",
]

_METHODS: dict[str, type[Sharing]] = {
    cls.method: cls
    for cls in (
        AITM,
        CGC,
        ESMM,
        MTAN,
        PLE,
        Branching,
        CrossStitchNetwork,
        DSelectK,
        Hard,
        MMoE,
        OMoE,
        Sluice,
    )
}
_CLASSES = {cls.__name__: cls for cls in _METHODS.values()}


def names() -> list[str]:
    """Returns the names that `get` accepts, sorted.

    Example:

    ```pycon
    >>> mtl_keras.sharing.names()[:3]
    ['aitm', 'branching', 'cgc']
    ```
    """
    return sorted(_METHODS)


def get_class(name: str) -> type[Sharing]:
    """Returns the class that `get` makes an object of for a name.

    Args:
        name: A name out of `names()`, or a class name.

    Raises:
        InputError: For an unknown name.

    Example:

    ```pycon
    >>> mtl_keras.sharing.get_class("mmoe").__name__
    'MMoE'
    ```
    """
    return named_class("sharing", name, {**_METHODS, **_CLASSES})


def serialize(sharing: Sharing) -> dict[str, Any]:
    """Returns the configuration of a way to share, as `keras.saving` writes it.

    Example:

    ```pycon
    >>> mtl_keras.sharing.serialize(mtl_keras.sharing.MMoE(2))["config"]
    {'num_experts': 2}
    ```
    """
    return keras.saving.serialize_keras_object(sharing)


def deserialize(
    config: dict[str, Any], custom_objects: dict[str, Any] | None = None
) -> Sharing:
    """Returns the way to share of a configuration.

    Args:
        config: `serialize`'s result, or `{"class_name": …, "config": …}` with a
            registered name or the name of its class.
        custom_objects: Further classes by name.

    Raises:
        InputError: For an unknown name or arguments that the class lacks.

    Example:

    ```pycon
    >>> config = {"class_name": "ple", "config": {"num_levels": 1}}
    >>> mtl_keras.sharing.deserialize(config).num_levels
    1
    ```
    """
    return deserialize_named(
        "sharing",
        config,
        {**_METHODS, **_CLASSES, **(custom_objects or {})},
        Sharing,
    )


def get(identifier: str | dict[str, Any] | Sharing | None) -> Sharing:
    """Returns the way to share that an identifier stands for.

    Args:
        identifier: A name out of `names()`, a class name, a configuration
            `{"class_name": …, "config": …}`, or an instance. `None` is `"hard"`.

    Raises:
        InputError: For an unknown name or another type.

    Example:

    ```pycon
    >>> config = {"class_name": "mmoe", "config": {"num_experts": 6}}
    >>> mtl_keras.sharing.get(config).num_experts
    6
    ```
    """
    if identifier is None:
        return Hard()
    if isinstance(identifier, Sharing):
        return identifier
    if isinstance(identifier, str):
        identifier = {"class_name": identifier}
    if isinstance(identifier, dict):
        return deserialize(identifier)
    raise InputError(
        "Expected `sharing` to be a name, a configuration or a Sharing. "
        f"Received: {identifier!r} of type {type(identifier).__name__}."
    )
