"""The text application's data sets: one for each task, in the model's form."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

from mtl_keras import data as data_registry
from mtl_keras import errors
from mtl_keras.applications.text.tokens import tokens
from mtl_keras.data.generated.generated_text import TARGET

DEFAULT = "generated_text"
POSITIONS = 512
"""Tokens of a text that the model reads."""

_REVIEW, _CONTEXT = 200, 150
"""Tokens of training texts to keep."""

TASKS = ("sentiment", "answer", "translation")


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that labels one task.

    Attributes:
        name: The data set's name.
        task: The task that it labels.
        splits: Its splits by the application's splits.
        target: Language that is translated into; None for other tasks.
    """

    name: str
    task: str
    splits: Mapping[str, str]
    target: str | None = None


_OWN_SPLITS = {"train": "train", "validation": "validation", "test": "test"}
_SOURCES = {
    source.name: source
    for source in (
        *(
            Source(
                f"generated_text/{task}",
                task,
                _OWN_SPLITS,
                TARGET if task == "translation" else None,
            )
            for task in TASKS
        ),
        Source(
            "imdb_reviews",
            "sentiment",
            {"train": "train[:95%]", "validation": "train[95%:]", "test": "test"},
        ),
        Source(
            "squad/v1.1",
            "answer",
            {"train": "train[:98%]", "validation": "train[98%:]", "test": "validation"},
        ),
        Source("multi30k/de", "translation", _OWN_SPLITS, "de"),
        Source("multi30k/fr", "translation", _OWN_SPLITS, "fr"),
    )
}


def find(name: str) -> dict[str, Source]:
    """Returns the sources that a name stands for, by task.

    Args:
        name: `"generated_text"`, or names of data sets with commas between them.

    Raises:
        InputError: A name is unknown, or two data sets label one task.
    """
    names = [part.strip() for part in name.split(",")]
    if names == [DEFAULT]:
        names = [f"{DEFAULT}/{task}" for task in TASKS]
    by_task: dict[str, Source] = {}
    for part in names:
        if part not in _SOURCES:
            raise errors.unknown_name("data set of 'text'", part, [DEFAULT, *_SOURCES])
        source = _SOURCES[part]
        if source.task in by_task:
            raise errors.InputError(
                f"Expected one data set for {source.task!r}. Received: "
                f"{by_task[source.task].name} and {part}."
            )
        by_task[source.task] = source
    return {task: by_task[task] for task in TASKS if task in by_task}


def chosen(name: str, tasks: Iterable[str]) -> dict[str, Source]:
    """Returns the sources of some tasks, by task.

    Raises:
        InputError: A name is unknown, or no data set labels a task.
    """
    by_task = find(name)
    for task in tasks:
        if task not in by_task:
            raise errors.InputError(
                f"Expected a data set that labels {task!r}. Received: {name!r}, which "
                f"labels {', '.join(by_task)}."
            )
    return {task: by_task[task] for task in tasks}


def examples(
    source: Source, split: str, data_dir: str | os.PathLike | None
) -> tf.data.Dataset:
    """Returns the examples of a split as the data set has them."""
    return data_registry.load(source.name, source.splits[split], data_dir=data_dir)


def samples(
    source: Source,
    split: str,
    *,
    limit: int | None,
    crop: bool,
    data_dir: str | os.PathLike | None,
) -> tf.data.Dataset:
    """Returns samples `(inputs, {task: label})`, kept in memory.

    Args:
        source: The source.
        split: The application's split.
        limit: Number of samples to stop after; `None` for all.
        crop: Whether to cut long texts: of a review to the first and last tokens,
            of a context to those around the answer.
        data_dir: Folder of prepared data.
    """
    arrange: Callable[..., Any] = {
        "sentiment": _sentiment,
        "answer": _answer,
        "translation": _translation,
    }[source.task]
    rows = examples(source, split, data_dir)
    if limit is not None:
        rows = rows.take(limit)
    return rows.map(
        lambda row: arrange(row, source, crop), num_parallel_calls=tf.data.AUTOTUNE
    ).cache()


def texts(
    source: Source, data_dir: str | os.PathLike | None
) -> tuple[tf.data.Dataset, tf.data.Dataset | None]:
    """Returns the training texts to read and to write (`None` for other tasks)."""
    rows = examples(source, "train", data_dir)
    if source.task == "answer":
        # Several questions share a context.
        contexts = _field(rows, "context").unique()
        return contexts.concatenate(_field(rows, "question")), None
    if source.target is None:
        return _field(rows, "text"), None
    return _field(rows, "en"), _field(rows, source.target)


def _field(rows: tf.data.Dataset, name: str) -> tf.data.Dataset:
    return rows.map(lambda row: row[name])


def _sentiment(row: Mapping[str, Any], source: Source, crop: bool) -> Any:
    del source
    text = row["text"]
    if crop:
        words = tokens(text[None], lowercase=False)[0]
        ends = tf.concat([words[: _REVIEW // 2], words[-(_REVIEW // 2) :]], axis=0)
        shorter = tf.strings.reduce_join(ends, separator=" ")
        text = tf.where(tf.size(words) > _REVIEW, shorter, text)
    return _inputs(text), {"sentiment": tf.cast(row["label"], tf.float32)[None]}


def _answer(row: Mapping[str, Any], source: Source, crop: bool) -> Any:
    del source
    text, answer = row["context"], row["answers"]["text"][0]
    before = tf.strings.substr(
        text, 0, row["answers"]["answer_start"][0], unit="UTF8_CHAR"
    )
    sizes = tokens(tf.stack([before, answer]), lowercase=False).row_lengths()
    first, length = tf.cast(sizes[0], tf.int32), tf.cast(sizes[1], tf.int32)
    if crop:
        words = tokens(text[None], lowercase=False)[0]
        count = tf.size(words)
        # Anywhere that the answer is inside of, by the question's hash.
        earliest = tf.maximum(first + length - _CONTEXT, 0)
        latest = tf.minimum(first, tf.maximum(count - _CONTEXT, 0))
        room = tf.maximum(latest - earliest + 1, 1)
        drawn = tf.strings.to_hash_bucket_fast(row["question"], 2**31 - 1)
        start = tf.minimum(earliest, latest) + tf.cast(drawn, tf.int32) % room
        window = tf.strings.reduce_join(words[start : start + _CONTEXT], separator=" ")
        text = tf.where(count > _CONTEXT, window, text)
        first = tf.where(count > _CONTEXT, first - start, first)
    span = tf.stack([first, first + tf.maximum(length, 1) - 1])
    # Beyond what the model reads, no position is right; the last one stands for it.
    return _inputs(text, question=row["question"]), {
        "answer": tf.clip_by_value(span, 0, POSITIONS - 1)
    }


def _translation(row: Mapping[str, Any], source: Source, crop: bool) -> Any:
    del crop
    assert source.target is not None
    # The decoder reads the reference, and scores it; the label only marks presence.
    return _inputs(row["en"], target=row[source.target]), {
        "translation": tf.ones((), tf.float32)
    }


def _inputs(text: Any, question: Any = "", target: Any = "") -> dict[str, Any]:
    return {
        "text": text,
        "question": tf.convert_to_tensor(question),
        "target": tf.convert_to_tensor(target),
    }
