"""Measures of multi-task results: metrics, Δm, Pareto fronts, plots.

`BoxIoU` is a Keras metric and loads TensorFlow on first use; the rest needs
NumPy alone.
"""

from __future__ import annotations

from typing import Any

from mtl_keras.evaluation.delta import delta_m
from mtl_keras.evaluation.pareto import hypervolume, pareto_front

__all__ = ["BoxIoU", "delta_m", "hypervolume", "pareto_front"]


def __getattr__(name: str) -> Any:
    if name == "BoxIoU":
        from mtl_keras.evaluation.boxes import BoxIoU

        return BoxIoU
    raise AttributeError(f"module 'mtl_keras.evaluation' has no attribute {name!r}")
