"""Shared by all tests."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import pytest


@pytest.fixture(autouse=True)
def _seeded():
    # Without the garbage collection, which takes seconds beside many traced graphs.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1234)


def pytest_configure(config):
    """Two logical CPU devices, which must be set before TensorFlow starts."""
    import tensorflow as tf
    import gc; gc.collect(); gc.freeze()

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )


@pytest.fixture
def two_cpus():
    """Names of two logical CPU devices."""
    return ["CPU:0", "CPU:1"]
