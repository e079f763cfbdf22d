"""Smaller weights: float16, and dynamic-range int8 by Keras's own quantisation."""

from __future__ import annotations

from typing import Any

import keras

from mtl_keras.errors import unknown_name

WEIGHTS = ("float32", "float16", "int8")
_QUANTISED = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding)


@keras.saving.register_keras_serializable(package="mtl_keras")
class HalfStorage(keras.DTypePolicy):
    """Variables in float16, computation in float32.

    Keras casts variables to the dtype that a layer computes in. Only the size of the
    model changes, by the rounding of its weights alone; no sum overflows.

    Args:
        name: Name of a policy that this one stands in for; not used.

    Example:

    ```pycon
    >>> layer = keras.layers.Dense(2, dtype=mtl_keras.serving.HalfStorage())
    >>> layer.variable_dtype, layer.compute_dtype
    ('float16', 'float32')
    ```
    """

    def __init__(self, name: str = "float32"):
        del name
        super().__init__("float32")

    @property
    def variable_dtype(self) -> str:
        """Dtype of the variables."""
        return "float16"


def compress(model: keras.Model, weights: str) -> keras.Model:
    """Returns a model of the same layers with smaller weights, not compiled.

    - `"float16"`: half the size; all float32 weights are rounded to float16, and the
      computation is that of before.
    - `"int8"`: `keras.Model.quantize("int8")`. Weights of `Dense`, `EinsumDense` and
      `Embedding` layers become int8 with a scale for each channel; their inputs are
      quantised on the fly, by their range in each sample. Other weights stay as they
      are.

    Layers without weights are shared with `model`, as is `Normalization`, whose
    statistics are of raw values.

    Args:
        model: A built functional model.
        weights: One of `"float32"` (returns `model`), `"float16"`, `"int8"`.

    Raises:
        InputError: For other weights.

    Example:

    ```pycon
    >>> small = mtl_keras.serving.compress(model, "float16")
    >>> {keras.backend.standardize_dtype(weight.dtype) for weight in small.weights}
    {'float16'}
    ```
    """
    if weights not in WEIGHTS:
        raise unknown_name("form of weights", weights, WEIGHTS)
    if weights == "float32":
        return model

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        if not layer.weights or isinstance(layer, keras.layers.Normalization):
            return layer
        config = layer.get_config()
        if weights == "float16" and _computes_in_float32(layer):
            config = _halved(config)
        return type(layer).from_config(config)

    # A new model, because cloning a compiled one compiles the clone.
    bare = type(model)(model.input, dict(model.output))
    small = keras.models.clone_model(bare, clone_function=copy, recursive=True)
    small.set_weights(model.get_weights())
    if weights == "int8":
        small.quantize("int8", filters=lambda layer: isinstance(layer, _QUANTISED))
    return small


def _halved(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a layer's configuration with `HalfStorage`, of layers within it, too."""
    within = {
        key: {**value, "config": _halved(value["config"])}
        for key, value in config.items()
        if isinstance(value, dict)
        and isinstance(value.get("config"), dict)
        and value["config"].get("dtype") == config["dtype"]
    }
    # Not serialized: of a serialized policy Keras's layers take the name alone.
    return {**config, **within, "dtype": HalfStorage()}


def _computes_in_float32(layer: Any) -> bool:
    policy = getattr(layer, "dtype_policy", None)
    return isinstance(policy, keras.DTypePolicy) and (
        policy.compute_dtype == policy.variable_dtype == "float32"
    )
