"""Fixtures of the data tests."""

from __future__ import annotations

import pytest
from small_multimodal import small_multimodal  # noqa: F401

from mtl_keras.data import MultiDigits


@pytest.fixture
def few_scenes(monkeypatch):
    """Makes `multi_digits/digits` small, but for its test split."""
    config = MultiDigits.builder_configs["digits"]
    monkeypatch.setitem(config.scenes, "train", 120)
    monkeypatch.setitem(config.scenes, "validation", 40)
