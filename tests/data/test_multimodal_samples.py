"""Multimodal samples: their contents, and that labels agree with them."""

from __future__ import annotations

import difflib
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from small_multimodal import SIZES

from mtl_keras import data
from mtl_keras.data.generated import modalities, speech
from mtl_keras.errors import InputError

DOWNLOADS = os.environ.get("MTL_KERAS_TEST_DOWNLOADS", "")
MODALITIES = ("image", "audio", "text")


def read(name, split, folder):
    return list(tfds.as_numpy(data.load(name, split, data_dir=folder)))


def there(sample):
    return tuple(bool(np.size(sample[m]) and np.any(sample[m])) for m in MODALITIES)


def test_unpaired_samples_have_one_modality_and_its_labels(small_multimodal):
    sizes = SIZES["unpaired_generated"]
    for split in ("train", "validation", "test"):
        samples = read("multimodal", split, small_multimodal)
        kinds = np.array([there(sample) for sample in samples])
        assert (kinds.sum(1) == 1).all()
        assert kinds.sum(0).tolist() == [
            sizes[name][split] for name in ("images", "recordings", "texts")
        ]
        for sample, (image, audio, text) in zip(samples, kinds, strict=True):
            assert (sample["digit"] >= 0) == (image or audio)
            assert (sample["speaker"] >= 0) == audio
            assert (sample["sentiment"] >= 0) == text
            even = -1 if text else int(sample["digit"] % 2 == 0)
            assert sample["even"] == even


def test_paired_samples_miss_modalities_at_random(small_multimodal):
    samples = read("multimodal/paired_generated", "train", small_multimodal)
    missing = ~np.array([there(sample) for sample in samples])
    # 0.3, on the condition that not all three are missing.
    expected = (0.3 - 0.3**3) / (1 - 0.3**3)
    np.testing.assert_allclose(missing.mean(0), expected, atol=0.09)
    assert not missing.all(1).any()
    for sample, (_, no_audio, _) in zip(samples, missing, strict=True):
        assert 0 <= sample["digit"] <= 9
        assert (sample["speaker"] < 0) == no_audio
        assert sample["sentiment"] == -1


def test_complete_samples_are_those_of_the_test_split(small_multimodal):
    name = "multimodal/paired_generated"
    complete = read(name, "test_complete", small_multimodal)
    assert all(all(there(sample)) for sample in complete)
    known = [
        {(s[m].tobytes() if m != "text" else s[m], s["digit"]) for s in complete}
        for m in MODALITIES
    ]
    for sample in read(name, "test", small_multimodal):
        for modality, values, present in zip(
            MODALITIES, known, there(sample), strict=True
        ):
            value = sample[modality]
            key = value if modality == "text" else value.tobytes()
            assert not present or (key, sample["digit"]) in values


def test_voices_have_their_pitch():
    """Autocorrelation of a vowel's middle finds the pitch that was asked for."""
    for voice in speech.VOICES:
        periods = []
        for take in range(5):
            waveform = speech.say(1, voice, np.random.default_rng(take)).astype(float)
            middle = waveform[len(waveform) // 2 - 400 : len(waveform) // 2 + 400]
            correlation = np.correlate(middle, middle, "full")[len(middle) - 1 :]
            low, high = (int(8_000 / (voice.pitch * f)) for f in (1.4, 0.7))
            periods.append(low + np.argmax(correlation[low:high]))
        assert abs(8_000 / np.median(periods) / voice.pitch - 1) < 0.2


def test_misspelt_words_are_nearest_to_themselves():
    rng = np.random.default_rng(0)
    written = [(word, modalities.misspell(word, rng)) for word in modalities.WORDS * 30]
    assert all(text for _, text in written)
    kept = np.mean([text == word for word, text in written])
    assert 0.1 < kept < 0.4
    near = [
        difflib.get_close_matches(text, modalities.WORDS, 1, 0.0) == [word]
        for word, text in written
    ]
    assert np.mean(near) > 0.8


def test_sources_that_are_not_prepared_are_named(tmp_path):
    for read_source in (modalities.reviews, modalities.spoken_digits):
        with pytest.raises(InputError, match="mtl-keras datasets prepare"):
            read_source(tmp_path)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not DOWNLOADS, reason="MTL_KERAS_TEST_DOWNLOADS is not set")
def test_real_sources(tmp_path):
    data.prepare("multimodal/unpaired", downloads=DOWNLOADS, data_dir=tmp_path)
    samples = read("multimodal/unpaired", "train", tmp_path)
    assert np.sum([there(s) for s in samples], axis=0).tolist() == [2_000, 500, 1_500]
    test = read("multimodal/unpaired", "test", tmp_path)
    heard = [s for s in test if len(s["audio"])]
    # Recordings 0 to 4 of each digit and speaker.
    assert len(heard) == 5 * 10 * 5
    assert np.sum([there(s)[0] for s in test]) == 10_000
    counts = np.zeros((10, 5), int)
    for sample in heard:
        counts[sample["digit"], sample["speaker"]] += 1
    assert (counts == 5).all()
    trained_on = {s["audio"].tobytes() for s in samples if len(s["audio"])}
    assert not trained_on & {s["audio"].tobytes() for s in heard}
