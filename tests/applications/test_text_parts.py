"""The parts of the text application, against plain Python."""

from __future__ import annotations

import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras.applications.text import tokens as tokens_lib
from mtl_keras.applications.text.decoder import (
    END_ID,
    SPECIAL,
    START_ID,
    UNKNOWN_ID,
    Decoder,
)
from mtl_keras.applications.text.encoder import MeanAndMaximum
from mtl_keras.applications.text.spans import AnswerText, SpanProbabilities, best_span
from mtl_keras.applications.text.tokens import (
    BOUNDARY,
    MATCH,
    QUESTION,
    TEXT,
    QuestionAndText,
    joined,
    pieces,
    tokens,
)
from mtl_keras.applications.text.vocabulary import learn, log_shares, source_lookup
from mtl_keras.backbones import sequences
from mtl_keras.evaluation import (
    SequenceCrossentropy,
    SpanAccuracy,
    SpanF1,
    TokenAccuracy,
)

TEXTS = [
    "Don't pay US$3 -- it's (really) bad.",
    "  Übermäßig große  Häuser;\tnaïve café! ",
    "",
    "one",
    "漢字 and 日本 42nd e\u0301t",
]


def decoded(ragged):
    return [[token.decode() for token in row] for row in ragged.to_list()]


def test_tokens_are_runs_of_letters_and_digits_or_single_signs():
    # \w is letters, digits and the underscore, which none of these texts has;
    # combining marks are no \w.
    expected = [re.findall(r"(?:\w|\u0301)+|[^\w\s]", text) for text in TEXTS]
    assert decoded(tokens(tf.constant(TEXTS), lowercase=False)) == expected
    lower = [[token.lower() for token in row] for row in expected]
    assert decoded(tokens(tf.constant(TEXTS), lowercase=True)) == lower


def test_pieces_are_the_text():
    whole = tf.strings.reduce_join(pieces(tf.constant(TEXTS)), axis=-1)
    cleaned = [text.rstrip().replace("\t", " ") for text in TEXTS]
    assert [text.decode() for text in whole.numpy()] == cleaned


HIDDEN = "good\u0085bad \u2028 x\x0b\x1c\x1fa\u00a0b c\u200bd\x00\ufeff e\u3000f"


def test_control_characters_and_spaces_of_any_kind_are_no_tokens():
    (row,) = decoded(tokens(tf.constant([HIDDEN]), lowercase=True))
    assert row == ["good", "bad", "x", *"abcdef"]
    (broken,) = decoded(tokens(tf.constant([b"a \xff b"]), lowercase=True))
    assert broken == ["a", "\ufffd", "b"]


def test_a_vocabulary_of_any_text_can_be_saved_and_loaded(tmp_path):
    words = learn(tf.data.Dataset.from_tensors(HIDDEN), 100, lowercase=True).words
    inputs = keras.Input((), dtype="string")
    model = keras.Model(inputs, source_lookup(words, 4)(inputs))
    model.save(tmp_path / "lookup.keras")
    loaded = keras.saving.load_model(tmp_path / "lookup.keras")
    np.testing.assert_array_equal(loaded(tf.constant(words)), np.arange(len(words)) + 6)


def test_joined_tokens_are_cut_in_the_same_way_again():
    cut = tokens(tf.constant(TEXTS), lowercase=False)
    text = tf.strings.reduce_join(cut, axis=-1, separator=" ")
    assert decoded(tokens(text, lowercase=False)) == decoded(cut)


def test_html_line_breaks_are_no_tokens():
    (row,) = decoded(tokens(tf.constant(["good<br /><br>film"]), lowercase=True))
    assert row == ["good", "film"]


def test_translations_are_written_as_people_write():
    words = [
        "Ein",
        "Mann",
        ",",
        "der",
        "(",
        "rote",
        ")",
        "T",
        "-",
        "Shirts",
        "trägt",
        ".",
    ]
    assert joined(tf.constant([words])).numpy()[0].decode() == (
        "Ein Mann, der (rote) T-Shirts trägt."
    )


def test_question_and_text_are_one_sequence():
    layer = QuestionAndText(text_length=4, question_length=3)
    sequence, kinds = layer(
        [
            tf.constant(["The red cat saw it", "only text", ""]),
            tf.constant(["Who SAW the cat ?", "", ""]),
        ]
    )
    assert [[w.decode() for w in row if w] for row in sequence.numpy()] == [
        ["who", "saw", "the", "[SEP]", "the", "red", "cat", "saw"],
        ["only", "text"],
        [],
    ]
    assert kinds.numpy().tolist() == [
        [QUESTION] * 3 + [BOUNDARY, MATCH, TEXT, TEXT, MATCH],
        [TEXT] * 2 + [0] * 6,
        [0] * 8,
    ]


