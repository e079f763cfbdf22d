"""Models as SavedModels that TensorFlow Serving loads."""

from __future__ import annotations

from mtl_keras.serving.export import check, export, latest_version

__all__ = ["check", "export", "latest_version"]
