"""`mtl-keras compare`: ways to balance and to share, side by side."""

from __future__ import annotations

import math
import pathlib
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtl_keras_cli import tensorflow
from mtl_keras_cli.errors import FAILED
from mtl_keras_cli.options import Jit
from mtl_keras_cli.text import make_console, plain_table

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = (
    "mtl-keras compare vision --seeds 3",
    "mtl-keras compare vision --balancing equal,pcgrad,uncertainty+cagrad --epochs 5",
    "mtl-keras compare vision --balancing 'equal, cagrad(c=0.2), cagrad(c=0.8)'",
    "mtl-keras compare recommendation --sharing hard,mmoe,ple --jobs 4",
    "mtl-keras compare vision --primary left --seeds 5",
)


def compare(
    application: Annotated[
        str,
        typer.Argument(
            help="What to train: vision, a data file, my_file.py:MyApplication."
        ),
    ],
    balancing: Annotated[
        str | None,
        typer.Option(
            help="Ways to balance, with commas between them; the first is the "
            "reference. With arguments: 'cagrad(c=0.5)'. A loss balancer and a "
            "gradient balancer may be joined by a plus. Else eight common ones."
        ),
    ] = None,
    sharing: Annotated[
        str | None,
        typer.Option(
            help="Ways to share, with commas between them, with arguments: "
            "'mmoe(num_experts=4)'; else the application's."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0.")] = 3,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Train every pair of tasks as well.")
    ] = False,
    single_tasks: Annotated[
        bool,
        typer.Option(
            "--single-tasks/--no-single-tasks",
            help="Train each task alone, and measure against these; else against the "
            "first way to balance.",
        ),
    ] = True,
    primary: Annotated[
        str | None,
        typer.Option(
            help="The main task, which the others only help: trains it alone, with "
            "all, and with each other left out, and tells which of them help."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set; see `mtl-keras datasets list`. Of a function that builds a "
            "model: a data file, or FILE.py:NAME, which returns data sets."
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, with commas between them; else all.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Shared backbone.")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the backbone.")] = None,
    depth: Annotated[int | None, typer.Option(help="Stages of the backbone.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="First learning rate of the cosine decay.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use only this many training samples.")
    ] = None,
    accumulate: Annotated[
        bool | None,
        typer.Option(
            help="Take a batch of every data set in each step (text), so that "
            "gradients of all tasks meet; the default where it can be done."
        ),
    ] = None,
    jit: Jit = None,
    steps_per_execution: Annotated[
        int, typer.Option(help="Steps that one call of the compiled training takes.")
    ] = 1,
    jobs: Annotated[
        int, typer.Option(help="Trainings at a time; cores and GPUs are shared out.")
    ] = 1,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder to write; else runs/compare-APPLICATION."),
    ] = None,
) -> None:
    """Compare ways to balance and to share.

    Each task alone, unless --no-single-tasks, and every combination, with the same
    budget and the same order of the data, for several seeds. Started again, it
    resumes where it stopped. The folder gets report.html, results.json, summary.csv,
    cells.csv, and a run folder for each training under cells/. Exit code 1 tells of
    trainings that failed.
    """
    # The trainings run in processes of their own, and need the GPUs' memory there.
    tensorflow.load(gpus=False)
    from mtl_keras import applications
    from mtl_keras.compare import Comparison, run_comparison
    from mtl_keras.compare.running import FILES
    from mtl_keras.runs import RunConfig
    from mtl_keras.specs import read_specs

    console = make_console()
    ways: tuple[Any, ...] | None = None
    if balancing is not None:
        ways = tuple(read_specs(balancing))
    ways_to_share: Any = None if sharing is None else tuple(read_specs(sharing))
    name = applications.allow(application)
    comparison = Comparison(
        RunConfig(
            name,
            data=None if data is None else applications.allow(data),
            tasks=None if tasks is None else _names(tasks),
            backbone=backbone,
            width=width,
            depth=depth,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            limit=limit,
            accumulate=accumulate,
            jit="auto" if jit is None else jit,
            steps_per_execution=steps_per_execution,
        ),
        balancing=ways,
        sharing=ways_to_share,
        seeds=seeds,
        pairs=pairs,
        single_tasks=single_tasks,
        primary=primary,
    )
    out = out or pathlib.Path("runs") / f"compare-{applications.label(name)}"
    command = shlex.join(["mtl-keras", *sys.argv[1:]])
    try:
        summary = run_comparison(
            comparison, out, jobs=jobs, command=command, console=console
        )
    except KeyboardInterrupt:
        again = "The same command, started again, resumes the comparison."
        raise KeyboardInterrupt(again) from None
    console.print(_leaderboard(summary))
    for line in _helpers(summary):
        console.print(line, soft_wrap=True, markup=False)
    for name, message in summary["failed"].items():
        console.print(f"{name} failed: {message}", soft_wrap=True, markup=False)
    if summary["excluded"]:
        excluded = ", ".join(summary["excluded"])
        console.print(
            f"Δm excludes {excluded}: {_over(summary)}, its metric is 0 for some seed.",
            soft_wrap=True,
            markup=False,
        )
    console.print(f"Wrote {out}: {', '.join(FILES)}", soft_wrap=True)
    if summary["failed"]:
        console.print("The same command, started again, tries failed trainings again.")
        raise typer.Exit(FAILED)


def _helpers(summary: dict[str, Any]) -> Iterator[str]:
    """Yields a line for all helpers of a main task, and one for each."""
    from mtl_keras.reports.rendering import p_value

    helpers = summary["helpers"] or {"gains": {}}
    for name, gain in helpers["gains"].items():
        who = "All helpers together:" if name == "all" else f"{name}:"
        verdict = gain["verdict"]
        if verdict != "unclear":
            verdict += f" {helpers['primary']}"
        p = p_value(gain["p_corrected"])
        yield f"{who} {verdict}, {gain['gain']:+.2f}% (p {p})"


def _over(summary: dict[str, Any]) -> str:
    return "alone" if summary["single"] else f"by {summary['tests']['reference']}"


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _leaderboard(summary: dict[str, Any]) -> Table:
    """Lays out the combinations, best Δm first."""
    from mtl_keras.compare.summary import corrected_p, metrics_of, shown_tasks
    from mtl_keras.reports.rendering import mean_and_std, number, p_value, span

    table = plain_table("method")
    tasks = shown_tasks(summary) or [f"{len(summary['tasks'])} tasks"]
    for head in ("Δm %", "p", "rank", *tasks, "jobs", "ms a step", "MB"):
        table.add_column(head, justify="right")
    family = "against_reference"
    if summary["single"]:
        family = "against_single"
        alone = map(mean_and_std, metrics_of(summary, None))
        table.add_row("single tasks", "", "", "", *alone, "", "", "")
    methods = summary["methods"]
    done = [name for name in methods if methods[name]["seeds"]]
    means = {name: methods[name]["delta_m"]["mean"] for name in done}
    # Methods without a Δm come last.
    for name in sorted(done, key=lambda n: (math.isnan(means[n]), -means[n])):
        method = methods[name]
        table.add_row(
            name,
            mean_and_std(method["delta_m"], 2, sign=True),
            p_value(corrected_p(summary, family, name)),
            mean_and_std(method["rank"], 1),
            *map(mean_and_std, metrics_of(summary, name)),
            span(method["jobs"]),
            number(method["step_ms"]["mean"], 1),
            number(method["peak_memory_mb"]["mean"], 0),
        )
    return table
