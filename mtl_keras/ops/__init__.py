"""Gram matrix of task gradients, weight solvers, and combination of gradients."""

from __future__ import annotations

from mtl_keras.ops import solvers
from mtl_keras.ops.gram import combine, gramian

__all__ = ["combine", "gramian", "solvers"]
