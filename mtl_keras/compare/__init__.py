"""Comparisons of ways to balance and to share, on one application and budget.

```python
from mtl_keras.compare import Comparison, run_comparison
from mtl_keras.runs import RunConfig

comparison = Comparison(RunConfig("vision", epochs=3), balancing=("equal", "pcgrad"))
results = run_comparison(comparison, "runs/first-comparison")
```
"""

from __future__ import annotations

from mtl_keras.compare.comparison import DEFAULT_BALANCING, Cell, Comparison
from mtl_keras.optional import on_first_use

__all__ = ["DEFAULT_BALANCING", "Cell", "Comparison", "run_comparison"]


# It loads TensorFlow; describing a comparison needs nothing of it.
__getattr__ = on_first_use(__name__, {"run_comparison": "running"})
