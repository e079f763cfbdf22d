"""Samples of a table as a model is given them, from memory or streamed."""

from __future__ import annotations

import itertools
import pathlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mtl_keras.data.passes import by_epoch, shuffled
from mtl_keras.data.tables.describing import split_chunks
from mtl_keras.data.tables.description import FeatureStats, TaskStats
from mtl_keras.data.tables.labels import model_labels, owners
from mtl_keras.data.tables.reading import Chunk, MemoryReader, Unit
from mtl_keras.data.tables.schema import SPLITS, TaskBy
from mtl_keras.data.tables.values import image_paths, numbers, texts, vectors
from mtl_keras.errors import InputError

_BUFFER_ROWS = 1 << 18
_UNITS_AT_A_TIME = 4

Arrays = dict[str, dict[str, np.ndarray]]


def feature_values(
    chunk: Chunk, features: Mapping[str, FeatureStats], folder: pathlib.Path
) -> dict[str, np.ndarray]:
    """Returns raw values by the model's inputs.

    float32 of numbers, `[rows]`, and vectors, `[rows, length]`, NaN where missing;
    else text `[rows]`, "" where missing, which is the path of an image.

    Args:
        chunk: The rows.
        features: Inputs by name.
        folder: The folder that paths of images are relative to.

    Raises:
        InputError: For a value of another kind or an image that is no file, with the
            row.
    """
    values = {}
    for name, stats in features.items():
        if stats.kind == "number":
            column = numbers(chunk, stats.title, stats.dates).astype(np.float32)
        elif stats.kind == "vector":
            column = vectors(chunk, stats.title, stats.length)
        elif stats.kind == "image":
            column = image_paths(chunk, stats.title, folder)
        else:
            column = texts(chunk, stats.title)
        values[name] = column
    return values


