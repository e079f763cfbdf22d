"""An application small enough to train in a test: 8x8 images, three tasks."""

from __future__ import annotations

import contextlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import applications
from mtl_keras.applications import Application, Task, TrainingDefaults
from mtl_keras.data.passes import shuffled
from mtl_keras.reports import figures

SIZES = {"train": 96, "validation": 32, "test": 40}


class Tiny(Application):
    """Stripes: how they run, whether they are bright, how bright."""

    name = "tiny"
    default_data = "stripes"
    backbones = ("cnn", "mlp")
    tasks = {  # noqa: RUF012
        task.name: task
        for task in (
            Task(
                "way",
                "multiclass",
                keras.losses.SparseCategoricalCrossentropy,
                lambda: [keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
                "accuracy",
            ),
            Task(
                "bright",
                "binary",
                keras.losses.BinaryCrossentropy,
                lambda: [
                    keras.metrics.BinaryAccuracy(name="accuracy"),
                    keras.metrics.AUC(name="auc"),
                ],
                "auc",
            ),
            Task(
                "level",
                "regression",
                keras.losses.MeanSquaredError,
                lambda: [keras.metrics.MeanAbsoluteError(name="mae")],
                "mae",
                "min",
            ),
        )
    }
    defaults = TrainingDefaults(
        epochs=2,
        batch_size=32,
        learning_rate=0.01,
        backbone="mlp",
        sharing="hard",
        width=8,
        depth=1,
    )

    def load(
        self,
        split,
        *,
        data=None,
        batch_size,
        tasks=None,
        shuffle=False,
        seed=0,
        limit=None,
        data_dir=None,
        epoch=None,
    ):
        from mtl_keras.errors import unknown_name

        if data not in (None, "stripes"):
            raise unknown_name("data set of 'tiny'", data, ["stripes"])
        count = SIZES[split]
        rng = np.random.default_rng(sorted(SIZES).index(split))
        way = rng.integers(0, 2, count)
        level = rng.uniform(size=count)
        rows = (np.arange(8) % 2)[:, None] * np.ones((1, 8))
        image = np.where(way[:, None, None], rows, rows.T) * level[:, None, None]
        labels = {
            "way": way,
            "bright": (level > 0.5).astype("float32")[:, None],
            "level": level.astype("float32")[:, None],
        }
        dataset = tf.data.Dataset.from_tensor_slices(
            (
                {"image": (255 * image[..., None]).astype("uint8")},
                {task: labels[task] for task in self.select(tasks)},
            )
        )
        if limit is not None:
            dataset = dataset.take(limit)
        if shuffle:
            dataset = shuffled(dataset, len(dataset), seed, epoch)
        return dataset.batch(batch_size)

    def inputs(self):
        return {"image": keras.Input((8, 8, 1), dtype="uint8", name="image")}

    def preprocess(self, inputs):
        return keras.layers.Rescaling(1 / 255)(inputs["image"])

    def head(self, task, features):
        x = keras.layers.Flatten()(features)
        units, activation = {
            "multiclass": (2, "softmax"),
            "binary": (1, "sigmoid"),
            "regression": (1, None),
        }[task.kind]
        return keras.layers.Dense(units, activation=activation, name=task.name)(x)


@pytest.fixture
def tiny(monkeypatch):
    """The application, known by name as `tiny` for the time of a test."""
    application = Tiny()
    known = {name: applications.get(name) for name in applications.names()}
    known["tiny"] = application

    def get(name):
        from mtl_keras.errors import unknown_name

        if name not in known:
            raise unknown_name("application", name, known)
        return known[name]

    monkeypatch.setattr(applications, "get", get)
    monkeypatch.setattr(applications, "names", lambda: sorted(known))
    return application


@contextlib.contextmanager
def running_eagerly():
    """Runs without tracing graphs, which is most of such a training's time."""
    tf.config.run_functions_eagerly(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Even though the `tf.config")
        yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def eagerly():
    with running_eagerly():
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves reports without their drawings, which take longest to write."""
    monkeypatch.setattr(figures, "svg", lambda figure, about: "<svg></svg>")
    monkeypatch.setattr(figures, "save_png", lambda figure, path: path)
