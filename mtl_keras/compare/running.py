"""Runs a comparison: its cells, several at a time, and the files of its results."""

from __future__ import annotations

import collections
import math
import os
import pathlib
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
from rich.console import Console
from rich.progress import TextColumn

from mtl_keras.callbacks.task_progress import duration
from mtl_keras.compare import comparison as kinds
from mtl_keras.compare.cell import CellResult, read_cell
from mtl_keras.compare.comparison import COMBINATION, SINGLE, Cell, Comparison, Plan
from mtl_keras.compare.report import write_report
from mtl_keras.compare.summary import Summary, corrected_p, summarise
from mtl_keras.decoding import decode
from mtl_keras.encoding import encode
from mtl_keras.errors import check_integer
from mtl_keras.evaluation import has_relative_gain
from mtl_keras.files import make_folder, write_csv, write_json
from mtl_keras.reports.rendering import span
from mtl_keras.runs import records
from mtl_keras.runs.folder import disk_errors
from mtl_keras.runs.progress import progress_bar, say
from mtl_keras.runs.records import RECORD, Record, versions
from mtl_keras.runs.results import score
from mtl_keras.runs.scheduler import Job, Scheduler, cores

RESULTS = "results.json"
SUMMARY_TABLE = "summary.csv"
CELLS_TABLE = "cells.csv"
REPORT = "report.html"
FILES = (REPORT, RESULTS, SUMMARY_TABLE, CELLS_TABLE)
COMPARISON = "comparison.json"
CELLS = "cells"
_TRAIN = "mtl_keras.compare.cell:train_cell"
_KINDS = {
    SINGLE: "of single tasks",
    kinds.WITHOUT: "without a helper",
    kinds.PAIR: "of pairs",
}


def run_comparison(
    comparison: Comparison,
    out: str | os.PathLike,
    *,
    jobs: int = 1,
    command: str = "",
    console: Console | None = None,
) -> Summary:
    """Trains all cells of a comparison, or the ones that are left, and reports.

    A cell is one training: each task alone, and each combination of sharing and
    balancing, for each seed. All have the same settings but these, and the same order
    of the data for the same seed. Each keeps the epoch that is best on validation, a
    single task by its metric and the others by Δm against the single tasks of the same
    seed; that epoch alone is tested. Without single tasks the first combination keeps
    the epoch with the best mean of the tasks' metrics, and the others are measured
    against it. A cell that fails is recorded, and tried again
    when the comparison is started again; finished ones are reused, also with more
    seeds, or other ways to balance and share.

    Args:
        comparison: What to compare.
        out: Folder to write: `report.html`, `results.json`, `summary.csv`,
            `cells.csv`, and `cells/`, with a run folder in each.
        jobs: Cells to train at a time. Cores are divided between them, and GPUs given
            in turn. Each cell records it, as times of a step compare only among cells
            of the same `jobs`.
        command: The command line, to be named in the report.
        console: Where to show progress; None for nowhere.

    Returns:
        The values of `results.json`.

    Raises:
        InputError: If the comparison does not hold, or `out` is in use by something
            else or by a comparison with other settings; all before training.
    """
    plan = comparison.validate()
    out = pathlib.Path(out)
    with disk_errors(out):
        records = run_cells(plan, out, jobs=jobs, console=console)
        summary = summarise(plan, records) | {
            "command": command,
            "machine": {
                "platform": platform.platform(),
                "cores": cores(),
                "gpus": len(tf.config.list_physical_devices("GPU")),
            },
            "versions": versions(),
        }
        write_json(out / RESULTS, summary)
        write_csv(out / SUMMARY_TABLE, _summary_rows(summary))
        write_csv(out / CELLS_TABLE, _cell_rows(plan.cells(), records))
        write_report(out / REPORT, summary)
    return summary


def _summary_rows(summary: Summary) -> Iterator[list[Any]]:
    """Yields a row for each combination, and one for the single tasks, if any."""
    heads = {t: f"{t}_{about['metric']}" for t, about in summary["tasks"].items()}
    costs = ["step_ms", "step_cpu_ms", "peak_memory_mb"]
    columns = ["delta_m_percent", "rank", *heads.values(), *costs]
    parts = ("mean", "std")
    spreads = [f"{column}_{part}" for column in columns for part in parts]
    tests = ["p_single_holm", "p_reference_holm"]
    yield ["method", "seeds", *spreads, "jobs", *tests]
    if summary["single"]:
        alone = {h: summary["single"][t]["test"][t] for t, h in heads.items()}
        numbers = [alone.get(column, {}).get(p) for column in columns for p in parts]
        yield ["single tasks", None, *numbers, None, None, None]
    for name, method in summary["methods"].items():
        values = [method["delta_m"], method["rank"], *method["test"].values()]
        values += [method[cost] for cost in costs]
        yield [
            name,
            len(method["seeds"]),
            *(value[part] for value in values for part in parts),
            span(method["jobs"]),
            corrected_p(summary, "against_single", name),
            corrected_p(summary, "against_reference", name),
        ]


