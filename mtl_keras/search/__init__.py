"""Search over balancing, sharing, loss weights and architecture.

`run_study` runs a study file; `MultiTaskHyperModel` works with KerasTuner's own
tuners as well.
"""

from __future__ import annotations

from typing import Any

from mtl_keras.search.space import Choice, Fixed, LossWeights, Range
from mtl_keras.search.study import Study, load_study

__all__ = [
    "Choice",
    "Fixed",
    "LossWeights",
    "MultiTaskHyperModel",
    "ParetoOracle",
    "Range",
    "Study",
    "best_config",
    "load_study",
    "run_study",
]


def __getattr__(name: str) -> Any:
    # These load KerasTuner and TensorFlow; reading a study file needs neither.
    if name == "MultiTaskHyperModel":
        from mtl_keras.search.hypermodel import MultiTaskHyperModel

        return MultiTaskHyperModel
    if name == "ParetoOracle":
        from mtl_keras.search.pareto import ParetoOracle

        return ParetoOracle
    if name == "run_study":
        from mtl_keras.search.tuner import run_study

        return run_study
    if name == "best_config":
        from mtl_keras.search.records import best_config

        return best_config
    raise AttributeError(f"module 'mtl_keras.search' has no attribute {name!r}")
