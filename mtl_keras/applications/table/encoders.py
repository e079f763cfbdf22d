"""From a table's raw values to one vector, by layers inside the model.

Layers of this module have two or three dots in their names, which no input or task has.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
from keras import layers

from mtl_keras import backbones, fusion
from mtl_keras.applications.features import FIELD_WIDTH, FieldIndices
from mtl_keras.applications.table.layers import (
    AlwaysPresent,
    DecodedImages,
    FilledNumbers,
    NotEmpty,
    NotMissing,
    NumberBins,
    PooledTokens,
    TokenVectors,
)
from mtl_keras.backbones import sequences
from mtl_keras.data.tables.description import FeatureStats
from mtl_keras.data.tables.tokens import tokens_layer
from mtl_keras.embeddings import SparseEmbedding

_TOKEN_UNITS = 32
_DROPOUT = 0.2
_CNN_STAGES = 3
_KERNEL = 5
_SMALLEST_VARIANCE = 1e-12

# Layers that read texts, by the backbone's name.
_TEXT_STAGES = {
    "mlp": sequences.sequence_mlp,
    "rnn": sequences.sequence_rnn,
    "transformer": sequences.transformer,
}
_Vector = tuple[keras.KerasTensor, keras.KerasTensor]


def make_inputs(features: Mapping[str, FeatureStats]) -> dict[str, keras.KerasTensor]:
    """Returns new model inputs.

    float32 `[batch]` of numbers and `[batch, length]` of vectors; else strings
    `[batch]`: categories, texts, and the bytes of image files.
    """
    return {
        name: keras.Input(
            (stats.length,) if stats.kind == "vector" else (),
            dtype="float32" if stats.kind in ("number", "vector") else "string",
            name=name,
        )
        for name, stats in features.items()
    }


def encode(
    inputs: Mapping[str, keras.KerasTensor],
    features: Mapping[str, FeatureStats],
    *,
    backbone: str,
    width: int,
    fuse: str,
) -> keras.KerasTensor:
    """Turns raw values into one vector, `[batch, d]`.

    Numbers and categories become one vector; texts, images and vectors one each,
    which are fused.

    Args:
        inputs: What `make_inputs` gave.
        features: The inputs' descriptions.
        backbone: How texts are read: `"mlp"` (bag of words), `"cnn"`, `"rnn"` or
            `"transformer"`.
        width: Size of the parts that are fused.
        fuse: Name of the fusion.
    """
    cells = {n: s for n, s in features.items() if s.kind in ("number", "category")}
    others = {n: s for n, s in features.items() if n not in cells}
    if not others:
        return _encode_cells(inputs, cells)
    parts: list[_Vector] = []
    for name, stats in others.items():
        if stats.kind == "text":
            parts.append(_encode_text(inputs[name], stats, backbone, width))
        elif stats.kind == "image":
            parts.append(_encode_image(inputs[name], stats, width))
        else:
            parts.append(_encode_vector(inputs[name], stats, width))
    if len(parts) == 1 and not cells:
        return parts[0][0]
    if cells:
        x = layers.Dense(
            width, "relu", kernel_initializer="he_normal", name="cells...vector"
        )(_encode_cells(inputs, cells))
        # A row of cells is always there: a missing one is a value of its own.
        parts.append((x, AlwaysPresent(name="cells...present")(x)))
    vectors, present = zip(*parts, strict=True)
    return fusion.get(fuse)(width, name="parts...fusion")(list(vectors), list(present))


def _encode_cells(
    inputs: Mapping[str, keras.KerasTensor], features: Mapping[str, FeatureStats]
) -> keras.KerasTensor:
    """Returns numbers standardised and in bins, and categories, embedded."""
    indices: list[keras.KerasTensor] = []
    sizes: list[int] = []
    for name, stats in features.items():
        if stats.kind == "number":
            bins = NumberBins(list(stats.boundaries), name=f"{name}..bins")
            indices.append(bins(inputs[name]))
            sizes.append(len(stats.boundaries) + 2)
        else:
            lookup = layers.StringLookup(
                vocabulary=list(stats.vocabulary), mask_token="", name=f"{name}..lookup"
            )
            indices.append(lookup(inputs[name]))
            sizes.append(len(stats.vocabulary) + 2)
    rows = FieldIndices(sizes, name="cells...rows")(indices)
    vectors = SparseEmbedding(sum(sizes), FIELD_WIDTH, name="cells...embedding")(rows)
    parts = [layers.Flatten(name="cells...vectors")(vectors)]
    numbers = [name for name, stats in features.items() if stats.kind == "number"]
    if numbers:
        parts.append(_encode_numbers({n: inputs[n] for n in numbers}, features))
    if len(parts) == 1:
        return parts[0]
    return layers.Concatenate(name="cells...joined")(parts)


def _encode_numbers(
    values: Mapping[str, keras.KerasTensor], features: Mapping[str, FeatureStats]
) -> keras.KerasTensor:
    """Returns numbers standardised, and where they are missing."""
    columns = [
        layers.Reshape((1,), dtype="float32", name=f"{name}..column")(x)
        for name, x in values.items()
    ]
    x = columns[0]
    if len(columns) > 1:
        x = layers.Concatenate(dtype="float32", name="cells...numbers")(columns)
    x = layers.Normalization(
        mean=[features[name].mean[0] for name in values],
        variance=[
            max(features[name].variance[0], _SMALLEST_VARIANCE) for name in values
        ],
        dtype="float32",
        name="cells...standardised",
    )(x)
    return FilledNumbers(dtype="float32", name="cells...filled")(x)


def _encode_text(
    x: keras.KerasTensor, stats: FeatureStats, backbone: str, width: int
) -> _Vector:
    assert stats.length is not None
    name = stats.name
    present = NotEmpty(name=f"{name}..present")(x)
    tokens = tokens_layer(
        stats.by, stats.length, stats.vocabulary, name=f"{name}..tokens"
    )
    x = tokens(x)
    x = TokenVectors(len(stats.vocabulary) + 2, _TOKEN_UNITS, name=f"{name}..vectors")(
        x
    )
    if backbone == "cnn":
        x = layers.Conv1D(
            width,
            _KERNEL,
            padding="same",
            activation="relu",
            name=f"{name}..convolution",
        )(x)
    else:
        (stage,) = _TEXT_STAGES[backbone](max(2, width // 2), 1)
        x = _renamed(stage, f"{name}..{backbone}")(x)
    x = PooledTokens(name=f"{name}..pooled")(x)
    x = layers.Dropout(_DROPOUT, name=f"{name}..dropout")(x)
    return _vector(x, name, width), present


def _encode_image(x: keras.KerasTensor, stats: FeatureStats, width: int) -> _Vector:
    name = stats.name
    present = NotEmpty(name=f"{name}..present")(x)
    x = DecodedImages(stats.size, name=f"{name}..image")(x)
    for index, stage in enumerate(backbones.cnn(max(4, width // 4), _CNN_STAGES)):
        x = _renamed(stage, f"{name}..cnn_{index}")(x)
    x = layers.Flatten(name=f"{name}..flat")(x)
    x = layers.Dropout(_DROPOUT, name=f"{name}..dropout")(x)
    return _vector(x, name, width), present


def _encode_vector(x: keras.KerasTensor, stats: FeatureStats, width: int) -> _Vector:
    name = stats.name
    present = NotMissing(name=f"{name}..present")(x)
    x = layers.Normalization(
        mean=list(stats.mean),
        variance=[max(v, _SMALLEST_VARIANCE) for v in stats.variance],
        dtype="float32",
        name=f"{name}..standardised",
    )(x)
    x = FilledNumbers(dtype="float32", name=f"{name}..filled")(x)
    return _vector(x, name, width), present


def _vector(x: keras.KerasTensor, name: str, width: int) -> keras.KerasTensor:
    return layers.Dense(
        width, "relu", kernel_initializer="he_normal", name=f"{name}..vector"
    )(x)


def _renamed(stage: keras.layers.Layer, name: str) -> keras.layers.Layer:
    """Returns a new layer of a stage's configuration, under another name."""
    return type(stage).from_config({**stage.get_config(), "name": name})
