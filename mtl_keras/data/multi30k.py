"""TensorFlow Datasets builder for Multi30k's captions."""

from __future__ import annotations

import gzip
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from mtl_keras.errors import InputError

_DESCRIPTION = """
Captions of 31,014 photographs in English with translations by professionals, and a
test set of 2016 (task 1 of the multimodal translation task of WMT 2016).
"""

_CITATION = """
@inproceedings{elliott2016multi30k,
  title={Multi30K: Multilingual English-German Image Descriptions},
  author={Elliott, Desmond and Frank, Stella and Sima'an, Khalil and Specia, Lucia},
  booktitle={Proceedings of the 5th Workshop on Vision and Language}, year={2016}
}
@inproceedings{elliott2017findings,
  title={Findings of the Second Shared Task on Multimodal Machine Translation and
    Multilingual Image Description},
  author={Elliott, Desmond and Frank, Stella and Barrault, Lo{\\"i}c and Bougares,
    Fethi and Specia, Lucia},
  booktitle={Proceedings of the Second Conference on Machine Translation}, year={2017}
}
"""

_ADDRESS = "https://github.com/multi30k/dataset/raw/master/data/task1/raw"
_SPLITS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
_FILES = {
    "train.en.gz": (
        568_929,
        "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    ),
    "train.de.gz": (
        637_044,
        "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    ),
    "train.fr.gz": (
        604_242,
        "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c",
    ),
    "val.en.gz": (
        21_650,
        "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    ),
    "val.de.gz": (
        24_681,
        "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    ),
    "val.fr.gz": (
        23_001,
        "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9",
    ),
    "test_2016_flickr.en.gz": (
        21_077,
        "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    ),
    "test_2016_flickr.de.gz": (
        22_890,
        "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    ),
    "test_2016_flickr.fr.gz": (
        22_310,
        "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90",
    ),
}


class Multi30k(tfds.core.GeneratorBasedBuilder):
    """Multi30k's captions, English with German or French.

    Features: `en`, and `de` or `fr`, one caption each. Splits: `train` 29,000,
    `validation` 1,014, `test` 1,000 (`test_2016_flickr`).
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="de", description="English and German."),
        tfds.core.BuilderConfig(name="fr", description="English and French."),
    ]
    DEFAULT_CONFIG_NAME = "de"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Multi30k, task 1, raw captions: train, val and test_2016_flickr, each "
        ".en.gz, .de.gz and .fr.gz."
    )

    @property
    def url_infos(self) -> dict[str, Any]:
        """The original files: address to size, SHA-256 and name."""
        return {
            f"{_ADDRESS}/{name}": tfds.core.download.checksums.UrlInfo(
                size=size, checksum=checksum, filename=name
            )
            for name, (size, checksum) in _FILES.items()
            if name.split(".")[1] in ("en", self.builder_config.name)
        }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.Translation(
                languages=("en", self.builder_config.name)
            ),
            citation=_CITATION,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
        folder = pathlib.Path(dl_manager.manual_dir)
        return {
            split: self._generate_examples(folder, stem)
            for split, stem in _SPLITS.items()
        }

    def _generate_examples(
        self, folder: pathlib.Path, stem: str
    ) -> Iterator[tuple[int, dict[str, str]]]:
        languages = ("en", self.builder_config.name)
        captions = [_lines(folder / f"{stem}.{language}.gz") for language in languages]
        if len(captions[0]) != len(captions[1]):
            raise InputError(
                f"Expected the files {stem}.*.gz to have as many lines as each other. "
                f"Received: {len(captions[0])} and {len(captions[1])}."
            )
        for key, pair in enumerate(zip(*captions, strict=True)):
            yield key, dict(zip(languages, pair, strict=True))


def _lines(path: pathlib.Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.strip() for line in file]
