"""A small English-like language with an invented one beside it, and its sentences.

Pure NumPy; the TensorFlow Datasets builder around it is in `generated_text.py`.

```
sentiment    VERDICT    → CLAUSE but MAIN | although CLAUSE , MAIN
                        | MAIN although CLAUSE | MAIN , even if CLAUSE
             CLAUSE     → the THING was [not] QUALITY
             MAIN       → CLAUSE
             REVIEW     → CLAUSE . … CLAUSE .
answer       STORY      → FACT . FACT . FACT . FACT .
             FACT       → PERSON GAVE the COLOUR THING to PERSON
             QUESTION   → who GAVE the COLOUR THING ?
                        | to whom did PERSON GIVE the COLOUR THING ?
                        | what did PERSON GIVE to PERSON ?
translation  SENTENCE   → NOUN_PHRASE does [not] SEE NOUN_PHRASE [PLACE]
             NOUN_PHRASE → the [COLOUR] ANIMAL
```

- The main clause decides a verdict; the other clause always says the opposite.
  `not` turns a quality into its opposite. Each sentence therefore holds one good
  and one bad statement, and only their order and the conjunction tell the label.
- Most clauses of a review say what its label says; few are negated, so that the
  words alone nearly tell it.
- The facts of a story share persons, verbs, colours and things, so that no word
  alone points to the answer.
- The invented language has a word of its own for each word, and puts them
  [PLACE] object verb subject, each adjective after its noun. Nouns belong to one of
  two genders; the adjective takes its noun's ending, `-a` or `-o`. `not` becomes the
  verb's ending `-nek`.

A phrase is a pair of words: thing and quality, colour and thing, colour and animal.
Every split has phrases of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THINGS = (
    *("soup", "bread", "room", "film", "music", "coat", "garden", "train"),
    *("hotel", "story", "coffee", "window", "chair", "song", "lamp", "market"),
)
GOOD = ("good", "great", "lovely", "pleasant", "superb", "fresh", "charming", "fine")
BAD = ("bad", "awful", "ugly", "dull", "poor", "stale", "dreadful", "boring")
PEOPLE = (
    *("anna", "peter", "maria", "john", "lucy", "tom", "clara", "simon"),
    *("emma", "david", "nora", "felix"),
)
VERBS = {"gave": "give", "sold": "sell", "sent": "send", "lent": "lend"}
COLOURS = ("red", "blue", "green", "old", "small", "heavy", "round", "bright")
OBJECTS = (
    *("ball", "book", "clock", "ring", "kite", "drum", "boat", "vase"),
    *("map", "hat", "key", "box"),
)
ANIMALS = (
    *("dog", "cat", "horse", "bird", "mouse", "fox", "bear", "goat"),
    *("duck", "wolf", "sheep", "frog"),
)
SEEN = ("see", "hear", "follow", "love", "fear", "help")
PLACES = ("in the garden", "on the hill", "near the river", "under the tree")

SPLITS = ("train", "validation", "test")
_SHARES = (5 / 8, 1 / 8, 2 / 8)
_PHRASE_SEED = 2016
_FACTS = 4
_CLAUSES = (3, 5, 7)
_FEW = 1 / 8
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


class Verdict(NamedTuple):
    """A text and its sentiment, 1 for positive."""

    text: str
    label: int


class Story(NamedTuple):
    """A context, a question, and the answer with its first character's place."""

    context: str
    question: str
    answer: str
    start: int


class Pair(NamedTuple):
    """A sentence and its translation."""

    source: str
    target: str


def phrases(
    first: Sequence[str], second: Sequence[str], split: str
) -> dict[str, list[str]]:
    """Returns the pairs of words that a split may use, `{first: [second, …]}`.

    Every split has pairs with every word, so that no word is new to it.

    Args:
        first: Words, for example colours.
        second: Words, for example things.
        split: One of `SPLITS`.
    """
    rng = np.random.default_rng([_PHRASE_SEED, len(first), len(second)])
    # A Latin square: shifting the words spreads every split over all of them.
    rows, columns = rng.permutation(len(first)), rng.permutation(len(second))
    ends = np.round(np.cumsum(_SHARES) * len(second)).astype(int)
    number = SPLITS.index(split)
    low, high = ([0, *ends][number], ends[number])
    allowed: dict[str, list[str]] = {word: [] for word in first}
    for i, j in itertools.product(range(len(first)), range(len(second))):
        if low <= (rows[i] + columns[j]) % len(second) < high:
            allowed[first[i]].append(second[j])
    return allowed


