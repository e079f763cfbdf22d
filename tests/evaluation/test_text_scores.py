"""Scores of texts, by hand and against sacreBLEU."""

from __future__ import annotations

import pytest
import sacrebleu

from mtl_keras.errors import InputError
from mtl_keras.evaluation import answer_scores, bleu, normalized_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("an apple, a pear and the plum", "apple pear and plum"),
        ("US$3.50", "us350"),
        ("theatre", "theatre"),
        ("A.D.", "ad"),
        ("«quoted» – dash", "«quoted» – dash"),
        ("the", ""),
    ],
)
def test_answers_are_normalised_as_in_squad(text, normal):
    assert normalized_answer(text) == normal


def test_the_best_reference_counts():
    scores = answer_scores(
        ["the Eiffel Tower", "in Paris , France", "42", "of"],
        [["eiffel tower"], ["Paris", "Paris, France"], ["43", "forty"], ["the of of"]],
    )
    # F1: 1; precision 2/3, recall 1; 0; precision 1, recall 1/2.
    assert scores["exact_match"] == pytest.approx(1 / 4)
    assert scores["f1"] == pytest.approx((1 + 0.8 + 0 + 2 / 3) / 4)


def test_bleu_is_that_of_sacrebleu():
    predictions = ["Ein Mann geht .", "Zwei Hunde spielen im Schnee."]
    references = ["Ein Mann geht.", "Zwei Hunde rennen im Schnee."]
    metric = sacrebleu.metrics.BLEU()
    assert (
        bleu(predictions, references)
        == metric.corpus_score(predictions, [references]).score
    )
    assert bleu(references, references) == pytest.approx(100)


def test_numbers_of_texts_have_to_agree():
    for call in (lambda: bleu(["a"], []), lambda: answer_scores([], [])):
        with pytest.raises(InputError, match="as many predictions"):
            call()
    with pytest.raises(InputError, match="at least one reference"):
        answer_scores(["a"], [[]])
