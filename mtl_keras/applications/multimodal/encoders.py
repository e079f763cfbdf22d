"""Encoders: from one modality's cleaned values to one vector.

Each is a `keras.Sequential` with its input's shape given, so that it can run on the
samples that have the modality (`mtl_keras.fusion.WherePresent`).
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from mtl_keras import backbones
from mtl_keras.applications.text.tokens import cleaned, tokens

_register = keras.saving.register_keras_serializable(package="mtl_keras")

_BATCH = 512
_CNN_STAGES = 3
_FFT = 256
_STRIDE = 128
_MEL_BANDS = 40
_LOWEST, _HIGHEST = 60.0, 3_800.0
_FLOOR = -10.0
_MOST_SHIFT = 0.1
_EMBEDDING = 32
_DROPOUT = 0.3


@_register
class FixedLength(keras.layers.Layer):
    """Cleans waveforms, and crops or pads them to one length.

    Longer ones are cut at the end, shorter ones followed by silence. A sample that
    is NaN or infinite becomes silence. `[batch, samples]` to `[batch, length]`.
    In mixed precision waveforms stay float32, as everything up to the decibels.

    Args:
        length: Number of samples.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, length: int, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.length = length

    def call(self, inputs: Any) -> Any:
        """Returns the waveforms."""
        x = inputs[:, : self.length]
        x = ops.where(ops.isfinite(x), x, ops.zeros_like(x))
        # Pad to at least the length, then crop.
        return ops.pad(x, [[0, 0], [0, self.length]])[:, : self.length]

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the waveforms."""
        return (input_shape[0], self.length)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "length": self.length}


@_register
class Loudness(keras.layers.Layer):
    """Scales each waveform to a root mean square of 1.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    def call(self, inputs: Any) -> Any:
        """Returns the waveforms; silence stays silence."""
        power = ops.mean(ops.square(inputs), axis=-1, keepdims=True)
        return inputs * ops.rsqrt(power + 1e-10)


