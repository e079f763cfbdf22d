"""Shared by the registries of balancing and sharing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from mtl_keras.errors import InputError, unknown_name


def deserialize_named(
    kind: str, config: Mapping[str, Any], classes: Mapping[str, Any]
) -> Any:
    """Returns the object of a configuration.

    Args:
        kind: What is configured, for the messages.
        config: `{"class_name": …, "config": …}`, or what
            `keras.saving.serialize_keras_object` wrote.
        classes: Classes by every name they may be called.

    Raises:
        InputError: For an unknown name or arguments that the class lacks.
    """
    name = config.get("class_name")
    cls = classes.get(name) if isinstance(name, str) else None
    if cls is None and config.get("registered_name"):
        return keras.saving.deserialize_keras_object(dict(config))
    if cls is None:
        raise unknown_name(kind, name, classes)
    try:
        return cls.from_config(dict(config.get("config") or {}))
    except TypeError as error:
        raise InputError(f"Invalid arguments for {kind} {name!r}: {error}") from None
