"""Images, recordings and texts that multimodal samples are made from, by split.

The splits have no source in common. Pure NumPy around other data sets; the
TensorFlow Datasets builder is in `multimodal.py`.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mtl_keras.data import sources
from mtl_keras.data.generated import digits, scenes
from mtl_keras.data.generated.grammar import SPLITS, Grammar

SIZE = 28
"""Height and width of an image, in pixels."""

WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip
"""The digits as written."""

SPEAKERS = ("george", "jackson", "nicolas", "theo", "yweweler")
"""The speakers of the Free Spoken Digit Dataset 1.0.9."""

VALIDATION_TEXTS = 1_000
"""Number of IMDB's training reviews that are kept for validation."""


class Recordings(NamedTuple):
    """Spoken digits.

    Attributes:
        waveforms: int16 `[samples]` each, at 8 kHz.
        digits: int64 `[recordings]`.
        speakers: int64 `[recordings]`, 0 to 4.
    """

    waveforms: list[np.ndarray]
    digits: np.ndarray
    speakers: np.ndarray


class Texts(NamedTuple):
    """Texts with a sentiment.

    Attributes:
        texts: UTF-8 text each.
        sentiments: int64 `[texts]`, 1 for positive.
    """

    texts: list[str]
    sentiments: np.ndarray


def drawn_digits(sizes: dict[str, int], seed: int) -> dict[str, scenes.Pool]:
    """Draws scikit-learn's bundled digits at random size and place.

    Args:
        sizes: Number of images in each split.
        seed: Seed of the drawing.

    Returns:
        `{split: Pool}` with images uint8 `[28, 28]`.
    """
    pools = digits.bundled_digits()
    drawn = {}
    for number, (split, count) in enumerate(sizes.items()):
        rng = np.random.default_rng([seed, number])
        pool = pools[split]
        squares = [scenes.crop_square(image) for image in pool.images]
        # Each digit as often as any other, in a random order.
        order = np.resize(rng.permutation(len(squares)), count)
        images = np.zeros((count, SIZE, SIZE), np.uint8)
        for image, index in zip(images, order, strict=True):
            side = int(rng.integers(16, 25))
            top, left = rng.integers(0, SIZE - side + 1, size=2)
            scaled = Image.fromarray(squares[index]).resize(
                (side, side), Image.Resampling.BICUBIC
            )
            image[top : top + side, left : left + side] = np.asarray(scaled)
        drawn[split] = scenes.Pool(images, pool.labels[order])
    return drawn


def synthetic_speech(sizes: dict[str, int], seed: int) -> dict[str, Recordings]:
    """Returns digits by the synthetic voices of `speech`, `{split: Recordings}`.

    Args:
        sizes: Number of recordings in each split.
        seed: Seed of the recordings.
    """
    # The synthesiser needs SciPy, which nothing else here does.
    from mtl_keras.data.generated import speech

    recordings = {}
    for number, (split, count) in enumerate(sizes.items()):
        rng = np.random.default_rng([seed, number])
        digits = np.arange(count) % 10
        speakers = np.arange(count) // 10 % len(speech.VOICES)
        waveforms = [
            speech.say(int(digit), speech.VOICES[speaker], rng)
            for digit, speaker in zip(digits, speakers, strict=True)
        ]
        recordings[split] = Recordings(waveforms, digits, speakers)
    return recordings


def spoken_digits(data_dir: str | os.PathLike) -> dict[str, Recordings]:
    """Splits the Free Spoken Digit Dataset, as TensorFlow Datasets prepared it.

    As its authors do, recordings 0 to 4 of each digit and speaker are for testing;
    here 5 to 9 are for validation. The others come in the order of their numbers,
    so that the first of them have all digits and speakers alike.

    Args:
        data_dir: The folder that holds TensorFlow Datasets' prepared data.

    Raises:
        InputError: The data set is not prepared in `data_dir`.
    """
    builder = sources.prepared(
        "spoken_digit", data_dir, made="multimodal", to_run="spoken_digit"
    )
    by_split: dict[str, list[tuple[tuple[int, int, int], np.ndarray]]] = {
        split: [] for split in SPLITS
    }
    for example in tfds.as_numpy(builder.as_dataset(split="train")):
        name = example["audio/filename"].decode()
        digit, speaker, index = name.removesuffix(".wav").split("_")
        split = ("test", "validation")[int(index) // 5] if int(index) < 10 else "train"
        key = (int(index), int(digit), SPEAKERS.index(speaker))
        by_split[split].append((key, example["audio"].astype(np.int16)))
    recordings = {}
    for split, entries in by_split.items():
        entries.sort(key=lambda entry: entry[0])
        keys = np.array([key for key, _ in entries])
        waveforms = [waveform for _, waveform in entries]
        recordings[split] = Recordings(waveforms, keys[:, 1], keys[:, 2])
    return recordings


def reviews(data_dir: str | os.PathLike) -> dict[str, Texts]:
    """Splits IMDB's reviews, as TensorFlow Datasets prepared them.

    Args:
        data_dir: The folder that holds TensorFlow Datasets' prepared data.

    Returns:
        `{split: Texts}`: IMDB's own test reviews for `test`; its training reviews
        for `train`, less the last 1,000, which are for `validation`.

    Raises:
        InputError: The data set is not prepared in `data_dir`.
    """
    builder = sources.prepared(
        "imdb_reviews", data_dir, made="multimodal", to_run="imdb_reviews"
    )
    train = _read_texts(builder, "train")
    held_out = len(train.texts) - VALIDATION_TEXTS
    return {
        "train": Texts(train.texts[:held_out], train.sentiments[:held_out]),
        "validation": Texts(train.texts[held_out:], train.sentiments[held_out:]),
        "test": _read_texts(builder, "test"),
    }


def generated_reviews(sizes: dict[str, int], seed: int) -> dict[str, Texts]:
    """Returns texts of the small grammar, `{split: Texts}`.

    Args:
        sizes: Number of texts in each split.
        seed: Seed of the texts.
    """
    written = {}
    for number, (split, count) in enumerate(sizes.items()):
        grammar = Grammar(split, np.random.default_rng([seed, number]))
        drawn = [grammar.review() for _ in range(count)]
        written[split] = Texts(
            [review.text for review in drawn],
            np.array([review.label for review in drawn]),
        )
    return written


def misspell(word: str, rng: np.random.Generator) -> str:
    """Writes a word with the slips of a hasty hand.

    Each letter is left out, doubled, or replaced by another, with a chance of one
    in ten each; each pair of neighbours changes places with a chance of one in ten.

    Args:
        word: Lower-case letters.
        rng: Gives the slips.

    Returns:
        At least one letter.
    """
    letters = list(word)
    for index in range(len(letters) - 1):
        if rng.random() < 0.1:
            letters[index : index + 2] = letters[index + 1], letters[index]
    written = []
    for letter in letters:
        slip = rng.random()
        if slip < 0.1:
            continue
        if slip < 0.2:
            letter = chr(ord("a") + int(rng.integers(26)))
        elif slip < 0.3:
            letter *= 2
        written.append(letter)
    return "".join(written) or letters[0]


def _read_texts(builder: tfds.core.DatasetBuilder, split: str) -> Texts:
    # One fixed order, whatever the number of files, so that splits never mix.
    config = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=config)
    examples = list(tfds.as_numpy(dataset))
    return Texts(
        [example["text"].decode() for example in examples],
        np.array([example["label"] for example in examples]),
    )
