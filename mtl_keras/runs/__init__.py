"""Training runs: what to train, the training itself, and the run folder.

```python
from mtl_keras.runs import RunConfig, evaluate, train

results = train(RunConfig("vision", epochs=5), "runs/first")
again = evaluate("runs/first")
```
"""

from __future__ import annotations

from mtl_keras.optional import on_first_use
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


# It loads what serving needs; training needs nothing of it.
__getattr__ = on_first_use(__name__, {"export": "exporting"})
