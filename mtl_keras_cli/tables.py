"""`mtl-keras init` and `mtl-keras predict`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

from rich.console import Console

from mtl_keras import runs
from mtl_keras.applications.built import BuiltModel
from mtl_keras.applications.table.application import Table
from mtl_keras.applications.table.predicting import predict_file
from mtl_keras.balancing.arguments import preference_per_task
from mtl_keras.data.tables.proposal import propose
from mtl_keras.data.tables.reading import suffix_of
from mtl_keras.errors import InputError
from mtl_keras.pareto import PreferenceModel
from mtl_keras.runs.training import preference_tasks


def init(
    files: Sequence[str],
    to: pathlib.Path,
    *,
    tasks: Sequence[str] | None,
    task_by: str | None,
    console: Console,
) -> None:
    """Writes a data file for a table, and prints the table's summary.

    Raises:
        InputError: If the files cannot be read, or `to` exists or cannot be written.
    """
    text = propose(files, to, tasks=tasks, task_by=task_by)
    try:
        with open(to, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise InputError(f"{str(to)!r} exists. Remove it, or name another.") from error
    except OSError as error:
        raise InputError(
            f"{os.fspath(to)!r} cannot be written: {error.strerror}."
        ) from error
    console.print(f"Wrote {to}", soft_wrap=True)
    summary = Table(to).summary()
    console.print(summary, soft_wrap=True, markup=False, highlight=False)


def predict(
    run: pathlib.Path,
    source: pathlib.Path,
    out: pathlib.Path | None,
    *,
    preference: Sequence[float] | None,
    console: Console,
) -> None:
    """Writes predictions of a run's model beside the rows of a file.

    Raises:
        InputError: If the run is not of a table, the file cannot be read, or `out`
            exists or cannot be written; for a preference that does not fit the run.
    """
    loaded = runs.load_run(run)
    application = loaded.config.get_application()
    if isinstance(application, BuiltModel):
        application = application.table
    if not isinstance(application, Table):
        raise InputError(
            "Expected a run of a table, whose features are columns. Received: one of "
            f"{loaded.config.application!r}."
        )
    if out is None:
        name = source.name.partition(".")[0]
        out = source.with_name(f"{name}.predictions{suffix_of(source) or '.csv'}")
    if os.path.lexists(out):
        raise InputError(f"{str(out)!r} exists. Remove it, or name another --out.")
    model = loaded.model()
    chosen: dict[str, float] | None = None
    if preference is not None:
        if not isinstance(model, PreferenceModel):
            raise InputError(
                "Expected no --preference for a run without --preferences. Received: "
                f"--preference of {str(run)!r}."
            )
        tasks = preference_tasks(loaded.config, model)
        preference_per_task(preference, list(tasks))
        chosen = dict(zip(tasks.values(), preference, strict=True))
    rows = predict_file(model, application, source, out, chosen)
    console.print(f"Wrote {out}: {rows:,} rows", soft_wrap=True)
