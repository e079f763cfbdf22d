"""Exporting a run, or several as one model, for serving."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.table import Column, Table

from mtl_keras import serving
from mtl_keras.data import catalog
from mtl_keras.encoding import encode
from mtl_keras.errors import InputError
from mtl_keras.files import read_json
from mtl_keras.pareto import PreferenceModel
from mtl_keras.pareto.front import middle_and_corners
from mtl_keras.pareto.model import PREFERENCE
from mtl_keras.runs import folder
from mtl_keras.runs.records import versions
from mtl_keras.runs.training import load_split, test_metrics
from mtl_keras.serving.export import SOURCE


def export(
    runs: Sequence[str | os.PathLike],
    to: str | os.PathLike,
    *,
    tasks: tuple[str, ...] | None = None,
    weights: str = "float32",
    reuse: bool = False,
    console: Console | None = None,
) -> pathlib.Path:
    """Exports a run, or several under one set of signatures.

    Args:
        runs: The run folders.
        to: The folder of all versions of the model.
        tasks: The tasks to serve; None means all.
        weights: `"float32"`, or one of the weights of `serving.compress`.
        reuse: Whether to keep the latest version where it is of the same model.
        console: Where to show progress; None exports in silence.

    Returns:
        The folder of the version.

    Raises:
        InputError: If a run cannot be read, the runs cannot be served together, or
            `to` cannot be written.
    """
    console = console or Console(quiet=True)
    to = pathlib.Path(to)
    loaded = [folder.load_run(pathlib.Path(path)) for path in runs]
    identity = {
        "model_sha256": [_digest(run) for run in loaded],
        "weights": weights,
        "served_tasks": list(tasks) if tasks else None,
    }
    version = serving.latest_version(to) if reuse else None
    if version is not None and (version / SOURCE).is_file():
        source = read_json(version / SOURCE)
        if source | identity == source:
            console.print(f"{version} is there already, of this very model: reused.")
            return version
    preferences = [str(run.path) for run in loaded if run.config.preferences]
    if len(preferences) > 1:
        raise InputError(
            "Expected one run with preferences at most, as requests hold one "
            f"{PREFERENCE!r}. Received: {', '.join(preferences)}."
        )
    models: list[keras.Model] = []
    class_names: dict[str, Any] = {}
    missing_values: dict[str, float] = {}
    samples: list[Any] = []
    metrics: dict[str, Any] = {}
    names: dict[str, str] = {}
    for run in loaded:
        application = run.config.get_application()
        names |= {title: task.name for title, task in application.tasks.items()}
        model = run.model()
        measured = run.metrics
        if weights != "float32":
            model, measured = _compressed(run, model, weights, console)
        models.append(application.serving_model(model))
        class_names |= application.class_names()
        missing_values |= application.missing_values()
        # Inputs, labels, and sample weights where there are any.
        with catalog.reading(run.config.data):
            batch = next(iter(load_split(run.config, "test")))[0]
        samples.append(_with_preferences(model, batch))
        metrics |= {names[task]: values for task, values in measured.items()}
    settings = [encode(run.config) for run in loaded]
    version = serving.export(
        models if len(models) > 1 else models[0],
        to,
        # As the command line takes them: the application's names or the model's.
        tasks=None if tasks is None else tuple(names.get(t, t) for t in tasks),
        class_names=class_names,
        samples=_joined(samples),
        missing_values=missing_values,
        source={
            **identity,
            **(settings[0] if len(settings) == 1 else {"runs": settings}),
            "metrics": metrics,
            "versions": versions(),
        },
    )
    console.print(f"Wrote {version}", soft_wrap=True)
    return version


def _with_preferences(model: keras.Model, batch: Any) -> Any:
    """Returns a batch of inputs, for a `PreferenceModel` each with a preference."""
    if not isinstance(model, PreferenceModel):
        return batch
    inputs = model.with_preference(batch, [1.0] * len(model.tasks))
    rows = middle_and_corners(len(model.tasks)).astype("float32")
    return {**inputs, PREFERENCE: np.resize(rows, inputs[PREFERENCE].shape)}


def _joined(batches: Sequence[Any]) -> Any:
    """Joins the inputs of several runs, as many samples as the smallest batch has."""
    if len(batches) == 1:
        return batches[0]
    if not all(isinstance(batch, Mapping) for batch in batches):
        raise InputError("Expected inputs with names, of runs to be served as one.")
    arrays = {name: np.asarray(x) for batch in batches for name, x in batch.items()}
    count = min(len(array) for array in arrays.values())
    return {name: array[:count] for name, array in arrays.items()}


def _digest(run: folder.Run) -> str:
    return hashlib.sha256((run.path / folder.MODEL).read_bytes()).hexdigest()


def _compressed(
    run: folder.Run, model: keras.Model, weights: str, console: Console
) -> tuple[keras.Model, dict[str, dict[str, float]]]:
    """Returns a run's smaller model and its metrics; prints what they cost."""
    small = serving.compress(model, weights)
    application, tasks = run.config.get_application(), run.config.tasks
    small.compile(
        loss=application.losses(tasks),
        metrics=application.metrics(tasks),
        columns=application.columns_of(tasks),
    )
    after = test_metrics(run.config, small, load_split(run.config, "test"))
    console.print(
        f"{run.path} with {weights} weights: {_megabytes(small):.2f} MB instead of "
        f"{_megabytes(model):.2f} MB. On the test split:",
        soft_wrap=True,
    )
    numbers = (Column(head, justify="right") for head in ("float32", weights, "change"))
    table = Table("task", "metric", *numbers, box=None, pad_edge=False)
    for task, values in run.metrics.items():
        for name, before in values.items():
            if name in after[task]:
                now = after[task][name]
                cells = (f"{before:.4f}", f"{now:.4f}", f"{now - before:+.4f}")
                table.add_row(task, name, *cells)
    console.print(table)
    return small, after


def _megabytes(model: keras.Model) -> float:
    weights = [variable.value for variable in model.weights]
    return sum(w.dtype.size * w.shape.num_elements() for w in weights) / 1e6
