"""Images, recordings and texts in one model, any of them missing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import keras

from mtl_keras import backbones as backbone_registry
from mtl_keras import data as data_registry
from mtl_keras import errors, fusion
from mtl_keras import sharing as sharing_registry
from mtl_keras.applications import encoders, heads
from mtl_keras.applications.base import (
    SPLITS,
    Application,
    Task,
    TrainingDefaults,
)
from mtl_keras.data.modalities import SAMPLE_RATE, SIZE
from mtl_keras.model import MultiTaskModel
from mtl_keras.model.keras_compat import call_again

if TYPE_CHECKING:
    import tensorflow as tf

MODALITIES = ("image", "audio", "text")

_DIGITS, _SPEAKERS = 10, 5
_IMAGE_SHAPE = (SIZE, SIZE, 1)
_SECONDS = 1
_PEAK = 2**15
_VOCABULARY = 5_000
_HIDDEN = 64
_DROPOUT = 0.3


class _Reading(NamedTuple):
    """How the texts of a data set are read."""

    split: str
    length: int
    window: int


class _Data(NamedTuple):
    """What the samples of a data set hold."""

    uses: Mapping[str, tuple[str, ...]]
    """The modalities that a task can use, by the tasks that have labels."""
    reading: _Reading


_UNPAIRED = _Data(
    {
        "digit": ("image", "audio"),
        "sentiment": ("text",),
        "speaker": ("audio",),
        "even": ("image", "audio"),
    },
    _Reading("whitespace", length=240, window=6),
)
_PAIRED = _Data(
    {"digit": MODALITIES, "speaker": ("audio",), "even": MODALITIES},
    _Reading("character", length=12, window=1),
)
_DATA = {
    "multimodal/unpaired_generated": _UNPAIRED,
    "multimodal/paired_generated": _PAIRED,
    "multimodal/unpaired": _UNPAIRED,
    "multimodal/paired": _PAIRED,
}
