"""What `mtl-keras export` and `mtl-keras serve-check` do."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import typer
from rich.console import Console

from mtl_keras import runs, serving
from mtl_keras.data import catalog
from mtl_keras.errors import InputError
from mtl_keras.runs import folder
from mtl_keras.runs.training import load_split, test_metrics, versions
from mtl_keras.serving.export import SOURCE
from mtl_keras_cli.errors import FAILED
from mtl_keras_cli.text import plain_table


def export_runs(
    paths: Sequence[pathlib.Path],
    to: pathlib.Path,
    *,
    tasks: tuple[str, ...] | None,
    weights: str,
    reuse: bool,
    console: Console,
) -> pathlib.Path:
    """Exports a run, or several under one set of signatures.

    Returns:
        The folder of the version.

    Raises:
        InputError: If a run cannot be read, the runs cannot be served together, or
            `to` cannot be written.
    """
    loaded = [runs.load_run(path) for path in paths]
    identity = {
        "model_sha256": [_digest(run) for run in loaded],
        "weights": weights,
        "served_tasks": list(tasks) if tasks else None,
    }
    version = serving.latest_version(to) if reuse else None
    if version is not None and _is_of(version, identity):
        console.print(f"{version} is there already, of this very model: reused.")
        return version
    models: list[keras.Model] = []
    class_names: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    metrics: dict[str, Any] = {}
    for run in loaded:
        application = run.config.get_application()
        model = run.model()
        measured = run.metrics
        if weights != "float32":
            model, measured = _compressed(run, model, weights, console)
        models.append(application.serving_model(model))
        class_names |= application.class_names()
        # Inputs, labels, and sample weights where there are any.
        with catalog.reading(str(run.config.data)):
            samples.append(next(iter(load_split(run.config.validate(), "test")))[0])
        metrics |= {application.tasks[t].name: v for t, v in measured.items()}
    settings = [run.config.to_dict() for run in loaded]
    version = serving.export(
        models if len(models) > 1 else models[0],
        to,
        tasks=tasks,
        class_names=class_names,
        samples=_joined(samples),
        source={
            **identity,
            **(settings[0] if len(settings) == 1 else {"runs": settings}),
            "metrics": metrics,
            "versions": versions(),
        },
    )
    console.print(f"Wrote {version}", soft_wrap=True)
    return version


def _joined(batches: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Joins the inputs of several runs, as many samples as the smallest batch has."""
    arrays = {name: np.asarray(x) for batch in batches for name, x in batch.items()}
    count = min(len(array) for array in arrays.values())
    return {name: array[:count] for name, array in arrays.items()}


def _digest(run: runs.Run) -> str:
    return hashlib.sha256((run.path / folder.MODEL).read_bytes()).hexdigest()


def _is_of(version: pathlib.Path, identity: Mapping[str, Any]) -> bool:
    file = version / SOURCE
    there = folder.read_json(file) if file.is_file() else {}
    return all(there.get(key) == value for key, value in identity.items())


def _compressed(
    run: runs.Run, model: keras.Model, weights: str, console: Console
) -> tuple[keras.Model, dict[str, dict[str, float]]]:
    """Compresses a run's model, and prints what that costs on the test split.

    Returns:
        The smaller model and its metrics, `{task: {metric: value}}`.
    """
    small = serving.compress(model, weights)
    config = run.config.validate()
    application = config.get_application()
    small.compile(
        loss=application.losses(config.tasks), metrics=application.metrics(config.tasks)
    )
    after = test_metrics(config, small, load_split(config, "test"))
    console.print(
        f"{run.path} with {weights} weights: {_megabytes(small):.2f} MB instead of "
        f"{_megabytes(model):.2f} MB. On the test split:",
        soft_wrap=True,
    )
    table = plain_table("task", "metric")
    for head in ("float32", weights, "change"):
        table.add_column(head, justify="right")
    for task, values in run.metrics.items():
        for name, before in values.items():
            if before is not None and name in after[task]:
                now = after[task][name]
                cells = (f"{before:.4f}", f"{now:.4f}", f"{now - before:+.4f}")
                table.add_row(task, name, *cells)
    console.print(table)
    return small, after


def _megabytes(model: keras.Model) -> float:
    weights = [variable.value for variable in model.weights]
    return sum(w.dtype.size * w.shape.num_elements() for w in weights) / 1e6


def check_export(
    path: pathlib.Path, *, tolerance: float | None, seconds: float, console: Console
) -> None:
    """Checks an export and prints what was found.

    Raises:
        InputError: If there is no export, or it cannot be loaded.
        typer.Exit: With code 1, if anything differs.
    """
    if not (tolerance is None or tolerance >= 0) or not seconds >= 0:
        raise InputError(
            "Expected --tolerance and --seconds of at least 0. Received: "
            f"{tolerance}, {seconds}."
        )
    report = serving.check(path, tolerance=tolerance, seconds=seconds)
    console.print(
        f"{report.version}, loaded by TensorFlow's loader with the tag serve:",
        soft_wrap=True,
    )
    table = plain_table("signature")
    for head in ("records", "difference", "batch", "median ms", "p95 ms", "samples/s"):
        table.add_column(head, justify="right")
    for name, found in report.signatures.items():
        first = (name, str(found.records), f"{found.difference:.1e}")
        if not found.timings:
            table.add_row(*first)
        for timing in found.timings:
            table.add_row(
                *first,
                str(timing.batch_size),
                f"{timing.median_ms:.2f}",
                f"{timing.p95_ms:.2f}",
                f"{timing.samples_per_second:,.0f}",
            )
            first = ("", "", "")
    console.print(table)
    for problem in report.problems:
        console.print(problem, soft_wrap=True, markup=False)
    if report.problems:
        console.print(f"{report.version} is not the model that was exported.")
        raise typer.Exit(FAILED)
    console.print("Every answer is that of the Keras model.")
