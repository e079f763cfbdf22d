"""Comparisons of ways to balance and to share, on one application and budget.

```python
from mtl_keras.compare import Comparison, run_comparison
from mtl_keras.runs import RunConfig

comparison = Comparison(RunConfig("vision", epochs=3), balancing=("equal", "pcgrad"))
results = run_comparison(comparison, "runs/first-comparison")
```
"""

from __future__ import annotations

from typing import Any

from mtl_keras.compare.comparison import DEFAULT_BALANCING, Cell, Comparison

__all__ = ["DEFAULT_BALANCING", "Cell", "Comparison", "run_comparison"]


def __getattr__(name: str) -> Any:
    # Loads TensorFlow; describing a comparison needs nothing of it.
    if name == "run_comparison":
        from mtl_keras.compare.running import run_comparison

        return run_comparison
    raise AttributeError(f"module 'mtl_keras.compare' has no attribute {name!r}")
