"""Applications: data, backbone and tasks of one domain, trainable by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

# Layers register themselves, so that models of tables can be loaded.
from mtl_keras.applications import table as _table  # noqa: F401
from mtl_keras.applications.base import Application, Task, TrainingDefaults
from mtl_keras.applications.multimodal import Multimodal
from mtl_keras.applications.recommendation import Recommendation
from mtl_keras.applications.registry import (
    allow,
    canonical,
    get,
    label,
    names,
    register,
)
from mtl_keras.applications.text import Text
from mtl_keras.applications.vision import Vision
from mtl_keras.optional import on_first_use

if TYPE_CHECKING:
    from mtl_keras.applications.table.application import Table

__all__ = [
    "Application",
    "Multimodal",
    "Recommendation",
    "Table",
    "Task",
    "Text",
    "TrainingDefaults",
    "Vision",
    "allow",
    "canonical",
    "get",
    "label",
    "names",
    "register",
]


# Imported when it is asked for: it needs the packages of an extra.
__getattr__ = on_first_use(__name__, {"Table": "table.application"})
