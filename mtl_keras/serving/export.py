"""Export to `<path>/<version>/`, and the comparison with the Keras model."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtl_keras.errors import InputError
from mtl_keras.sharing import hard_branches

SOURCE = "source.json"


def versions(path: str | pathlib.Path) -> list[int]:
    """Returns the version numbers under an export folder, in order."""
    path = pathlib.Path(path)
    if not path.is_dir():
        return []
    return sorted(
        int(entry.name)
        for entry in path.iterdir()
        if entry.is_dir() and entry.name.isdecimal()
    )


def latest_version(path: str | pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of the highest version, or None."""
    numbers = versions(path)
    return pathlib.Path(path) / str(numbers[-1]) if numbers else None


def export(
    model: keras.Model,
    path: str | pathlib.Path,
    *,
    source: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes a model as the next version under `path`.

    `serving_default` takes the model's own inputs (raw values: preprocessing
    is part of the model) and answers one named tensor per task. What training
    needs alone, such as the optimizer, the balancing state and branches that no task
    chose, stays out.

    Args:
        model: A built functional model whose outputs are a dict.
        path: The folder that holds the versions. TensorFlow Serving takes it
            as a model's base path; a version appears in it complete or not at
            all.
        source: Where the model comes from, written beside it as `source.json`;
            TensorFlow Serving leaves files alone that it does not know.

    Returns:
        The folder `<path>/<version>`.

    Raises:
        InputError: If `path` cannot be made or written.
    """
    path = pathlib.Path(path)
    # A stock model over the same layers: the balancing state is not on it.
    stock = hard_branches(keras.Model(model.inputs, model.output))
    work = path / f".partial-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        work.mkdir()
    except OSError as error:
        raise InputError(
            f"The export folder {str(path)!r} cannot be written: {error.strerror}."
        ) from error
    try:
        stock.export(work / "model", format="tf_saved_model", verbose=False)
        if source is not None:
            text = json.dumps(source, indent=2) + "\n"
            (work / "model" / SOURCE).write_text(text, encoding="utf-8")
        target = path / str(max(versions(path), default=0) + 1)
        (work / "model").rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def check(
    version: str | pathlib.Path, model: keras.Model, inputs: Any
) -> dict[str, float]:
    """Compares an exported model with the Keras model it came from.

    Args:
        version: The folder that `export` returned.
        model: The Keras model.
        inputs: One batch of the model's inputs: a tensor, or a list or dict of
            tensors.

    Returns:
        The largest absolute difference of each task's outputs.

    Raises:
        InputError: If the folder holds no SavedModel with these tasks.
    """
    version = pathlib.Path(version)
    try:
        loaded = tf.saved_model.load(str(version))
    except OSError as error:
        raise InputError(f"{str(version)!r} holds no SavedModel.") from error
    serve = loaded.signatures["serving_default"]
    if isinstance(inputs, dict):
        named = inputs
    else:
        tensors = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        names = [tensor.name for tensor in model.inputs]
        named = dict(zip(names, tensors, strict=True))
    served = serve(**{name: tf.convert_to_tensor(x) for name, x in named.items()})
    expected = model(inputs, training=False)
    if set(served) != set(expected):
        raise InputError(
            f"Expected the tasks {sorted(expected)} in {str(version)!r}. "
            f"Received: {sorted(served)}."
        )
    return {
        task: float(np.max(np.abs(np.asarray(served[task]) - np.asarray(value))))
        for task, value in expected.items()
    }