@_register
class Decibels(keras.layers.Layer):
    """10 log10 of power, but at least a floor.

    Unlike `MelSpectrogram(power_to_db=True)`, whose floor follows the loudest
    sample of the batch, each sample's values depend on itself alone.

    Args:
        floor: In dB. Silence between words should not be further from speech than
            soft sounds are from loud ones.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, floor: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.floor = floor

    def call(self, inputs: Any) -> Any:
        """Returns the levels in dB."""
        return 10.0 * ops.log10(ops.maximum(inputs, 10.0 ** (self.floor / 10.0)))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "floor": self.floor}


@_register
class Tokens(keras.layers.Layer):
    """Cleans texts and returns lower-case tokens, cropped or padded to one length.

    Control characters and white space of any kind are a space, and bytes that are
    not UTF-8 are U+FFFD.

    Strings `[batch]` to strings `[batch, length]`, empty where there is no token.

    Args:
        by: `"word"` or `"character"`.
        length: Number of tokens; what follows is left out.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, by: str, length: int, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.by = by
        self.length = length
        self.supports_jit = False

    def call(self, inputs: Any) -> Any:
        """Returns the tokens."""
        if self.by == "word":
            ragged = tokens(inputs, lowercase=True)
        else:
            x = tf.strings.regex_replace(cleaned(inputs), " +", " ")
            lower = tf.strings.lower(tf.strings.strip(x), encoding="utf-8")
            ragged = tf.strings.unicode_split(lower, "UTF-8")
        return ragged.to_tensor("", shape=(None, self.length))

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the shape and type of the tokens."""
        return keras.KerasTensor((*inputs.shape, self.length), dtype="string")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "by": self.by, "length": self.length}


def lookup(texts: tf.data.Dataset, cut: Tokens, size: int) -> keras.layers.StringLookup:
    """Returns the layer from tokens to ids, 0 where there is no token.

    Args:
        texts: Strings, one by one, to learn the vocabulary from.
        cut: Cuts them into tokens.
        size: Number of ids at most.
    """
    layer = layers.StringLookup(max_tokens=size, mask_token="", name="token_ids")
    layer.adapt(texts.batch(_BATCH).map(cut, num_parallel_calls=tf.data.AUTOTUNE))
    return layer


def image(width: int, units: int, shape: tuple[int, int, int]) -> keras.Sequential:
    """Returns an image encoder, a `cnn`, to `[batch, units]`.

    Args:
        width: Channels of the first convolution.
        units: Size of the result.
        shape: Height, width and channels; values 0 to 1.
    """
    return keras.Sequential(
        [
            keras.Input(shape),
            *backbones.get("cnn")(width, _CNN_STAGES),
            layers.Flatten(name="flatten"),
            layers.Dropout(_DROPOUT, name="dropout"),
            _vector(units),
        ],
        name="image_encoder",
    )


def audio(width: int, units: int, length: int, rate: int) -> keras.Sequential:
    """Returns an audio encoder, a `cnn` over mel spectrograms, to `[batch, units]`.

    Loudness, logarithm and a standardisation of each mel band come first. While
    training, spectrograms are shifted in time at random. All before the convolutions
    is float32 in any precision: a power spectrum leaves the range of float16.

    Args:
        width: Channels of the first convolution.
        units: Size of the result.
        length: Samples of a recording.
        rate: Samples per second.
    """
    frames = 1 + length // _STRIDE
    spectrogram = layers.MelSpectrogram(
        fft_length=_FFT,
        sequence_length=_FFT,
        sequence_stride=_STRIDE,
        sampling_rate=rate,
        num_mel_bins=_MEL_BANDS,
        min_freq=_LOWEST,
        max_freq=_HIGHEST,
        power_to_db=False,
        mag_exp=2.0,
        dtype="float32",
        name="mel_spectrogram",
    )
    return keras.Sequential(
        [
            keras.Input((length,)),
            Loudness(dtype="float32", name="loudness"),
            spectrogram,
            Decibels(_FLOOR, dtype="float32", name="decibels"),
            layers.BatchNormalization(
                axis=1,
                center=False,
                scale=False,
                momentum=0.9,
                dtype="float32",
                name="standardisation",
            ),
            layers.Reshape((_MEL_BANDS, frames, 1), dtype="float32", name="channel"),
            layers.RandomTranslation(
                0.0, _MOST_SHIFT, fill_mode="nearest", dtype="float32", name="shift"
            ),
            *backbones.get("cnn")(width, _CNN_STAGES),
            layers.Flatten(name="flatten"),
            layers.Dropout(_DROPOUT, name="dropout"),
            _vector(units),
        ],
        name="audio_encoder",
    )


def text(
    width: int, units: int, length: int, vocabulary_size: int, window: int
) -> keras.Sequential:
    """Returns a text encoder, an `rnn` over token ids, to `[batch, units]`.

    Args:
        width: Units of the recurrent layer in each direction.
        units: Size of the result.
        length: Tokens of a text, 0 where it is shorter.
        vocabulary_size: Number of different tokens, 0 included.
        window: The recurrent layer reads the mean of this many tokens a step, as
            long texts take it long.
    """
    steps = length // window
    return keras.Sequential(
        [
            keras.Input((length,), dtype="int32"),
            layers.Embedding(vocabulary_size, _EMBEDDING, name="embedding"),
            layers.SpatialDropout1D(_DROPOUT, name="embedding_dropout"),
            layers.AveragePooling1D(window, name="window"),
            layers.Reshape((steps, 1, _EMBEDDING), name="rows_of_one"),
            *backbones.get("rnn")(width, 1),
            layers.GlobalAveragePooling1D(name="mean"),
            layers.Dropout(_DROPOUT, name="dropout"),
            _vector(units),
        ],
        name="text_encoder",
    )


def _vector(units: int) -> keras.layers.Layer:
    return layers.Dense(
        units, activation="relu", kernel_initializer="he_normal", name="vector"
    )
