"""TensorFlow Datasets builder for generated behaviour of a shop's visitors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mtl_keras.data import columns
from mtl_keras.data.generated import impressions

_DESCRIPTION = """
Generated impressions of items on users with latent tastes and delayed interests:
whether the user clicked, whether a click led to a conversion, and for how long the
item was watched, with the true probabilities of both. The newest tenth of each
user's impressions is the test split, the tenth before it the validation split.
"""

TASKS = ("click", "conversion", "watch_time")
"""Names of the labels."""

_SEED = 12
_DESCRIBED = 100_000
_BOUNDS = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}


@dataclasses.dataclass(kw_only=True)
class BehaviourConfig(tfds.core.BuilderConfig):
    """Configuration of `behaviour`: its numbers of impressions and items.

    Attributes:
        samples: Impressions in all splits together.
        items: Number of items.
    """

    samples: int = 10_000
    items: int = 200


class Behaviour(tfds.core.GeneratorBasedBuilder):
    """Impressions, clicks, conversions and watch time of generated users.

    `tfds.builder("behaviour", config=BehaviourConfig(name="mine", samples=...))`
    makes as many as wanted.

    Features, all known before the impression:

    - `user_id`, `item_id`, `category`: int64, from 1.
    - `price`, `impressions_before`: float32.
    - `history_items`, `history_categories`: int64, `[10]`, the user's last clicks,
      newest last, 0 in front of the first.

    Labels: `click` and `conversion`, 0 or 1, and `watch_time`, float32, seconds.
    A conversion takes a click; without one, `watch_time` is 0.

    Known only because the data are generated: `click_probability` and
    `conversion_probability` (given a click), and `conversion_if_clicked`, drawn
    from the latter for every impression. The module `impressions` has the rules.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        BehaviourConfig(name="small", samples=10_000, items=200),
        BehaviourConfig(name="medium", samples=1_000_000, items=10_000),
        BehaviourConfig(name="large", samples=10_000_000, items=50_000),
    ]
    DEFAULT_CONFIG_NAME = "small"

    def _info(self) -> tfds.core.DatasetInfo:
        history = tfds.features.Tensor(shape=(impressions.HISTORY,), dtype=np.int64)
        whole, real = (tfds.features.Scalar(dtype) for dtype in (np.int64, np.float32))
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "user_id": whole,
                    "item_id": whole,
                    "category": whole,
                    "price": real,
                    "impressions_before": real,
                    "history_items": history,
                    "history_categories": history,
                    "click": whole,
                    "conversion": whole,
                    "watch_time": real,
                    "click_probability": real,
                    "conversion_probability": real,
                    "conversion_if_clicked": whole,
                }
            ),
            metadata=tfds.core.MetadataDict(),
            # Samples are independent of the file's order only by user; the order
            # of generation is kept, as sorting 10 million samples costs more
            # than making them.
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # Nothing is downloaded.
        self.info.metadata.update(columns.to_metadata(self._columns(), TASKS))
        return {split: self._generate_examples(split) for split in _BOUNDS}

    def _columns(self) -> dict[str, columns.Column]:
        config = self.builder_config
        described = impressions.World(config.items, _SEED).users(
            min(config.samples, _DESCRIBED)
        )
        first = next(iter(described))
        train = first["part"] < _BOUNDS["train"][1]
        items: dict[str, Any] = {"kind": "hashed", "buckets": 2 * config.items}
        if config.items <= 10_000:
            known = tuple(range(1, config.items + 1))
            items = {"kind": "category", "vocabulary": known}
        # A hash leaves some users a bucket in common, whatever the number.
        users = 2 * config.samples // impressions.MEAN_LENGTH
        categories = tuple(range(1, impressions.CATEGORIES + 1))
        length = impressions.HISTORY
        return {
            "user_id": columns.Column("hashed", "int64", buckets=users),
            "item_id": columns.Column(dtype="int64", **items),
            "category": columns.Column("category", "int64", vocabulary=categories),
            "price": columns.number(first["price"][train]),
            "impressions_before": columns.number(first["impressions_before"][train]),
            "history_items": columns.Column(
                "category", "int64", length=length, same_as="item_id"
            ),
            "history_categories": columns.Column(
                "category", "int64", length=length, same_as="category"
            ),
        }

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        low, high = _BOUNDS[split]
        key = 0
        for table in impressions.World(config.items, _SEED).users(config.samples):
            part = table.pop("part")
            chosen = (low <= part) & (part < high)
            rows = zip(
                *(list(values[chosen]) for values in table.values()), strict=True
            )
            for row in rows:
                yield key, dict(zip(table, row, strict=True))
                key += 1
