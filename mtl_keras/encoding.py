"""Plain values for JSON, of dataclasses and of numbers that JSON lacks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


def encode(value: Any) -> Any:
    """Returns what JSON has for dataclasses, mappings and sequences of plain values.

    NaN and infinity, which JSON lacks, are None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: encode(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
