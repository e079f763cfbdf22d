"""Scores of predicted texts, as the data sets' papers compute them."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable, Sequence

from mtl_keras import optional
from mtl_keras.errors import InputError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized_answer(text: str) -> str:
    """Normalises an answer as SQuAD does.

    Lower case, without punctuation (ASCII), articles and superfluous white space, in
    this order.

    Example:

    ```pycon
    >>> mtl_keras.evaluation.normalized_answer("The  Eiffel Tower!")
    'eiffel tower'
    ```
    """
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def answer_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Exact match and F1 of answers, the best over each question's references.

    Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text",
    EMNLP 2016, arXiv 1606.05250, section 6.1; F1 is that of the bags of words.

    Args:
        predictions: One answer a question.
        references: The right answers of each question, one or more.

    Returns:
        `{"exact_match": …, "f1": …}`, means over the questions from 0 to 1.

    Raises:
        InputError: There are no questions, not as many of both, or a question has
            no reference.

    Example:

    ```pycon
    >>> mtl_keras.evaluation.answer_scores(["the tower"], [["tower", "Eiffel Tower"]])
    {'exact_match': 1.0, 'f1': 1.0}
    ```
    """
    _check_lengths(predictions, references)
    if not all(references):
        raise InputError("Expected at least one reference for every answer.")

    def mean_of_best(score: Callable[[str, str], float]) -> float:
        best = [
            max(score(prediction, reference) for reference in accepted)
            for prediction, accepted in zip(predictions, references, strict=True)
        ]
        return sum(best) / len(best)

    return {"exact_match": mean_of_best(_exact), "f1": mean_of_best(_f1)}


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of translations by sacreBLEU with its defaults (`13a`, mixed case).

    Post, "A Call for Clarity in Reporting BLEU Scores", WMT 2018, arXiv 1804.08771.

    Args:
        predictions: One translation a sentence.
        references: One reference a sentence.

    Returns:
        BLEU of the corpus, from 0 to 100.

    Raises:
        InputError: There are no sentences, or not as many of both.

    Example:

    ```pycon
    >>> round(mtl_keras.evaluation.bleu(["a b c d e"], ["a b c d e"]))
    100
    ```
    """
    with optional.extra("text", "sacrebleu", "BLEU"):
        import sacrebleu

    _check_lengths(predictions, references)
    return sacrebleu.corpus_bleu(list(predictions), [list(references)]).score


def _check_lengths(predictions: Sequence, references: Sequence) -> None:
    if not predictions or len(predictions) != len(references):
        raise InputError(
            "Expected as many predictions as references, and at least one. "
            f"Received: {len(predictions)} and {len(references)}."
        )


def _exact(prediction: str, reference: str) -> float:
    return float(normalized_answer(prediction) == normalized_answer(reference))


def _f1(prediction: str, reference: str) -> float:
    bags = [normalized_answer(text).split() for text in (prediction, reference)]
    common = sum((collections.Counter(bags[0]) & collections.Counter(bags[1])).values())
    return 2 * common / (len(bags[0]) + len(bags[1])) if common else 0.0
