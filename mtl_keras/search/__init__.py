"""Search over balancing, sharing, loss weights and architecture.

`run_study` runs a study file, `run_chief` and `run_worker` run one with many workers;
`MultiTaskHyperModel` and `ParetoOracle` work with KerasTuner's own tuners and a model
of one's own.
"""

from __future__ import annotations

from mtl_keras.optional import on_first_use
from mtl_keras.search.study import Study, StudySettings, load_study

__all__ = [
    "MultiTaskHyperModel",
    "ParetoOracle",
    "Study",
    "StudyHyperModel",
    "StudySettings",
    "best_config",
    "load_study",
    "run_chief",
    "run_study",
    "run_worker",
    "train_baselines",
]

# These load KerasTuner and TensorFlow; reading a study file needs neither.
__getattr__ = on_first_use(
    __name__,
    {
        "MultiTaskHyperModel": "hypermodel",
        "ParetoOracle": "pareto",
        "StudyHyperModel": "hypermodel",
        "best_config": "records",
        "run_chief": "running",
        "run_study": "running",
        "run_worker": "running",
        "train_baselines": "hypermodel",
    },
)
