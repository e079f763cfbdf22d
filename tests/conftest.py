"""Shared by all tests."""

from __future__ import annotations

import datetime
import gc
import json
import os
import pathlib
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
    parser.addoption(
        "--days",
        type=int,
        default=1,
        metavar="D",
        help="with --share, run the parts of D days, today's first",
    )
    parser.addoption(
        "--record",
        metavar="FILE",
        help="leave out the tests that FILE has as passed or skipped, and add results",
    )


def pytest_collection_modifyitems(config, items):
    """Chooses the tests of `--share` that `--record` does not have yet."""
    shares = config.getoption("--share")
    today = datetime.datetime.now(tz=datetime.UTC).toordinal()
    done = _recorded(config.getoption("--record"))

    def is_chosen(test):
        days_until = (zlib.crc32(test.encode()) - today) % shares if shares else 0
        return days_until < config.getoption("--days") and test not in done

    parts = {True: [], False: []}
    for item in items:
        parts[is_chosen(item.nodeid)].append(item)
    config.hook.pytest_deselected(items=parts[False])
    items[:] = parts[True]


def _recorded(file):
    """Returns the names of the tests that a file has as passed or skipped."""
    if not file or not pathlib.Path(file).exists():
        return set()
    lines = map(json.loads, pathlib.Path(file).read_text().splitlines())
    return {line["test"] for line in lines if line["outcome"] != "failed"}


class Recorder:
    """Appends the outcome of every test to a file, as soon as it is known."""

    def __init__(self, file):
        # Of use here alone: every test run would load the runs' modules otherwise.
        from mtl_keras.runs import records

        self._commit = records.commit()
        self._file = pathlib.Path(file)
        self._file.parent.mkdir(parents=True, exist_ok=True)

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return  # Set up, or torn down, as it should be.
        line = {
            "test": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
            "commit": self._commit,
        }
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def pytest_configure(config):
    """Two logical CPU devices, which must be set before TensorFlow starts."""
    gc.disable()  # until all tests are imported
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    # Of the processes that share the tests, the one that hands them out hears of all.
    if config.getoption("--record") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config.getoption("--record")))


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
