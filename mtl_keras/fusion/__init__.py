"""Several modalities in one model: encoders where present, and ways to fuse."""

from __future__ import annotations

from mtl_keras.errors import unknown_name
from mtl_keras.fusion.layers import Concat, CrossAttention, Fusion, Gated
from mtl_keras.fusion.presence import Absent, HasContent, WherePresent

__all__ = [
    "Absent",
    "Concat",
    "CrossAttention",
    "Fusion",
    "Gated",
    "HasContent",
    "WherePresent",
    "get",
    "names",
]

_METHODS: dict[str, type[Fusion]] = {
    cls.method: cls for cls in (Concat, Gated, CrossAttention)
}


def names() -> list[str]:
    """Returns the names that `get` accepts, sorted."""
    return sorted(_METHODS)


def get(name: str) -> type[Fusion]:
    """Returns the fusion of that name, a layer class.

    Raises:
        InputError: No fusion has this name.
    """
    if name not in _METHODS:
        raise unknown_name("fusion", name, _METHODS)
    return _METHODS[name]
