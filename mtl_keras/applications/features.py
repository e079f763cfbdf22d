"""From raw columns to one vector, by Keras layers inside the model.

`keras.utils.FeatureSpace` does not fit here: it learns its vocabularies from a pass
over the data, while ours are prepared with the data set, and it has no embeddings
that columns share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers, ops

from mtl_keras.data.columns import Column
from mtl_keras.embeddings import SparseEmbedding

FIELD_WIDTH = 8
"""Embedding width of small categories and of numbers' bins."""

ENTITY_WIDTH = 16
"""Embedding width of what a history refers to, and of hashed columns."""

# Standard deviations from the mean: a capital gain may lie hundreds away.
_CLIP = 5.0


@keras.saving.register_keras_serializable(package="mtl_keras")
class FieldIndices(keras.layers.Layer):
    """Row indices of F columns in one embedding table, `[batch, F]`.

    One table has one gather, one sparse gradient and one update, where a table for
    each column has F. Called on F whole-number tensors `[batch]`; returns int32
    `[batch, F]`.

    Args:
        sizes: Number of distinct indices of each column.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, sizes: Sequence[int], **kwargs: Any):
        super().__init__(**{"dtype": "int32", **kwargs})
        self.sizes = list(sizes)
        self._starts = [sum(self.sizes[:index]) for index in range(len(self.sizes))]

    def call(self, inputs: list[Any]) -> Any:
        """Returns the rows of the table."""
        indices = ops.stack([ops.cast(x, "int32") for x in inputs], axis=-1)
        return indices + ops.convert_to_tensor(self._starts, "int32")

    def compute_output_spec(self, inputs: list[Any]) -> keras.KerasTensor:
        """Returns the shape and dtype of the rows."""
        return keras.KerasTensor((*inputs[0].shape, len(self.sizes)), "int32")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "sizes": self.sizes}


@keras.saving.register_keras_serializable(package="mtl_keras")
class MaskedMean(keras.layers.Layer):
    """Averages `[batch, steps, d]` over the steps whose index is not 0.

    Called on `[vectors, indices]`, `indices` `[batch, steps]`; a sample without any
    gives zeros.
    """

    def call(self, inputs: list[Any]) -> Any:
        """Returns the mean, `[batch, d]`."""
        vectors, indices = inputs
        mask = ops.cast(ops.not_equal(indices, 0), vectors.dtype)[..., None]
        total = ops.sum(vectors * mask, axis=1)
        return total / ops.maximum(ops.sum(mask, axis=1), 1.0)

    def compute_output_shape(
        self, input_shape: list[tuple[int | None, ...]]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the mean."""
        batch, _, width = input_shape[0]
        return batch, width


@keras.saving.register_keras_serializable(package="mtl_keras")
class HistoryMask(keras.layers.Layer):
    """Padding mask of a history: True for steps whose index is not 0.

    Called on indices `[batch, steps]`; returns bool of the same shape.
    """

    def call(self, inputs: Any) -> Any:
        """Returns the mask."""
        return ops.not_equal(inputs, 0)

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        """Returns the shape and dtype of the mask."""
        return keras.KerasTensor(inputs.shape, "bool")


def inputs(columns: Mapping[str, Column]) -> dict[str, keras.KerasTensor]:
    """Returns new model inputs: `[batch]`, or `[batch, length]` for sequences."""
    return {
        name: keras.Input(
            () if column.length is None else (column.length,),
            dtype=column.dtype,
            name=name,
        )
        for name, column in columns.items()
    }


def encode(
    raw: Mapping[str, keras.KerasTensor],
    columns: Mapping[str, Column],
    history: str,
    width: int,
) -> keras.KerasTensor:
    """Returns raw columns encoded as one vector.

    - Small categories are looked up (`StringLookup`, `IntegerLookup`), numbers are
      put into their bins (`Discretization`), and both are embedded by one table.
    - Numbers also come in normalised (`Normalization`).
    - Hashed columns (`Hashing`) and categories that a history refers to have a
      table of their own.
    - Sequences that share another column's table are the history, which `history`
      encodes; other sequences are averaged.

    Args:
        raw: The model's inputs.
        columns: Their columns.
        history: `"attention"` or `"gru"`.
        width: Width of the encoded history.

    Returns:
        `[batch, d]`.
    """
    encoder = _Encoder(columns)
    parts: list[keras.KerasTensor] = []
    fields: list[keras.KerasTensor] = []
    sizes: list[int] = []
    numbers: list[keras.KerasTensor] = []
    for name, column in columns.items():
        if column.length is not None:
            continue
        if column.kind == "number":
            fields.append(
                layers.Discretization(list(column.boundaries), name=f"{name}_bins")(
                    raw[name]
                )
            )
            sizes.append(len(column.boundaries) + 1)
            numbers.append(_normalised(name, column, raw[name]))
        elif encoder.has_table(name):
            parts.append(encoder.embed(name, encoder.index(name, raw[name])))
        else:
            fields.append(encoder.index(name, raw[name]))
            sizes.append(encoder.size(name))
    if fields:
        rows = FieldIndices(sizes, name="fields")(fields)
        parts.append(embed_fields(rows, sum(sizes)))
    if numbers:
        parts.append(layers.Concatenate(name="numbers")(numbers))
    for name, column in columns.items():
        alone = column.length is not None and column.same_as is None
        if alone and column.kind == "category":
            index = encoder.index(name, raw[name])
            vectors = encoder.embed(name, index)
            parts.append(MaskedMean(name=f"{name}_mean")([vectors, index]))
    if (encoded := _history(raw, columns, encoder, history, width)) is not None:
        parts.append(encoded)
    return layers.Concatenate(name="features")(parts)


