"""Images, recordings and texts in one model, any of them missing."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import keras

from mtl_keras import backbones as backbone_registry
from mtl_keras import data as data_registry
from mtl_keras import errors, fusion
from mtl_keras.applications import heads
from mtl_keras.applications.base import (
    SPLITS,
    BoundApplication,
    Task,
    TrainingDefaults,
    check_split,
)
from mtl_keras.applications.multimodal import encoders
from mtl_keras.applications.tasks import multiclass_task
from mtl_keras.data.generated.modalities import SIZE, SPEAKERS
from mtl_keras.data.passes import shuffled
from mtl_keras.data.recordings import SAMPLE_RATE
from mtl_keras.model.keras_compat import call_again

if TYPE_CHECKING:
    import tensorflow as tf

    from mtl_keras.sharing import Sharing

MODALITIES = ("image", "audio", "text")

_CLASSES = {"digit": 10, "sentiment": 2, "speaker": 5, "even": 2}
_IMAGE_SHAPE = (SIZE, SIZE, 1)
_LENGTH = SAMPLE_RATE  # one second
_PEAK = 2**15
_VOCABULARY = 5_000
_UNITS_BY_WIDTH = 4
_HIDDEN = 64
_DROPOUT = 0.3


class _Data(NamedTuple):
    """Modalities, text lengths and sample weights of a data set.

    Attributes:
        uses: By the tasks that it labels: the modalities that carry the label.
        tokens: Unit of the tokens of its texts, `"word"` or `"character"`.
        length: Tokens of a text that are read.
        window: Tokens that the text encoder reads at a time.
        weights: Sample weight of a digit that is seen alone, and of one that is
            heard.
    """

    uses: Mapping[str, tuple[str, ...]]
    tokens: str
    length: int
    window: int
    weights: tuple[float, float] = (1.0, 1.0)


_UNPAIRED = _Data(
    uses={
        "digit": ("image", "audio"),
        "sentiment": ("text",),
        "speaker": ("audio",),
        "even": ("image", "audio"),
    },
    tokens="word",
    length=240,
    window=12,
    # There are four images to a recording: so both count alike.
    weights=(1.0, 4.0),
)
_PAIRED = _Data(
    uses={"digit": MODALITIES, "speaker": ("audio",), "even": MODALITIES},
    tokens="character",
    length=12,
    window=1,
)
_DATA = {
    "multimodal/unpaired_generated": _UNPAIRED,
    "multimodal/paired_generated": _PAIRED,
    "multimodal/unpaired": _UNPAIRED,
    "multimodal/paired": _PAIRED,
}


def _task(name: str) -> Task:
    if _CLASSES[name] > 2:
        return multiclass_task(name)
    return Task(
        name,
        kind="binary",
        loss=keras.losses.BinaryCrossentropy,
        metrics=lambda: [keras.metrics.BinaryAccuracy(name="accuracy")],
        objective="accuracy",
    )


_TASKS = {name: _task(name) for name in _CLASSES}


class Multimodal(BoundApplication):
    """Four tasks on images, recordings and texts.

    - `digit`: which digit is seen, heard or written (10 classes).
    - `sentiment`: whether a text is positive (binary).
    - `speaker`: who is heard (5 classes).
    - `even`: whether the digit is even (binary).

    A sample has one modality or several. One without content (an image all black,
    digital silence, a text without tokens) counts as absent, and its encoder does
    not run. Each task reads the modalities that carry its label in the data, and no
    others. Paired data have no sentiment.

    The backbones are ways to fuse modalities, each followed by dense stages, which
    the tasks share whatever they read. `width` is that of the encoders' first
    convolutions, and all else grows with it.

    Args:
        data: Name of the data set, whose training texts give the vocabulary; `None`
            for `default_data`.
        data_dir: Folder of prepared data; `None` for the default one.
    """

    name = "multimodal"
    default_data = "multimodal/unpaired_generated"
    backbones = ("concat", "gated", "cross_attention")
    tasks = _TASKS
    defaults = TrainingDefaults(
        epochs=24,
        batch_size=128,
        learning_rate=3e-3,
        backbone="concat",
        sharing="mmoe",
        width=16,
        depth=1,
    )

    def __init__(
        self, data: str | None = None, data_dir: str | os.PathLike | None = None
    ):
        super().__init__(data, data_dir)
        # A model has the tasks that its data set labels.
        self.tasks = {name: _TASKS[name] for name in _find(self.data).uses}

    def class_names(self) -> Mapping[str, Sequence[str]]:
        """See `Application.class_names`."""
        speakers = [str(n) for n in range(_CLASSES["speaker"])]
        names = {
            "digit": [str(n) for n in range(_CLASSES["digit"])],
            "sentiment": ["negative", "positive"],
            "speaker": speakers if "generated" in self.data else SPEAKERS,
            "even": ["odd", "even"],
        }
        return {task: names[task] for task in self.tasks}

    def stages(self, backbone: str, width: int, depth: int) -> list[keras.layers.Layer]:
        """See `Application.stages`: the fusion, then dense layers."""
        units = _UNITS_BY_WIDTH * width
        fuse = fusion.get(backbone)(units, name="fusion")
        return [fuse, *backbone_registry.get("mlp")(units, depth)]

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
        """See `Application.load`.

        Sample weights are 0 where a label is missing. Where one modality labels
        digits more often than another, both count alike in the loss. Samples without
        a label of any chosen task are left out. Paired data have the split
        `"test_complete"` too, where no modality is missing.
        """
        import tensorflow as tf

        name = self.data if data is None else data
        chosen = list(self.for_data(name).select(tasks))
        splits = (*SPLITS, "test_complete") if _find(name) is _PAIRED else SPLITS
        check_split(split, splits)
        seen, heard = _find(name).weights

        def arrange(features: dict[str, Any]) -> tuple[dict[str, Any], ...]:
            inputs = {modality: features[modality] for modality in MODALITIES}
            inputs["audio"] = tf.cast(inputs["audio"], tf.float32) / _PEAK
            of_digit = tf.where(tf.size(inputs["audio"]) > 0, heard, seen)
            labels, weights = {}, {}
            for task in chosen:
                weights[task] = tf.cast(features[task] >= 0, tf.float32)
                if task in ("digit", "even"):
                    weights[task] *= of_digit
                labels[task] = tf.maximum(features[task], 0)
                if _TASKS[task].kind == "binary":
                    labels[task] = tf.cast(labels[task], tf.float32)[None]
            return inputs, labels, weights

        def is_labelled(tasks: Iterable[str], features: dict[str, Any]) -> Any:
            return tf.reduce_any([features[task] >= 0 for task in tasks])

        examples = data_registry.load(name, split, data_dir=data_dir or self.data_dir)
        if limit is not None:
            # Before tasks are chosen, so that models of others train on the same ones.
            examples = examples.filter(functools.partial(is_labelled, _TASKS))
            examples = examples.take(limit)
        examples = examples.filter(functools.partial(is_labelled, chosen))
        examples = examples.map(arrange, num_parallel_calls=tf.data.AUTOTUNE).cache()
        # The cardinality of filtered data is not known before a pass over them.
        count = int(examples.reduce(0, lambda total, *_: total + 1))
        examples = examples.apply(tf.data.experimental.assert_cardinality(count))
        if shuffle:
            examples = shuffled(examples, count, seed, epoch)
        return examples.padded_batch(batch_size).prefetch(tf.data.AUTOTUNE)

    def inputs(self) -> dict[str, keras.KerasTensor]:
        """See `Application.inputs`.

        - `image`: uint8 `[batch, 28, 28, 1]`.
        - `audio`: float32 `[batch, samples]`, −1 to 1 at 8 kHz; one second is read.
        - `text`: strings `[batch]`.
        """
        return {
            "image": keras.Input(_IMAGE_SHAPE, dtype="uint8", name="image"),
            "audio": keras.Input((None,), dtype="float32", name="audio"),
            "text": keras.Input((), dtype="string", name="text"),
        }

    def connect(
        self,
        inputs: Mapping[str, keras.KerasTensor],
        stages: Sequence[keras.layers.Layer],
        share: Sharing,
        tasks: Mapping[str, Task],
        *,
        backbone: str,
        width: int,
    ) -> dict[str, keras.KerasTensor]:
        """See `Application.connect`."""
        del backbone
        uses = {task: _find(self.data).uses[task] for task in tasks}
        fuse, *dense = stages
        encoded = {
            modality: self._encode(modality, inputs[modality], width)
            for modality in MODALITIES
            if any(modality in used for used in uses.values())
        }
        vectors = [keras.Input((_UNITS_BY_WIDTH * width,)) for _ in MODALITIES]
        present = [keras.Input((), dtype="bool") for _ in MODALITIES]
        shared = share(fuse(vectors, present), stages=dense, tasks=list(tasks))
        trunk = keras.Model([vectors, present], shared)
        outputs = {}
        # Once for each set of modalities, on the same layers: in the graph a task
        # then depends on what it uses alone, and can be exported without the rest.
        for group in dict.fromkeys(uses.values()):
            view = dict(encoded)
            for unused in (m for m in MODALITIES if m not in group):
                name = f"no_{unused}_beside_{'_'.join(group)}"
                view[unused] = fusion.Absent(name=name)(encoded[group[0]][0])
            x = [[view[m][part] for m in MODALITIES] for part in range(2)]
            features = call_again(trunk, x)
            for task, used in uses.items():
                if used == group:
                    outputs[task] = self.head(tasks[task], features[task])
        return outputs

    def _encode(
        self, modality: str, x: keras.KerasTensor, width: int
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Returns a modality's vectors, `[batch, units]`, and its presence mask."""
        units = _UNITS_BY_WIDTH * width
        if modality == "image":
            x = keras.layers.Rescaling(1 / 255, name="rescaling")(x)
            encoder = encoders.image(width, units, _IMAGE_SHAPE)
        elif modality == "audio":
            x = encoders.FixedLength(_LENGTH, name="fixed_length")(x)
            encoder = encoders.audio(width, units, _LENGTH, SAMPLE_RATE)
        else:
            reading = _find(self.data)
            tokens = encoders.Tokens(reading.tokens, reading.length, name="tokens")
            examples = data_registry.load(self.data, "train", data_dir=self.data_dir)
            lookup = encoders.lookup(
                examples.map(lambda features: features["text"]), tokens, _VOCABULARY
            )
            x = lookup(tokens(x))
            encoder = encoders.text(
                2 * width,
                units,
                reading.length,
                lookup.vocabulary_size(),
                reading.window,
            )
        present = fusion.HasContent(name=f"has_{modality}")(x)
        vectors = fusion.WherePresent(encoder, name=f"{modality}_vector")(x, present)
        return vectors, present

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


def _find(data: str) -> _Data:
    if data not in _DATA:
        raise errors.unknown_name("data set of 'multimodal'", data, _DATA)
    return _DATA[data]
