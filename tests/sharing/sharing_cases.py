"""Models of every way to share over three kinds of backbone."""

from __future__ import annotations

import keras
import numpy as np

import mtl_keras
from mtl_keras import sharing as sharing_lib

TASKS = ["a", "b", "c"]
SPECS = {name: name for name in sharing_lib.names()}
SPECS["esmm"] = {
    "class_name": "esmm",
    "config": {"click": "a", "conversion": "b", "click_and_conversion": "c"},
}


def dense():
    return keras.Input((6,)), [
        keras.layers.Dense(8, "relu", name="stem"),
        keras.layers.Dense(6, "relu", name="last"),
    ]


def convolutional():
    block = keras.Sequential(
        [
            keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.MaxPooling2D(),
        ],
        name="last",
    )
    return keras.Input((8, 8, 1)), [
        keras.layers.Conv2D(6, 3, padding="same", name="stem"),
        block,
    ]


def recurrent():
    return keras.Input((7, 3)), [
        keras.layers.GRU(4, return_sequences=True, name="stem"),
        keras.layers.Bidirectional(
            keras.layers.LSTM(3, return_sequences=True), name="last"
        ),
    ]


BACKBONES = [dense, convolutional, recurrent]


def functional(sharing, inputs, stages, tasks=TASKS, source=None):
    """Returns a model with a small head for each task.

    The first stage reads `source`, made from `inputs`, or `inputs` themselves.
    """
    if isinstance(sharing, str):
        sharing = SPECS[sharing]
    sharing = sharing_lib.get(sharing)
    features = sharing(inputs if source is None else source, stages, tasks)
    outputs = {}
    for task, x in features.items():
        if len(x.shape) == 4:
            x = keras.layers.Flatten()(x)
        elif len(x.shape) == 3:
            x = keras.layers.GlobalAveragePooling1D()(x)
        head = keras.layers.Dense(1, "sigmoid", dtype="float32", name=f"{task}_head")
        outputs[task] = head(x)
    outputs = sharing.connect_outputs(outputs)
    return mtl_keras.MultiTaskModel(inputs, {task: outputs[task] for task in tasks})


def model_of(sharing, backbone, tasks=TASKS, **compile_arguments):
    model = functional(sharing, *backbone(), tasks)
    spec = SPECS[sharing] if isinstance(sharing, str) else sharing
    untrained = sharing_lib.get(spec).untrained(tasks)
    loss = dict.fromkeys(tasks, "mse") | dict.fromkeys(untrained)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, loss=loss, **compile_arguments)
    return model


def batch(model, n=16):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, *model.input_shape[1:])).astype("float32")
    return x, {t: rng.uniform(size=(n, 1)).astype("float32") for t in model.output}


def outputs_of(model, x):
    """Returns the outputs as arrays, without tracing a graph."""
    return {task: np.asarray(y) for task, y in model(x, training=False).items()}


def assert_same(first, second, **tolerance):
    for task, values in first.items():
        np.testing.assert_allclose(
            second[task], values, **{"rtol": 1e-5, "atol": 1e-6, **tolerance}
        )
