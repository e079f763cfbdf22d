"""Images of two digits: classification, detection and segmentation at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from mtl_keras import data as data_registry
from mtl_keras import errors
from mtl_keras.applications import heads
from mtl_keras.applications.base import (
    Application,
    Task,
    TrainingDefaults,
    check_split,
)
from mtl_keras.applications.tasks import binary_task, multiclass_task
from mtl_keras.data.generated.scenes import SIZE
from mtl_keras.data.passes import shuffled
from mtl_keras.evaluation.boxes import BoxIoU
from mtl_keras.evaluation.segmentation import MaskIoU

if TYPE_CHECKING:
    import tensorflow as tf

_DIGITS = 10
_REGIONS = 3
_HIDDEN = 128
_DROPOUT = 0.3
_MASK_HIDDEN = 48


_TASKS = (
    multiclass_task("left"),
    multiclass_task("right"),
    binary_task("even_sum"),
    Task(
        "boxes",
        kind="boxes",
        loss=keras.losses.MeanAbsoluteError,
        metrics=lambda: [BoxIoU(name="iou")],
        objective="iou",
    ),
    Task(
        "mask",
        kind="segmentation",
        loss=keras.losses.SparseCategoricalCrossentropy,
        metrics=lambda: [MaskIoU(_REGIONS, name="mean_iou")],
        objective="mean_iou",
    ),
)


class Vision(Application):
    """Five tasks on one scene of two handwritten digits.

    - `left`, `right`: which digit is in the left and right half (10 classes).
    - `even_sum`: whether the sum of both is even (binary).
    - `boxes`: where they are (detection of two boxes).
    - `mask`: which pixels belong to which (segmentation).
    """

    name = "vision"
    default_data = "multi_digits/digits"
    backbones = ("cnn", "rnn", "mlp")
    width_factors = {"rnn": 4, "mlp": 16}  # noqa: RUF012
    tasks = {task.name: task for task in _TASKS}  # noqa: RUF012
    defaults = TrainingDefaults(
        epochs=8,
        batch_size=128,
        learning_rate=2e-3,
        backbone="cnn",
        # Where something is takes other features than what it is.
        sharing={
            "class_name": "hard",
            "config": {"own_stages": {"boxes": 2, "mask": 2}},
        },
        width=16,
        depth=3,
        balancing="scale_invariant",
    )

    def load(
        self,
        split: str,
        *,
        data: str | None = None,
        batch_size: int,
        tasks: Iterable[str] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        limit: int | None = None,
        data_dir: str | os.PathLike | None = None,
        epoch: tf.Variable | None = None,
    ) -> tf.data.Dataset:
        """See `Application.load`."""
        import tensorflow as tf

        check_split(split)
        chosen = list(self.select(tasks))
        name = self.default_data if data is None else data
        if not name.startswith("multi_digits"):
            known = [n for n in data_registry.names() if n.startswith("multi_digits")]
            raise errors.unknown_name("data set of 'vision'", name, known)

        def arrange(features: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
            labels = {
                **features,
                "even_sum": tf.cast(features["even_sum"], tf.float32)[None],
                "mask": features["mask"][..., 0],
            }
            return {"image": features["image"]}, {task: labels[task] for task in chosen}

        examples = data_registry.load(name, split, data_dir=data_dir)
        if limit is not None:
            examples = examples.take(limit)
        examples = examples.map(arrange, num_parallel_calls=tf.data.AUTOTUNE).cache()
        if shuffle:
            examples = shuffled(examples, len(examples), seed, epoch)
        return examples.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    def inputs(self) -> dict[str, keras.KerasTensor]:
        """See `Application.inputs`: `image`, uint8, `[batch, 36, 36, 1]`."""
        return {"image": keras.Input((SIZE, SIZE, 1), dtype="uint8", name="image")}

    def class_names(self) -> Mapping[str, Sequence[str]]:
        """See `Application.class_names`."""
        digits = [str(digit) for digit in range(_DIGITS)]
        return {
            "left": digits,
            "right": digits,
            "even_sum": ["odd", "even"],
            "mask": ["background", "left", "right"],
        }

    def preprocess(self, inputs: Mapping[str, keras.KerasTensor]) -> keras.KerasTensor:
        """See `Application.preprocess`: brings pixels to the range 0 to 1."""
        return keras.layers.Rescaling(1 / 255, name="rescaling")(inputs["image"])

    def head(self, task: Task, features: keras.KerasTensor) -> keras.KerasTensor:
        """See `Application.head`."""
        if task.kind == "segmentation":
            return heads.segmentation(
                features,
                name=task.name,
                size=(SIZE, SIZE),
                count=_REGIONS,
                hidden=_MASK_HIDDEN,
            )
        common: dict[str, Any] = {
            "name": task.name,
            "hidden": _HIDDEN,
            "dropout": _DROPOUT,
        }
        if task.kind == "multiclass":
            return heads.classes(features, count=_DIGITS, **common)
        if task.kind == "binary":
            return heads.probability(features, **common)
        return heads.boxes(features, count=2, **common)
