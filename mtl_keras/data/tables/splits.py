"""Splits of a table's rows into training, validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mtl_keras.data.tables.reading import Chunk, MemoryReader, Reader, Unit
from mtl_keras.data.tables.schema import SPLITS, DataFile, Files, Split, TaskBy
from mtl_keras.data.tables.values import factorised, is_dated, numbers, texts
from mtl_keras.errors import InputError, unknown_name

TRAIN, VALIDATION, TEST = range(3)
# Up to so many rows or groups, the shares are exact.
_EXACT = 1 << 20
_ALIASES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval"), TEST),
}


class Splitter:
    """Assigns rows to splits, each to the same one in every pass over the table.

    Args:
        file: The data file.
        reader: Reads its table.
        counts: Number of rows of each unit.
        bounds: `bounds` of an earlier pass over the same table; None finds them.

    Attributes:
        bounds: Draws or times between the splits.

    Raises:
        InputError: If a row cannot be put into a split.
    """

    def __init__(
        self,
        file: DataFile,
        reader: Reader,
        counts: Mapping[Unit, int],
        bounds: Sequence[float] | None = None,
    ):
        self._split = file.data.split
        self._tasks = file.tasks
        self._files = file.data.files if isinstance(file.data.files, Files) else None
        # Rows are numbered over all units that are split at random.
        self._first: dict[Unit, int] = {}
        total = 0
        for unit in reader.units:
            if unit.split in (None, "train"):
                self._first[unit] = total
                total += counts[unit]
        self.bounds = (
            self._find_bounds(reader, total) if bounds is None else np.array(bounds)
        )
        self._by_task: dict[str, np.ndarray] = {}
        by_task = isinstance(file.tasks, TaskBy) and not self._split.reads
        if by_task and isinstance(reader, MemoryReader) and total <= _EXACT:
            self._by_task = self._find_task_bounds(reader)

    def of(self, chunk: Chunk, unit: Unit, row: int) -> np.ndarray:
        """Returns the splits of rows, int8 `[rows]`, indices of `SPLITS`.

        Args:
            chunk: The rows, with the column that the split depends on.
            unit: The unit that they are of.
            row: Number of the first one within the unit.
        """
        if chunk.split in ("validation", "test"):
            return np.full(len(chunk), SPLITS.index(chunk.split), np.int8)
        if self._split.column is not None:
            splits = _named(chunk, self._split.column)
            # Splits that the column lacks are drawn from the training rows.
            draws = _draws(self._split.seed, self._first[unit] + row, len(chunk))
            drawn = _drawn(draws, self.bounds)
            return np.where(splits == TRAIN, drawn, splits).astype(np.int8)
        if self._split.time is not None:
            # The oldest rows are for training.
            below = np.searchsorted(
                self.bounds, _times(chunk, self._split.time), side="right"
            )
            return below.astype(np.int8)
        if self._split.group is not None:
            draws = _group_draws(chunk, self._split)
        else:
            draws = _draws(self._split.seed, self._first[unit] + row, len(chunk))
            if self._by_task:
                return self._of_tasks(chunk, draws)
        return _drawn(draws, self.bounds)

    def _of_tasks(self, chunk: Chunk, draws: np.ndarray) -> np.ndarray:
        assert isinstance(self._tasks, TaskBy)
        owner = texts(chunk, self._tasks.column).astype(str)
        splits = np.empty(len(chunk), np.int8)
        for title in np.unique(owner):
            rows = owner == title
            splits[rows] = _drawn(draws[rows], self._by_task[title])
        return splits

    def _find_task_bounds(self, reader: Reader) -> dict[str, np.ndarray]:
        """Returns bounds for each task, so that each has its share in every split."""
        assert isinstance(self._tasks, TaskBy)
        draws: dict[str, list[np.ndarray]] = {}
        for unit in self._first:
            row = self._first[unit]
            for chunk in reader.read(unit, [self._tasks.column]):
                own = _draws(self._split.seed, row, len(chunk))
                owner = texts(chunk, self._tasks.column).astype(str)
                for title in np.unique(owner):
                    draws.setdefault(title, []).append(own[owner == title])
                row += len(chunk)
        shares = self._shares()
        return {
            title: _quantiles(np.sort(np.concatenate(parts)), [shares[0], sum(shares)])
            for title, parts in draws.items()
        }

    def _find_bounds(self, reader: Reader, total: int) -> np.ndarray:
        validation, test = self._shares()
        if self._split.column is not None:
            return self._column_bounds(reader)
        if self._split.time is not None:
            times = np.sort(np.concatenate(list(self._all_times(reader))))
            ends = [1 - validation - test, 1 - test]
            return _apart(_quantiles(times, ends), times)
        if self._split.group is not None:
            draws = self._all_group_draws(reader)
        elif total <= _EXACT:
            draws = _draws(self._split.seed, 0, total)
        else:
            return np.array([validation, validation + test])
        return _quantiles(np.sort(draws), [validation, validation + test])

    def _shares(self) -> tuple[float, float]:
        """Returns the shares to take for validation and test out of the rows."""
        files = self._files
        return (
            0.0 if files and files.validation is not None else self._split.validation,
            0.0 if files and files.test is not None else self._split.test,
        )

    def _column_bounds(self, reader: Reader) -> np.ndarray:
        """Returns bounds by which the splits that a column lacks are drawn."""
        assert self._split.column is not None
        named: set[int] = set()
        train: list[np.ndarray] = []
        for unit in self._first:
            row = self._first[unit]
            for chunk in reader.read(unit, [self._split.column]):
                splits = _named(chunk, self._split.column)
                named.update(splits.tolist())
                draws = _draws(self._split.seed, row, len(chunk))
                train.append(draws[splits == TRAIN])
                row += len(chunk)
        validation = 0.0 if VALIDATION in named else self._split.validation
        test = 0.0 if TEST in named else self._split.test
        draws = np.sort(np.concatenate(train))
        return _quantiles(draws, [validation, validation + test])

    def _all_times(self, reader: Reader) -> Iterator[np.ndarray]:
        assert self._split.time is not None
        for unit in reader.units:
            for chunk in reader.read(unit, [self._split.time]):
                yield _times(chunk, self._split.time)

    def _all_group_draws(self, reader: Reader) -> np.ndarray:
        """Returns one draw for each group."""
        assert self._split.group is not None
        draws: set[float] = set()
        for unit in reader.units:
            for chunk in reader.read(unit, [self._split.group]):
                draws.update(np.unique(_group_draws(chunk, self._split)).tolist())
        return np.array(sorted(draws))


def _quantiles(ordered: np.ndarray, ends: list[float]) -> np.ndarray:
    """Returns bounds such that the given shares of the values lie below them."""
    if not len(ordered):
        return np.array(ends)
    padded = np.append(ordered, np.inf)
    return padded[[round(end * len(ordered)) for end in ends]]


def _apart(bounds: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Returns bounds between times of which many are equal.

    Where one time holds both bounds, its rows are for test, and those of the time
    before it for validation.

    Args:
        bounds: Least times for validation and for test.
        times: All times, sorted.
    """
    least, test = bounds
    earlier = times[times < test]
    if least == test and len(earlier) and earlier[-1] > times[0]:
        least = earlier[-1]
    return np.array([least, test])


