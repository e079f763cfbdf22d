"""Small versions of the generated multimodal data, prepared once."""

from __future__ import annotations

import pytest

from mtl_keras import data
from mtl_keras.data import Multimodal

SIZES = {
    "unpaired_generated": {
        "images": {"train": 60, "validation": 10, "test": 20},
        "recordings": {"train": 50, "validation": 10, "test": 15},
        "texts": {"train": 40, "validation": 10, "test": 12},
    },
    "paired_generated": {
        "images": {"train": 60, "validation": 30, "test": 30},
        "recordings": {"train": 50, "validation": 30, "test": 30},
        "samples": {"train": 300, "validation": 10, "test": 200},
    },
}


@pytest.fixture(scope="session")
def small_multimodal(tmp_path_factory):
    """A data folder with both generated configurations of `multimodal`."""
    folder = tmp_path_factory.mktemp("multimodal")
    with pytest.MonkeyPatch.context() as patch:
        for name, sizes in SIZES.items():
            config = Multimodal.builder_configs[name]
            for field, counts in sizes.items():
                patch.setattr(config, field, counts)
            data.prepare(f"multimodal/{name}", data_dir=folder)
    return folder
