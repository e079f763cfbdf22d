"""Models as SavedModels that TensorFlow Serving loads."""

from __future__ import annotations

from mtl_keras.serving.export import export
from mtl_keras.serving.versions import latest_version

__all__ = ["export", "latest_version"]
