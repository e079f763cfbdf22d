"""Joining data sets that label different tasks into one stream of batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from mtl_keras.data.mix_elements import common_form, completed
from mtl_keras.data.mix_plan import even_order, shares, unit_counts
from mtl_keras.data.passes import by_epoch
from mtl_keras.errors import InputError, check_integer

_MOST_PASSES = np.iinfo(np.int32).max


def mix(
    sources: Mapping[str, tf.data.Dataset],
    *,
    batch_size: int,
    by: str = "size",
    temperature: float = 1.0,
    ratio: Mapping[str, float] | None = None,
    homogeneous: bool = False,
    even: bool = False,
    ends: str | int = "longest",
    shuffle: bool = True,
    buffer_size: int | None = None,
    seed: int = 0,
    presence: str | None = None,
) -> Mixture:
    """Joins sources that label different tasks into one stream.

    Every source gives samples `(inputs, labels)` or `(inputs, labels, sample
    weights)`, each a dict of tensors by name, unbatched; the stream gives batches
    of all three with the names of all sources. An input that a source lacks is
    filled with zeros or empty strings. A label that it lacks is filled likewise and
    has the sample weight 0, which marks it as absent for `MultiTaskModel`.

    Args:
        sources: Data sets by name, of known and finite size.
        batch_size: Samples per batch.
        by: How large a source's share of the stream is:
            `"size"` (as many samples as it has, so that an epoch has every sample
            of every source exactly once), `"temperature"` (size ** (1 /
            temperature)) or `"ratio"` (as `ratio` says).
        temperature: 1 for shares by size; the higher, the more equal. Arivazhagan
            et al., "Massively Multilingual Neural Machine Translation in the
            Wild", arXiv 1907.05019.
        ratio: Share of each source, relative to the others.
        homogeneous: Whether each batch is of one source only. Shares then count
            batches, and the sources take turns as evenly as shares allow: equal
            shares give rounds with one batch of each source. The last batch of
            every pass over a source may be smaller.
        even: Whether every batch that is not homogeneous has its share of each source,
            up to one sample: sources take turns as evenly as shares allow. Gradient
            balancing then sees all tasks in every step.
        ends: When an epoch ends: `"longest"`, when every source has been given in
            full at least once, shorter ones anew as often as it takes;
            `"shortest"`, when the first source has been given in full; or after
            this number of steps. By size, the first two are the same.
        shuffle: Whether each pass over a source has an order of its own. Where
            batches are neither homogeneous nor even, whether the sources take turns at
            random.
        buffer_size: Samples to draw from while shuffling a source; `None` for all
            of them, which then have to fit into memory.
        seed: Seed of all orders, which depend on nothing else.
        presence: Suffix of further inputs, bool scalars that tell whether the input
            of this name is there: `presence="_present"` adds `image_present` where
            a source lacks `image`. `None` adds none.

    Returns:
        A `Mixture`, whose `dataset()` is what `fit` takes.

    Raises:
        InputError: A source is empty, of unknown or endless size, or of another
            form; or an argument is unknown or out of range.
    """
    return Mixture(
        sources,
        batch_size=batch_size,
        by=by,
        temperature=temperature,
        ratio=ratio,
        homogeneous=homogeneous,
        even=even,
        ends=ends,
        shuffle=shuffle,
        buffer_size=buffer_size,
        seed=seed,
        presence=presence,
    )


class Mixture:
    """A stream of batches out of several sources; made by `mix`.

    An epoch resumes every source where the last one stopped, so that a source
    of which one epoch gives a part is given in full over several. The position in
    the stream is epoch and step, and nothing else: there is no state to save.

    Attributes:
        steps: Batches in an epoch.
        counts: `{source: draws in an epoch}`, in samples, or in batches where
            batches are homogeneous.

    Raises:
        InputError: See `mix`.
    """

    def __init__(
        self,
        sources: Mapping[str, tf.data.Dataset],
        *,
        batch_size: int,
        by: str,
        temperature: float,
        ratio: Mapping[str, float] | None,
        homogeneous: bool,
        even: bool,
        ends: str | int,
        shuffle: bool,
        buffer_size: int | None,
        seed: int,
        presence: str | None,
    ):
        if not sources:
            raise InputError("Expected at least one source to mix. Received: none.")
        self._batch_size = check_integer("batch_size", batch_size, low=1)
        self._seed = check_integer("seed", seed, low=0)
        if buffer_size is not None:
            check_integer("buffer_size", buffer_size, low=1)
        sizes = {name: _size(name, source) for name, source in sources.items()}
        share = shares(sizes, by, temperature, ratio)
        if homogeneous:
            units = [-(-size // batch_size) for size in sizes.values()]
            # By size, an epoch is one pass, with its smaller last batches.
            share = np.array(units, float) if by == "size" else share
        else:
            units = list(sizes.values())
        per_step = 1 if homogeneous else batch_size
        counts = unit_counts(units, share, ends, per_step)
        self.counts = dict(zip(sizes, map(int, counts), strict=True))
        self.steps = -(-int(counts.sum()) // per_step)
        self._homogeneous, self._shuffle = homogeneous, shuffle
        self._at_random = shuffle and not homogeneous and not even
        self._per_step, self._units, self._draws = per_step, units, counts
        self._buffers = [buffer_size or size for size in sizes.values()]
        self._order = even_order(counts)
        self._form = common_form(sources)
        self._sources = [
            completed(source, self._form, presence) for source in sources.values()
        ]
        self._padded = not all(
            spec.shape.is_fully_defined()
            for specs in self._form[:3]
            for spec in specs.values()
        )

    def dataset(
        self, first_epoch: int = 0, epoch: tf.Variable | None = None
    ) -> tf.data.Dataset:
        """Returns a data set that gives another epoch each time it is iterated.

        Args:
            first_epoch: Number of the epoch that the first iteration gives.
            epoch: Number of the epoch to give, an int64 scalar that is read at the
                start of each iteration; `None` counts the iterations.

        Returns:
            `steps` batches `(inputs, labels, sample weights)`.
        """
        check_integer("first_epoch", first_epoch, low=0)
        stream = by_epoch(
            lambda number: self._epoch(number, 0), self.steps, epoch, first_epoch
        )
        return stream.prefetch(tf.data.AUTOTUNE)

    def epoch(self, number: int, step: int = 0) -> tf.data.Dataset:
        """Returns one epoch, or the rest of it from a step on.

        To resume a training, train on `epoch(number, step)` first and on
        `dataset(number + 1)` then. The sources are read again up to the place in
        their present pass.

        Args:
            number: Number of the epoch, from 0.
            step: Number of batches to leave out, less than `steps`.

        Returns:
            `steps - step` batches `(inputs, labels, sample weights)`.

        Raises:
            InputError: There is no such epoch or step.
        """
        check_integer("number", number, low=0)
        if check_integer("step", step, low=0) >= self.steps:
            raise InputError(
                f"Expected `step` to be below the {self.steps} steps of an epoch. "
                f"Received: step={step}."
            )
        stream = self._epoch(tf.constant(number, tf.int64), step)
        rest = tf.data.experimental.assert_cardinality(self.steps - step)
        return stream.apply(rest).prefetch(tf.data.AUTOTUNE)

    def _epoch(self, epoch: tf.Tensor, step: int) -> tf.data.Dataset:
        first = step * self._per_step
        last = int(self._draws.sum())
        taken = self._taken(epoch, first)
        streams = [
            self._stream(index, epoch * int(draws) + taken[index])
            for index, draws in enumerate(self._draws)
        ]
        turns = tf.data.Dataset.range(first, last).map(
            lambda draw: self._sources_of(epoch, draw)
        )
        stream = tf.data.Dataset.choose_from_datasets(
            streams, turns, stop_on_empty_dataset=False
        )
        return stream if self._homogeneous else self._batched(stream)

    def _taken(self, epoch: tf.Tensor, draws: int) -> tf.Tensor:
        """Returns how often each source is in an epoch's first draws, int64."""
        if not draws:
            return tf.zeros((len(self._sources),), tf.int64)
        sources = self._sources_of(epoch, tf.range(draws, dtype=tf.int64))
        return tf.reduce_sum(tf.one_hot(sources, len(self._sources), dtype=tf.int64), 0)

    def _sources_of(self, epoch: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Returns the source of each draw of an epoch, int64."""
        if self._at_random:
            # A permutation that can be asked for any place, without a state.
            draws = tf.random.experimental.index_shuffle(
                draws,
                seed=tf.stack([tf.constant(self._seed, tf.int64), epoch]),
                max_index=len(self._order) - 1,
            )
        return tf.gather(tf.constant(self._order), draws)

    def _stream(self, index: int, place: tf.Tensor) -> tf.data.Dataset:
        """Returns a source without end, from a place (in units) on."""
        units = self._units[index]
        first_pass = place // units
        skipped = (place % units) * (self._batch_size if self._homogeneous else 1)

        def one_pass(number: tf.Tensor) -> tf.data.Dataset:
            source = self._sources[index]
            if self._shuffle:
                # The seed of this function's graph: without it, TensorFlow's global
                # seed would take part.
                tf.compat.v1.set_random_seed(self._seed + 1)
                source = source.shuffle(
                    self._buffers[index],
                    seed=number * len(self._sources) + index,
                    reshuffle_each_iteration=False,
                )
            source = source.skip(tf.where(number == first_pass, skipped, 0))
            return self._batched(source) if self._homogeneous else source

        return tf.data.Dataset.range(first_pass, _MOST_PASSES).flat_map(one_pass)

    def _batched(self, stream: tf.data.Dataset) -> tf.data.Dataset:
        if self._padded:
            return stream.padded_batch(self._batch_size)
        return stream.batch(self._batch_size)


def _size(name: str, source: Any) -> int:
    size = int(source.cardinality())
    if size == 0:
        raise InputError(
            f"Expected every source to have samples. Received: {name!r} is empty."
        )
    if size < 0:
        raise InputError(
            f"Expected the source {name!r} to be of known and finite size. Received: "
            f"{'an endless' if size == tf.data.INFINITE_CARDINALITY else 'an unknown'}"
            " number of samples. If it is known, apply "
            "tf.data.experimental.assert_cardinality."
        )
    return size
