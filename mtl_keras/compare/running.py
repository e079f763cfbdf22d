"""Runs the cells of a comparison, several at a time, and resumes earlier ones."""

from __future__ import annotations

import math
import pathlib
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mtl_keras.compare.comparison import (
    COMBINATION,
    PAIR,
    SINGLE,
    WITHOUT,
    Cell,
    Plan,
)
from mtl_keras.compare.records import read_cell
from mtl_keras.encoding import encode
from mtl_keras.errors import InputError, check_integer
from mtl_keras.evaluation import has_relative_gain
from mtl_keras.files import (
    check_free,
    check_no_links,
    make_folder,
    read_json,
    write_json,
)
from mtl_keras.runs.progress import duration
from mtl_keras.runs.records import (
    RECORD,
    Record,
    check_format,
    failure,
    made_with,
)
from mtl_keras.runs.scheduler import Job, Scheduler

COMPARISON = "comparison.json"
CELLS = "cells"
_TRAIN = "mtl_keras.compare.cell:train_cell"
_POLL_SECONDS = 0.5


def run_cells(
    plan: Plan, out: pathlib.Path, *, jobs: int = 1, console: Console | None = None
) -> dict[str, Record]:
    """Trains every cell that is not there yet, and reads all records.

    A combination waits for what it is measured against, with the same seed: its tasks
    alone, or without these the first combination. Where one of them failed, it is
    recorded as failed as well, without being trained.

    Args:
        plan: The cells.
        out: Folder of the comparison.
        jobs: Cells to train at a time, each in a process of its own.
        console: Where to show progress; None for nowhere.

    Returns:
        `{cell name: record}` of all cells, as `read_cell` returns them.

    Raises:
        InputError: If `out` is in use by something else or by a comparison with
            other settings.
    """
    check_integer("jobs", jobs, low=1)
    # What a cell measures of its process is not to include another one's.
    with Scheduler(jobs, fresh=True) as scheduler:
        _open(plan, out)
        return _Cells(plan, out, scheduler, console or Console(quiet=True)).run()


def _open(plan: Plan, out: pathlib.Path) -> None:
    """Makes the folder, or checks that its cells are of the same base settings."""
    now = {**encode(plan), "made_with": made_with()}
    file = out / COMPARISON
    if not file.is_file():
        check_free(out)
        make_folder(out)
    else:
        check_no_links(*out.rglob("*"))
        earlier = read_json(file)
        check_format(earlier.get("made_with"), file)
        base = earlier.get("base")
        if not isinstance(base, dict):
            raise InputError(
                f"{file} is broken: it has no settings under 'base'. Name another "
                "folder with --out, or remove that one."
            )
        for key, value in now["base"].items():
            if base.get(key) != value:
                raise InputError(
                    f"{str(out)!r} holds a comparison with another {key}: "
                    f"{base.get(key)!r} there, {value!r} here. Name another "
                    "folder with --out, or remove that one."
                )
    write_json(file, now)