class Grammar:
    """Draws sentences of one split.

    Args:
        split: One of `SPLITS`.
        rng: Gives all randomness.
    """

    def __init__(self, split: str, rng: np.random.Generator):
        self._rng = rng
        self._qualities = {
            1: phrases(THINGS, GOOD, split),
            0: phrases(THINGS, BAD, split),
        }
        self._objects = phrases(COLOURS, OBJECTS, split)
        self._animals = phrases(COLOURS, ANIMALS, split)
        self._words = lexicon()

    def verdict(self) -> Verdict:
        """Draws a sentence with a sentiment."""
        label = int(self._rng.integers(2))
        first, second = self._several(THINGS, 2)
        main, other = self._clause(first, label), self._clause(second, 1 - label)
        text = self._one(
            (
                f"{other} but {main}",
                f"although {other} , {main}",
                f"{main} although {other}",
                f"{main} , even if {other}",
            )
        )
        return Verdict(f"{text} .", label)

    def review(self) -> Verdict:
        """Draws several sentences of which most have one sentiment."""
        label = int(self._rng.integers(2))
        count = int(self._rng.choice(_CLAUSES))
        others = int(self._rng.integers(count // 4 + 1))
        labels = [1 - label] * others + [label] * (count - others)
        clauses = [
            self._clause(thing, labels[place], _FEW)
            for thing, place in zip(
                self._several(THINGS, count), self._rng.permutation(count), strict=True
            )
        ]
        return Verdict(f"{' . '.join(clauses)} .", label)

    def story(self) -> Story:
        """Draws a story of some facts and a question about one of them."""
        facts: list[tuple[str, str, str, str]] = []
        people = self._several(PEOPLE, 4)
        verbs = self._several(tuple(VERBS), 2)
        while len(facts) < _FACTS:
            colour = self._one(COLOURS)
            thing = f"the {colour} {self._one(self._objects[colour])}"
            giver, taker = self._several(people, 2)
            fact = (giver, self._one(verbs), thing, taker)
            # Each question has one answer.
            if not any(
                fact[2] == other[2] or {fact[0], fact[3]} == {other[0], other[3]}
                for other in facts
            ):
                facts.append(fact)
        context, starts = "", []
        for giver, verb, thing, taker in facts:
            starts.append(len(context))
            context += f"{giver} {verb} {thing} to {taker} . "
        number = int(self._rng.integers(_FACTS))
        giver, verb, thing, taker = facts[number]
        question, answer, before = (
            (f"who {verb} {thing} ?", giver, ""),
            (
                f"to whom did {giver} {VERBS[verb]} {thing} ?",
                taker,
                f"{giver} {verb} {thing} to ",
            ),
            (
                f"what did {giver} {VERBS[verb]} to {taker} ?",
                thing,
                f"{giver} {verb} ",
            ),
        )[int(self._rng.integers(3))]
        return Story(context.strip(), question, answer, starts[number] + len(before))

    def pair(self) -> Pair:
        """Draws a sentence and translates it."""
        subject, other = self._noun_phrase(), self._noun_phrase()
        verb = self._one(SEEN)
        negated = self._rng.random() < 0.5
        place = self._one(PLACES) if self._rng.random() < 0.5 else ""
        source = [
            *("the", *subject),
            *("does", "not") * negated,
            *(() if negated else ("does",)),
            verb,
            *("the", *other),
            *place.split(),
        ]
        target = [
            *([self._words[place]] if place else []),
            *self._translated(other),
            self._words[verb] + ("nek" if negated else ""),
            *self._translated(subject),
        ]
        return Pair(" ".join([*source, "."]), " ".join([*target, "."]))

    def _noun_phrase(self) -> tuple[str, ...]:
        colour = self._one(COLOURS)
        animal = self._one(self._animals[colour])
        return (colour, animal) if self._rng.random() < 0.75 else (animal,)

    def _translated(self, noun_phrase: tuple[str, ...]) -> list[str]:
        *colour, animal = noun_phrase
        ending = "a" if ANIMALS.index(animal) % 2 else "o"
        return [self._words[animal], *(self._words[c] + ending for c in colour)]

    def _clause(self, thing: str, label: int, negations: float = 0.5) -> str:
        negated = self._rng.random() < negations
        quality = self._one(self._qualities[label ^ negated][thing])
        return f"the {thing} was {'not ' * negated}{quality}"

    def _one(self, options: Sequence[str]) -> str:
        return options[int(self._rng.integers(len(options)))]

    def _several(self, options: Sequence[str], count: int) -> list[str]:
        return [options[i] for i in self._rng.permutation(len(options))[:count]]


def lexicon() -> dict[str, str]:
    """Returns the invented language's words: adjectives without their ending."""
    rng = np.random.default_rng(_PHRASE_SEED)
    english = (*ANIMALS, *COLOURS, *SEEN, *PLACES)
    words: dict[str, str] = {}
    for word in english:
        while (
            invented := "".join(rng.choice(_SYLLABLES, size=2))
            + "lsnrk"[rng.integers(5)]
        ) in words.values():
            pass
        words[word] = invented
    return words
