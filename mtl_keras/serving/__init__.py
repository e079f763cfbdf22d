"""Models as SavedModels that TensorFlow Serving loads.

```python
version = serving.export(model, "models/mine", class_names={"digit": "0123456789"})
report = serving.check(version)
assert not report.problems
```
"""

from __future__ import annotations

from mtl_keras.serving.check import Report, SignatureReport, Timing, check
from mtl_keras.serving.compression import WEIGHTS, HalfStorage, compress
from mtl_keras.serving.export import export
from mtl_keras.serving.runtime import RefusedError, Runtime
from mtl_keras.serving.versions import latest_version, versions

__all__ = [
    "WEIGHTS",
    "HalfStorage",
    "RefusedError",
    "Report",
    "Runtime",
    "SignatureReport",
    "Timing",
    "check",
    "compress",
    "export",
    "latest_version",
    "versions",
]
