"""Images, recordings and texts in one model, any of them missing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import keras

from mtl_keras import backbones as backbone_registry
from mtl_keras import data as data_registry
from mtl_keras import errors, fusion
from mtl_keras import sharing as sharing_registry
from mtl_keras.applications import encoders, heads
from mtl_keras.applications.base import (
    SPLITS,
    Application,
    Task,
    TrainingDefaults,
)
from mtl_keras.data.modalities import SAMPLE_RATE, SIZE
from mtl_keras.model import MultiTaskModel
from mtl_keras.model.keras_compat import call_again

if TYPE_CHECKING:
    import tensorflow as tf

MODALITIES = ("image", "audio", "text")

_DIGITS, _SPEAKERS = 10, 5
_IMAGE_SHAPE = (SIZE, SIZE, 1)
_SECONDS = 1
_PEAK = 2**15
_VOCABULARY = 5_000
_HIDDEN = 64
_DROPOUT = 0.3


class _Reading(NamedTuple):
    """How the texts of a data set are read."""

    by: str
    length: int
    window: int


class _Data(NamedTuple):
    """What the samples of a data set hold."""

    uses: Mapping[str, tuple[str, ...]]
    """The modalities that a task can use, by the tasks that have labels."""
    reading: _Reading


_UNPAIRED = _Data(
    {
        "digit": ("image", "audio"),
        "sentiment": ("text",),
        "speaker": ("audio",),
        "even": ("image", "audio"),
    },
    _Reading("word", length=240, window=6),
)
_PAIRED = _Data(
    {"digit": MODALITIES, "speaker": ("audio",), "even": MODALITIES},
    _Reading("character", length=12, window=1),
)
_DATA = {
    "multimodal/unpaired_generated": _UNPAIRED,
    "multimodal/paired_generated": _PAIRED,
    "multimodal/unpaired": _UNPAIRED,
    "multimodal/paired": _PAIRED,
}


def _task(name: str, *, classes: int) -> Task:
    if classes > 2:
        return Task(
            name,
            kind="multiclass",
            loss=keras.losses.SparseCategoricalCrossentropy,
            metrics=lambda: [keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
            objective="accuracy",
        )
    return Task(
        name,
        kind="binary",
        loss=keras.losses.BinaryCrossentropy,
        metrics=lambda: [keras.metrics.BinaryAccuracy(name="accuracy")],
        objective="accuracy",
    )


_CLASSES = {"digit": _DIGITS, "sentiment": 2, "speaker": _SPEAKERS, "even": 2}


class Multimodal(Application):
    """Four tasks on images, recordings and texts.

    - `digit`: which digit is seen, heard or written (10 classes).
    - `sentiment`: whether a text is positive (binary).
    - `speaker`: who is heard (5 classes).
    - `even`: whether the digit is even (binary).

    A sample has one modality or several; one without content (an image all black,
    digital silence, a text without tokens) counts as absent, and its encoder does
    not run. Each task reads the modalities that carry its label in the data and no
    others. The backbones are ways to fuse modalities, followed by dense stages that
    the tasks share.
    """

    name = "multimodal"
    default_data = "multimodal/unpaired_generated"
    backbones = ("concat", "gated", "cross_attention")
    tasks = {  # noqa: RUF012
        name: _task(name, classes=classes) for name, classes in _CLASSES.items()
    }
    defaults = TrainingDefaults(
        epochs=12,
        batch_size=64,
        learning_rate=2e-3,
        backbone="concat",
        sharing="hard",
        width=16,
        depth=1,
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
    ) -> tf.data.Dataset:
        """See `Application.load`; `(inputs, labels, sample weights)`.

        Samples without a label of the chosen tasks are left out, and so are inputs
        that none of these tasks can use. Paired data have the split
        `"test_complete"` too, where nothing is missing.
        """
        import tensorflow as tf

        name = self.default_data if data is None else data
        uses = self._uses(name, tasks)
        known = SPLITS if "sentiment" in _find(name).uses else (*SPLITS, "test_complete")
        if split not in known:
            raise errors.unknown_name("split", split, known)
        inputs = _used(uses)

        def arrange(
            features: dict[str, Any],
        ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
            audio = tf.cast(features["audio"], tf.float32) / _PEAK
            values = {**features, "audio": audio}
            labels, weights = {}, {}
            for task in uses:
                label = features[task]
                weights[task] = tf.cast(label >= 0, tf.float32)
                label = tf.maximum(label, 0)
                if self.tasks[task].kind == "binary":
                    label = tf.cast(label, tf.float32)[None]
                labels[task] = label
            return {name: values[name] for name in inputs}, labels, weights

        def is_labelled(x: Any, y: Any, weights: dict[str, Any]) -> Any:
            del x, y
            return tf.reduce_any([weight > 0 for weight in weights.values()])

        examples = data_registry.load(name, split, data_dir=data_dir)
        examples = examples.map(arrange, num_parallel_calls=tf.data.AUTOTUNE)
        examples = examples.filter(is_labelled)
        if limit is not None:
            examples = examples.take(limit)
        examples = examples.cache()
        # What a filter leaves is not known before it has run once.
        count = int(examples.reduce(0, lambda total, _: total + 1))
        examples = examples.apply(tf.data.experimental.assert_cardinality(count))
        if shuffle:
            examples = examples.shuffle(max(1, count), seed=seed)
        return examples.padded_batch(batch_size).prefetch(tf.data.AUTOTUNE)

    def inputs(self) -> dict[str, keras.KerasTensor]:
        """See `Application.inputs`.

        - `image`: uint8 `[batch, 28, 28, 1]`.
        - `audio`: float32 `[batch, samples]`, −1 to 1 at 8 kHz.
        - `text`: strings `[batch]`.
        """
        return {
            "image": keras.Input(_IMAGE_SHAPE, dtype="uint8", name="image"),
            "audio": keras.Input((None,), name="audio"),
            "text": keras.Input((), dtype="string", name="text"),
        }

    def build(
        self,
        *,
        backbone: str | None = None,
        sharing: str | dict[str, Any] | sharing_registry.Sharing | None = None,
        width: int | None = None,
        depth: int | None = None,
        tasks: Iterable[str] | None = None,
        data: str | None = None,
        data_dir: str | os.PathLike | None = None,
    ) -> MultiTaskModel:
        """See `Application.build`.

        Args:
            backbone: See `Application.build`.
            sharing: See `Application.build`.
            width: Channels of the first convolutions; all else grows with it.
            depth: Number of dense stages.
            tasks: See `Application.build`.
            data: Name of the data set, which says what modalities a task can use;
                the vocabulary is learnt from the texts of its training split.
            data_dir: Folder of prepared data; `None` for the default one.
        """
        name = self.default_data if data is None else data
        uses = self._uses(name, tasks)
        backbone = self.defaults.backbone if backbone is None else backbone
        if backbone not in self.backbones:
            raise errors.unknown_name(
                f"backbone of {self.name!r}", backbone, self.backbones
            )
        share = sharing_registry.get(
            self.defaults.sharing if sharing is None else sharing
        )
        width = width or self.defaults.width
        units = 4 * width
        stages = backbone_registry.get("mlp")(units, depth or self.defaults.depth)

        modalities = _used(uses)
        inputs = {m: x for m, x in self.inputs().items() if m in modalities}
        cleaned = self._clean(inputs, name, data_dir)
        vectors, present = {}, {}
        for modality, encoder in self._encoders(name, modalities, width, units).items():
            x = cleaned[modality]
            present[modality] = fusion.HasContent(name=f"has_{modality}")(x)
            vectors[modality] = fusion.WherePresent(encoder, name=modality + "_vector")(
                x, present[modality]
            )

        slots = [keras.Input((units,)) for _ in modalities]
        masks = [keras.Input((), dtype="bool") for _ in modalities]
        fused = fusion.get(backbone)(name="fusion")(slots, masks)
        trunk = keras.Model([slots, masks], share(fused, stages, list(uses)))
        outputs = {}
        for group in dict.fromkeys(uses.values()):
            view = [
                (vectors[m], present[m])
                if m in group
                else fusion.Absent(name=f"no_{m}_for_{'_'.join(group)}")(
                    vectors[group[0]]
                )
                for m in modalities
            ]
            features = call_again(trunk, [[v for v, _ in view], [p for _, p in view]])
            for task, used in uses.items():
                if used == group:
                    outputs[task] = self.head(self.tasks[task], features[task])
        return MultiTaskModel(inputs, outputs)

    def _uses(
        self, data: str, tasks: Iterable[str] | None
    ) -> dict[str, tuple[str, ...]]:
        chosen = self.select(tasks)
        uses = _find(data).uses
        return {task: uses[task] for task in chosen}

    def _clean(self, inputs, data, data_dir):
        cleaned = {}
        if "image" in inputs:
            cleaned["image"] = keras.layers.Rescaling(1 / 255, name="rescaling")(
                inputs["image"]
            )
        if "audio" in inputs:
            cleaned["audio"] = encoders.FixedLength(
                SAMPLE_RATE * _SECONDS, name="fixed_length"
            )(inputs["audio"])
        if "text" in inputs:
            reading = _find(data).reading
            tokens = encoders.Tokens(reading.by, reading.length, name="tokens")
            lookup = keras.layers.StringLookup(
                max_tokens=_VOCABULARY, mask_token="", name="token_ids"
            )
            examples = data_registry.load(data, "train", data_dir=data_dir)
            texts = examples.map(lambda features: features["text"]).batch(256)
            lookup.adapt(texts.map(tokens))
            self._size = lookup.vocabulary_size()
            cleaned["text"] = lookup(tokens(inputs["text"]))
        return cleaned

    def _encoders(self, data, modalities, width, units):
        reading = _find(data).reading
        made = {
            "image": lambda: encoders.image(width, units, _IMAGE_SHAPE),
            "audio": lambda: encoders.audio(
                width, units, SAMPLE_RATE * _SECONDS, SAMPLE_RATE
            ),
            "text": lambda: encoders.text(
                2 * width, units, reading.length, self._size, reading.window
            ),
        }
        return {m: made[m]() for m in modalities}

    def head(self, task: Task, features: keras.KerasTensor) -> keras.KerasTensor:
        """See `Application.head`."""
        common: dict[str, Any] = {
            "name": task.name,
            "hidden": _HIDDEN,
            "dropout": _DROPOUT,
        }
        if task.kind == "multiclass":
            return heads.classes(features, count=_CLASSES[task.name], **common)
        return heads.probability(features, **common)

    def preprocess(self, inputs):
        raise NotImplementedError


def _find(data: str) -> _Data:
    if data not in _DATA:
        raise errors.unknown_name("data set of 'multimodal'", data, _DATA)
    return _DATA[data]


def _used(uses: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Returns the modalities that any task can use, in their order."""
    used = {modality for modalities in uses.values() for modality in modalities}
    return [modality for modality in MODALITIES if modality in used]
