"""`read_wav`: any WAV file as a waveform, or one clear error."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.io import wavfile

from mtl_keras.data import read_wav
from mtl_keras.errors import InputError


def tone(rate, seconds=0.5, frequency=440.0):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("uint8", 1e-2), ("int16", 1e-4), ("int32", 1e-6), ("float32", 1e-6)],
)
def test_every_sample_type(tmp_path, dtype, tolerance):
    wave = tone(8_000)
    stored = wave.astype("float32")
    if dtype == "uint8":
        stored = np.round(wave * 128 + 128).astype("uint8")
    elif dtype != "float32":
        stored = (wave * 2.0 ** (8 * np.dtype(dtype).itemsize - 1)).astype(dtype)
    wavfile.write(tmp_path / "a.wav", 8_000, stored)
    read = read_wav(tmp_path / "a.wav")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, wave, atol=tolerance)


@pytest.mark.parametrize("rate", [44_100, 16_000, 11_025, 4_000])
def test_other_rates_give_the_same_tone(tmp_path, rate):
    wavfile.write(tmp_path / "a.wav", rate, tone(rate).astype("float32"))
    read = read_wav(tmp_path / "a.wav")
    expected = tone(8_000)
    assert abs(len(read) - len(expected)) <= 1
    inner = slice(200, 3_800)
    np.testing.assert_allclose(read[inner], expected[inner], atol=0.01)


def test_tones_above_half_the_rate_do_not_come_back_lower(tmp_path):
    wave = tone(16_000, frequency=7_000.0).astype("float32")
    wavfile.write(tmp_path / "a.wav", 16_000, wave)
    assert np.abs(read_wav(tmp_path / "a.wav")[200:-200]).max() < 0.01


def test_channels_are_averaged(tmp_path):
    left, right = tone(8_000), tone(8_000, frequency=700.0)
    stereo = np.stack([left, right], axis=1).astype("float32")
    wavfile.write(tmp_path / "a.wav", 8_000, stereo)
    np.testing.assert_allclose(
        read_wav(tmp_path / "a.wav"), (left + right) / 2, atol=1e-6
    )


def test_chunks_of_other_programs_are_skipped(tmp_path):
    path = tmp_path / "a.wav"
    wavfile.write(path, 8_000, np.arange(100, dtype="int16"))
    whole = path.read_bytes()
    path.write_bytes(whole[:36] + b"note\x04\x00\x00\x00abcd" + whole[36:])
    np.testing.assert_allclose(read_wav(path) * 2**15, np.arange(100))


def test_corrupt_files_give_one_clear_error(tmp_path):
    path = tmp_path / "a.wav"
    wavfile.write(path, 8_000, np.arange(100, dtype="int16"))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    broken = [whole[:length] for length in range(0, len(whole), 5)]
    broken += [rng.bytes(120), b"RIFF\x00\x00\x00\x00WAVE" + rng.bytes(60)]
    # No sound in it, and a rate of 0.
    broken += [whole[:40] + bytes(4), whole[:24] + bytes(4) + whole[28:]]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.wav"):
            read_wav(path)
    with pytest.raises(InputError, match=r"b\.wav.*No such file"):
        read_wav(tmp_path / "b.wav")


def test_broken_headers_never_give_another_error(tmp_path):
    path = tmp_path / "a.wav"
    wavfile.write(path, 8_000, np.arange(100, dtype="int16"))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        content[rng.integers(44)] = rng.integers(256)
        path.write_bytes(content)
        try:
            assert np.isfinite(read_wav(path)).all()
        except InputError:
            refused += 1
    assert refused > 100
