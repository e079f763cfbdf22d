"""Multimodal: images, recordings and texts in one model."""

from __future__ import annotations

from mtl_keras.applications.multimodal.application import Multimodal

__all__ = ["Multimodal"]
