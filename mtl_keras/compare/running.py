"""Runs the cells of a comparison, several at a time, and goes on with earlier ones."""

from __future__ import annotations

import json
import pathlib
import signal
import time
from typing import Any

import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mtl_keras.compare import worker
from mtl_keras.compare.cell import RECORD, SETTINGS
from mtl_keras.compare.comparison import COMBINATION, SINGLE, Cell, Comparison
from mtl_keras.compare.records import Record, read_record
from mtl_keras.errors import InputError
from mtl_keras.evaluation import has_relative_gain
from mtl_keras.files import make_folder
from mtl_keras.runs.config import check_count
from mtl_keras.runs.folder import check_free, check_no_links, read_json, write_json
from mtl_keras.runs.progress import duration

COMPARISON = "comparison.json"
CELLS = "cells"
_POLL_SECONDS = 0.1


def run_cells(
    comparison: Comparison,
    out: pathlib.Path,
    *,
    jobs: int = 1,
    console: Console | None = None,
) -> dict[str, Record]:
    """Trains every cell that is not there yet, and reads all records.

    A combination waits for its tasks alone, with the same seed; where one of them
    failed, it is recorded as failed as well, without being trained.

    Args:
        comparison: What `validate` has returned.
        out: Folder of the comparison.
        jobs: Cells to train at a time, each in a process of its own.
        console: Where to show progress; None for nowhere.

    Returns:
        `{cell name: record}` of all cells.

    Raises:
        InputError: If `out` is in use by something else or by a comparison with
            other settings.
    """
    check_count("jobs", jobs)
    _open(comparison, out)
    return _Queue(comparison, out, jobs, console or Console(quiet=True)).run()


def _open(comparison: Comparison, out: pathlib.Path) -> None:
    """Makes the folder, or checks that its cells are of the same base settings."""
    now = json.loads(json.dumps(comparison.to_dict()))
    file = out / COMPARISON
    if not file.is_file():
        check_free(out)
        make_folder(out)
    else:
        check_no_links(*out.rglob("*"))
        earlier = read_json(file).get("base")
        if not isinstance(earlier, dict):
            raise InputError(
                f"{file} is broken: it has no settings under 'base'. Name another "
                "folder with --out, or remove that one."
            )
        for key, value in now["base"].items():
            if earlier.get(key) != value:
                raise InputError(
                    f"{str(out)!r} holds a comparison with another {key}: "
                    f"{earlier.get(key)!r} there, {value!r} here. Name another "
                    "folder with --out, or remove that one."
                )
    write_json(file, now)


