"""Backbones: what tasks share, as a list of stages.

A stage is a Keras layer, here a `keras.Sequential`. `mtl_keras.sharing` joins the
stages, and copies some of them where tasks share only in part.
"""

from __future__ import annotations

from collections.abc import Callable

import keras

from mtl_keras import errors
from mtl_keras.backbones.attention import transformer_encoder
from mtl_keras.backbones.convolutional import cnn
from mtl_keras.backbones.dense import mlp
from mtl_keras.backbones.pretrained import stages_of
from mtl_keras.backbones.recurrent import cnn_rnn, rnn
from mtl_keras.backbones.residual import resnet

__all__ = [
    "cnn",
    "cnn_rnn",
    "get",
    "mlp",
    "names",
    "resnet",
    "rnn",
    "stages_of",
    "transformer_encoder",
]

Backbone = Callable[[int, int], list[keras.layers.Layer]]

_BACKBONES: dict[str, Backbone] = {
    backbone.__name__: backbone
    for backbone in (cnn, cnn_rnn, mlp, resnet, rnn, transformer_encoder)
}


def names() -> list[str]:
    """Returns the names that `get` accepts, sorted."""
    return sorted(_BACKBONES)


def get(name: str) -> Backbone:
    """Returns the backbone of that name, a function `(width, depth) -> stages`.

    Raises:
        InputError: No backbone has this name.
    """
    if name not in _BACKBONES:
        raise errors.unknown_name("backbone", name, _BACKBONES)
    return _BACKBONES[name]