def embed_fields(rows: keras.KerasTensor, size: int) -> keras.KerasTensor:
    """Returns the vectors of `[batch, F]` rows of one table, one after the other.

    Args:
        rows: `FieldIndices`' result.
        size: Number of rows of the table.
    """
    table = SparseEmbedding(size, FIELD_WIDTH, name="field_embedding")
    return layers.Flatten(name="field_vectors")(table(rows))


def _history(
    raw: Mapping[str, keras.KerasTensor],
    columns: Mapping[str, Column],
    encoder: _Encoder,
    kind: str,
    width: int,
) -> keras.KerasTensor | None:
    """Returns the encoded history, `[batch, width]`; None without one."""
    steps: list[keras.KerasTensor] = []
    candidate: list[keras.KerasTensor] = []
    mask = None
    for name, column in columns.items():
        if column.same_as is not None:
            index = encoder.index(column.same_as, raw[name])
            steps.append(encoder.embed(column.same_as, index))
            source = encoder.index(column.same_as, raw[column.same_as])
            candidate.append(encoder.embed(column.same_as, source))
            if mask is None:
                mask = HistoryMask(name="history_mask")(index)
        elif column.kind == "number" and column.length is not None:
            steps.append(_normalised(name, column, raw[name]))
    if mask is None:
        return None
    sequence = layers.Concatenate(name="history")(steps)
    if kind == "gru":
        # cuDNN does not take left padding, as here: newest last.
        gru = layers.GRU(width, use_cudnn=False, name="history_gru")
        return gru(sequence, mask=mask)
    return _attention(sequence, candidate, mask, width)


def _attention(
    sequence: keras.KerasTensor,
    candidate: list[keras.KerasTensor],
    mask: keras.KerasTensor,
    width: int,
) -> keras.KerasTensor:
    """Attention pooling of a history, with the candidate item as the query.

    The idea of Zhou et al., "Deep Interest Network for Click-Through Rate
    Prediction", KDD 2018 (arXiv:1706.06978). Differs from it in that the weights are
    those of dot-product attention with two heads, and that steps have position
    embeddings.
    """
    length = sequence.shape[1]
    keys = layers.Dense(width, name="history_steps")(sequence)
    places = PlaceEmbedding(length, width, name="history_places")(keys)
    joined = candidate[0]
    if len(candidate) > 1:
        joined = layers.Concatenate(name="candidate")(candidate)
    query = layers.Reshape((1, joined.shape[-1]), name="candidate_step")(joined)
    query = layers.Dense(width, name="candidate_query")(query)
    pooled = layers.MultiHeadAttention(2, max(1, width // 2), name="history_attention")(
        query, places, attention_mask=layers.Reshape((1, length))(mask)
    )
    return layers.Flatten(name="history_pooled")(pooled)


@keras.saving.register_keras_serializable(package="mtl_keras")
class PlaceEmbedding(keras.layers.Layer):
    """Learnt position embedding, added to the steps of `[batch, length, width]`.

    Args:
        length: Number of steps.
        width: Width of a step.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, length: int, width: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.length = length
        self.width = width

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the vectors."""
        self.places = self.add_weight(
            shape=(self.length, self.width), initializer="uniform", name="places"
        )

    def call(self, inputs: Any) -> Any:
        """Returns the sum."""
        return inputs + self.places

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "length": self.length, "width": self.width}


class _Encoder:
    """Lookups and embedding tables, one of each a column, made when needed."""

    def __init__(self, columns: Mapping[str, Column]):
        self._columns = columns
        self._lookups: dict[str, keras.layers.Layer] = {}
        self._tables: dict[str, keras.layers.Layer] = {}
        self._shared = {column.same_as for column in columns.values()}

    def has_table(self, name: str) -> bool:
        """Returns whether the column has an embedding table of its own."""
        return self._columns[name].kind == "hashed" or name in self._shared

    def size(self, name: str) -> int:
        """Returns the number of indices: 0 for padding, 1 for unknown values."""
        column = self._columns[name]
        if column.kind == "hashed":
            return column.buckets + 1
        return len(column.vocabulary) + 2

    def index(self, name: str, values: keras.KerasTensor) -> keras.KerasTensor:
        """Returns whole numbers; padding is 0."""
        if name not in self._lookups:
            column = self._columns[name]
            mask: Any = "" if column.dtype == "string" else 0
            if column.kind == "hashed":
                lookup = layers.Hashing(
                    column.buckets + 1, mask_value=mask, name=f"{name}_hash"
                )
            else:
                cls = (
                    layers.StringLookup
                    if column.dtype == "string"
                    else layers.IntegerLookup
                )
                lookup = cls(
                    vocabulary=list(column.vocabulary),
                    mask_token=mask,
                    name=f"{name}_lookup",
                )
            self._lookups[name] = lookup
        return self._lookups[name](values)

    def embed(self, name: str, index: keras.KerasTensor) -> keras.KerasTensor:
        """Returns vectors of the column's own table."""
        if name not in self._tables:
            width = ENTITY_WIDTH if self.has_table(name) else FIELD_WIDTH
            self._tables[name] = SparseEmbedding(
                self.size(name), width, name=f"{name}_embedding"
            )
        return self._tables[name](index)


def _normalised(
    name: str, column: Column, values: keras.KerasTensor
) -> keras.KerasTensor:
    """Returns a number in standard deviations, with a last axis of 1."""
    shape = (1,) if column.length is None else (column.length, 1)
    x = layers.Reshape(shape, name=f"{name}_column")(values)
    x = layers.Normalization(
        axis=None, mean=column.mean, variance=column.variance, name=f"{name}_normalised"
    )(x)
    return ops.clip(x, -_CLIP, _CLIP)
