"""pyarrow, which reads tables; of the extra `tables`."""

from __future__ import annotations

from mtl_keras import optional

with optional.extra("tables", "pyarrow", "Reading tables"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

__all__ = ["pa", "pa_csv", "pc", "pq"]
