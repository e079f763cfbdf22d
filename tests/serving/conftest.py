from __future__ import annotations

import types

import keras
import pytest
from shop_model import CLASS_NAMES, shop_inputs, shop_model
from tiny_application import eagerly, tiny  # noqa: F401

from mtl_keras import serving


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """The model, exported: `model`, `version`, `inputs`, a loaded `runtime`."""
    keras.utils.set_random_seed(7)
    model = shop_model()
    model.compile(
        "adam",
        loss={
            "kind": "sparse_categorical_crossentropy",
            "sold": "mse",
            "amount": "mse",
        },
        balancing="uncertainty",
    )
    inputs = shop_inputs(12)
    version = serving.export(
        model,
        tmp_path_factory.mktemp("exports") / "shop",
        class_names=CLASS_NAMES,
        samples=inputs,
        source={"application": "shop", "metrics": {"kind": {"accuracy": 0.75}}},
    )
    with serving.Runtime(version) as runtime:
        yield types.SimpleNamespace(
            model=model, version=version, inputs=inputs, runtime=runtime
        )
