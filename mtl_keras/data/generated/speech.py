"""Synthetic speech: the ten digits, said by five voices.

A formant synthesiser: pulses (voiced) and noise (unvoiced) through three resonators
whose frequencies move from sound to sound. Klatt, "Software for a cascade/parallel
formant synthesizer", JASA 67, 1980, reduced to its cascade branch. Far from natural,
but what tells words and voices apart is where it is in real speech: in the movement
of the formants, in pitch, and in the length of the vocal tract.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtl_keras import optional
from mtl_keras.data.recordings import SAMPLE_RATE

with optional.extra("audio", "scipy", "Synthetic speech"):
    from scipy import signal

_FRAME = SAMPLE_RATE // 100
_BANDWIDTHS = np.array([80.0, 110.0, 160.0])
_PEAK = 2**15 - 1


class Sound(NamedTuple):
    """One speech sound.

    Attributes:
        formants: Three resonances of an average voice, in Hz.
        voice: Strength of the pulses.
        noise: Strength of the noise.
        length: Duration in seconds.
    """

    formants: tuple[float, float, float]
    voice: float
    noise: float
    length: float


class Voice(NamedTuple):
    """One speaker.

    Attributes:
        pitch: Pulses per second.
        tract: Factor of the formants, larger for shorter vocal tracts.
        breath: Noise beside the pulses.
    """

    pitch: float
    tract: float
    breath: float


VOICES = (
    Voice(95.0, 0.93, 0.02),
    Voice(118.0, 1.00, 0.08),
    Voice(145.0, 0.96, 0.03),
    Voice(185.0, 1.10, 0.10),
    Voice(225.0, 1.16, 0.04),
)
"""The five speakers."""

_SOUNDS = {
    "iy": Sound((290, 2250, 2950), 1.0, 0.0, 0.13),
    "ih": Sound((400, 1950, 2550), 1.0, 0.0, 0.09),
    "eh": Sound((540, 1800, 2480), 1.0, 0.0, 0.11),
    "aa": Sound((720, 1150, 2450), 1.0, 0.0, 0.14),
    "ah": Sound((640, 1200, 2400), 1.0, 0.0, 0.13),
    "ao": Sound((560, 880, 2400), 1.0, 0.0, 0.15),
    "ow": Sound((450, 900, 2300), 1.0, 0.0, 0.14),
    "uw": Sound((320, 950, 2250), 1.0, 0.0, 0.17),
    "w": Sound((300, 650, 2200), 0.7, 0.0, 0.07),
    "r": Sound((340, 1150, 1550), 0.7, 0.0, 0.07),
    "n": Sound((270, 1450, 2300), 0.45, 0.0, 0.09),
    "v": Sound((300, 1150, 2300), 0.35, 0.08, 0.06),
    "z": Sound((300, 1650, 3300), 0.25, 0.25, 0.08),
    "s": Sound((1800, 2900, 3600), 0.0, 0.45, 0.11),
    "f": Sound((1000, 1900, 3000), 0.0, 0.12, 0.10),
    "th": Sound((1100, 2100, 3100), 0.0, 0.10, 0.08),
    "stop": Sound((400, 1500, 2500), 0.0, 0.0, 0.05),
    "t": Sound((1500, 2700, 3500), 0.0, 0.5, 0.03),
    "k": Sound((900, 1800, 2400), 0.0, 0.4, 0.03),
}

_DIGITS = (
    ("z", "iy", "r", "ow"),
    ("w", "ah", "n"),
    ("stop", "t", "uw"),
    ("th", "r", "iy"),
    ("f", "ao", "r"),
    ("f", "aa", "iy", "v"),
    ("s", "ih", "stop", "k", "s"),
    ("s", "eh", "v", "eh", "n"),
    ("eh", "iy", "stop", "t"),
    ("n", "aa", "iy", "n"),
)


def say(digit: int, voice: Voice, rng: np.random.Generator) -> np.ndarray:
    """Returns a recording of one digit, of random speed, pitch, loudness and noise.

    Args:
        digit: 0 to 9.
        voice: Who says it.
        rng: Gives all randomness.

    Returns:
        int16 `[samples]` at 8 kHz, 0.2 to 0.9 seconds long.
    """
    frames = _frames([_SOUNDS[name] for name in _DIGITS[digit]], rng)
    formants = frames[:, :3] * voice.tract * rng.normal(1.0, 0.04)
    pitch = voice.pitch * rng.normal(1.0, 0.06) * np.linspace(1.08, 0.9, len(frames))
    source = _source(frames[:, 3], frames[:, 4] + voice.breath, pitch, rng)
    speech = _resonate(source, formants)
    quiet = rng.integers(0, SAMPLE_RATE // 12, size=2)
    speech = np.pad(speech, tuple(quiet))
    loudness = np.sqrt(np.mean(np.square(speech)))
    speech += rng.normal(0.0, loudness * 10 ** -rng.uniform(0.4, 1.3), len(speech))
    speech *= rng.uniform(0.15, 0.95) / np.max(np.abs(speech))
    return np.round(speech * _PEAK).astype(np.int16)


def _frames(sounds: Sequence[Sound], rng: np.random.Generator) -> np.ndarray:
    """Returns three formants, voice and noise of each 10 ms: `[frames, 5]`."""
    pace = rng.uniform(0.75, 1.3)
    lengths = np.array([s.length * pace * rng.uniform(0.8, 1.25) for s in sounds])
    middles = np.cumsum(lengths) - lengths / 2
    targets = np.array([(*s.formants, s.voice, s.noise) for s in sounds])
    times = np.arange(0.005, lengths.sum(), 0.01)
    return np.stack([np.interp(times, middles, column) for column in targets.T], axis=1)


def _source(
    voice: np.ndarray, noise: np.ndarray, pitch: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    strength, breath, rate = (np.repeat(x, _FRAME) for x in (voice, noise, pitch))
    phase = np.cumsum(rate / SAMPLE_RATE)
    pulses = np.diff(np.floor(phase), prepend=0.0)
    # The glottis passes low frequencies better: 6 dB an octave after radiation.
    pulses = signal.lfilter([1.0], [1.0, -0.9], pulses)
    return strength * pulses + breath * rng.normal(0.0, 1.0, len(pulses))


def _resonate(source: np.ndarray, formants: np.ndarray) -> np.ndarray:
    """Filters by three resonators in a row, whose frequencies move by frame."""
    nyquist = 0.49 * SAMPLE_RATE
    decay = np.exp(-np.pi * _BANDWIDTHS / SAMPLE_RATE)
    state = np.zeros((3, 2))
    frames = []
    for frame, centre in zip(source.reshape(-1, _FRAME), formants, strict=True):
        turn = 2 * np.cos(2 * np.pi * np.minimum(centre, nyquist) / SAMPLE_RATE)
        sections = np.zeros((3, 6))
        sections[:, 3:] = np.stack([np.ones(3), -decay * turn, decay**2], axis=1)
        sections[:, 0] = sections[:, 3:].sum(axis=1)  # gain 1 at frequency 0
        filtered, state = signal.sosfilt(sections, frame, zi=state)
        frames.append(filtered)
    return np.concatenate(frames)
