"""Applications: data, backbone and tasks of one domain, trainable by name."""

from __future__ import annotations

from mtl_keras import errors
from mtl_keras.applications.base import Application, Task, TrainingDefaults
from mtl_keras.applications.multimodal import Multimodal
from mtl_keras.applications.recommendation import Recommendation
from mtl_keras.applications.text import Text
from mtl_keras.applications.vision import Vision

__all__ = [
    "Application",
    "Multimodal",
    "Recommendation",
    "Task",
    "Text",
    "TrainingDefaults",
    "Vision",
    "get",
    "names",
]

_APPLICATIONS: dict[str, type[Application]] = {
    cls.name: cls for cls in (Multimodal, Recommendation, Text, Vision)
}


def names() -> list[str]:
    """Returns the names that `get` accepts, sorted."""
    return sorted(_APPLICATIONS)


def get(name: str) -> Application:
    """Returns the application of that name.

    Raises:
        InputError: No application has this name.
    """
    if name not in _APPLICATIONS:
        raise errors.unknown_name("application", name, _APPLICATIONS)
    return _APPLICATIONS[name]()
