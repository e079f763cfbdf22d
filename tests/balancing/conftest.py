"""Shared by the tests of balancing."""

from __future__ import annotations

import keras
import pytest


@pytest.fixture(autouse=True)
def _seeded():
    """Seeds without clearing Keras's session, whose garbage collection is slow
    while compiled steps are kept."""
    keras.utils.set_random_seed(1234)
