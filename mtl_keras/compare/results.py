"""Runs a comparison and writes its results: JSON, two tables, the report."""

from __future__ import annotations

import os
import pathlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from rich.console import Console

from mtl_keras.compare.comparison import Cell, Comparison
from mtl_keras.compare.report import write_report
from mtl_keras.compare.running import run_cells
from mtl_keras.compare.summary import Summary, corrected_p, summarise
from mtl_keras.files import write_csv, write_json
from mtl_keras.reports.rendering import span
from mtl_keras.runs.folder import disk_errors
from mtl_keras.runs.records import Record, versions
from mtl_keras.runs.scheduler import cores

RESULTS = "results.json"
SUMMARY_TABLE = "summary.csv"
CELLS_TABLE = "cells.csv"
REPORT = "report.html"
FILES = (REPORT, RESULTS, SUMMARY_TABLE, CELLS_TABLE)


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
    spreads = [f"{c}_{part}" for c in columns for part in ("mean", "std")]
    tests = ["p_single_holm", "p_reference_holm"]
    yield ["method", "seeds", *spreads, "jobs", *tests]
    if summary["single"]:
        alone = {h: summary["single"][t]["test"][t] for t, h in heads.items()}
        yield ["single tasks", None, *_means_and_stds(alone, columns), *[None] * 3]
    for name, method in summary["methods"].items():
        values = {"delta_m_percent": method["delta_m"], "rank": method["rank"]}
        values |= {head: method["test"][task] for task, head in heads.items()}
        values |= {cost: method[cost] for cost in costs}
        yield [
            name,
            len(method["seeds"]),
            *_means_and_stds(values, columns),
            span(method["jobs"]),
            corrected_p(summary, "against_single", name),
            corrected_p(summary, "against_reference", name),
        ]


def _means_and_stds(
    values: Mapping[str, Mapping[str, Any]], columns: Sequence[str]
) -> list[float | None]:
    nothing = {"mean": None, "std": None}
    return [values.get(c, nothing)[part] for c in columns for part in nothing]


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
