"""Text: sentiment, question answering and translation over one encoder."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import keras

from mtl_keras import optional
from mtl_keras.applications import heads
from mtl_keras.applications.base import (
    BoundApplication,
    Task,
    TrainingDefaults,
    check_split,
)
from mtl_keras.applications.tasks import binary_task
from mtl_keras.applications.text import scoring, sources, vocabulary
from mtl_keras.applications.text.decoder import Decoder, Translation
from mtl_keras.applications.text.encoder import MeanAndMaximum, TokenEmbedding
from mtl_keras.applications.text.spans import AnswerText, SpanProbabilities
from mtl_keras.applications.text.tokens import QuestionAndText, TargetTokens
from mtl_keras.backbones.sequences import sequence_mlp, sequence_rnn, transformer
from mtl_keras.data import mix
from mtl_keras.evaluation.sequences import SequenceCrossentropy, TokenAccuracy
from mtl_keras.evaluation.spans import SpanAccuracy, SpanF1
from mtl_keras.model.keras_compat import graph_nodes

if TYPE_CHECKING:
    import tensorflow as tf

    from mtl_keras.sharing import Sharing

SOURCE_WORDS, TARGET_WORDS = 16_000, 10_000
_BUCKETS = 1_000
_DROPOUT = 0.2

_BACKBONES = {"rnn": sequence_rnn, "mlp": sequence_mlp, "transformer": transformer}
_ALL_TASKS = (
    binary_task("sentiment"),
    Task(
        "answer",
        kind="span",
        loss=keras.losses.SparseCategoricalCrossentropy,
        metrics=lambda: [SpanAccuracy(), SpanF1()],
        objective="span_accuracy",
    ),
    Task(
        "translation",
        kind="sequence",
        loss=SequenceCrossentropy,
        metrics=lambda: [TokenAccuracy()],
        objective="token_accuracy",
    ),
)
_TASKS = {task.name: task for task in _ALL_TASKS}


class Text(BoundApplication):
    """Three tasks on texts, each labelled by a data set of its own.

    - `sentiment`: whether a text is positive (binary).
    - `answer`: which span of a text answers a question (start and end).
    - `translation`: the text in another language (attention decoder).

    `data` is `"generated_text"`, or the names of one data set for each task, with
    commas between them: `"imdb_reviews,squad/v1.1,multi30k/de"`. Batches are of one
    data set each, and have sample weights: 0 for the tasks that it does not label.
    Gradient balancers then have nothing to balance; `load(accumulate=True)` gives as
    many samples at a time as a batch of each, of all data sets by their size.

    The model reads raw strings: `text`, `question` (empty where nothing is asked)
    and, for training and scoring only, `target`, the reference translation.
    `serving_model` gives the model that needs no reference and answers in strings.

    Args:
        data: As above; its training splits give the vocabularies.
        data_dir: Folder of prepared data; `None` for the default one.
    """

    name = "text"
    accumulates = True
    default_data = sources.DEFAULT
    backbones = tuple(_BACKBONES)
    tasks = _TASKS
    defaults = TrainingDefaults(
        epochs=4,
        batch_size=64,
        learning_rate=4e-3,
        backbone="rnn",
        sharing="hard",
        width=48,
        depth=1,
    )

    def __init__(
        self, data: str | None = None, data_dir: str | os.PathLike | None = None
    ):
        super().__init__(data or None, data_dir)
        # A model has the tasks that its data sets label.
        self.tasks = {name: _TASKS[name] for name in sources.find(self.data)}

    def stages(self, backbone: str, width: int, depth: int) -> list[keras.layers.Layer]:
        """See `Application.stages`; each maps a sequence to a sequence."""
        return _BACKBONES[backbone](width, depth)

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
        accumulate: bool = False,
    ) -> tf.data.Dataset:
        """See `Application.load`; `limit` holds for each data set.

        Long training texts are cut: of a review the first and last hundred tokens
        are kept, of a context 150 around the answer.
        """
        streams = self.streams(
            split, data=data, tasks=tasks, limit=limit, data_dir=data_dir
        )
        return mix(
            streams,
            batch_size=batch_size * (len(streams) if accumulate else 1),
            homogeneous=not accumulate,
            even=accumulate,
            shuffle=shuffle,
            seed=seed,
        ).dataset(epoch=epoch)

    def streams(
        self,
        split: str,
        *,
        data: str | None = None,
        tasks: Iterable[str] | None = None,
        limit: int | None = None,
        data_dir: str | os.PathLike | None = None,
    ) -> dict[str, tf.data.Dataset]:
        """Returns the sources of a split by task, for `mtl_keras.data.mix`.

        Args:
            split: `"train"`, `"validation"` or `"test"`.
            data: See the class; `None` for the default.
            tasks: Tasks whose data to give; `None` for all.
            limit: Number of samples of each source; `None` for all.
            data_dir: Folder of prepared data; `None` for the default one.

        Raises:
            InputError: A name is unknown or the data cannot be had.
        """
        check_split(split)
        return {
            task: sources.samples(
                source,
                split,
                limit=limit,
                crop=split == "train",
                data_dir=data_dir or self.data_dir,
            )
            for task, source in sources.chosen(
                data or self.data, self.select(tasks)
            ).items()
        }

    def inputs(self) -> dict[str, keras.KerasTensor]:
        """See `Application.inputs`: `text`, `question`, `target`, strings `[batch]`."""
        return {
            name: keras.Input((), dtype="string", name=name)
            for name in ("text", "question", "target")
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
        """See `Application.connect`: learns the vocabularies from the data."""
        del backbone
        read, written = _vocabularies(self.data, tuple(tasks), _as_text(self.data_dir))
        tokens, kinds = QuestionAndText(sources.POSITIONS, name="tokens")(
            [inputs["text"], inputs["question"]]
        )
        lookup = vocabulary.source_lookup(read.words, _BUCKETS)
        x = TokenEmbedding(lookup.vocabulary_size(), width, name="embedding")(
            [lookup(tokens), kinds]
        )
        x = keras.layers.Dropout(_DROPOUT, name="embedding_dropout")(x)
        features = share(x, stages=stages, tasks=list(tasks))
        return {
            name: self._head(name, own, kinds, inputs, written, width)
            for name, own in features.items()
        }

    def _head(
        self,
        task: str,
        features: keras.KerasTensor,
        kinds: keras.KerasTensor,
        inputs: Mapping[str, keras.KerasTensor],
        written: vocabulary.Vocabulary | None,
        width: int,
    ) -> keras.KerasTensor:
        if task == "sentiment":
            pooled = MeanAndMaximum(name="sentiment_pooling")([features, kinds])
            return heads.probability(
                pooled, name=task, hidden=2 * width, dropout=_DROPOUT
            )
        if task == "answer":
            return SpanProbabilities(
                2 * width, sources.POSITIONS, _DROPOUT, dtype="float32", name=task
            )([features, kinds])
        # Needed by the metrics after the training: fail before it instead.
        with optional.extra("text", "sacrebleu", "The task 'translation'"):
            import sacrebleu  # noqa: F401
        assert written is not None
        lookup = vocabulary.target_lookup(written.words)
        ids = lookup(TargetTokens(name="target_tokens")(inputs["target"]))
        decoder = Decoder(lookup.vocabulary_size(), width, _DROPOUT, name=task)
        output = decoder([features, kinds, ids])
        # Without this, the first steps learn which words are frequent, all in one
        # direction, and drive the units below the softmax into saturation.
        decoder.scores.bias.assign(vocabulary.log_shares(written))
        return output

    def serving_model(self, model: keras.Model) -> keras.Model:
        """Returns the model that clients are to ask.

        Args:
            model: A trained model of `build`.

        Returns:
            A model from `text` and `question` (which may be empty), strings `[batch]`,
            and of a `PreferenceModel` the preference, to the probability `sentiment`,
            `[batch, 1]`, and the strings `answer` and `translation`, `[batch]`: those
            of them that `model` was built for.
        """
        inputs = {name: x for name, x in model.input.items() if name != "target"}
        outputs = {}
        if "sentiment" in model.output_names:
            outputs["sentiment"] = model.output["sentiment"]
        if "answer" in model.output_names:
            spans = model.output["answer"]
            outputs["answer"] = AnswerText(name="answer_text")([inputs["text"], spans])
        if "translation" in model.output_names:
            calls = {node.operation.name: node for node in graph_nodes(model)}
            call = calls["translation"]
            decoder, (features, kinds, _) = call.operation, call.inputs
            target_tokens = model.get_layer("target_ids").get_vocabulary()
            outputs["translation"] = Translation(
                decoder, target_tokens, name="translated"
            )([features, kinds])
        return keras.Model(inputs, outputs)

    def class_names(self) -> Mapping[str, Sequence[str]]:
        """See `Application.class_names`."""
        return (
            {"sentiment": ["negative", "positive"]} if "sentiment" in self.tasks else {}
        )

    def measure(
        self,
        model: keras.Model,
        split: str,
        *,
        data: str | None = None,
        tasks: Iterable[str] | None = None,
        batch_size: int,
        data_dir: str | os.PathLike | None = None,
    ) -> dict[str, dict[str, float]]:
        """See `Application.measure`.

        Of `answer` SQuAD's `exact_match` and `f1`, from 0 to 1; of `translation`
        `bleu`, from 0 to 100, after beam search.
        """
        chosen = sources.chosen(data or self.data, self.select(tasks))
        return scoring.score(
            self.serving_model(model),
            chosen,
            split,
            batch_size,
            data_dir or self.data_dir,
        )


@functools.lru_cache(maxsize=4)
def _vocabularies(
    data: str, tasks: tuple[str, ...], data_dir: str | None
) -> tuple[vocabulary.Vocabulary, vocabulary.Vocabulary | None]:
    """Returns the words to read and the words to write, of the training splits."""
    read: tf.data.Dataset | None = None
    written: vocabulary.Vocabulary | None = None
    for source in sources.chosen(data, tasks).values():
        texts, targets = sources.texts(source, data_dir)
        read = texts if read is None else read.concatenate(texts)
        if targets is not None:
            written = vocabulary.learn(targets, TARGET_WORDS, lowercase=False)
    assert read is not None
    return vocabulary.learn(read, SOURCE_WORDS, lowercase=True), written


def _as_text(path: str | os.PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)