def test_vocabulary_is_that_of_keras():
    texts = ["b b a", "c a b", "d"] * 3 + ["b"]
    lookup = keras.layers.StringLookup(max_tokens=2 + 3)
    lookup.adapt([[word] for text in texts for word in text.split()])
    expected = lookup.get_vocabulary(include_special_tokens=False)
    dataset = tf.data.Dataset.from_tensor_slices(texts)
    vocabulary = learn(dataset, 3, lowercase=True)
    assert vocabulary.words[:2] == expected[:2] == ["b", "a"]
    assert (len(vocabulary.words), vocabulary.texts) == (3, 10)
    assert (vocabulary.counts, vocabulary.unknown) == ([10, 6, 3], 3)
    # A decoder without weights but the bias predicts the frequencies of tokens.
    shares = np.exp(log_shares(vocabulary))
    assert shares.sum() == pytest.approx(1, abs=1e-6)
    assert shares[len(SPECIAL)] / shares[END_ID] == pytest.approx(10 / 10.5)


def inputs_of_heads(lengths, questions, units=6, seed=0):
    """Features and kinds: `questions` tokens, a boundary, then a text."""
    rng = np.random.default_rng(seed)
    rows = [
        [QUESTION] * q + [BOUNDARY] * bool(q) + [TEXT] * (n - q - bool(q))
        for n, q in zip(lengths, questions, strict=True)
    ]
    kinds = np.zeros((len(rows), max(lengths)), "int32")
    for row, kind in zip(kinds, rows, strict=True):
        row[: len(kind)] = kind
    features = rng.normal(size=(*kinds.shape, units)).astype("float32")
    return features * (kinds > 0)[..., None], kinds


def test_span_probabilities_are_over_the_texts_tokens():
    features, kinds = inputs_of_heads([9, 6, 5], [3, 1, 0])
    layer = SpanProbabilities(8, positions=12)
    probabilities = layer([features, kinds]).numpy()
    np.testing.assert_allclose(probabilities[:2].sum(axis=-1), 1, atol=1e-5)
    assert (probabilities[0, :, :5] > 0).all()
    assert (probabilities[0, :, 5:] == 0).all()
    assert (probabilities[1, :, :4] > 0).all()
    assert (probabilities[1, :, 4:] == 0).all()
    assert (probabilities[2] == 0).all()
    # A sample alone has the same probabilities: padding is masked.
    alone = layer([features[1:2, :6], kinds[1:2, :6]]).numpy()
    np.testing.assert_allclose(alone[0], probabilities[1], atol=1e-5)


def test_best_span_is_the_most_probable_of_all_allowed():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(50, 0.3), size=(8, 2)).astype("float32")
    start, end = best_span(tf.constant(probabilities))
    for row, first, last in zip(probabilities, start, end, strict=True):
        allowed = [(i, j) for i in range(50) for j in range(i, min(i + 30, 50))]
        best = max(allowed, key=lambda span: row[0, span[0]] * row[1, span[1]])
        assert (int(first), int(last)) == best


def test_answers_are_written_as_in_the_text():
    text = tf.constant(["It cost  US$3.50, then.", "Nobody asked."])
    probabilities = np.zeros((2, 2, 20), "float32")
    probabilities[0, 0, 2] = probabilities[0, 1, 6] = 1
    answers = AnswerText()([text, probabilities]).numpy()
    assert answers.tolist() == [b"US$3.50", b""]


@pytest.fixture
def decoder():
    layer = Decoder(7, 4)
    layer.build([(None, None, 6), (None, None), (None, None)])
    # Larger weights than a new layer's: hypotheses that differ.
    rng = np.random.default_rng(3)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    return layer


def likelihood(decoder, features, kinds, ids):
    return float(decoder([features, kinds, np.array([ids])])[0, 0])


def test_decoder_scores_a_sequence_token_by_token(decoder):
    features, kinds = inputs_of_heads([5], [0])
    ids = [4, 5, 4, END_ID]
    total, hits = 0.0, 0
    # The probability of each token given those before, as all probabilities of
    # sequences that differ in their last token.
    for length in range(1, len(ids) + 1):
        prefix = ids[: length - 1]
        base = likelihood(decoder, features, kinds, prefix) if prefix else 0.0
        logs = [
            likelihood(decoder, features, kinds, [*prefix, token]) - base
            for token in range(1, 7)
        ]
        # Padding has a probability too, though nothing is ever scored by it.
        assert 0.0 < np.exp(logs).sum() <= 1.0 + 1e-5
        total += logs[ids[length - 1] - 1]
        hits += int(np.argmax(logs)) == ids[length - 1] - 1
    score = decoder([features, kinds, np.array([[*ids, 0, 0]])]).numpy()[0]
    assert score[0] == pytest.approx(total, rel=1e-4)
    assert score[2] == len(ids)
    assert score[1] in (hits, hits - 1)


