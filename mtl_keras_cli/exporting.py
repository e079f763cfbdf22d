"""What `mtl-keras export` does."""

from __future__ import annotations

import hashlib
import pathlib

import keras
import typer
from rich.console import Console

from mtl_keras import runs, serving
from mtl_keras.runs import folder
from mtl_keras.runs.training import load_split
from mtl_keras.serving.export import SOURCE

# Float32 outputs of the same graph, compiled twice, differ by rounding only.
TOLERANCE = 1e-4


def export_run(
    path: pathlib.Path,
    to: pathlib.Path,
    *,
    check: bool,
    reuse: bool,
    console: Console,
) -> None:
    """Exports a run, and compares the result with the run's model if asked to.

    Raises:
        InputError: If the run cannot be read, or `to` cannot be written.
        typer.Exit: With code 1, if the comparison fails.
    """
    run = runs.load_run(path)
    digest = hashlib.sha256((run.path / folder.MODEL).read_bytes()).hexdigest()
    model = run.model()
    version = serving.latest_version(to) if reuse else None
    if version is not None and _digest(version) == digest:
        console.print(f"{version} is there already, of this very model: reused.")
    else:
        source = {"model_sha256": digest, **run.config.to_dict()}
        version = serving.export(model, to, source=source)
        console.print(f"Wrote {version}", soft_wrap=True)
    if check:
        _compare(version, run, model, console)


def _digest(version: pathlib.Path) -> str | None:
    file = version / SOURCE
    return folder.read_json(file).get("model_sha256") if file.is_file() else None


def _compare(
    version: pathlib.Path, run: runs.Run, model: keras.Model, console: Console
) -> None:
    inputs, *_ = next(iter(load_split(run.config, "test")))
    differences = serving.check(version, model, inputs)
    worst = max(differences.values())
    console.print(
        "Loaded back with tf.saved_model.load; largest difference from the Keras "
        f"model on {len(keras.tree.flatten(inputs)[0])} test samples: "
        + ", ".join(f"{task} {value:.1e}" for task, value in differences.items()),
        soft_wrap=True,
    )
    if not worst <= TOLERANCE:
        console.print(f"Expected at most {TOLERANCE:.0e}: the export is not the model.")
        raise typer.Exit(1)
