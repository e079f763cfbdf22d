"""What `mtl-keras tune` does."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from mtl_keras_cli.errors import FAILED
from mtl_keras_cli.text import make_console

if TYPE_CHECKING:
    from mtl_keras.search import Study

ROLES = ("chief", "worker")


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP interruptions, as Ctrl-C is.

    A trial under way is then known to be interrupted, and not to have ended its
    process itself. What is ignored, as by `nohup`, stays ignored.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@interrupted_by_signals()
def tune(
    study: pathlib.Path,
    out: pathlib.Path | None,
    *,
    workers: int | None,
    role: str | None,
    chief: str | None,
    name: str | None,
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
        # Only the process that others' lines do not mix with draws a bar.
        console = Console(force_terminal=False, soft_wrap=True)
        # Workers that `--workers` has started bear a name, and end with it.
        search.run_worker(
            checked,
            out,
            chief=chief,
            name=name,
            follow=name is not None,
            console=console,
        )
        return
    console = make_console()
    try:
        if role == "chief":
            assert chief is not None
            results = search.run_chief(
                checked, out, address=chief, silence=worker_timeout, console=console
            )
        elif workers is not None:
            program = [sys.executable, "-c", "import mtl_keras_cli as c; c.main()"]
            command = [*program, "tune", str(study), "--out", str(out)]
            results = search.run_chief(
                checked,
                out,
                command=[*command, "--role", "worker"],
                workers=workers,
                silence=worker_timeout,
                console=console,
            )
        else:
            results = search.run_study(checked, out, console=console)
    except KeyboardInterrupt:
        again = "The same command, started again, goes on with the study."
        raise KeyboardInterrupt(again) from None
    _show(checked, study, results, out, console)


def study_folder(study: pathlib.Path) -> pathlib.Path:
    """Returns the folder of a study file where none is named."""
    return pathlib.Path("runs") / f"study-{study.stem}"


def _check(workers: int | None, role: str | None, chief: str | None) -> None:
    from mtl_keras.errors import InputError, unknown_name
    from mtl_keras.runs.config import check_count

    if workers is not None:
        check_count("--workers", workers)
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

    console.print(report.leaderboard(checked, results))
    finished = records.finished(results)
    if finished and len(checked.objectives) > 1:
        front = [record["trial"] for record in records.front_of(results)]
        console.print(
            f"On the front: trials {', '.join(front)}. To train one in full: "
            f"mtl-keras tune {study} --out {out} --from-trial {front[0]}",
            soft_wrap=True,
        )
    if finished:
        best = results[0]["trial"]
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