def _cell_rows(cells: list[Cell], records: Mapping[str, Record]) -> Iterator[list[Any]]:
    """Yields a row for each value of each cell."""
    costs = ["jobs", "step_ms", "step_cpu_ms", "peak_memory_mb"]
    own = ["cell", "kind", "method", "seed", "status"]
    values = ["epoch", "task", "metric", "test", *costs]
    yield [*own, *values, "error"]
    for cell in cells:
        record = records[cell.name]
        first = [cell.name, cell.kind, cell.method, cell.config.seed, record.status]
        if not record.completed:
            yield [*first, *[None] * len(values), record.error]
            continue
        result = record.result
        cost = [getattr(result, name) for name in costs]
        for task, metrics in result.test.items():
            for metric, value in metrics.items():
                yield [*first, result.epoch, task, metric, value, *cost, None]


def run_cells(
    plan: Plan, out: pathlib.Path, *, jobs: int = 1, console: Console | None = None
) -> dict[str, Record]:
    """Trains the cells that are left; returns all records, `{cell name: record}`.

    A combination waits for the cells that it is measured against. Where one of them
    failed, it is recorded as failed as well, without being trained.
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
            for ended in self._scheduler.run(self._jobs()):
                for job in ended:
                    self._finish(self._cells[job.folder.name])
                bar.update(row, completed=len(self._records), left=self._left())
        return {name: self._records[name] for name in self._cells}

    def _announce(self) -> None:
        base = self._plan.base
        counts = collections.Counter(cell.kind for cell in self._cells.values())
        others = "".join(
            f", {counts[kind]} {text}" for kind, text in _KINDS.items() if counts[kind]
        )
        say(
            self._console,
            f"Comparing on {base.data}: {counts[COMBINATION]} trainings of "
            f"{len(self._plan.methods)} combinations{others}; {base.epochs} epochs "
            f"each, {self._scheduler.slots} at a time",
        )
        if self._records:
            rest = len(self._waiting) or "none"
            self._console.print(f"Reused: {len(self._records)} finished; {rest} to go.")

    def _jobs(self) -> Iterator[Job | None]:
        """Yields jobs of cells whose baselines are done; None while there is none."""
        while self._waiting:
            cell = next(filter(self._is_ready, self._waiting), None)
            if cell is None:
                yield None
                continue
            self._waiting.remove(cell)
            baselines = self._baselines(cell)
            failed = [one for one in baselines if not self._records[one.name].completed]
            if failed:
                self._fail(cell, failed[0])
            else:
                yield self._job(cell, baselines)

    def _is_ready(self, cell: Cell) -> bool:
        return all(one.name in self._records for one in self._baselines(cell))

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

    def _job(self, cell: Cell, baselines: list[Cell]) -> Job:
        baseline: dict[str, float] = {}
        for one in baselines:
            baseline |= self._records[one.name].result.validation
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
        return Job(str(cell), folder, _TRAIN, settings, kind, size)

    def _fail(self, cell: Cell, baseline: Cell) -> None:
        """Records a cell as failed, as a baseline of it has."""
        single = baseline.kind == SINGLE
        by = f"{baseline.tasks[0]!r} alone" if single else f"by {baseline.method}"
        error = (
            f"Its epoch cannot be chosen: training {by} with seed {cell.config.seed} "
            "failed."
        )
        make_folder(self._folder / cell.name)
        write_json(self._file(cell), records.failure(error, self._scheduler.slots))
        self._finish(cell)

    def _finish(self, cell: Cell) -> None:
        record = self._records[cell.name] = read_cell(self._file(cell), cell)
        number = f"{len(self._records)}/{len(self._cells)}"
        line = f"failed: {record.reason}"
        if record.completed:
            line = self._chosen(record.result)
        left = self._left()
        line = f"{cell}: {line}; {duration(record.seconds)}{left and ', '}{left}"
        say(self._console, f"{number:>7}  {line}")

    def _chosen(self, result: CellResult) -> str:
        """Returns by what its epoch was chosen: the task's metric, score or Δm."""
        value = f"Δm {result.validation_delta_m:+.2f}%"
        if math.isnan(result.validation_delta_m):
            metric, *others = result.validation.values()
            application = self._plan.base.get_application()
            by = score(result.validation, application) if others else metric
            value = f"{by:.4f}"
        return f"{value} on validation at epoch {result.epoch}"

    def _file(self, cell: Cell) -> pathlib.Path:
        return self._folder / cell.name / RECORD

    def _left(self) -> str:
        """Returns about how long the rest takes, as people read it."""
        return self._scheduler.time_left(map(_kind_and_size, self._waiting))


def _kind_and_size(cell: Cell) -> tuple[str, float]:
    """Returns what a cell's duration depends on."""
    return cell.kind if cell.kind == SINGLE else cell.method, float(len(cell.tasks))
