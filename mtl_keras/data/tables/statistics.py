"""Statistics of single columns, gathered chunk by chunk in constant memory."""

from __future__ import annotations

import collections
import dataclasses
import pathlib

import numpy as np

from mtl_keras.data.tables.description import FeatureStats
from mtl_keras.data.tables.reading import Chunk
from mtl_keras.data.tables.schema import Feature
from mtl_keras.data.tables.values import (
    image_paths,
    is_dated,
    numbers,
    texts,
    vectors,
)

_SAMPLE = 1 << 18
_BINS = 32
_MOST_DISTINCT = 1 << 21


class Numbers:
    """Mean, variance, range and quantiles of numbers.

    The quantiles are exact up to 262,144 values; beyond, they are those of every
    second, fourth, … value.
    """

    def __init__(self) -> None:
        self.count = self.missing = 0
        self.low, self.high = np.inf, -np.inf
        self._mean = self._squares = 0.0
        self._sample = np.zeros(0)
        self._stride = 1
        self._offset = 0

    def add(self, values: np.ndarray) -> None:
        """Adds numbers, float64 `[n]`, NaN where missing."""
        present = values[~np.isnan(values)]
        self.missing += len(values) - len(present)
        if not len(present):
            return
        self.low = min(self.low, present.min())
        self.high = max(self.high, present.max())
        # Chan et al.: means and squares of two parts are merged.
        mean, count = present.mean(), len(present)
        change, total = mean - self._mean, self.count + len(present)
        self._squares += ((present - mean) ** 2).sum()
        self._squares += change**2 * self.count * count / total
        self._mean += change * count / total
        self.count = total
        kept = present[self._offset :: self._stride]
        self._offset = (self._offset - len(present)) % self._stride
        self._sample = np.concatenate([self._sample, kept])
        while len(self._sample) > _SAMPLE:
            self._sample = self._sample[::2]
            self._stride *= 2

    @property
    def mean(self) -> float:
        """Mean; 0 without values."""
        return float(self._mean)

    @property
    def variance(self) -> float:
        """Variance; 0 without values."""
        return float(self._squares / self.count) if self.count else 0.0

    def boundaries(self) -> tuple[float, ...]:
        """Returns inner boundaries of bins; the most frequent value has its own."""
        if not len(self._sample):
            return ()
        distinct, counts = np.unique(self._sample, return_counts=True)
        mode = np.float32(distinct[np.argmax(counts)])
        others = self._sample[self._sample != distinct[np.argmax(counts)]]
        edges = [mode, np.nextafter(mode, np.float32(np.inf))]
        if len(others):
            edges += np.quantile(others, np.linspace(0, 1, _BINS + 1)[1:-1]).tolist()
        boundaries = np.unique(np.asarray(edges, np.float32))
        return tuple(boundaries[np.isfinite(boundaries)].tolist())


class Collector:
    """Statistics of one feature.

    Args:
        name: Name of the model's input.
        title: Name of the column.
        feature: Its settings in the data file.
        folder: The folder that paths of images are relative to.
    """

    def __init__(self, name: str, title: str, feature: Feature, folder: pathlib.Path):
        self._base = FeatureStats(name, title, feature.kind, by=feature.by)
        self._feature = feature
        self._folder = folder
        self._missing = 0
        self._numbers = Numbers()
        self._counts: collections.Counter[str] = collections.Counter()
        self._texts: list[str] = []
        self._dates: bool | None = None
        self._length: int | None = None
        self._sums: list[np.ndarray] = []

    def add(self, chunk: Chunk, train: np.ndarray) -> None:
        """Adds a chunk; only the training rows count, but all values are checked."""
        title = self._base.title
        if self._feature.kind == "number":
            if self._dates is None:
                self._dates = is_dated(chunk.columns[title])
            values = numbers(chunk, title, bool(self._dates))
            self._numbers.add(values[train])
        elif self._feature.kind == "vector":
            self._add_vectors(vectors(chunk, title, self._length)[train])
        elif self._feature.kind == "image":
            paths = image_paths(chunk, title, self._folder)
            self._missing += int((paths[train] == "").sum())
        else:
            values = texts(chunk, title)[train]
            self._missing += int((values == "").sum())
            if self._feature.kind == "text":
                self._texts += [v for v in values if v][: _SAMPLE - len(self._texts)]
            else:
                self._counts.update(values.tolist())
                if len(self._counts) > _MOST_DISTINCT:
                    self._counts = collections.Counter(
                        dict(self._counts.most_common(_MOST_DISTINCT // 2))
                    )

    def _add_vectors(self, values: np.ndarray) -> None:
        present = values[~np.isnan(values).any(axis=1)].astype(np.float64)
        self._missing += len(values) - len(present)
        self._length = values.shape[1] or self._length
        ones = np.full((1, values.shape[1]), len(present), np.float64)
        self._sums.append(
            np.concatenate([ones, present.sum(0)[None], (present**2).sum(0)[None]])
        )

    def result(self) -> FeatureStats:
        """Returns the statistics."""
        kind = self._feature.kind
        if kind == "number":
            return dataclasses.replace(
                self._base,
                missing=self._numbers.missing,
                mean=(self._numbers.mean,),
                variance=(self._numbers.variance,),
                boundaries=self._numbers.boundaries(),
                low=float(self._numbers.low) if self._numbers.count else None,
                high=float(self._numbers.high) if self._numbers.count else None,
                dates=bool(self._dates),
            )
        if kind == "category":
            # Keras keeps this one for values that it does not know.
            for reserved in ("", "[UNK]"):
                self._counts.pop(reserved, None)
            # Ties in order of the values, so that the vocabulary depends on them alone.
            ordered = sorted(self._counts, key=lambda v: (-self._counts[v], v))
            return dataclasses.replace(
                self._base,
                missing=self._missing,
                distinct=len(ordered),
                vocabulary=tuple(ordered[: self._feature.vocabulary]),
            )
        if kind == "text":
            return self._text_stats()
        if kind == "vector":
            return self._vector_stats()
        return dataclasses.replace(
            self._base, missing=self._missing, size=self._feature.size
        )

    def _text_stats(self) -> FeatureStats:
        from mtl_keras.data.tables.tokens import learn_tokens

        vocabulary, length = learn_tokens(
            self._texts, self._feature.by, self._feature.vocabulary
        )
        return dataclasses.replace(
            self._base,
            missing=self._missing,
            distinct=len(set(self._texts)),
            vocabulary=vocabulary,
            length=self._feature.length or length,
        )

    def _vector_stats(self) -> FeatureStats:
        parts = [part for part in self._sums if part.shape[1]]
        total = np.sum(parts, axis=0) if parts else np.zeros((3, 1))
        if not total[0, 0]:
            return dataclasses.replace(self._base, missing=self._missing)
        mean = total[1] / total[0]
        variance = np.maximum(total[2] / total[0] - mean**2, 0.0)
        return dataclasses.replace(
            self._base,
            missing=self._missing,
            mean=tuple(mean.tolist()),
            variance=tuple(variance.tolist()),
            length=self._length,
        )
