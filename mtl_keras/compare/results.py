"""Runs a comparison and writes all that it gives."""

from __future__ import annotations

import csv
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from rich.console import Console

from mtl_keras.compare.comparison import Cell, Comparison, Plan
from mtl_keras.compare.report import write_report
from mtl_keras.compare.running import run_cells
from mtl_keras.compare.summary import Summary, corrected_p, summarise
from mtl_keras.files import atomic_write, write_json
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
        What `results.json` holds.

    Raises:
        InputError: If the comparison does not hold, or `out` is in use by something
            else or by a comparison with other settings; all before training.
    """
    plan = comparison.validate()
    out = pathlib.Path(out)
    with disk_errors(out):
        return _run(plan, out, jobs, command, console)


def _run(
    plan: Plan,
    out: pathlib.Path,
    jobs: int,
    command: str,
    console: Console | None,
) -> Summary:
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
    _write_summary(out / SUMMARY_TABLE, summary)
    _write_cells(out / CELLS_TABLE, plan.cells(), records)
    write_report(out / REPORT, summary)
    return summary


def _write_summary(path: pathlib.Path, summary: Summary) -> None:
    """Writes one row for each combination, and one for the single tasks, if any."""
    tasks = summary["tasks"]
    heads = [f"{task}_{about['metric']}" for task, about in tasks.items()]
    costs = ["step_ms", "step_cpu_ms", "peak_memory_mb"]
    columns = ["delta_m_percent", "rank", *heads, *costs]
    fields = ["method", "seeds"]
    fields += [f"{c}_{part}" for c in columns for part in ("mean", "std")] + ["jobs"]
    fields += ["p_single_holm", "p_reference_holm"]
    single = {
        head: summary["single"][task]["test"][task]
        for head, task in zip(heads, tasks, strict=True)
        if summary["single"]
    }
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        if single:
            writer.writerow({"method": "single tasks", **_mean_and_std(single)})
        for name, found in summary["methods"].items():
            values = {
                "delta_m_percent": found["delta_m"],
                "rank": found["rank"],
                **{h: found["test"][t] for h, t in zip(heads, tasks, strict=True)},
                **{cost: found[cost] for cost in costs},
            }
            writer.writerow(
                {
                    "method": name,
                    "seeds": len(found["seeds"]),
                    **_mean_and_std(values),
                    "jobs": span(found["jobs"]),
                    "p_single_holm": corrected_p(summary, "against_single", name),
                    "p_reference_holm": corrected_p(summary, "against_reference", name),
                }
            )


def _mean_and_std(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"{name}_{part}": found[part]
        for name, found in values.items()
        for part in ("mean", "std")
    }


def _write_cells(
    path: pathlib.Path, cells: list[Cell], records: Mapping[str, Record]
) -> None:
    """Writes one row for each value of each cell."""
    fields = ["cell", "kind", "method", "seed", "status", "epoch", "task", "metric"]
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        costs = ["jobs", "step_ms", "step_cpu_ms", "peak_memory_mb"]
        writer.writerow([*fields, "test", *costs, "error"])
        for cell in cells:
            record = records[cell.name]
            first = [cell.name, cell.kind, cell.method, cell.config.seed]
            if not record.completed:
                rest = [""] * (len(fields) + len(costs) - 4)
                writer.writerow([*first, record.status, *rest, record.error])
                continue
            result = record.result
            cost = [*(getattr(result, name) for name in costs), ""]
            for task, metrics in result.test.items():
                for metric, value in metrics.items():
                    row = [record.status, result.epoch, task, metric, value]
                    writer.writerow([*first, *row, *cost])
