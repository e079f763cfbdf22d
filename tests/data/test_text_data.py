"""Generated text, Multi30k, and files that stand in for original ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import pathlib
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mtl_keras import data
from mtl_keras.data import multi30k, variants
from mtl_keras.data.generated import grammar
from mtl_keras.data.variants import Variant
from mtl_keras.errors import InputError

DOWNLOADS = os.environ.get("MTL_KERAS_TEST_DOWNLOADS", "")


def draw(split, kind, count=300):
    drawn = grammar.Grammar(split, np.random.default_rng(1))
    return [getattr(drawn, kind)() for _ in range(count)]


def positive(clause):
    words = clause.split()
    good = bool(set(words) & set(grammar.GOOD))
    assert good != bool(set(words) & set(grammar.BAD))
    return good != ("not" in words)


def test_every_split_has_phrases_of_its_own_and_all_words():
    for first, second in (
        (grammar.THINGS, grammar.GOOD),
        (grammar.THINGS, grammar.BAD),
        (grammar.COLOURS, grammar.OBJECTS),
        (grammar.COLOURS, grammar.ANIMALS),
    ):
        pairs = {
            split: {
                (a, b)
                for a, bs in grammar.phrases(first, second, split).items()
                for b in bs
            }
            for split in grammar.SPLITS
        }
        for one, two in itertools.combinations(grammar.SPLITS, 2):
            assert not pairs[one] & pairs[two]
        assert len(set.union(*pairs.values())) == len(first) * len(second)
        for split in grammar.SPLITS:
            assert {a for a, _ in pairs[split]} == set(first)


def test_sentences_keep_to_the_phrases_of_their_split():
    for split in grammar.SPLITS:
        allowed = grammar.phrases(grammar.COLOURS, grammar.OBJECTS, split)
        for story in draw(split, "story", 50):
            words = story.context.split()
            for colour, thing in itertools.pairwise(words):
                if colour in grammar.COLOURS:
                    assert thing in allowed[colour]


def test_order_alone_determines_the_sentiment():
    verdicts = draw("train", "verdict")
    assert 0.4 < np.mean([verdict.label for verdict in verdicts]) < 0.6
    for text, label in verdicts:
        # The clauses by the conjunction, which says which one counts.
        if " but " in text:
            other, main = text.split(" but ")
        elif text.startswith("although "):
            other, main = text.removeprefix("although ").split(" , ")
        else:
            main, other = text.replace(" , even if ", " although ").split(" although ")
        assert positive(main) == bool(label)
        assert positive(other) != bool(label)


def test_most_clauses_of_a_review_and_nearly_its_words_alone_tell_the_sentiment():
    reviews = draw("train", "review")
    assert 0.4 < np.mean([review.label for review in reviews]) < 0.6
    told_by_words = []
    for text, label in reviews:
        clauses = text.removesuffix(" .").split(" . ")
        assert (np.mean([positive(clause) for clause in clauses]) > 0.5) == label
        words = text.split()
        balance = sum((w in grammar.GOOD) - (w in grammar.BAD) for w in words)
        told_by_words.append((balance > 0) == label)
    assert 0.85 < np.mean(told_by_words) < 1.0


def test_stories_answer_their_question_once():
    for context, question, answer, start in draw("train", "story"):
        assert context[start : start + len(answer)] == answer
        facts = [fact.split() for fact in context.removesuffix(" .").split(" . ")]
        words = question.split()
        answers = []
        for giver, verb, *thing, _, taker in facts:
            present = grammar.VERBS[verb]
            for asked, right in (
                (["who", verb, *thing, "?"], [giver]),
                (["to", "whom", "did", giver, present, *thing, "?"], [taker]),
                (["what", "did", giver, present, "to", taker, "?"], thing),
            ):
                if words == asked:
                    answers.append(" ".join(right))
        assert answers == [answer]


def test_translations_follow_the_rules():
    words = grammar.lexicon()
    back = {word: english for english, word in words.items()}
    assert len(back) == len(words)
    for source, target in draw("train", "pair"):
        english = source.split()
        out = []
        for word in target.removesuffix(" .").split():
            for ending in ("", "a", "o", "nek"):
                stem = word.removesuffix(ending) if ending else word
                if word.endswith(ending) and stem in back:
                    out.append((back[stem], ending))
        assert len(out) == len(target.split()) - 1
        nouns = [w for w, _ in out if w in grammar.ANIMALS]
        # The object comes first; adjectives follow their noun in its gender.
        assert nouns == [w for w in english if w in grammar.ANIMALS][::-1]
        verb = next(ending for w, ending in out if w in grammar.SEEN)
        assert (verb == "nek") == ("not" in english)
        for (noun, _), (adjective, ending) in itertools.pairwise(out):
            if adjective in grammar.COLOURS:
                gender = "a" if grammar.ANIMALS.index(noun) % 2 else "o"
                assert ending == gender


def pack(path, content):
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def imdb(tmp_path, monkeypatch):
    """A tiny archive that stands in for IMDB's, with its checksum recorded."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for split, label in itertools.product(("train", "test"), ("neg", "pos")):
            text = f"a {label} film of {split}".encode()
            member = tarfile.TarInfo(f"aclImdb/{split}/{label}/0_1.txt")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
        member = tarfile.TarInfo("aclImdb/train/unsup/0_0.txt")
        archive.addfile(member, io.BytesIO(b""))
    folder = tmp_path / "downloads"
    folder.mkdir()
    checksum = pack(folder / "small.tar.gz", buffer.getvalue())
    variant = Variant("small.tar.gz", checksum, "")
    monkeypatch.setitem(variants.VARIANTS, "aclImdb_v1.tar.gz", variant)
    return folder


