"""Shared by all tests."""

from __future__ import annotations

import datetime
import gc
import os
import zlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import pytest
import tensorflow as tf


@pytest.fixture(autouse=True)
def _seeded():
    # Without the garbage collection, which takes seconds beside many traced graphs.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1234)


def pytest_addoption(parser):
    parser.addoption(
        "--share",
        type=int,
        metavar="N",
        help="of the tests chosen, run an Nth part, each day another one",
    )


def pytest_collection_modifyitems(config, items):
    shares = config.getoption("--share")
    if not shares:
        return
    today = datetime.datetime.now(tz=datetime.UTC).toordinal() % shares
    parts = {True: [], False: []}
    for item in items:
        parts[zlib.crc32(item.nodeid.encode()) % shares == today].append(item)
    config.hook.pytest_deselected(items=parts[False])
    items[:] = parts[True]


def pytest_configure(config):
    """Two logical CPU devices, which must be set before TensorFlow starts."""
    gc.disable()  # until all tests are imported
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )


def pytest_collection_finish():
    """Leaves what imports have made out of garbage collections, which take seconds."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def mirrored():
    """A strategy over two replicas, the same for all tests of a process.

    Every `MirroredStrategy` numbers its collective operations from the same start,
    but all share the process's table of them: a second strategy's would be taken
    for the first one's ("Shape mismatch in the collective instance").
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
