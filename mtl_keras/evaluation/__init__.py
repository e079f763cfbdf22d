"""Measures of multi-task results: metrics, Δm, Pareto fronts, plots."""

from __future__ import annotations

from mtl_keras.evaluation.boxes import BoxIoU
from mtl_keras.evaluation.calibration import CalibrationError, calibration_error
from mtl_keras.evaluation.conflict_images import ConflictImages
from mtl_keras.evaluation.delta import delta_m
from mtl_keras.evaluation.pareto import hypervolume, pareto_front
from mtl_keras.evaluation.ranking import by_slice, group_auc, ndcg
from mtl_keras.evaluation.segmentation import MaskIoU

__all__ = [
    "BoxIoU",
    "CalibrationError",
    "ConflictImages",
    "MaskIoU",
    "by_slice",
    "calibration_error",
    "delta_m",
    "group_auc",
    "hypervolume",
    "ndcg",
    "pareto_front",
]
