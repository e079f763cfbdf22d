"""Runs the cells of a comparison, several at a time, and resumes earlier ones."""

from __future__ import annotations

import math
import pathlib
from typing import Any

from rich.console import Console
from rich.progress import TextColumn

from mtl_keras.callbacks.task_progress import duration
from mtl_keras.compare.comparison import (
    COMBINATION,
    PAIR,
    SINGLE,
    WITHOUT,
    Cell,
    Plan,
)
from mtl_keras.compare.records import read_cell
from mtl_keras.decoding import decode
from mtl_keras.encoding import encode
from mtl_keras.errors import check_integer
from mtl_keras.evaluation import has_relative_gain
from mtl_keras.files import make_folder, write_json
from mtl_keras.runs import records
from mtl_keras.runs.progress import progress_bar, say
from mtl_keras.runs.records import RECORD, Record
from mtl_keras.runs.results import defined_mean
from mtl_keras.runs.scheduler import Job, Scheduler

COMPARISON = "comparison.json"
CELLS = "cells"
_TRAIN = "mtl_keras.compare.cell:train_cell"
_POLL_SECONDS = 0.5


def run_cells(
    plan: Plan, out: pathlib.Path, *, jobs: int = 1, console: Console | None = None
) -> dict[str, Record]:
    """Trains the cells that are left; returns all records, `{cell name: record}`.

    A combination waits for the cells that it is measured against. Where one of them
    failed, it is recorded as failed as well, without being trained.

    Raises:
        InputError: If `out` is in use by something else or by a comparison with
            other settings.
    """
    check_integer("jobs", jobs, low=1)
    # What a cell measures of its process is not to include another one's.
    with Scheduler(jobs, fresh=True) as scheduler:
        now = {**encode(plan), "made_with": records.made_with()}
        earlier = records.open_folder(out, COMPARISON)
        if earlier is not None:
            where = f"{out / COMPARISON}, base"
            base = decode(dict[str, Any], earlier.get("base"), where)
            records.check_same(out, "a comparison", base, now["base"])
        make_folder(out)
        write_json(out / COMPARISON, now)
        return _Cells(plan, out, scheduler, console or Console(quiet=True)).run()


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
        """Trains the cells that are left; see `run_cells`."""
        for cell in self._cells.values():
            file = self._file(cell)
            record = read_cell(file, cell) if file.is_file() else None
            if record is not None and record.completed:
                self._records[cell.name] = record
                continue
            # A failure may have had a cause outside, such as a full disk.
            file.unlink(missing_ok=True)
            self._waiting.append(cell)
        self._announce()
        with progress_bar(self._console, TextColumn("{task.fields[left]}")) as bar:
            row = bar.add_task("cells", total=len(self._cells), left="")
            while self._waiting or self._scheduler.running:
                self._start_ready()
                for job in self._scheduler.wait(_POLL_SECONDS):
                    self._finish(self._cells[job.folder.name])
                bar.update(row, completed=len(self._records), left=self._left())
        return {name: self._records[name] for name in self._cells}

    def _announce(self) -> None:
        base = self._plan.base
        kinds = [cell.kind for cell in self._cells.values()]
        others = {
            "of single tasks": kinds.count(SINGLE),
            "without a helper": kinds.count(WITHOUT),
            "of pairs": kinds.count(PAIR),
        }
        say(
            self._console,
            f"Comparing on {base.data}: {kinds.count(COMBINATION)} trainings of "
            f"{len(self._plan.methods)} combinations"
            + "".join(f", {count} {kind}" for kind, count in others.items() if count)
            + f"; {base.epochs} epochs each, {self._scheduler.slots} at a time",
        )
        if self._records:
            rest = len(self._waiting) or "none"
            self._console.print(f"Reused: {len(self._records)} finished; {rest} to go.")

    def _start_ready(self) -> None:
        """Starts the first cells whose baselines are done, where a slot is free."""
        for cell in list(self._waiting):
            if not self._scheduler.free:
                return
            baselines = self._baselines(cell)
            if all(one.name in self._records for one in baselines):
                self._waiting.remove(cell)
                self._start(cell, baselines)

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

    def _start(self, cell: Cell, baselines: list[Cell]) -> None:
        baseline: dict[str, float] = {}
        for one in baselines:
            record = self._records[one.name]
            if not record.completed:
                self._fail(cell, one)
                return
            baseline |= record.result.validation
        excluded = [t for t, b in baseline.items() if not has_relative_gain(b)]
        if excluded:
            say(
                self._console,
                f"{cell}: its epoch is chosen without {', '.join(excluded)}, whose "
                "baseline on validation is 0 or has no value.",
            )
        settings = {
            "label": str(cell),
            "kind": cell.kind,
            "config": encode(cell.config),
            "baseline": baseline or None,
        }
        kind, size = _kind_and_size(cell)
        folder = self._folder / cell.name
        self._scheduler.submit(Job(str(cell), folder, _TRAIN, settings, kind, size))

    def _fail(self, cell: Cell, baseline: Cell) -> None:
        """Records a cell as failed, as a baseline of it has."""
        by = f"by {baseline.method}"
        if baseline.kind == SINGLE:
            by = f"{baseline.tasks[0]!r} alone"
        message = (
            f"Its epoch cannot be chosen: training {by} with seed {cell.config.seed} "
            "failed."
        )
        make_folder(self._folder / cell.name)
        record = records.failure(message, self._scheduler.slots)
        write_json(self._file(cell), record)
        self._finish(cell)

    def _finish(self, cell: Cell) -> None:
        record = self._records[cell.name] = read_cell(self._file(cell), cell)
        number = f"{len(self._records)}/{len(self._cells)}"
        if record.completed:
            line = f"{_score(record)} at epoch {record.result.epoch}"
        else:
            line = f"failed: {' '.join(record.error.split())}"
        left = self._left()
        rest = f", {left}" if left else ""
        say(
            self._console,
            f"{number:>7}  {cell}: {line}; {duration(record.seconds)}{rest}",
        )

    def _file(self, cell: Cell) -> pathlib.Path:
        return self._folder / cell.name / RECORD

    def _left(self) -> str:
        """Returns about how long the rest takes, as people read it."""
        seconds = self._scheduler.seconds_left(map(_kind_and_size, self._waiting))
        return f"about {duration(seconds)} left" if seconds else ""


def _kind_and_size(cell: Cell) -> tuple[str, float]:
    """Returns what a cell's duration depends on."""
    return cell.kind if cell.kind == SINGLE else cell.method, float(len(cell.tasks))


def _score(record: Record) -> str:
    result = record.result
    if math.isnan(result.validation_delta_m):
        value = defined_mean(list(result.validation.values()))
        return f"{value:.4f} on validation"
    return f"Δm {result.validation_delta_m:+.2f}% on validation"
