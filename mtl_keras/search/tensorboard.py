"""Trials in TensorBoard's HParams: one row a trial."""

from __future__ import annotations

import pathlib

import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from mtl_keras.search.records import TrialRecord, flat_settings, searched_settings
from mtl_keras.search.study import Study

LOGS = "logs"


def write_columns(out: pathlib.Path, study: Study) -> None:
    """Writes the order of the columns: searched settings, objectives, main metrics."""
    tasks = study.application.tasks
    metrics = [f"objective/{objective.label}" for objective in study.objectives]
    metrics += [f"{task}/{tasks[task].objective}" for task in study.tasks]
    writer = tf.summary.create_file_writer(str(out / LOGS))
    with writer.as_default(step=0):
        hparams.hparams_config(
            hparams=[hparams.HParam(name) for name in searched_settings(study)],
            metrics=[hparams.Metric(name) for name in metrics],
        )
    writer.close()


def write_trial(out: pathlib.Path, record: TrialRecord) -> None:
    """Writes a trial's settings and results; of several files the newest counts."""
    plain = (bool, int, float, str)
    settings = {
        name: value if isinstance(value, plain) else str(value)
        for name, value in flat_settings(record.config).items()
    }
    writer = tf.summary.create_file_writer(str(out / LOGS / record.trial))
    with writer.as_default(step=0):
        hparams.hparams(settings, trial_id=record.trial)
        for name, value in record.objectives.items():
            tf.summary.scalar(f"objective/{name}", value)
        for task, values in record.metrics.items():
            for name, value in values.items():
                tf.summary.scalar(f"{task}/{name}", value)
    writer.close()
