"""Measures of multi-task results: metrics, Δm, Pareto fronts, plots."""

from __future__ import annotations

from mtl_keras.evaluation.boxes import BoxIoU
from mtl_keras.evaluation.delta import delta_m
from mtl_keras.evaluation.pareto import hypervolume, pareto_front
from mtl_keras.evaluation.segmentation import MaskIoU

__all__ = ["BoxIoU", "MaskIoU", "delta_m", "hypervolume", "pareto_front"]
