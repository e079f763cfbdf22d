"""Data sets: TensorFlow Datasets builders, prepared once and loaded by name.

After an import of this package `tfds.load("multi_digits/digits")` works too. The
generators of toy data, in `mtl_keras.data.generated`, are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mtl_keras.data import generated
from mtl_keras.data.catalog import Info, info, names
from mtl_keras.data.census_income import CensusIncome
from mtl_keras.data.frames import Splits, from_dataframe
from mtl_keras.data.mixture import Mixture, mix
from mtl_keras.data.movielens_history import MovielensHistory
from mtl_keras.data.multi30k import Multi30k
from mtl_keras.data.preparation import load, prepare
from mtl_keras.data.recordings import read_wav
from mtl_keras.data.streaming import read_table, stream

if TYPE_CHECKING:
    from mtl_keras.data.generated.behaviour import Behaviour, BehaviourConfig
    from mtl_keras.data.generated.generated_text import GeneratedText
    from mtl_keras.data.generated.mmoe_synthetic import MmoeSynthetic
    from mtl_keras.data.generated.multi_digits import MultiDigits
    from mtl_keras.data.generated.multimodal import Multimodal

__all__ = [
    "Behaviour",
    "BehaviourConfig",
    "CensusIncome",
    "GeneratedText",
    "Info",
    "Mixture",
    "MmoeSynthetic",
    "MovielensHistory",
    "Multi30k",
    "MultiDigits",
    "Multimodal",
    "Splits",
    "from_dataframe",
    "info",
    "load",
    "mix",
    "names",
    "prepare",
    "read_table",
    "read_wav",
    "stream",
]

_GENERATED = {cls: module for module, cls in generated.BUILDERS.items()}
_GENERATED["BehaviourConfig"] = "behaviour"


def __getattr__(name: str) -> Any:
    if name not in _GENERATED:
        raise AttributeError(f"module 'mtl_keras.data' has no attribute {name!r}")
    module = importlib.import_module(f"{generated.__name__}.{_GENERATED[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
