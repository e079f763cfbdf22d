"""Names: shared by registries of balancing and sharing, by exports and by tables."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping
from typing import Any

import keras

from mtl_keras.errors import InputError, unknown_name

# Names that no input of a SavedModel's signature can have: TensorFlow makes each an
# argument of a Python method.
RESERVED_INPUTS = frozenset([*keyword.kwlist, "self"])


def named_class(kind: str, name: Any, classes: Mapping[str, type]) -> type:
    """Returns the class of a name, without making an object of it.

    Args:
        kind: Kind of the class, for the message.
        name: The name.
        classes: Classes by every name they may be called.

    Raises:
        InputError: For an unknown name.
    """
    if not isinstance(name, str) or name not in classes:
        raise unknown_name(kind, name, classes)
    return classes[name]


def deserialize_named(
    kind: str, config: Mapping[str, Any], classes: Mapping[str, Any], base: type
) -> Any:
    """Returns the object of a configuration.

    Args:
        kind: Kind of the object, for the messages.
        config: `{"class_name": …, "config": …}`, or the result of
            `keras.saving.serialize_keras_object`.
        classes: Classes by every name they may be called.
        base: The class that all of them share.

    Raises:
        InputError: For an unknown name or arguments that the class lacks.
    """
    name, arguments = config.get("class_name"), config.get("config") or {}
    cls: Any = None
    if not config.get("registered_name") or (isinstance(name, str) and name in classes):
        cls = named_class(kind, name, classes)
    if not isinstance(arguments, Mapping):
        raise InputError(
            f"Expected the arguments of {kind} {name!r} to be a dict. "
            f"Received: {arguments!r}."
        )
    try:
        if cls is not None:
            return cls.from_config(dict(arguments))
        instance = keras.saving.deserialize_keras_object(dict(config))
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Invalid arguments for {kind} {name!r}: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(instance, base):
        raise InputError(f"Expected a {kind}. Received: {name!r}.")
    return instance


def spec_name(spec: Any, write: Callable[[Any], str] = repr) -> str:
    """Returns a name or config as text, the values of arguments written by `write`.

    `{"class_name": "dwa", "config": {"temperature": 1}}` is `dwa(temperature=1)`.
    """
    if isinstance(spec, dict):
        config = spec.get("config", {})
        arguments = ", ".join(
            f"{name}={spec_name(value, write) if _is_spec(value) else write(value)}"
            for name, value in config.items()
        )
        return f"{spec.get('class_name')}({arguments})"
    if isinstance(spec, (list, tuple)):
        return " + ".join(spec_name(member, write) for member in spec)
    return str(spec)


def _is_spec(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"class_name", "config"}:
        return False
    return isinstance(value["config"], dict) and bool(value["config"])