def test_beam_search_with_room_for_all_finds_the_best(decoder):
    features, kinds = inputs_of_heads([5, 3], [0, 0], seed=4)
    others = [
        token for token in range(7) if token not in (0, UNKNOWN_ID, START_ID, END_ID)
    ]
    most = 3
    translations = decoder.search(
        tf.constant(features), tf.constant(kinds), beams=4**3, most=most
    )
    for index in range(2):
        part = slice(index, index + 1)
        every = [
            [*body, END_ID][:most]
            for length in range(most + 1)
            for body in itertools.product(others, repeat=length)
        ]
        best = max(
            every,
            key=lambda ids: (
                likelihood(decoder, features[part], kinds[part], ids) / len(ids)
            ),
        )
        expected = [token for token in best if token != END_ID]
        assert [token for token in translations[index].numpy() if token] == expected


@pytest.mark.parametrize("name", ["sequence_rnn", "sequence_mlp", "transformer"])
def test_padding_changes_nothing(name):
    stages = getattr(sequences, name)(4, 2)
    x = np.random.default_rng(0).normal(size=(2, 7, 5)).astype("float32")
    x[0, 4:] = 0

    def run(value):
        for stage in stages:
            value = stage(value)
        return np.asarray(value)

    out = run(x)
    assert out.shape == (2, 7, 8)
    assert (out[0, 4:] == 0).all()
    np.testing.assert_allclose(run(x[:1, :4])[0], out[0, :4], atol=1e-5)


def test_the_bag_of_words_knows_no_order():
    (stage,) = sequences.sequence_mlp(4, 1)
    x = np.random.default_rng(0).normal(size=(1, 6, 5)).astype("float32")
    order = np.random.default_rng(1).permutation(6)
    np.testing.assert_allclose(
        stage(x[:, order]).numpy(), stage(x).numpy()[:, order], atol=1e-5
    )


def test_pooling_leaves_padding_out():
    features, kinds = inputs_of_heads([5, 2], [0, 0])
    features -= 3 * (kinds > 0)[..., None]
    pooled = MeanAndMaximum()([features, kinds]).numpy()
    for row, length in ((0, 5), (1, 2)):
        part = features[row, :length]
        expected = np.concatenate([part.mean(axis=0), part.max(axis=0)])
        np.testing.assert_allclose(pooled[row], expected, rtol=1e-5)


def test_span_metrics_count_positions():
    true = np.array([[2, 4], [1, 1], [0, 3], [5, 6]])
    predicted = [(2, 4), (3, 5), (2, 6), (4, 2)]
    scores = np.zeros((4, 2, 9), "float32")
    for row, span in enumerate(predicted):
        scores[row, [0, 1], span] = 1
    expected = []
    for (a, b), (c, d) in zip(true, predicted, strict=True):
        common = len(set(range(a, b + 1)) & set(range(c, d + 1)))
        expected.append(2 * common / (b - a + 1 + max(d - c + 1, 0)))
    weight = np.array([1.0, 1.0, 1.0, 0.0])
    for metric, value in ((SpanAccuracy(), [1, 0, 0]), (SpanF1(), expected[:3])):
        metric.update_state(true, scores, weight)
        assert float(metric.result()) == pytest.approx(np.mean(value))


def test_sequence_loss_and_accuracy():
    y_pred = np.array([[-6.0, 2, 3], [-2.0, 1, 4], [-9.0, 9, 9]], "float32")
    loss = SequenceCrossentropy(reduction=None)(np.ones(3), y_pred)
    np.testing.assert_allclose(loss, [2.0, 0.5, 1.0])
    metric = TokenAccuracy()
    metric.update_state(None, y_pred, [1, 1, 0])
    assert float(metric.result()) == pytest.approx(3 / 7)


def test_layers_round_trip():
    for layer in (
        QuestionAndText(9, 5, name="q"),
        tokens_lib.TargetTokens(7, name="t"),
        SpanProbabilities(4, 9, 0.1, name="s"),
        Decoder(9, 4, 0.1, name="d"),
        sequences.SequenceGRU(4, name="g"),
        sequences.BagDense(4, name="b"),
        sequences.TransformerBlock(8, True, name="x"),
    ):
        copy = keras.layers.deserialize(keras.layers.serialize(layer))
        assert copy.get_config() == layer.get_config()