def _drawn(draws: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Returns validation below the first bound, test below the second, else train."""
    order = np.array([VALIDATION, TEST, TRAIN], np.int8)
    return order[np.searchsorted(bounds, draws, side="right")]


def _draws(seed: int, first: int, count: int) -> np.ndarray:
    """Returns uniform draws of [0, 1) that depend on the seed and the row alone."""
    bits = np.random.Philox(key=seed)
    # One advance is four draws of 64 bits.
    bits.advance(first // 4)
    skip = first % 4
    return np.random.Generator(bits).random(skip + count)[skip:]


def _group_draws(chunk: Chunk, split: Split) -> np.ndarray:
    """Returns a uniform draw of [0, 1) for each row's group."""
    assert split.group is not None
    values, rows = factorised(texts(chunk, split.group))
    draws = np.array([_draw_of(f"{split.seed}:{value}") for value in values])
    return draws[rows]


def _draw_of(text: str) -> float:
    digest = hashlib.blake2b(text.encode(), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


def _named(chunk: Chunk, column: str) -> np.ndarray:
    values, rows = factorised(texts(chunk, column))
    splits = np.empty(len(values), np.int8)
    for index, value in enumerate(values):
        if value.strip().lower() not in _ALIASES:
            row = int(np.flatnonzero(rows == index)[0])
            error = unknown_name(f"split in the column {column!r}", value, SPLITS)
            raise InputError(f"{chunk.place(row)}: {error}")
        splits[index] = _ALIASES[value.strip().lower()]
    return splits[rows]


def _times(chunk: Chunk, column: str) -> np.ndarray:
    times = numbers(chunk, column, bool(is_dated(chunk.columns[column])))
    empty = np.flatnonzero(np.isnan(times))
    if empty.size:
        raise InputError(
            f"{chunk.place(int(empty[0]))}: Expected a time in the column {column!r}, "
            "by which the rows are split. Received: an empty cell."
        )
    return times
