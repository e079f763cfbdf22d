"""The head that translates: teacher forcing in training, beam search in service."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from mtl_keras.applications.text.tokens import END, START, joined

_register = keras.saving.register_keras_serializable(package="mtl_keras")

UNKNOWN = "[UNK]"
PADDING_ID, UNKNOWN_ID, START_ID, END_ID = range(4)
SPECIAL = ["", UNKNOWN, START, END]
"""The vocabulary's first entries, in the order of their ids."""


@_register
class Decoder(keras.layers.Layer):
    """Attention decoder: scores a given translation, and finds the best one.

    A GRU over the tokens so far, which starts from the mean of the features;
    attention to the features; softmax over the vocabulary. Luong et al., "Effective
    Approaches to Attention-based Neural Machine Translation", EMNLP 2015, arXiv
    1508.04025: global attention, the "general" score, without input feeding.

    Called on `[features, kinds, ids]`: `[batch, length, d]`, int `[batch, length]`
    and the translation's ids, int `[batch, target length]`, `[END]` included, 0 at
    padding. Returns float32 `[batch, 3]`: the translation's log-likelihood, how many
    of its tokens were the most probable ones, and how many it has.

    Args:
        vocabulary_size: Number of the target language's ids.
        units: Units of embeddings and of the layer below the softmax; half of the
            GRU's.
        dropout: Share of the units left out in training.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(
        self, vocabulary_size: int, units: int, dropout: float = 0.0, **kwargs: Any
    ):
        super().__init__(**kwargs)
        # Padding is read from the kinds; the result has no mask.
        self.supports_masking = True
        self.vocabulary_size = vocabulary_size
        self.units = units
        self.dropout_rate = dropout
        policy = self.dtype_policy
        self.dropout = keras.layers.Dropout(dropout, dtype=policy, name="dropout")
        self.embedding = keras.layers.Embedding(
            vocabulary_size, units, dtype=policy, name="embedding"
        )
        self.bridge = keras.layers.Dense(
            2 * units, activation="tanh", dtype=policy, name="bridge"
        )
        self.gru = keras.layers.GRU(
            2 * units, return_sequences=True, dtype=policy, name="gru"
        )
        self.combine = keras.layers.Dense(
            units, activation="tanh", dtype=policy, name="combine"
        )
        self.scores = keras.layers.Dense(
            vocabulary_size, dtype="float32", name="scores"
        )

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """Ends the mask: the result has no positions of the features."""

    def build(self, input_shape: list[tuple[int | None, ...]]) -> None:
        """Builds the parts."""
        features = input_shape[0][-1]
        assert features is not None
        self.query = keras.layers.Dense(
            features, use_bias=False, dtype=self.dtype_policy, name="query"
        )
        self.embedding.build((None, None))
        self.bridge.build((None, features))
        self.gru.build((None, None, self.units))
        self.query.build((None, None, 2 * self.units))
        self.combine.build((None, None, 2 * self.units + features))
        self.scores.build((None, self.units))

    def call(self, inputs: list[Any], training: bool = False) -> Any:
        """Returns the scores of the given translations."""
        features, kinds, ids = inputs
        ids = tf.cast(ids, tf.int32)
        mask = kinds > 0
        begun = tf.pad(ids[:, :-1], [[0, 0], [1, 0]], constant_values=START_ID)
        states = self.gru(
            self.dropout(self.embedding(begun), training=training),
            initial_state=self._first_state(features, mask),
        )
        hidden = self._attend(states, features, mask)
        # Only positions that hold a token go through the softmax.
        places = tf.where(ids > PADDING_ID)
        hidden = self.dropout(tf.gather_nd(hidden, places), training=training)
        logits = self.scores(hidden)
        wanted = tf.gather_nd(ids, places)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(wanted, logits)
        hits = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), wanted)
        columns = tf.stack([-loss, tf.cast(hits, tf.float32), tf.ones_like(loss)], -1)
        return tf.math.unsorted_segment_sum(columns, places[:, 0], tf.shape(ids)[0])

    def compute_output_spec(
        self, inputs: list[keras.KerasTensor], training: bool = False
    ) -> keras.KerasTensor:
        """Returns the shape of the scores, which are float32 in any precision."""
        return keras.KerasTensor((inputs[0].shape[0], 3), dtype="float32")

    def search(self, features: Any, kinds: Any, beams: int, most: int) -> tf.Tensor:
        """Finds translations by beam search.

        Args:
            features: `[batch, length, d]`.
            kinds: int `[batch, length]`.
            beams: Hypotheses that are kept at each step.
            most: Most tokens of a translation.

        Returns:
            The ids of the hypothesis with the highest log-likelihood per token,
            int32 `[batch, most]`, 0 from `[END]` on.
        """
        batch = tf.shape(features)[0]
        features = tf.repeat(features, beams, axis=0)
        mask = tf.repeat(kinds > 0, beams, axis=0)
        # All hypotheses are the same at first: only one of them counts.
        first = tf.one_hot(0, beams, on_value=0.0, off_value=-1e9)
        start = _Beams(
            tf.constant(0),
            tf.fill([batch, beams], START_ID),
            tf.zeros([batch, beams, most], tf.int32),
            tf.tile(first[None], [batch, 1]),
            tf.zeros([batch, beams], tf.bool),
            tf.reshape(
                self._first_state(features, mask), [batch, beams, 2 * self.units]
            ),
        )

        def unfinished(*loop: Any) -> tf.Tensor:
            now = _Beams(*loop)
            return (now.step < most) & ~tf.reduce_all(now.finished)

        def step(*loop: Any) -> _Beams:
            return self._extend(_Beams(*loop), features, mask)

        last = _Beams(*tf.while_loop(unfinished, step, start))
        lengths = tf.reduce_sum(tf.cast(last.ids > PADDING_ID, tf.float32), axis=-1)
        best = tf.argmax(last.scores / tf.maximum(lengths, 1.0), axis=-1)
        ids = tf.gather(last.ids, best, batch_dims=1)
        return tf.where(tf.equal(ids, END_ID), PADDING_ID, ids)

    def _extend(self, now: _Beams, features: Any, mask: Any) -> _Beams:
        """Extends every hypothesis by one token, and keeps the best of all."""
        batch, beams = tf.shape(now.scores)[0], now.scores.shape[1]
        state = tf.reshape(now.states, [-1, 2 * self.units])
        vectors = self.embedding(tf.reshape(now.tokens, [-1]))
        _, (state,) = self.gru.cell(vectors, [state])
        hidden = self._attend(state[:, None], features, mask)[:, 0]
        logits = tf.reshape(self.scores(hidden), [batch, beams, self.vocabulary_size])
        forbidden = tf.reduce_sum(
            tf.one_hot([PADDING_ID, UNKNOWN_ID, START_ID], self.vocabulary_size), 0
        )
        fresh = tf.nn.log_softmax(logits) - 1e9 * forbidden
        # A finished hypothesis is continued by padding of log-likelihood 0.
        rest = tf.one_hot(PADDING_ID, self.vocabulary_size, 0.0, -1e9)
        fresh = tf.where(now.finished[..., None], rest, fresh)
        total = tf.reshape(now.scores[..., None] + fresh, [batch, -1])
        scores, places = tf.math.top_k(total, beams)
        origin, tokens = places // self.vocabulary_size, places % self.vocabulary_size
        ids = tf.gather(now.ids, origin, batch_dims=1)
        here = tf.equal(tf.range(ids.shape[-1]), now.step)
        finished = tf.gather(now.finished, origin, batch_dims=1)
        states = tf.reshape(state, [batch, beams, 2 * self.units])
        return _Beams(
            now.step + 1,
            tokens,
            tf.where(here, tokens[..., None], ids),
            scores,
            finished | tf.equal(tokens, END_ID),
            tf.gather(states, origin, batch_dims=1),
        )

    def _first_state(self, features: Any, mask: Any) -> Any:
        weights = tf.cast(mask, features.dtype)[..., None]
        count = tf.maximum(tf.reduce_sum(weights, axis=1), 1)
        return self.bridge(tf.reduce_sum(features * weights, axis=1) / count)

    def _attend(self, states: Any, features: Any, mask: Any) -> Any:
        scores = tf.matmul(self.query(states), features, transpose_b=True)
        lowest = tf.cast(-1e4, scores.dtype)
        weights = tf.nn.softmax(tf.where(mask[:, None, :], scores, lowest))
        context = tf.matmul(weights, features)
        return self.combine(tf.concat([context, states], axis=-1))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "units": self.units,
            "dropout": self.dropout_rate,
        }


class _Beams(NamedTuple):
    """State of beam search, tensors `[batch, beams, …]`."""

    step: tf.Tensor
    tokens: tf.Tensor
    ids: tf.Tensor
    scores: tf.Tensor
    finished: tf.Tensor
    states: tf.Tensor


@_register
class Translation(keras.layers.Layer):
    """Translates by beam search, with a trained decoder.

    Called on `[features, kinds]` as the decoder is; returns strings `[batch]`.

    Args:
        decoder: The decoder.
        vocabulary: The target language's tokens by id.
        beams: Hypotheses that are kept at each step.
        most: Most tokens of a translation.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: list[str],
        beams: int = 4,
        most: int = 60,
        **kwargs: Any,
    ):
        # The decoder's parts are called from here, so their precision holds here.
        super().__init__(**{"dtype": decoder.dtype_policy, **kwargs})
        # Padding is read from the kinds; the result has no mask.
        self.supports_masking = True
        self.decoder = decoder
        self.vocabulary = list(vocabulary)
        self.beams = beams
        self.most = most
        self.supports_jit = False

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """Ends the mask: the result has no positions of the features."""

    def call(self, inputs: list[Any]) -> Any:
        """Returns the translations."""
        features, kinds = inputs
        ids = self.decoder.search(features, kinds, self.beams, self.most)
        return joined(tf.gather(tf.constant(["", *self.vocabulary[1:]]), ids))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "decoder": keras.saving.serialize_keras_object(self.decoder),
            "vocabulary": self.vocabulary,
            "beams": self.beams,
            "most": self.most,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Translation:
        """Returns an instance made from `get_config`'s result."""
        decoder = keras.saving.deserialize_keras_object(config["decoder"])
        return cls(**{**config, "decoder": decoder})
