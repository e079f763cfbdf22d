"""Training over several devices of a machine, or over several machines."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import tensorflow as tf

from mtl_keras.errors import InputError, WorkerError, unknown_name
from mtl_keras.runs import unfinished
from mtl_keras.runs.config import TrainingConfig

NAMES = ("mirrored", "multiworker")
_EXAMPLE = (
    '{"cluster": {"worker": ["host1:9901", "host2:9901"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
# Errors of TensorFlow where another process is gone or has aborted.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


def make(name: str | None) -> tf.distribute.Strategy | None:
    """Returns the strategy of a name; None for None, one device.

    `"multiworker"` joins the cluster of the environment variable TF_CONFIG, and waits
    for all its workers; it has to come before anything else that TensorFlow does.
    """
    if name is None:
        return None
    if name not in NAMES:
        raise unknown_name("strategy", name, NAMES)
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    _check_cluster(os.environ.get("TF_CONFIG"))
    return tf.distribute.MultiWorkerMirroredStrategy()


def _check_cluster(text: str | None) -> None:
    """Raises `InputError` unless TF_CONFIG tells a worker of a cluster."""
    try:
        config = json.loads(text or "null")
        workers, task = config["cluster"]["worker"], config["task"]
        fits = task["type"] == "worker" and task["index"] in range(len(workers))
    except (ValueError, TypeError, KeyError):
        fits = False
    if not fits or not isinstance(workers, list) or type(task["index"]) is not int:
        raise InputError(
            "Expected the environment variable TF_CONFIG to name the workers, and "
            f"which of them this is, for --strategy multiworker: {_EXAMPLE}. "
            f"Received: {text!r}."
        )


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process writes what all have trained together."""
    resolver = strategy.cluster_resolver
    return resolver is None or resolver.task_id in (None, 0)


@contextlib.contextmanager
def folders(
    strategy: tf.distribute.Strategy,
    out: str | os.PathLike,
    config: TrainingConfig,
    replaces: bool = False,
) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Context manager: yields the folders of a run, as `unfinished.opened` does.

    Workers but the chief get temporary ones with a copy of the checkpoints, for which
    `out` has to be on a file system that all share.
    """
    if is_chief(strategy):
        with unfinished.opened(out, config, replaces) as opened:
            yield opened
        return
    work = unfinished.work_folder(pathlib.Path(out).absolute())
    with tempfile.TemporaryDirectory() as own:
        run, saved = pathlib.Path(own, "run"), pathlib.Path(own, "checkpoints")
        run.mkdir()
        saved.mkdir()
        for path in (work / unfinished.CHECKPOINTS).glob("*.npz"):
            shutil.copy(path, saved)
        yield run, saved


def sharded(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the data set sharded within batches: each worker trains on a part."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return dataset.with_options(options)


@contextlib.contextmanager
def one_for_all(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Context manager: raises a WorkerError where another worker is lost."""
    try:
        yield
    except _LOST as error:
        if strategy.num_replicas_in_sync < 2 or strategy.cluster_resolver is None:
            raise
        raise WorkerError(
            "Another worker of this training has ended or cannot be reached; its own "
            "messages say why. Start all workers again with the same command: they go "
            "on from the last checkpoint."
        ) from error
