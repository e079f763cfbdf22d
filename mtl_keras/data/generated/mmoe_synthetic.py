"""TensorFlow Datasets builder for two regression tasks of a known relatedness."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

WIDTH = 100
"""Number of inputs."""
_FREQUENCIES = np.asarray([0.5, 1.0, 1.5, 2.0, 2.5])
_PHASES = np.pi * np.asarray([0.1, 0.3, 0.5, 0.7, 0.9])
_NOISE = 0.1
_SEED = 2018
_SPLITS = {"train": 10_000, "validation": 2_000, "test": 5_000}

_DESCRIPTION = """
Two regression tasks y_k = w_k·x + sum_i sin(a_i w_k·x + b_i) + noise of variance 0.01
on x ~ N(0, I) with 100 inputs, where the unit vectors w_1 and w_2 have a given cosine:
the synthetic data of the MMoE paper, in which that cosine sets how related the tasks
are.
"""

_CITATION = """
@inproceedings{ma2018modeling,
  title={Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts},
  author={Ma, Jiaqi and Zhao, Zhe and Yi, Xinyang and Chen, Jilin and Hong, Lichan
    and Chi, Ed H.},
  booktitle={KDD}, year={2018}
}
"""


def draw_tasks(correlation: float, rng: np.random.Generator) -> np.ndarray:
    """Returns two unit vectors, `[2, WIDTH]`, whose cosine is `correlation`.

    Args:
        correlation: From -1 to 1.
        rng: Source of the directions.
    """
    basis, _ = np.linalg.qr(rng.normal(size=(WIDTH, 2)))
    first, other = basis.T
    sine = np.sqrt(1.0 - correlation**2)
    return np.stack([first, correlation * first + sine * other])


def draw_samples(
    tasks: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws samples of tasks.

    Args:
        tasks: `draw_tasks`' result.
        count: N.
        rng: Source of inputs and noise.

    Returns:
        Inputs `[N, WIDTH]` and labels `[N, 2]`, float32.
    """
    x = rng.normal(size=(count, WIDTH))
    t = x @ tasks.T
    y = t + np.sin(t[..., None] * _FREQUENCIES + _PHASES).sum(axis=-1)
    y += rng.normal(scale=_NOISE, size=y.shape)
    return x.astype(np.float32), y.astype(np.float32)


@dataclasses.dataclass(kw_only=True)
class MMoESyntheticConfig(tfds.core.BuilderConfig):
    """A configuration of `mmoe_synthetic`.

    Attributes:
        correlation: Cosine of the two tasks' weight vectors.
    """

    correlation: float = 0.5


class MmoeSynthetic(tfds.core.GeneratorBasedBuilder):
    """Two regression tasks whose relatedness is known.

    The paper leaves frequencies, phases and the number of sinusoids open; here are
    five, from 0.5 to 2.5.

    Features:

    - `x`: float32, `[100]`.
    - `first`, `second`: float32, the labels of the two tasks.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        MMoESyntheticConfig(
            name=f"correlation_{round(100 * correlation)}",
            description=f"Tasks whose weight vectors have the cosine {correlation}.",
            correlation=correlation,
        )
        for correlation in (0.5, 0.9, 1.0)
    ]
    DEFAULT_CONFIG_NAME = "correlation_50"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "x": tfds.features.Tensor(shape=(WIDTH,), dtype=np.float32),
                    "first": tfds.features.Scalar(dtype=np.float32),
                    "second": tfds.features.Scalar(dtype=np.float32),
                }
            ),
            citation=_CITATION,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # Nothing is downloaded.
        tasks = draw_tasks(
            self.builder_config.correlation, np.random.default_rng(_SEED)
        )
        return {
            split: self._generate_examples(tasks, count, [_SEED, number])
            for number, (split, count) in enumerate(_SPLITS.items())
        }

    def _generate_examples(
        self, tasks: np.ndarray, count: int, seed: list[int]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        x, y = draw_samples(tasks, count, np.random.default_rng(seed))
        for key in range(count):
            yield key, {"x": x[key], "first": y[key, 0], "second": y[key, 1]}
