"""Generators of toy data: scenes of digits, speech, text, behaviour, regression.

Each is loaded when one of its data sets is asked for, by `tfds.load("multi_digits")`
or as `mtl_keras.data.MultiDigits`. Importing this package tells TensorFlow Datasets
their names alone.
"""

from __future__ import annotations

import importlib
from typing import Any

from tensorflow_datasets.core import registered

BUILDERS = {
    "behaviour": "Behaviour",
    "generated_text": "GeneratedText",
    "mmoe_synthetic": "MmoeSynthetic",
    "multi_digits": "MultiDigits",
    "multimodal": "Multimodal",
}
"""Names of the builders' classes, by the names of data set and module."""


class Generated(registered.DatasetBuilderProvider):
    """Finds the builders of generated data sets, for TensorFlow Datasets."""

    def has_dataset(self, name: str) -> bool:
        """Returns whether there is a generator of this name."""
        return name in BUILDERS

    def get_builder_cls(self, name: str) -> Any:
        """Returns the class of the builder, and registers it with the import."""
        module = importlib.import_module(f"{__name__}.{name}")
        return getattr(module, BUILDERS[name])


# First, as TensorFlow Datasets imports all of its own for a name not registered yet.
registered.add_dataset_builder_provider(Generated(), index=0)
