"""TensorFlow Datasets builder for scenes of two handwritten digits."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mtl_keras.data.generated import digits, scenes

_DESCRIPTION = """
Scenes of two handwritten digits, one in the left and one in the right half, each
at a random place and size, with labels for five tasks: which digit is on the left,
which on the right, whether their sum is even, where they are, and which pixels
belong to which. The source digits of the three splits are disjoint.
"""

_CITATION = """
@article{lecun1998gradient,
  title={Gradient-based learning applied to document recognition},
  author={LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal={Proceedings of the IEEE}, volume={86}, number={11}, pages={2278--2324},
  year={1998}
}
@misc{alpaydin1998optical,
  title={Optical Recognition of Handwritten Digits},
  author={Alpaydin, E. and Kaynak, C.}, year={1998},
  howpublished={UCI Machine Learning Repository}, doi={10.24432/C50P49}
}
"""

_SHARDS = 4
_SEED = 36


@dataclasses.dataclass(kw_only=True)
class MultiDigitsConfig(tfds.core.BuilderConfig):
    """Configuration of `multi_digits`: its source and number of scenes.

    Attributes:
        source: `"bundled"` (scikit-learn) or `"mnist"` (TensorFlow Datasets).
        scenes: Number of scenes in each split.
    """

    source: str = "bundled"
    scenes: dict[str, int] = dataclasses.field(default_factory=dict)


class MultiDigits(tfds.core.GeneratorBasedBuilder):
    """Scenes of two handwritten digits, labelled for five tasks.

    Features:

    - `image`: uint8, `[36, 36, 1]`.
    - `left`, `right`: class labels 0 to 9.
    - `even_sum`: 1 where the sum of both digits is even, else 0.
    - `boxes`: float32, `[2, 4]`, left digit first, normalised `ymin, xmin,
      ymax, xmax`, tight around the pixels of `mask`.
    - `mask`: uint8, `[36, 36, 1]`, 0 background, 1 left digit, 2 right digit.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        MultiDigitsConfig(
            name="digits",
            description="Made from the 8x8 digits that scikit-learn brings along.",
            source="bundled",
            scenes={"train": 12_000, "validation": 1_000, "test": 2_000},
        ),
        MultiDigitsConfig(
            name="mnist",
            description="Made from MNIST.",
            source="mnist",
            scenes={"train": 40_000, "validation": 5_000, "test": 10_000},
        ),
    ]
    DEFAULT_CONFIG_NAME = "digits"

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (scenes.SIZE, scenes.SIZE, 1)
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape, encoding_format="png"),
                    "left": tfds.features.ClassLabel(num_classes=10),
                    "right": tfds.features.ClassLabel(num_classes=10),
                    "even_sum": tfds.features.ClassLabel(names=["odd", "even"]),
                    "boxes": tfds.features.Sequence(
                        tfds.features.BBoxFeature(), length=2
                    ),
                    "mask": tfds.features.LabeledImage(
                        labels=["background", "left", "right"],
                        shape=shape,
                        encoding_format="png",
                    ),
                }
            ),
            citation=_CITATION,
        )

    def download_and_prepare(
        self,
        *,
        download_config: tfds.download.DownloadConfig | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the data set, in several shards unless told otherwise.

        TensorFlow Datasets would put data this small into one shard, which
        several readers could not share.

        Args:
            download_config: As in TensorFlow Datasets.
            **kwargs: As in TensorFlow Datasets.
        """
        config = download_config or tfds.download.DownloadConfig()
        if config.num_shards is None:
            config = dataclasses.replace(config, num_shards=_SHARDS)
        super().download_and_prepare(download_config=config, **kwargs)

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # Nothing is downloaded: MNIST is read as prepared.
        if self.builder_config.source == "mnist":
            # <data_dir>/multi_digits/<config>/<version>
            pools = digits.mnist_digits(self.data_path.parents[2])
        else:
            pools = digits.bundled_digits()
        return {
            split: self._generate_examples(pools[split], count, [_SEED, number])
            for number, (split, count) in enumerate(self.builder_config.scenes.items())
        }

    def _generate_examples(
        self, pool: scenes.Pool, count: int, seed: list[int]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        rng = np.random.default_rng(seed)
        for key, scene in enumerate(scenes.generate(pool, count, rng)):
            yield (
                key,
                {
                    "image": _png(scene.image),
                    "left": scene.left,
                    "right": scene.right,
                    "even_sum": int((scene.left + scene.right) % 2 == 0),
                    "boxes": scene.boxes,
                    "mask": _png(scene.mask),
                },
            )


def _png(pixels: np.ndarray) -> bytes:
    # Several times faster than handing TensorFlow Datasets the array, which it
    # encodes through a TensorFlow session of its own.
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(buffer, format="png")
    return buffer.getvalue()
