"""Multi-task learning for Keras 3 on TensorFlow.

Everything named in `__all__` is public. Names are imported on first use, so
that the command line answers `--help` without loading TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = (
    "applications",
    "backbones",
    "balancing",
    "data",
    "evaluation",
    "model",
    "ops",
    "runs",
    "search",
    "serving",
    "sharing",
)

__all__ = ["MultiTaskModel", "__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    if name == "MultiTaskModel":
        from mtl_keras.model import MultiTaskModel

        return MultiTaskModel
    if name in _ROOMS:
        return importlib.import_module(f"mtl_keras.{name}")
    raise AttributeError(f"module 'mtl_keras' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
