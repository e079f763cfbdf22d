"""Trials in TensorBoard's HParams: one row a trial."""

from __future__ import annotations

import pathlib
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from mtl_keras.search.records import Record, flat_settings

LOGS = "logs"


def write_trial(out: pathlib.Path, record: Record) -> None:
    """Writes a trial's settings and results to `logs/<trial>`.

    A trial that is run again leaves a second file, of which TensorBoard shows the
    newest values.

    Args:
        out: The study folder.
        record: The trial.
    """
    settings = {name: _plain(value) for name, value in flat_settings(record).items()}
    writer = tf.summary.create_file_writer(str(out / LOGS / record["trial"]))
    with writer.as_default(step=0):
        hparams.hparams(settings, trial_id=record["trial"])
        for name, value in record["objectives"].items():
            tf.summary.scalar(f"objective/{name}", value)
        for task, values in record["metrics"].items():
            for name, value in values.items():
                tf.summary.scalar(f"{task}/{name}", value)
    writer.close()


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
