"""Scores of predicted texts over a whole split."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import keras
import tensorflow as tf
import tensorflow_datasets as tfds

from mtl_keras.applications.text import sources
from mtl_keras.evaluation.text import answer_scores, bleu
from mtl_keras.pareto.model import PREFERENCE


def score(
    serving_model: keras.Model,
    chosen: Mapping[str, sources.Source],
    split: str,
    batch_size: int,
    data_dir: str | os.PathLike | None,
) -> dict[str, dict[str, float]]:
    """Predicts texts and compares them with their references.

    Args:
        serving_model: A model of `Text.serving_model`.
        chosen: The sources by task.
        split: The application's split.
        batch_size: Samples per batch.
        data_dir: Folder of prepared data.

    Returns:
        `{task: {metric: value}}` of the tasks that are answered in text.
    """
    results = {}
    for task, source in chosen.items():
        if task == "sentiment":
            continue
        rows = list(tfds.as_numpy(sources.examples(source, split, data_dir)))
        field = "context" if task == "answer" else "en"
        asked = [row["question"] if task == "answer" else b"" for row in rows]
        texts = [row[field] for row in rows]
        # One task alone: the others' heads are not run.
        ask = keras.Model(serving_model.input, serving_model.output[task])
        predictions = _predict(ask, texts, asked, batch_size)
        if task == "answer":
            references = [_decoded(row["answers"]["text"]) for row in rows]
            results[task] = answer_scores(predictions, references)
        else:
            wanted = _decoded(row[source.target] for row in rows)
            results[task] = {"bleu": bleu(predictions, wanted)}
    return results


def _predict(
    model: keras.Model, texts: list[bytes], questions: list[bytes], batch_size: int
) -> list[str]:
    # Texts of a length together: padding is most of the work otherwise.
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    inputs = {
        "text": tf.constant([texts[index] for index in order]),
        "question": tf.constant([questions[index] for index in order]),
    }
    if PREFERENCE in model.input:
        # Zeros are the uniform one.
        shape = (len(texts), model.input[PREFERENCE].shape[-1])
        inputs[PREFERENCE] = tf.zeros(shape)
    batches = tf.data.Dataset.from_tensor_slices(inputs).batch(batch_size)
    predicted = _decoded(model.predict(batches, verbose=0))
    return [text for _, text in sorted(zip(order, predicted, strict=True))]


def _decoded(strings: Iterable[bytes]) -> list[str]:
    return [text.decode("utf-8") for text in strings]
