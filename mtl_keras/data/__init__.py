"""Data sets: TensorFlow Datasets builders, prepared once and loaded by name.

Importing this package registers the builders, so that
`tfds.load("multi_digits/digits")` works too.
"""

from __future__ import annotations

from mtl_keras.data.behaviour import Behaviour, BehaviourConfig
from mtl_keras.data.catalog import Info, info, names
from mtl_keras.data.census_income import CensusIncome
from mtl_keras.data.generated_text import GeneratedText
from mtl_keras.data.mixture import Mixture, mix
from mtl_keras.data.mmoe_synthetic import MmoeSynthetic
from mtl_keras.data.movielens_history import MovielensHistory
from mtl_keras.data.multi30k import Multi30k
from mtl_keras.data.multi_digits import MultiDigits
from mtl_keras.data.multimodal import Multimodal
from mtl_keras.data.preparation import load, prepare
from mtl_keras.data.recordings import read_wav
from mtl_keras.data.streaming import read_table, stream

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
    "info",
    "load",
    "mix",
    "names",
    "prepare",
    "read_table",
    "read_wav",
    "stream",
]