class _Queue:
    """The cells still to train, those in training, and what is known of the rest."""

    def __init__(
        self, comparison: Comparison, out: pathlib.Path, jobs: int, console: Console
    ):
        self._comparison = comparison
        self._cells = comparison.cells()
        self._folder = out / CELLS
        self._jobs = jobs
        self._console = console
        self._records: dict[str, Record] = {}
        self._running: dict[int, tuple[Cell, Any, float]] = {}
        # Seconds that cells of a kind took in this call, for the time left.
        self._spent: dict[tuple[str, str], list[float]] = {}
        self._gpus = len(tf.config.list_physical_devices("GPU"))

    def run(self) -> dict[str, Record]:
        """Trains what is left; see `run_cells`."""
        for cell in self._cells:
            file = self._folder / cell.name / RECORD
            if file.is_file():
                record = read_record(file, cell)
                # A failure may have had a cause outside, such as a full disk.
                if record["status"] == "COMPLETED":
                    self._records[cell.name] = record
        waiting = [cell for cell in self._cells if cell.name not in self._records]
        self._announce(len(waiting))
        with self._bar() as bar:
            row = bar.add_task("cells", total=len(self._cells), left="")
            try:
                while waiting or self._running:
                    self._start_what_can(waiting)
                    time.sleep(_POLL_SECONDS)
                    self._collect()
                    self._show(bar, row)
            finally:
                self._stop_all()
        return {cell.name: self._records[cell.name] for cell in self._cells}

    def _announce(self, left: int) -> None:
        base = self._comparison.base
        kinds = [cell.kind for cell in self._cells]
        pairs = len(kinds) - kinds.count(SINGLE) - kinds.count(COMBINATION)
        self._console.print(
            f"Comparing on {base.data}: {kinds.count(COMBINATION)} trainings of "
            f"{len(self._comparison.methods)} combinations, {kinds.count(SINGLE)} of "
            f"single tasks{f', {pairs} of pairs' if pairs else ''}; {base.epochs} "
            f"epochs each, {self._jobs} at a time",
            soft_wrap=True,
        )
        if done := len(self._cells) - left:
            self._console.print(
                f"Reused: {done} finished; {f'{left} to go' if left else 'none to go'}."
            )

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def _show(self, bar: Progress, row: Any) -> None:
        left = self._seconds_left()
        bar.update(
            row,
            completed=len(self._records),
            left="" if left is None else f"about {duration(left)} left",
        )

    def _start_what_can(self, waiting: list[Cell]) -> None:
        """Starts the first cells whose single tasks are done, where there is room."""
        for slot in range(self._jobs):
            ready = next((cell for cell in waiting if self._is_ready(cell)), None)
            if ready is not None and slot not in self._running:
                waiting.remove(ready)
                self._start(ready, slot)

    def _is_ready(self, cell: Cell) -> bool:
        if cell.kind == SINGLE:
            return True
        return all(single.name in self._records for single in self._singles(cell))

    def _singles(self, cell: Cell) -> list[Cell]:
        """Returns the cells of a cell's tasks alone, with its seed."""
        return [
            single
            for single in self._cells
            if single.kind == SINGLE
            and single.config.seed == cell.config.seed
            and single.tasks[0] in cell.tasks
        ]

    def _collect(self) -> None:
        for slot, (cell, process, started) in list(self._running.items()):
            if process.poll() is not None:
                del self._running[slot]
                self._finish(cell, process.returncode, time.monotonic() - started)

    def _start(self, cell: Cell, slot: int) -> None:
        path = self._folder / cell.name
        make_folder(path)
        (path / RECORD).unlink(missing_ok=True)
        baseline = None
        if cell.kind != SINGLE:
            alone = {
                one.tasks[0]: self._records[one.name] for one in self._singles(cell)
            }
            failed = [t for t, r in alone.items() if r["status"] != "COMPLETED"]
            if failed:
                message = (
                    f"Its epoch cannot be chosen: training {failed[0]!r} alone with "
                    f"seed {cell.config.seed} failed."
                )
                write_json(path / RECORD, worker.failure(message))
                self._finish(cell, 0, 0.0)
                return
            baseline = {task: r["validation"][task] for task, r in alone.items()}
            excluded = [t for t, b in baseline.items() if not has_relative_gain(b)]
            if excluded:
                self._console.print(
                    f"{cell}: its epoch is chosen without {', '.join(excluded)}, whose "
                    "baseline on validation is 0.",
                    soft_wrap=True,
                    markup=False,
                )
        settings = {
            "label": str(cell),
            "kind": cell.kind,
            "config": cell.config.to_dict(),
            "baseline": baseline,
            "jobs": self._jobs,
        }
        write_json(path / SETTINGS, settings)
        process = worker.start(path, slot, self._jobs, self._gpus)
        self._running[slot] = (cell, process, time.monotonic())

    def _finish(self, cell: Cell, code: int, seconds: float) -> None:
        file = self._folder / cell.name / RECORD
        if not file.is_file():
            # The process itself was ended, most likely for want of memory.
            message = f"Its process ended with {_exit_words(code)}; see {worker.LOG}."
            write_json(file, worker.failure(message))
        record = self._records[cell.name] = read_record(file, cell)
        number = f"{len(self._records)}/{len(self._cells)}"
        if record["status"] == "COMPLETED":
            self._spent.setdefault((cell.kind, cell.method), []).append(seconds)
            words = f"{_score(cell, record)} at epoch {record['epoch']}"
        else:
            words = f"failed: {record['error']}"
        left = self._seconds_left()
        rest = f"; {duration(seconds)}"
        if left:
            rest += f", about {duration(left)} left"
        self._console.print(
            f"{number:>7}  {cell}: {words}{rest}", soft_wrap=True, markup=False
        )

    def _seconds_left(self) -> float | None:
        """Returns about how long the cells that are left take; None before the first.

        A cell takes as long as the same method did, else as long as its kind; a kind
        that was not met yet is taken to last as long for each task as the others.
        """
        if not self._spent:
            return None
        total = 0.0
        for cell in self._cells:
            if cell.name not in self._records:
                total += self._expected(cell)
        now = time.monotonic()
        total -= sum(
            min(now - started, self._expected(cell))
            for cell, _, started in self._running.values()
        )
        return total / self._jobs

    def _expected(self, cell: Cell) -> float:
        same = self._spent.get((cell.kind, cell.method))
        if same is None:
            same = [s for (k, _), v in self._spent.items() if k == cell.kind for s in v]
        if same:
            return sum(same) / len(same)
        by_task = [
            seconds / len(other.tasks)
            for other in self._cells
            for seconds in self._spent.get((other.kind, other.method), ())
        ]
        return len(cell.tasks) * sum(by_task) / len(by_task)

    def _stop_all(self) -> None:
        for _, process, _ in self._running.values():
            process.terminate()
        for _, process, _ in self._running.values():
            process.wait()


def _score(cell: Cell, record: Record) -> str:
    if cell.kind == SINGLE:
        (value,) = record["validation"].values()
        return f"{value:.4f} on validation"
    return f"Δm {record['validation_delta_m']:+.2f}% on validation"


def _exit_words(code: int) -> str:
    if code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
