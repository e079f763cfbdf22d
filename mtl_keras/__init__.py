"""Multi-task learning for Keras 3 on TensorFlow.

Everything named in `__all__` is public. `import mtl_keras` registers all classes that
a `.keras` file may hold. Rooms that load TensorFlow Datasets or KerasTuner, which take
seconds and which a model of one's own does not need, are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from mtl_keras import (
    backbones,
    balancing,
    callbacks,
    evaluation,
    model,
    ops,
    pareto,
    sharing,
)
from mtl_keras.model import MultiTaskModel

__version__ = "0.1.0"

_ON_FIRST_USE = ("applications", "compare", "data", "runs", "search", "serving")

__all__ = [
    "MultiTaskModel",
    "__version__",
    "applications",
    "backbones",
    "balancing",
    "callbacks",
    "compare",
    "data",
    "evaluation",
    "model",
    "ops",
    "pareto",
    "runs",
    "search",
    "serving",
    "sharing",
]


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"mtl_keras.{name}")
    raise AttributeError(f"module 'mtl_keras' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
