"""TensorFlow Datasets builder for images, recordings and texts."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mtl_keras.data.generated import digits, modalities
from mtl_keras.data.generated.modalities import Recordings, Texts
from mtl_keras.data.generated.scenes import Pool

_DESCRIPTION = """
Samples of up to three modalities: an image of a handwritten digit, a recording of a
spoken digit, and a text. `unpaired` samples have one modality each, with the labels
that belong to it; in `paired` samples one digit is seen, heard and written, and any
of the three may be missing.
"""

_CITATION = """
@article{lecun1998gradient,
  title={Gradient-based learning applied to document recognition},
  author={LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal={Proceedings of the IEEE}, volume={86}, number={11}, pages={2278--2324},
  year={1998}
}
@inproceedings{maas2011learning,
  title={Learning Word Vectors for Sentiment Analysis},
  author={Maas, Andrew L. and Daly, Raymond E. and Pham, Peter T. and Huang, Dan and
          Ng, Andrew Y. and Potts, Christopher},
  booktitle={Proceedings of ACL-HLT}, pages={142--150}, year={2011}
}
@misc{jackson2018free,
  title={Free Spoken Digit Dataset v1.0.9}, author={Jackson, Zohar and others},
  year={2018}, doi={10.5281/zenodo.1342401}
}
"""

_SEED = 88
_MISSING = 0.3
"""Chance of each modality of a paired sample to be missing."""

_EMPTY: dict[str, Any] = {
    "image": np.zeros((modalities.SIZE, modalities.SIZE), np.uint8),
    "audio": np.zeros(0, np.int16),
    "text": "",
}
_LABELS = ("digit", "sentiment", "speaker", "even")


@dataclasses.dataclass(kw_only=True)
class MultimodalConfig(tfds.core.BuilderConfig):
    """Configuration of `multimodal`: its sources and numbers of samples.

    Attributes:
        generated: Whether its sources are made here, rather than read from
            `mnist`, `spoken_digit` and `imdb_reviews` as prepared.
        images: Number of images in each split; `None` for as many as there are.
        recordings: The same of recordings.
        texts: The same of texts; empty for paired samples.
        samples: Number of paired samples in each split, each drawn from the images
            and recordings; empty for unpaired samples.
    """

    generated: bool
    images: dict[str, int | None]
    recordings: dict[str, int | None]
    texts: dict[str, int | None] = dataclasses.field(default_factory=dict)
    samples: dict[str, int] = dataclasses.field(default_factory=dict)


def _sizes(train: int, validation: int | None, test: int | None) -> dict[str, Any]:
    return {"train": train, "validation": validation, "test": test}


class Multimodal(tfds.core.GeneratorBasedBuilder):
    """Images, recordings and texts, one or several of them in a sample.

    Features:

    - `image`: uint8, `[28, 28, 1]`; all 0 where there is none.
    - `audio`: int16, `[samples]`, at 8 kHz; empty where there is none.
    - `text`: UTF-8; empty where there is none.
    - `digit`: which digit the image shows and the recording says, 0 to 9.
    - `even`: 1 where this digit is even, else 0.
    - `speaker`: who says it, 0 to 4.
    - `sentiment`: 1 where the text is positive, else 0.

    A label that a sample lacks is −1. Paired samples have a fourth split,
    `test_complete`: the samples of `test` with no modality missing.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        MultimodalConfig(
            name="unpaired_generated",
            version=tfds.core.Version("2.0.0"),
            release_notes={"2.0.0": "Texts are short reviews."},
            description="One modality a sample; made without any files.",
            generated=True,
            images=_sizes(2_000, 500, 1_000),
            recordings=_sizes(500, 200, 400),
            texts=_sizes(1_500, 300, 600),
        ),
        MultimodalConfig(
            name="paired_generated",
            description="One digit seen, heard and written; made without any files.",
            generated=True,
            images=_sizes(2_000, 500, 1_000),
            recordings=_sizes(500, 200, 400),
            samples=_sizes(3_000, 500, 1_000),
        ),
        MultimodalConfig(
            name="unpaired",
            description="One modality a sample; from MNIST, the Free Spoken Digit "
            "Dataset and IMDB's reviews.",
            generated=False,
            images=_sizes(2_000, 1_000, None),
            recordings=_sizes(500, None, None),
            texts=_sizes(1_500, None, None),
        ),
        MultimodalConfig(
            name="paired",
            description="One digit seen, heard and written; from MNIST and the Free "
            "Spoken Digit Dataset.",
            generated=False,
            images=_sizes(2_000, 1_000, None),
            recordings=_sizes(500, None, None),
            samples=_sizes(3_000, 500, 2_000),
        ),
    ]
    DEFAULT_CONFIG_NAME = "unpaired_generated"

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (modalities.SIZE, modalities.SIZE, 1)
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape, encoding_format="png"),
                    "audio": tfds.features.Tensor(
                        shape=(None,),
                        dtype=np.int16,
                        encoding=tfds.features.Encoding.BYTES,
                    ),
                    "text": tfds.features.Text(),
                    **dict.fromkeys(_LABELS, tfds.features.Scalar(np.int64)),
                }
            ),
            citation=_CITATION,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # Nothing is downloaded: other data sets are read as prepared.
        config = self.builder_config
        images, recordings, texts = self._sources()
        if not config.samples:
            return {
                split: self._generate_examples(
                    _unpaired(images[split], recordings[split], texts[split])
                )
                for split in config.images
            }

        def paired(split: str, missing: float) -> Iterator[dict[str, Any]]:
            seed = [_SEED, list(config.samples).index(split)]
            count = config.samples[split]
            return _paired(images[split], recordings[split], count, seed, missing)

        splits = {split: paired(split, _MISSING) for split in config.samples}
        splits["test_complete"] = paired("test", 0.0)
        return {
            split: self._generate_examples(samples) for split, samples in splits.items()
        }

    def _generate_examples(
        self, samples: Iterator[dict[str, Any]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, sample in enumerate(samples):
            # Completed by empty modalities and absent labels.
            example = {**_EMPTY, **dict.fromkeys(_LABELS, -1), **sample}
            # Several times faster than handing TensorFlow Datasets the array, which
            # it encodes through a TensorFlow session of its own.
            buffer = io.BytesIO()
            Image.fromarray(example["image"]).save(buffer, format="png")
            yield key, {**example, "image": buffer.getvalue()}

    def _sources(
        self,
    ) -> tuple[dict[str, Pool], dict[str, Recordings], dict[str, Texts]]:
        """Returns images, recordings and texts by split, of the right number."""
        config = self.builder_config
        # <data_dir>/multimodal/<config>/<version>
        data_dir = self.data_path.parents[2]
        texts: dict[str, Texts] = {}
        if config.generated:
            images = modalities.drawn_digits(config.images, _SEED)
            recordings = modalities.synthetic_speech(config.recordings, _SEED)
            if config.texts:
                texts = modalities.generated_reviews(config.texts, _SEED)
        else:
            images = digits.mnist_digits(data_dir)
            recordings = modalities.spoken_digits(data_dir)
            if config.texts:
                texts = modalities.reviews(data_dir)
        return (
            _first(images, config.images),
            _first(recordings, config.recordings),
            _first(texts, config.texts),
        )


def _first(pools: dict[str, Any], counts: dict[str, int | None]) -> dict[str, Any]:
    """Returns the first samples of each split's pool, a named tuple of columns."""
    return {
        split: type(pool)(*(column[: counts[split]] for column in pool))
        for split, pool in pools.items()
    }


def _unpaired(
    images: Pool, recordings: Recordings, texts: Texts
) -> Iterator[dict[str, Any]]:
    for image, digit in zip(images.images, images.labels, strict=True):
        yield {"image": image, **_of_digit(digit)}
    for waveform, digit, speaker in zip(*recordings, strict=True):
        yield {"audio": waveform, "speaker": speaker, **_of_digit(digit)}
    for text, sentiment in zip(*texts, strict=True):
        yield {"text": text, "sentiment": sentiment}


def _paired(
    images: Pool,
    recordings: Recordings,
    count: int,
    seed: list[int],
    missing: float,
) -> Iterator[dict[str, Any]]:
    # Two streams, so that the same seed draws the same samples whatever is missing.
    drawing, leaving_out = (np.random.default_rng([*seed, n]) for n in range(2))
    for _ in range(count):
        digit = int(drawing.integers(10))
        seen = drawing.choice(np.flatnonzero(images.labels == digit))
        heard = drawing.choice(np.flatnonzero(recordings.digits == digit))
        sample = {
            "image": images.images[seen],
            "audio": recordings.waveforms[heard],
            "text": modalities.misspell(modalities.WORDS[digit], drawing),
        }
        while (gone := leaving_out.random(len(sample)) < missing).all():
            pass
        for name in np.array(list(sample))[gone]:
            del sample[name]
        if "audio" in sample:
            sample["speaker"] = recordings.speakers[heard]
        yield {**sample, **_of_digit(digit)}


def _of_digit(digit: int) -> dict[str, int]:
    return {"digit": digit, "even": int(digit % 2 == 0)}
