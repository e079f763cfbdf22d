"""Reading recordings of any form into the one that models take."""

from __future__ import annotations

import math
import os
import pathlib
import struct
import warnings

import numpy as np

from mtl_keras import optional
from mtl_keras.errors import InputError

SAMPLE_RATE = 8_000
"""Samples per second of a model's audio input."""

# The filter of a conversion grows with the rate: a broken header could ask for one
# larger than memory. Nothing records at more.
_HIGHEST_RATE = 768_000
# What SciPy raises on bytes that are no WAV file; the NameError is one of its own,
# of chunks that never came.
_UNREADABLE = (
    IndexError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
    ZeroDivisionError,
    NameError,
    struct.error,
)


def read_wav(path: str | os.PathLike, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Reads a WAV file as a model's audio input.

    Several channels are averaged, another sampling rate is converted (with a
    low-pass filter against aliasing), and integers of any width become numbers from
    −1 to 1. Length and loudness stay: models handle these themselves.

    Args:
        path: The file: integers of 8 to 32 bits or floating point, uncompressed.
        rate: Samples per second of the result.

    Returns:
        float32 `[samples]`.

    Raises:
        InputError: The file is missing, is not a whole WAV file with sound, or has
            more than 768,000 samples per second.
    """
    with optional.extra("audio", "scipy", "Reading a recording"):
        from scipy import signal
        from scipy.io import wavfile

    path = pathlib.Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"Expected {path} to be a file. Received: something else.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # other chunks
            warnings.filterwarnings("error", "Reached EOF prematurely")
            recorded_rate, samples = wavfile.read(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (*_UNREADABLE, wavfile.WavFileWarning) as error:
        raise InputError(
            f"Expected {path} to be a WAV file. Received: a file that is corrupt or "
            f"of another kind ({error})."
        ) from error
    if recorded_rate > _HIGHEST_RATE:
        raise InputError(
            f"Expected {path} to have at most {_HIGHEST_RATE} samples per second. "
            f"Received: {recorded_rate}."
        )
    if not recorded_rate or not samples.size:
        raise InputError(f"Expected {path} to hold sound. Received: no samples.")
    waveform = _as_float(samples)
    if waveform.ndim > 1:
        waveform = waveform.mean(axis=1)
    if recorded_rate != rate:
        common = math.gcd(recorded_rate, rate)
        waveform = signal.resample_poly(
            waveform, rate // common, recorded_rate // common
        )
    return waveform.astype(np.float32)


def _as_float(samples: np.ndarray) -> np.ndarray:
    if samples.dtype.kind == "f":
        return np.nan_to_num(samples.astype(np.float64))
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    # 8 bits are unsigned, as the format has it.
    offset = half if samples.dtype.kind == "u" else 0.0
    return (samples.astype(np.float64) - offset) / half
