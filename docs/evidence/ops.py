"""What the page on compiled ops has of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evidence.markdown import power, results, span, table

Rows = Sequence[Mapping[str, Any]]

OTHERS = (
    # Bounds of what the kernels allocate, `csrc/`.
    "`gramian` takes at most 64 MiB, and 4 MiB for each thread; for sparse gradients "
    "of T tasks 256 MiB, or 112 T² bytes where that is more.",
    # Of the parameters of benchmarks/ops.py: 10 million of 4 bytes.
    "one copy of the parameters being 40 MB",
)


def median(times: Mapping[str, float], unit: float = 1.0, digits: str = ".3g") -> str:
    """Returns a median with its quartiles, in a unit of so many of the file's."""
    middle, low, high = (
        format(times[key] / unit, digits) for key in ("median", "low", "high")
    )
    return f"{middle} ({low}–{high})"


def beside_torchjd(rows: Rows) -> list[list[str]]:
    """Returns the times of solves here and in TorchJD, and their ratio."""
    return [
        [
            str(row["tasks"]),
            median(row["native"]),
            median(row["torchjd"]),
            f"{row['times_faster']:.3g}",
        ]
        for row in rows
    ]


def solvers_of_torchjd(rows: Rows) -> str:
    """Returns the times of solvers here and in TorchJD."""
    cells = zip(rows, beside_torchjd(rows), strict=True)
    head = ["method", "T", "here, µs", "TorchJD, µs", "times"]
    return table(head, [[row["solver"], *times] for row, times in cells])


def compiled_solvers(rows: Rows) -> str:
    """Returns the times of the compiled solvers and of the TensorFlow versions."""
    cells = [
        [
            row["solver"],
            str(row["tasks"]),
            median(row["native"]),
            median(row["tensorflow"]),
            f"{row['tensorflow']['median'] / row['native']['median']:.0f}",
        ]
        for row in rows
    ]
    head = ["solver", "T", "compiled, µs", "TensorFlow, µs", "times"]
    return table(head, cells)


def dense(rows: Rows) -> str:
    """Returns the times of Gram matrix and combination by number of tasks."""
    ways = [way for way in rows[0] if way != "tasks"]
    cells = [
        [str(row["tasks"]), *(median(row[way], 1e3) for way in ways)] for row in rows
    ]
    return table(["T", *(f"{way}, ms" for way in ways)], cells)


def steps(runs: Rows) -> str:
    """Returns the times of whole steps over those that they are measured against."""
    titles = {"floor": "floor, ms", "stock": "stock Keras step, ms"}
    by_tasks = [{row["model"]: row for row in run["rows"]} for run in runs]
    rows = []
    for name, last in by_tasks[-1].items():
        cells = [titles.get(name, f"`{name}` / {last['against']}")]
        for row in (models.get(name) for models in by_tasks):
            if row is None:
                cells.append("–")
            elif name in titles:
                cells.append(median(row["ms"], digits=".1f"))
            else:
                low, high = row["ratio_quartiles"]
                cells.append(f"{row['ratio']:.3f} ({low:.3f}–{high:.3f})")
        rows.append(cells)
    return table(["", *(f"T = {run['tasks']}" for run in runs)], rows)


def parts() -> dict[str, str]:
    """Returns the generated parts of the page, by name."""
    measured = results("ops")
    peers = results("peers")["rows"]
    upgrad = [row for row in peers if row["solver"] == "UPGrad"]
    ways = [[way, median(times, 1e3)] for way, times in measured["sparse"].items()]
    memory = [[what, f"{size:.0f}"] for what, size in measured["memory"].items()]
    return {
        "solvers of torchjd": solvers_of_torchjd(
            [row for row in peers if row not in upgrad]
        ),
        "upgrad of torchjd": table(
            ["T", "here, µs", "TorchJD, µs", "times"], beside_torchjd(upgrad)
        ),
        "compiled solvers": compiled_solvers(measured["solvers"]),
        "dense gradients": dense(measured["dense"]),
        "sparse gradients": table(["way", "ms"], ways),
        "memory of ops": table(["what", "MB"], memory),
        "whole steps": steps(results("step")["runs"]),
    }


def steps_under_xla(runs: Rows) -> str:
    """Returns the sentences on programs and times of steps that XLA compiles."""
    rows = {run["tasks"]: {row["model"]: row for row in run["rows"]} for run in runs}
    sizes, of_tensorflow = (
        [rows[8][name][hlo]["instructions"] for name in ("mgda", "upgrad", "cagrad")]
        for hlo in ("hlo", "hlo_tensorflow")
    )
    methods = {
        tasks: [row for row in models.values() if row["against"] == "equal_by_task"]
        for tasks, models in rows.items()
    }
    by_equal = {
        tasks: span([row["ratio"] for row in of_tasks], ".2f")
        for tasks, of_tasks in methods.items()
    }
    floor = rows[8]["floor"]["ms"]["median"]
    by_floor = span([row["ms"]["median"] / floor for row in methods[8]], ".2f")
    return (
        "The program that XLA gets for a step of eight tasks on a small dense model "
        f"has {np.round(np.mean(sizes), -2):,.0f} instructions and no loop with MGDA, "
        "UPGrad or CAGrad, where TensorFlow's solvers make it "
        f"{span(np.round(of_tensorflow, -1), ',.0f')}. With all Gram methods the step "
        f"takes {by_equal[8]} times the processor time of one with equal weights that "
        'takes the eight backward passes too (`on_nonfinite="skip_task"`), '
        f"{by_equal[2]} times with two tasks and {by_equal[20]} with twenty; over a "
        "bare `train_step` that has the backward passes and the mean of the "
        "gradients, without checks or logs by task, it is "
        f"{by_floor} times at eight"
    )


def one_matrix(rows: Rows) -> str:
    """Returns the sentence on one matrix of all gradients in place of variables'."""
    times = [row["one matrix"]["cpu_ms"] / row["by variable"]["cpu_ms"] for row in rows]
    one, by_variable = (
        power(max(row[way]["error"] for row in rows))
        for way in ("one matrix", "by variable")
    )
    return (
        "gradients in its place, multiplied in blocks of 4,096 columns, is slower on "
        "the CPU with 2 tasks, no faster with 8, and little faster with 20: "
        f"{span(times, '.2f')} times the processor time of Gram matrix and weighted "
        f"sum together, for {span([row['tasks'] for row in rows], 'd')} tasks and "
        "100,000 or 2,000,000 parameters, and cosines are off by up to "
        f"{one}, where they are by {by_variable} (`python benchmarks/gram_blocks.py`)"
    )


def sentences() -> list[str]:
    """Returns sentences of the page with figures, as the results have them."""
    return [
        steps_under_xla(results("step")["xla"]),
        one_matrix(results("gram_blocks")["rows"]),
    ]
