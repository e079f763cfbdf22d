"""Mixed precision, chosen for one model and kept by its file."""

from __future__ import annotations

import collections

import keras
import pytest

from mtl_keras import applications

# Of each application the backbone that is built most quickly.
QUICK = {
    "multimodal": "concat",
    "recommendation": "mlp",
    "text": "mlp",
    "vision": "cnn",
}
CASES = [
    pytest.param(
        name, backbone, marks=() if backbone == QUICK[name] else pytest.mark.slow
    )
    for name in applications.names()
    for backbone in applications.get(name).backbones
]


def computes_in(model):
    """Counts the layers that own weights by kind and compute dtype."""
    return collections.Counter(
        (type(layer).__name__, layer.compute_dtype)
        for layer in model._flatten_layers()
        if layer._trainable_variables
    )


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_a_saved_model_computes_as_it_was_built(name, backbone, tmp_path):
    application = applications.get(name)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = application.build(backbone=backbone, width=8, depth=1)
    finally:
        keras.config.set_dtype_policy("float32")
    built = computes_in(model)
    assert "float16" in {dtype for _, dtype in built}
    # Losses and metrics are of float32, whatever the layers before are.
    assert {output.dtype for output in model.outputs} == {"float32"}
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert computes_in(loaded) == built
