"""Backbones: what tasks share, as a list of stages.

A stage is a Keras layer, here a `keras.Sequential`. `mtl_keras.sharing` joins the
stages, and copies some of them where tasks share only in part.
"""

from __future__ import annotations

from collections.abc import Callable

import keras

from mtl_keras import errors
from mtl_keras.backbones.convolutional import cnn
from mtl_keras.backbones.dense import mlp
from mtl_keras.backbones.recurrent import rnn

__all__ = ["cnn", "get", "mlp", "names", "rnn"]

Backbone = Callable[[int, int], list[keras.layers.Layer]]

_BACKBONES: dict[str, Backbone] = {"cnn": cnn, "mlp": mlp, "rnn": rnn}


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
