"""What `mtl-keras init` does."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

from rich.console import Console

from mtl_keras.applications.table.application import Table
from mtl_keras.data.tables.proposal import propose
from mtl_keras.errors import InputError


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
