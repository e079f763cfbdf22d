"""Optimizers that Keras lacks."""

from __future__ import annotations

from mtl_keras.optimizers.lazy_adam import LazyAdam

__all__ = ["LazyAdam"]
