"""Gram matrix and combination of task gradients, weight solvers, expert mixtures.

Each op has a C++ kernel for the CPU and a version of TensorFlow's own ops, which
serves XLA, GPUs and installations without the compiled library. Both give the same
results; `implementation` chooses between them.
"""

from __future__ import annotations

from mtl_keras.ops import solvers
from mtl_keras.ops.gram import combine, gramian
from mtl_keras.ops.mixture import mix_experts
from mtl_keras.ops.native import implementation, native_available, native_in_use

__all__ = [
    "combine",
    "gramian",
    "implementation",
    "mix_experts",
    "native_available",
    "native_in_use",
    "solvers",
]