class _Cells:
    """The cells of a comparison: those still to train, and the records of the rest."""

    def __init__(
        self, plan: Plan, out: pathlib.Path, scheduler: Scheduler, console: Console
    ):
        self._plan = plan
        self._cells = {cell.name: cell for cell in plan.cells()}
        self._folder = out.absolute() / CELLS
        self._scheduler = scheduler
        self._console = console
        self._records: dict[str, Record] = {}
        self._waiting: list[Cell] = []

    def run(self) -> dict[str, Record]:
        """Trains what is left; see `run_cells`."""
        for cell in self._cells.values():
            file = self._folder / cell.name / RECORD
            record = read_cell(file, cell) if file.is_file() else None
            if record is not None and record.completed:
                self._records[cell.name] = record
                continue
            # A failure may have had a cause outside, such as a full disk.
            file.unlink(missing_ok=True)
            self._waiting.append(cell)
        self._announce()
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        ) as bar:
            row = bar.add_task("cells", total=len(self._cells), left="")
            while self._waiting or self._scheduler.running:
                self._start_what_can()
                for job in self._scheduler.wait(_POLL_SECONDS):
                    self._finish(self._cells[job.folder.name])
                bar.update(row, completed=len(self._records), left=self._left())
        return {name: self._records[name] for name in self._cells}

    def _announce(self) -> None:
        base = self._plan.base
        kinds = [cell.kind for cell in self._cells.values()]
        singles, pairs = kinds.count(SINGLE), kinds.count(PAIR)
        without = kinds.count(WITHOUT)
        self._console.print(
            f"Comparing on {base.data}: {kinds.count(COMBINATION)} trainings of "
            f"{len(self._plan.methods)} combinations"
            f"{f', {singles} of single tasks' if singles else ''}"
            f"{f', {without} without a helper' if without else ''}"
            f"{f', {pairs} of pairs' if pairs else ''}; {base.epochs} "
            f"epochs each, {self._scheduler.slots} at a time",
            soft_wrap=True,
        )
        if self._records:
            rest = len(self._waiting) or "none"
            self._console.print(f"Reused: {len(self._records)} finished; {rest} to go.")

    def _start_what_can(self) -> None:
        """Starts the first cells whose baselines are done, where there is room."""
        for cell in list(self._waiting):
            if not self._scheduler.free:
                return
            if all(one.name in self._records for one in self._baselines(cell)):
                self._waiting.remove(cell)
                self._start(cell)

    def _baselines(self, cell: Cell) -> list[Cell]:
        """Returns the cells that a cell is measured against, of its seed.

        Those of its tasks alone, or without single tasks the first combination.
        """
        if cell.kind == SINGLE:
            return []
        reference = self._plan.methods[0]
        return [
            one
            for one in self._cells.values()
            if one is not cell
            and one.config.seed == cell.config.seed
            and (
                one.kind == SINGLE and one.tasks[0] in cell.tasks
                if self._plan.single_tasks
                else one.method == reference != cell.method
            )
        ]

    def _start(self, cell: Cell) -> None:
        folder = self._folder / cell.name
        needed = {one: self._records[one.name] for one in self._baselines(cell)}
        failed = [one for one, record in needed.items() if not record.completed]
        if failed:
            (of, *_), kind = failed[0].tasks, failed[0].kind
            which = f"{of!r} alone" if kind == SINGLE else f"by {failed[0].method}"
            message = (
                f"Its epoch cannot be chosen: training {which} with seed "
                f"{cell.config.seed} failed."
            )
            make_folder(folder)
            write_json(folder / RECORD, failure(message, self._scheduler.slots))
            self._finish(cell)
            return
        baseline = {
            task: value
            for record in needed.values()
            for task, value in record.result.validation.items()
        }
        excluded = [t for t, b in baseline.items() if not has_relative_gain(b)]
        if excluded:
            self._say(
                f"{cell}: its epoch is chosen without {', '.join(excluded)}, whose "
                "baseline on validation is 0."
            )
        settings: dict[str, Any] = {
            "label": str(cell),
            "kind": cell.kind,
            "config": encode(cell.config),
            "baseline": baseline or None,
        }
        kind, size = _kind_and_size(cell)
        self._scheduler.submit(Job(str(cell), folder, _TRAIN, settings, kind, size))

    def _finish(self, cell: Cell) -> None:
        file = self._folder / cell.name / RECORD
        record = self._records[cell.name] = read_cell(file, cell)
        number = f"{len(self._records)}/{len(self._cells)}"
        if record.completed:
            line = f"{_score(cell, record)} at epoch {record.result.epoch}"
        else:
            line = f"failed: {' '.join(record.error.split())}"
        left = self._left()
        self._say(
            f"{number:>7}  {cell}: {line}; {duration(record.seconds)}"
            f"{left and f', {left}'}"
        )

    def _left(self) -> str:
        """Returns about how long the rest takes, as people read it."""
        seconds = self._scheduler.seconds_left(map(_kind_and_size, self._waiting))
        return f"about {duration(seconds)} left" if seconds else ""

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)


def _kind_and_size(cell: Cell) -> tuple[str, float]:
    """Returns what tells about how long a cell takes."""
    return cell.kind if cell.kind == SINGLE else cell.method, float(len(cell.tasks))


def _score(cell: Cell, record: Record) -> str:
    if math.isnan(record.result.validation_delta_m):
        values = list(record.result.validation.values())
        return f"{sum(values) / len(values):.4f} on validation"
    return f"Δm {record.result.validation_delta_m:+.2f}% on validation"