class Samples:
    """One split of a table, for some of its tasks.

    Args:
        table: The table.
        split: One of `SPLITS`.
        tasks: The tasks by name.
        limit: Number of rows with a label of any of the table's tasks, spread over the
            split; None for all. Those with a label of `tasks` are the samples, so that
            models of other tasks train on the same rows.
        columns: Tasks by output, of outputs that are groups of them, each a column;
            the others have an output each.

    Raises:
        InputError: If no row within the limit has a label of `tasks`.
    """

    def __init__(
        self,
        table: Any,
        split: str,
        tasks: Mapping[str, TaskStats],
        limit: int | None = None,
        columns: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
    ):
        self._table = table
        self._columns = dict(columns)
        grouped = set(itertools.chain(*self._columns.values()))
        self._single = [name for name in tasks if name not in grouped]
        self._split = SPLITS.index(split)
        self._tasks = dict(tasks)
        self._owner = {name: index for index, name in enumerate(tasks)}
        self._by = isinstance(table.file.tasks, TaskBy)
        description = table.description
        self._all_tasks = len(tasks) == len(description.tasks)
        rows = description.rows[split] - description.unlabelled[split]
        self._share = None if limit is None or limit >= rows else (limit, rows)
        self.count = self._count(split)
        if self._share is not None and not self.count:
            raise InputError(
                f"Expected a limit whose rows of the {split} split have a label of "
                f"{list(tasks)}. Received: limit={limit}."
            )

    def dataset(
        self,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        epoch: tf.Variable | None = None,
    ) -> tf.data.Dataset:
        """Returns batches of `(inputs, labels)`, or with sample weights.

        Args:
            batch_size: Samples per batch.
            shuffle: Whether each pass has a new order.
            seed: Seed of the orders.
            epoch: Number of the epoch whose order to give; see `by_epoch`.
        """
        if isinstance(self._table.reader, MemoryReader):
            batches = self._from_memory(batch_size, shuffle, seed, epoch)
        else:
            batches = self._streamed(batch_size, shuffle, seed, epoch)
        arranged = batches.map(self._arranged, num_parallel_calls=tf.data.AUTOTUNE)
        return arranged.prefetch(tf.data.AUTOTUNE)

    def _from_memory(
        self, batch_size: int, shuffle: bool, seed: int, epoch: tf.Variable | None
    ) -> tf.data.Dataset:
        arrays = _concatenated(list(self.chunks(self._table.reader.units)))
        samples = {
            part: {name: tf.constant(values) for name, values in named.items()}
            for part, named in arrays.items()
        }
        order = tf.data.Dataset.range(self.count)
        if shuffle:
            order = shuffled(order, self.count, seed, epoch)
        # Rows are gathered a batch at a time: a table of 40 columns passed on row by
        # row would take longer than the training.
        return order.batch(batch_size).map(
            lambda rows: tf.nest.map_structure(lambda x: tf.gather(x, rows), samples),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def _streamed(
        self, batch_size: int, shuffle: bool, seed: int, epoch: tf.Variable | None
    ) -> tf.data.Dataset:
        first = next(self.chunks(self._table.reader.units))
        signature = {
            part: {
                name: tf.TensorSpec(
                    (None, *values.shape[1:]), tf.as_dtype(_dtype(values))
                )
                for name, values in named.items()
            }
            for part, named in first.items()
        }

        def generate(number: int) -> Iterator[Arrays]:
            chunks = (
                self._shuffled_chunks(seed, int(number), batch_size)
                if shuffle
                else self.chunks(self._table.reader.units)
            )
            yield from _rebatched(chunks, batch_size)

        def one_epoch(number: tf.Tensor) -> tf.data.Dataset:
            return tf.data.Dataset.from_generator(
                generate, args=(number,), output_signature=signature
            )

        return by_epoch(one_epoch, -(-self.count // batch_size), epoch)

    def chunks(self, units: Sequence[Unit]) -> Iterator[Arrays]:
        """Yields the split's samples in order, `{"features": …, "labels": …}`."""
        table = self._table
        for chunk, labels, rows in self._labelled(units):
            if len(rows):
                features = feature_values(
                    chunk, table.description.features, table.folder
                )
                yield _taken({"features": features, "labels": labels}, rows)

    def _labelled(
        self, units: Sequence[Unit]
    ) -> Iterator[tuple[Chunk, dict[str, np.ndarray], np.ndarray]]:
        """Yields chunks with their labels, and the rows of them that are samples."""
        seen = 0
        table = self._table
        for chunk, splits in split_chunks(
            table.file, table.reader, table.splitter, units
        ):
            labels, labelled = self._labels(chunk)
            kept = splits == self._split
            if self._share is not None:
                counted = kept & (
                    labelled if self._all_tasks else self._is_any_labelled(chunk)
                )
                limit, count = self._share
                ordinal = seen + np.arange(counted.sum() + 1)
                seen = ordinal[-1]
                kept[counted] = np.diff(ordinal * limit // count) > 0
            yield chunk, labels, np.flatnonzero(kept & labelled)

    def _shuffled_chunks(
        self, seed: int, epoch: int, batch_size: int
    ) -> Iterator[Arrays]:
        """Yields the samples in an order that depends on seed and epoch alone.

        Units come in a random order, several at a time, and pass through a buffer.
        """
        random = np.random.default_rng([seed, epoch])
        units = list(self._table.reader.units)
        if self._share is None:
            random.shuffle(units)
        pool: list[Arrays] = []
        rows = 0
        for arrays in self._interleaved(units):
            pool.append(arrays)
            rows += _length(arrays)
            if rows >= _BUFFER_ROWS:
                whole = _concatenated(pool)
                order = random.permutation(rows)
                half = max(rows // 2 // batch_size, 1) * batch_size
                yield _taken(whole, order[:half])
                pool, rows = [_taken(whole, order[half:])], len(order[half:])
        if rows:
            yield _taken(_concatenated(pool), random.permutation(rows))

    def _interleaved(self, units: Sequence[Unit]) -> Iterator[Arrays]:
        if self._share is not None:
            # Which rows are kept is counted from the first.
            yield from self.chunks(units)
            return
        waiting = [self.chunks([unit]) for unit in reversed(units)]
        active: list[Iterator[Arrays]] = []
        while waiting or active:
            while waiting and len(active) < _UNITS_AT_A_TIME:
                active.append(waiting.pop())
            for chunks in list(active):
                arrays = next(chunks, None)
                if arrays is None:
                    active.remove(chunks)
                else:
                    yield arrays

    def _labels(self, chunk: Chunk) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Returns the labels of a chunk, and which rows have one."""
        table = self._table
        if self._by:
            owner = owners(table.file, chunk)
            assert owner is not None
            some = next(iter(self._tasks.values()))
            titles = {self._tasks[name].title: i for name, i in self._owner.items()}
            index = np.array([titles.get(title, -1) for title in owner], np.int32)
            values, present = model_labels(table.file, chunk, some)
            return {"owner": index, "label": values}, present & (index >= 0)
        labels: dict[str, np.ndarray] = {}
        labelled = np.zeros(len(chunk), bool)
        for name, task in self._tasks.items():
            values, present = model_labels(table.file, chunk, task)
            labels[f"label {name}"] = values
            labels[f"present {name}"] = present
            labelled |= present
        for output, names in self._columns.items():
            for part in ("label", "present"):
                columns = [labels.pop(f"{part} {name}") for name in names]
                labels[f"{part} {output}"] = np.stack(columns, axis=1)
        return labels, labelled

    def _is_any_labelled(self, chunk: Chunk) -> np.ndarray:
        """Returns which rows of a chunk have a label of any of the table's tasks."""
        file, tasks = self._table.file, list(self._table.description.tasks.values())
        owner = owners(file, chunk)
        if owner is not None:  # One column has the labels of all tasks.
            return model_labels(file, chunk, tasks[0]).present & (owner != "")
        present = [model_labels(file, chunk, task).present for task in tasks]
        return np.any(present, axis=0)

    def _count(self, split: str) -> int:
        description = self._table.description
        if self._share is not None and self._all_tasks:
            return self._share[0]
        if self._share is not None:
            units = self._table.reader.units
            return sum(len(rows) for *_, rows in self._labelled(units))
        if self._by or len(self._tasks) == 1:
            return sum(task.labels[split] for task in self._tasks.values())
        if self._all_tasks:
            return description.rows[split] - description.unlabelled[split]
        return self._table.count_labelled(split, tuple(self._tasks))

    def _arranged(self, arrays: Any) -> tuple[Any, ...]:
        inputs = dict(arrays["features"])
        for name, stats in self._table.description.features.items():
            if stats.kind == "image":
                inputs[name] = tf.map_fn(read_image, inputs[name])
        labels, weights = {}, {}
        for output in self._columns:
            labels[output], weights[output] = self._group(arrays["labels"], output)
        for name in self._single:
            labels[name], weights[name] = self._one(arrays["labels"], name)
        if self._weighted():
            return inputs, labels, weights
        return inputs, labels

    def _one(
        self, labels: Mapping[str, tf.Tensor], name: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns label and sample weight of a task with an output of its own."""
        task = self._tasks[name]
        if self._by:
            present = tf.equal(labels["owner"], self._owner[name])
            label = tf.where(present, labels["label"], tf.zeros_like(labels["label"]))
        else:
            present, label = labels[f"present {name}"], labels[f"label {name}"]
        weight = tf.cast(present, tf.float32)
        if task.balanced and self._split == 0:
            by_class = tf.constant(class_weights(task), tf.float32)
            weight *= tf.gather(by_class, tf.cast(label, tf.int32))
        return label if task.kind == "multiclass" else label[:, None], weight

    def _group(
        self, labels: Mapping[str, tf.Tensor], output: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns labels and sample weights of a group, float32 `[batch, T]`."""
        names = self._columns[output]
        if self._by:
            own = [self._owner[name] for name in names]
            present = tf.equal(labels["owner"][:, None], own)
            label = tf.where(present, labels["label"][:, None], 0.0)
        else:
            present, label = labels[f"present {output}"], labels[f"label {output}"]
        weight = tf.cast(present, tf.float32)
        tasks = [self._tasks[name] for name in names]
        if self._split == 0 and any(task.balanced for task in tasks):
            weighted = [class_weights(t) if t.balanced else [1.0, 1.0] for t in tasks]
            negative, positive = np.transpose(weighted).astype(np.float32)
            weight *= tf.where(label > 0.5, positive, negative)
        return label, weight

    def _weighted(self) -> bool:
        """Returns whether samples have weights: absent labels or balanced classes."""
        rows = self._table.description.rows
        return any(
            task.balanced or dict(task.labels) != dict(rows)
            for task in self._tasks.values()
        )


def class_weights(task: TaskStats) -> list[float]:
    """Returns the weight of each class's training rows, their mean being 1."""
    counts = task.counts["train"]
    present = sum(count > 0 for count in counts)
    return [
        task.labels["train"] / (present * count) if count else 0.0 for count in counts
    ]


def read_image(path: tf.Tensor) -> tf.Tensor:
    """Returns the bytes of a file, a string scalar; those of the path "" are "".

    Args:
        path: String scalar.
    """
    return tf.cond(tf.equal(path, ""), lambda: "", lambda: tf.io.read_file(path))


def _dtype(values: np.ndarray) -> Any:
    return tf.string if values.dtype == object else values.dtype


def _length(arrays: Arrays) -> int:
    return len(next(iter(arrays["labels"].values())))


def _taken(arrays: Arrays, rows: np.ndarray | slice) -> Arrays:
    return {
        part: {name: values[rows] for name, values in named.items()}
        for part, named in arrays.items()
    }


def _concatenated(parts: Sequence[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {
        part: {
            name: np.concatenate([arrays[part][name] for arrays in parts])
            for name in named
        }
        for part, named in parts[0].items()
    }


def _rebatched(chunks: Iterator[Arrays], batch_size: int) -> Iterator[Arrays]:
    """Yields the same samples in batches of one size, the last one smaller."""
    rest: list[Arrays] = []
    for arrays in chunks:
        joined = _concatenated([*rest, arrays])
        rows = _length(joined)
        whole = rows - rows % batch_size
        for start in range(0, whole, batch_size):
            yield _taken(joined, slice(start, start + batch_size))
        rest = [_taken(joined, slice(whole, rows))] if whole < rows else []
    yield from rest
