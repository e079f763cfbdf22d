"""`mtl-keras tune`."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from mtl_keras_cli.errors import FAILED
from mtl_keras_cli.text import make_console, plain_table

if TYPE_CHECKING:
    from rich.table import Table

    from mtl_keras.search import Study
    from mtl_keras.search.records import TrialRecord

ROLES = ("chief", "worker")


def tune(
    study: pathlib.Path,
    out: pathlib.Path | None,
    *,
    workers: int | None,
    role: str | None,
    chief: str | None,
    worker_timeout: float,
) -> None:
    """Runs a study alone, with workers on this machine, or as one of many.

    Raises:
        InputError: If the options do not go together, or the study does not hold.
    """
    from mtl_keras import search

    _check(workers, role, chief)
    checked = search.load_study(study)
    out = out or study_folder(study)
    if role == "worker":
        assert chief is not None
        console = make_console()
        search.run_worker(checked, out, chief=chief, console=console)
        return
    console = make_console()
    try:
        if role == "chief":
            assert chief is not None
            results = search.run_chief(
                checked, out, address=chief, silence=worker_timeout, console=console
            )
        else:
            results = search.run_study(
                checked, out, workers=workers or 1, console=console
            )
    except KeyboardInterrupt:
        again = "The same command, started again, resumes the study."
        raise KeyboardInterrupt(again) from None
    _show(checked, study, results, out, console)


def study_folder(study: pathlib.Path) -> pathlib.Path:
    """Returns the folder of a study file where none is named."""
    return pathlib.Path("runs") / f"study-{study.stem}"


def _check(workers: int | None, role: str | None, chief: str | None) -> None:
    from mtl_keras.errors import InputError, check_integer, unknown_name

    if workers is not None:
        check_integer("--workers", workers, low=1)
    if role is not None and role not in ROLES:
        raise unknown_name("role", role, ROLES)
    if role is not None and workers is not None:
        raise InputError(
            "Expected either --workers, for this machine, or --role, for many."
        )
    if (role is None) != (chief is None):
        raise InputError("Expected --role chief or worker together with --chief.")


def _show(
    checked: Study,
    study: pathlib.Path,
    results: list[Any],
    out: pathlib.Path,
    console: Console,
) -> None:
    from mtl_keras.search import records, report

    console.print(leaderboard(checked, results))
    finished = records.finished(results)
    if finished and len(checked.objectives) > 1:
        front = [record.trial for record in records.front_of(results)]
        console.print(
            f"On the front: trials {', '.join(front)}. To train one in full: "
            f"mtl-keras tune {study} --out {out} --from-trial {front[0]}",
            soft_wrap=True,
        )
    if finished:
        best = results[0].trial
        console.print(
            f"Best: trial {best}. To train it in full: "
            f"mtl-keras train --from-study {out}",
            soft_wrap=True,
        )
    files = [records.TRIALS + "/", records.TABLE]
    files += [name for name in report.FILES if (out / name).is_file()]
    console.print(f"Wrote {out}: {', '.join(files)}", soft_wrap=True)
    if not finished:
        console.print("No trial finished: each failed, with the reason in its record.")
        raise typer.Exit(FAILED)


def leaderboard(study: Study, results: list[TrialRecord], top: int = 10) -> Table:
    """Lays out the best trials, with the settings that differ between trials.

    With several objectives a star marks the trials on the front.
    """
    from mtl_keras.callbacks.task_progress import duration
    from mtl_keras.search import records

    tasks = records.shown_tasks(study)
    names = [name for name in study.searched if name != "loss_weights"]
    weighted = "loss_weights" in study.searched
    table = plain_table()
    table.add_column("trial", justify="right")
    objectives = [objective.label for objective in study.objectives]
    heads = [label.replace("_", "\n", 1) for label in objectives]
    heads += [f"{task}\n{study.application.tasks[task].objective}" for task in tasks]
    for head in heads:
        table.add_column(head, justify="right")
    for name in names:
        table.add_column(name.replace("learning_rate", "learning\nrate"))
    if weighted:
        table.add_column("loss weights,\nas the tasks", no_wrap=True)
    table.add_column("time", justify="right")
    front = records.front_of(results) if len(objectives) > 1 else []
    for record in results[:top]:
        settings = records.flat_settings(record.config, records.short)
        cells = [record.trial + ("*" if record in front else "")]
        if record.completed:
            main = records.main_values(study, record)
            cells += [f"{value:.4f}" for value in (*record.objectives.values(), *main)]
        else:
            cells += ["failed"] * len(objectives) + [""] * len(tasks)
        cells += [records.short(settings[name]) for name in names]
        if weighted:
            weights = (settings[f"loss_weight/{task}"] for task in tasks)
            cells.append(" ".join(f"{weight:.2f}" for weight in weights))
        table.add_row(*cells, duration(record.seconds))
    return table
