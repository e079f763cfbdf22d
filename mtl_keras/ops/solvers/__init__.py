"""Task weights from a Gram matrix, one module per family of methods.

All solvers run eagerly, in `tf.function` and under XLA, in float64. Their common
conventions, absent tasks and failures above all, are stated in `problem`.
"""

from __future__ import annotations

from mtl_keras.ops.solvers.conic import cagrad
from mtl_keras.ops.solvers.problem import EPS, noise_of
from mtl_keras.ops.solvers.projection import gradvac, pcgrad, random_orders
from mtl_keras.ops.solvers.quadratic import (
    dual_cone,
    dualproj,
    min_norm,
    nonnegative_qp,
    upgrad,
)
from mtl_keras.ops.solvers.root import power_root
from mtl_keras.ops.solvers.selection import krum
from mtl_keras.ops.solvers.spectral import aligned, config, imtl_g

__all__ = [
    "EPS",
    "aligned",
    "cagrad",
    "config",
    "dual_cone",
    "dualproj",
    "gradvac",
    "imtl_g",
    "krum",
    "min_norm",
    "noise_of",
    "nonnegative_qp",
    "pcgrad",
    "power_root",
    "random_orders",
    "upgrad",
]
