"""TensorFlow Datasets builder of text out of a small grammar."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mtl_keras.data.generated.grammar import SPLITS, Grammar

_DESCRIPTION = """
Sentences of a small grammar for three tasks: the sentiment of a sentence, the span
that answers a question, and the translation into an invented language. Pairs of
words that make a phrase are each in one split only.
"""

_SEED = 1907
TARGET = "art"
"""ISO 639-2's code for artificial languages."""


@dataclasses.dataclass(kw_only=True)
class GeneratedTextConfig(tfds.core.BuilderConfig):
    """Configuration of `generated_text`: its number of examples.

    Attributes:
        examples: Number of examples in each split.
    """

    examples: dict[str, int] = dataclasses.field(default_factory=dict)


class GeneratedText(tfds.core.GeneratorBasedBuilder):
    """Generated sentences, one configuration for each task.

    Features are those of data sets of real text, so that either can be used:

    - `sentiment`, as `imdb_reviews`: `text`, `label` (0 negative, 1 positive).
    - `answer`, as `squad/v1.1`: `id`, `title`, `context`, `question`, `answers`
      (`text`, `answer_start`).
    - `translation`: `en`, `art`.

    The grammar is in `mtl_keras.data.generated.grammar`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        GeneratedTextConfig(
            name="sentiment",
            description="Sentences with a sentiment.",
            examples={"train": 12_000, "validation": 500, "test": 1_000},
        ),
        GeneratedTextConfig(
            name="answer",
            description="Stories, questions and the spans that answer them.",
            examples={"train": 6_000, "validation": 500, "test": 1_000},
        ),
        GeneratedTextConfig(
            name="translation",
            description="Sentences in English and in an invented language.",
            examples={"train": 6_000, "validation": 500, "test": 1_000},
        ),
    ]
    DEFAULT_CONFIG_NAME = "sentiment"

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            "sentiment": tfds.features.FeaturesDict(
                {
                    "text": text,
                    "label": tfds.features.ClassLabel(names=["neg", "pos"]),
                }
            ),
            "answer": tfds.features.FeaturesDict(
                {
                    "id": text,
                    "title": text,
                    "context": text,
                    "question": text,
                    "answers": tfds.features.Sequence(
                        {"text": text, "answer_start": np.int32}
                    ),
                }
            ),
            "translation": tfds.features.Translation(languages=("en", TARGET)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=features[self.builder_config.name],
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # Nothing is downloaded.
        return {
            split: self._generate_examples(split, count)
            for split, count in self.builder_config.examples.items()
        }

    def _generate_examples(
        self, split: str, count: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        grammar = Grammar(split, np.random.default_rng([_SEED, SPLITS.index(split)]))
        example = {
            "sentiment": self._verdict,
            "answer": self._story,
            "translation": self._pair,
        }[self.builder_config.name]
        for key in range(count):
            yield key, example(grammar, key)

    @staticmethod
    def _verdict(grammar: Grammar, key: int) -> dict[str, Any]:
        del key
        return grammar.verdict()._asdict()

    @staticmethod
    def _story(grammar: Grammar, key: int) -> dict[str, Any]:
        story = grammar.story()
        return {
            "id": str(key),
            "title": "story",
            "context": story.context,
            "question": story.question,
            "answers": {"text": [story.answer], "answer_start": [story.start]},
        }

    @staticmethod
    def _pair(grammar: Grammar, key: int) -> dict[str, Any]:
        del key
        pair = grammar.pair()
        return {"en": pair.source, TARGET: pair.target}