def test_a_known_file_stands_in_for_the_original(imdb, tmp_path):
    root = tmp_path / "data"
    before = dict(tfds.builder_cls("imdb_reviews").url_infos)
    data.prepare("imdb_reviews", downloads=imdb, data_dir=root)
    # TensorFlow Datasets' own checksums hold again.
    assert dict(tfds.builder_cls("imdb_reviews").url_infos) == before
    (row,) = tfds.as_numpy(data.load("imdb_reviews", "test[:1]", data_dir=root))
    assert row["text"].decode() == f"a {['neg', 'pos'][row['label']]} film of test"
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


def test_an_altered_or_missing_file_is_one_line_that_names_it(imdb, tmp_path):
    (imdb / "small.tar.gz").write_bytes(b"altered")
    with pytest.raises(InputError, match=r"small\.tar\.gz.*SHA-256") as error:
        data.prepare("imdb_reviews", downloads=imdb, data_dir=tmp_path / "data")
    assert "\n" not in str(error.value)
    (imdb / "small.tar.gz").unlink()
    with pytest.raises(InputError, match=r"aclImdb_v1\.tar\.gz.*no such file"):
        data.prepare("imdb_reviews", downloads=imdb, data_dir=tmp_path / "data")
    with pytest.raises(InputError, match=r"dev-v1\.1\.json.*no such file"):
        data.prepare("squad", downloads=imdb, data_dir=tmp_path / "data")
    with pytest.raises(InputError, match=r"train\.en\.gz.*no such file"):
        data.prepare("multi30k", downloads=imdb, data_dir=tmp_path / "data")


def test_a_packed_file_is_unpacked(tmp_path, monkeypatch):
    answer = {"text": "here", "answer_start": 0}
    question = {"question": "where ?", "id": "1", "answers": [answer]}
    paragraph = {"context": "here it is", "qas": [question]}
    squad = {"data": [{"title": "t", "paragraphs": [paragraph]}]}
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        packed = lzma.compress(json.dumps(squad).encode())
        checksum = pack(tmp_path / f"{name}.small.xz", packed)
        variant = Variant(f"{name}.small.xz", checksum, "")
        monkeypatch.setitem(variants.VARIANTS, name, variant)
    data.prepare("squad/v1.1", downloads=tmp_path, data_dir=tmp_path / "data")
    splits = data.info("squad/v1.1", tmp_path / "data").splits
    assert splits == {"train": 1, "validation": 1}


def test_captions_are_paired_line_by_line(tmp_path, monkeypatch):
    files = {}
    for stem, lines in (("train", 3), ("val", 2), ("test_2016_flickr", 1)):
        for language in ("en", "de"):
            text = "".join(f"{language} {stem} {n}\n" for n in range(lines))
            content = gzip.compress(text.encode())
            name = f"{stem}.{language}.gz"
            files[name] = (len(content), pack(tmp_path / name, content))
    monkeypatch.setattr(multi30k, "_FILES", files)
    data.prepare("multi30k/de", downloads=tmp_path, data_dir=tmp_path / "data")
    rows = data.load("multi30k/de", "train", data_dir=tmp_path / "data")
    assert sorted((row["en"], row["de"]) for row in tfds.as_numpy(rows)) == [
        (f"en train {n}".encode(), f"de train {n}".encode()) for n in range(3)
    ]


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not DOWNLOADS, reason="MTL_KERAS_TEST_DOWNLOADS is not set")
def test_real_files(tmp_path):
    for name, folder, splits in (
        ("imdb_reviews", "imdb", {"train": 19_246, "test": 1_200, "unsupervised": 200}),
        ("squad/v1.1", "squad", {"train": 87_599, "validation": 10_570}),
        ("multi30k/de", "", {"train": 29_000, "validation": 1_014, "test": 1_000}),
    ):
        source = pathlib.Path(DOWNLOADS) / folder
        data.prepare(name, downloads=source, data_dir=tmp_path)
        assert data.info(name, tmp_path).splits == splits
    for row in tfds.as_numpy(data.load("squad", "validation", data_dir=tmp_path)):
        context = row["context"].decode()
        for text, start in zip(
            row["answers"]["text"], row["answers"]["answer_start"], strict=True
        ):
            assert context[start:].startswith(text.decode())
