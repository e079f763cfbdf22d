"""Training runs: what to train, the training itself, and the run folder.

```python
from mtl_keras.runs import RunConfig, evaluate, train

results = train(RunConfig("vision", epochs=5), "runs/first")
again = evaluate("runs/first")
```
"""

from __future__ import annotations

from typing import Any

from mtl_keras.runs.config import RunConfig, TrainingConfig
from mtl_keras.runs.fitting import Results, train
from mtl_keras.runs.folder import Run, load_run
from mtl_keras.runs.training import compiled_model, evaluate, front

__all__ = [
    "Results",
    "Run",
    "RunConfig",
    "TrainingConfig",
    "compiled_model",
    "evaluate",
    "export",
    "front",
    "load_run",
    "train",
]


def __getattr__(name: str) -> Any:
    # Loads what serving needs; training needs nothing of it.
    if name == "export":
        from mtl_keras.runs.exporting import export

        return export
    raise AttributeError(f"module 'mtl_keras.runs' has no attribute {name!r}")
