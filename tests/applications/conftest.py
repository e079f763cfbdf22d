"""Fixtures of the application tests."""

from __future__ import annotations

import pytest
from small_multimodal import small_multimodal  # noqa: F401
from tiny_application import eagerly  # noqa: F401

from mtl_keras import data
from mtl_keras.data import MultiDigits


@pytest.fixture(scope="session")
def small_digits(tmp_path_factory):
    """A folder with a small `multi_digits/digits`."""
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        config = MultiDigits.builder_configs["digits"]
        for split, count in (("train", 300), ("validation", 40), ("test", 100)):
            patch.setitem(config.scenes, split, count)
        data.prepare("multi_digits/digits", data_dir=folder)
    return folder
