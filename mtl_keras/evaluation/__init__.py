"""Measures of multi-task results: metrics, Δm, Pareto fronts, plots."""

from __future__ import annotations

from mtl_keras.evaluation.affinity import Grouping, suggest_groups, task_affinity
from mtl_keras.evaluation.auxiliary import HelperGain, helper_gains
from mtl_keras.evaluation.boxes import BoxIoU
from mtl_keras.evaluation.calibration import CalibrationError, calibration_error
from mtl_keras.evaluation.delta import delta_m, has_relative_gain
from mtl_keras.evaluation.pareto import hypervolume, pareto_front
from mtl_keras.evaluation.ranking import by_slice, group_auc, ndcg
from mtl_keras.evaluation.ranks import average_rank
from mtl_keras.evaluation.segmentation import MaskIoU
from mtl_keras.evaluation.sequences import SequenceCrossentropy, TokenAccuracy
from mtl_keras.evaluation.significance import (
    PairedTest,
    detectable_difference,
    holm,
    paired_tests,
)
from mtl_keras.evaluation.spans import SpanAccuracy, SpanF1
from mtl_keras.evaluation.text import answer_scores, bleu, normalized_answer
from mtl_keras.optional import on_first_use

__all__ = [
    "BoxIoU",
    "CalibrationError",
    "Grouping",
    "HelperGain",
    "MaskIoU",
    "PairedTest",
    "SequenceCrossentropy",
    "SpanAccuracy",
    "SpanF1",
    "TokenAccuracy",
    "answer_scores",
    "average_rank",
    "bleu",
    "by_slice",
    "calibration_error",
    "delta_m",
    "detectable_difference",
    "group_auc",
    "has_relative_gain",
    "helper_gains",
    "holm",
    "hypervolume",
    "ndcg",
    "normalized_answer",
    "paired_tests",
    "pareto_front",
    "plot_history",
    "plot_tasks",
    "suggest_groups",
    "task_affinity",
]


# These load Matplotlib, which a measure does not need.
__getattr__ = on_first_use(
    __name__, {"plot_history": "model_plots", "plot_tasks": "model_plots"}
)
