"""The report of a comparison: one HTML page that needs nothing else."""

from __future__ import annotations

import html
import importlib.resources
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_keras.compare import svg
from mtl_keras.compare.certainty import certainty
from mtl_keras.compare.html_parts import (
    charts,
    figure,
    is_finite,
    legend,
    mean_and_std,
    number,
    p_value,
    paragraph,
    section,
    span,
    table,
)
from mtl_keras.compare.summary import Summary, corrected_p
from mtl_keras.evaluation import pareto_front
from mtl_keras.files import atomic_write
from mtl_keras.runs.config import spec_name

_MEASURES = {
    "lookahead": (
        "Look-ahead",
        "How much a small step on the row's task alone lowers the loss of the "
        "column's task, in percent.",
    ),
    "cosines": (
        "Gradient cosine",
        "Cosine of the two tasks' gradients in the shared weights.",
    ),
    "pairs": (
        "Trained in pairs",
        "What the column's task gains on the test split from being trained together "
        "with the row's, against alone, in percent.",
    ),
}


def write_report(path: pathlib.Path, summary: Summary) -> None:
    """Writes the page.

    It loads nothing: no script, no font, no picture. Every name is escaped.

    Args:
        path: The file.
        summary: What `results.json` holds.
    """
    page = _Report(summary).page()
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


class _Report:
    def __init__(self, summary: Summary):
        self._summary = summary
        self._base = summary["comparison"]["base"]
        self._tasks = list(summary["tasks"])
        self._methods: dict[str, Any] = {
            name: found for name, found in summary["methods"].items() if found["seeds"]
        }
        self._title = f"{self._base['application']}: {len(summary['methods'])} methods"

    def page(self) -> str:
        style = importlib.resources.files(__package__).joinpath("report.css")
        sections = [self._head()]
        if self._methods:
            sections += [
                self._results(),
                certainty(self._summary["tests"]),
                self._gains(),
                self._fronts(),
                self._losses(),
                self._weights(),
                self._cosines(),
                self._affinity(),
            ]
        sections += [self._failures(), self._settings()]
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(self._title)}</title>\n"
            f"<style>\n{style.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
            f"{''.join(sections)}</body>\n</html>\n"
        )

    def _head(self) -> str:
        seeds, base = self._summary["comparison"]["seeds"], self._base
        samples = f", {base['limit']} training samples" if base["limit"] else ""
        words = (
            f"{len(self._summary['methods'])} ways to train {len(self._tasks)} tasks "
            f"of {base['application']} on {base['data']} in one model, against each "
            f"task alone: {seeds} seed{'s' if seeds > 1 else ''}, {base['epochs']} "
            f"epochs each{samples}. Every training keeps the epoch that is best on "
            "the validation split; all values here are of the test split."
        )
        return f"<h1>{html.escape(self._title)}</h1>\n{paragraph(words)}\n"

    def _results(self) -> str:
        heads = ["method", "Δm %", "p\nsingle", "p\nreference", "rank"]
        heads += [f"{task}\n{self._axis(task)}" for task in self._tasks]
        heads += ["epoch", "jobs", "ms\na step", "CPU\nms", "MB"]
        single = self._summary["single"]
        rows = [
            [
                "single tasks",
                *("0", "", "", ""),
                *(mean_and_std(single[task]["test"][task]) for task in self._tasks),
                span(epoch for task in self._tasks for epoch in single[task]["epochs"]),
                *("", "", "", ""),
            ]
        ]
        rows += [self._row(name, found) for name, found in self._methods.items()]
        words = (
            "Mean ± standard deviation over seeds; the best of a column is bold. Δm is "
            "the mean relative gain over the single tasks of the same seed. Rank is "
            "the mean over tasks and seeds. ◆ marks methods on the Pareto front of all "
            "tasks. Jobs is how many trainings shared the machine: times of a step "
            "compare only where it is the same. CPU ms is its processor time; "
            "MB the most that the whole process held, TensorFlow and data included."
        )
        if self._summary["excluded"]:
            words += (
                f" Δm excludes {', '.join(self._summary['excluded'])}: alone, its "
                "metric is 0 for some seed, and a gain over 0 has no value."
            )
        return section("Results", words, table(rows, heads, self._best()))

    def _row(self, name: str, found: Mapping[str, Any]) -> list[str]:
        return [
            f"{name} ◆" if found["on_front"] else name,
            mean_and_std(found["delta_m"], 2, sign=True),
            p_value(corrected_p(self._summary, "against_single", name)),
            p_value(corrected_p(self._summary, "against_reference", name)),
            mean_and_std(found["rank"], 1),
            *(mean_and_std(found["test"][task]) for task in self._tasks),
            span(found["epochs"]),
            span(found["jobs"]),
            number(found["step_ms"]["mean"], 1),
            number(found["step_cpu_ms"]["mean"], 1),
            number(found["peak_memory_mb"]["mean"], 0),
        ]

    def _best(self) -> dict[tuple[int, int], bool]:
        """Returns the cells of the results that hold the best mean of a column."""
        columns = {
            1: ([found["delta_m"]["mean"] for found in self._methods.values()], "max"),
            4: ([found["rank"]["mean"] for found in self._methods.values()], "min"),
        }
        for index, task in enumerate(self._tasks):
            means = [found["test"][task]["mean"] for found in self._methods.values()]
            columns[5 + index] = (means, self._direction(task))
        best = {}
        for column, (means, direction) in columns.items():
            there = [mean for mean in means if is_finite(mean)]
            if there:
                top = max(there) if direction == "max" else min(there)
                # The first row is that of the single tasks.
                for row, mean in enumerate(means, start=1):
                    best[row, column] = mean == top
        return best

    def _gains(self) -> str:
        rows = [
            svg.Bar(
                name,
                found["delta_m"]["mean"],
                found["delta_m"]["std"],
                mean_and_std(found["delta_m"], 2, sign=True) + " %",
            )
            for name, found in self._methods.items()
        ]
        unit = "gain over single tasks, %"
        figures = [figure("Δm, all tasks", svg.bars(rows, unit, "Δm of each method"))]
        for task in self._tasks:
            rows = [
                svg.Bar(
                    name,
                    found["gain"][task]["mean"],
                    found["gain"][task]["std"],
                    mean_and_std(found["test"][task]),
                )
                for name, found in self._methods.items()
            ]
            drawn = svg.bars(
                rows, "gain over the task alone, %", f"Gain of each method on {task}"
            )
            figures.append(figure(f"{task}, {self._axis(task)}", drawn))
        words = (
            "Bars start at what the task reaches alone; to the right is better, also "
            "for metrics of which less is better. Whiskers are one standard deviation "
            "over seeds. The numbers are the metrics themselves."
        )
        return section("Gain by task", words, charts(figures))

    def _fronts(self) -> str:
        figures = []
        for first, second in itertools.combinations(self._tasks, 2):
            points = [
                svg.Point(
                    name, found["test"][first]["mean"], found["test"][second]["mean"]
                )
                for name, found in self._methods.items()
            ]
            front = pareto_front(
                [(point.x, point.y) for point in points],
                [self._direction(first), self._direction(second)],
            )
            drawn = svg.scatter(
                points,
                front,
                f"{first} {self._axis(first)}",
                f"{second} {self._axis(second)}",
                f"Pareto front of {first} and {second}",
            )
            figures.append(figure(f"{first} and {second}", drawn))
        words = (
            "Means over seeds, two tasks at a time. Ringed and joined: no other method "
            "is better in one of the two and as good in the other. Arrows tell which "
            "way is better."
        )
        names = legend(self._methods, numbered=True)
        return section("Pareto fronts", words, names + charts(figures))

    def _losses(self) -> str:
        figures = []
        for task in self._tasks:
            key = f"val_{task}_loss"
            rows = [
                svg.Series(name, found["history"][key])
                for name, found in self._methods.items()
                if key in found["history"]
            ]
            if rows:
                about = f"Validation loss of {task} by epoch"
                figures.append(figure(task, svg.lines(rows, "epoch", "loss", about)))
        words = "Validation loss, mean over seeds."
        return section("Loss curves", words, legend(self._methods) + charts(figures))

    def _weights(self) -> str:
        figures = []
        for name, found in self._methods.items():
            rows = [
                svg.Series(task, found["history"][f"{task}_weight"])
                for task in self._tasks
                if f"{task}_weight" in found["history"]
            ]
            about = f"Task weights of {name} by epoch"
            figures.append(figure(name, svg.lines(rows, "epoch", "weight", about)))
        words = "Mean weight of each task in the steps of an epoch, mean over seeds."
        return section("Task weights", words, legend(self._tasks) + charts(figures))

    def _cosines(self) -> str:
        tables = {
            name: found["cosines"]
            for name, found in self._methods.items()
            if found["cosines"] is not None
        }
        largest = max(map(_largest_between, tables.values()), default=1.0)
        figures = [
            figure(
                name,
                svg.heat(
                    cosines, self._tasks, 2, largest, f"Gradient cosines of {name}"
                ),
            )
            for name, cosines in tables.items()
        ]
        words = (
            "Cosine between the gradients of two tasks in the shared weights, where "
            "the method has brought the model: mean over epochs and seeds, on the same "
            "batches for all. Below 0, the tasks pull against each other. All have one "
            "scale of colours, whose end is the largest value between two tasks."
        )
        if not figures:
            return ""
        return section("Gradient cosines", words, charts(figures))

    def _affinity(self) -> str:
        affinity = self._summary["affinity"]
        figures = []
        for name, (title, words) in _MEASURES.items():
            if affinity[name] is None:
                continue
            # The share by which a step lowers a loss is shown in percent.
            factor = 100.0 if name == "lookahead" else 1.0
            shown = [
                [factor * value if is_finite(value) else None for value in row]
                for row in affinity[name]
            ]
            groups = affinity["groups"][name]["groups"]
            named = "; ".join(" + ".join(group) for group in groups)
            drawn = svg.heat(
                shown,
                self._tasks,
                2,
                _largest_between(shown),
                f"{title} of task pairs",
            )
            below = paragraph(f"Suggested groups: {named}")
            figures.append(figure(title, paragraph(words) + drawn + below))
        if not figures:
            return ""
        words = (
            "Rows act on columns. Look-ahead and cosines were measured in the "
            f"trainings by {self._summary['tests']['reference']}. The groups are the "
            "split with the most mean gain for each task from the others in its group; "
            "train a suggestion before you trust it, as the measures need not agree."
        )
        return section("Which tasks help which", words, charts(figures))

    def _failures(self) -> str:
        failed = self._summary["failed"]
        if not failed:
            return ""
        words = "The same command, started again, tries them again."
        return section("Failed trainings", words, table(failed.items()))

    def _settings(self) -> str:
        left_out = ("balancing", "sharing", "seed", "loss_weights", "tasks")
        given = {k: v for k, v in self._base.items() if k not in left_out}
        sharing = self._summary["comparison"]["sharing"]
        given["sharing"] = ", ".join(map(spec_name, sharing))
        given |= self._summary["machine"] | self._summary["versions"]
        rows = [
            [key.replace("_", " "), str(value)]
            for key, value in given.items()
            if value is not None
        ]
        command = self._summary["command"]
        words = "The budget is the same for all. Made by:" if command else ""
        # Lines break between words, and not after the hyphens of an option.
        parts = [f"<span>{html.escape(part)}</span>" for part in command.split(" ")]
        shown = f"<pre>{' '.join(parts)}</pre>\n" if command else ""
        return section("Settings", words, shown + table(rows))

    def _direction(self, task: str) -> str:
        return self._summary["tasks"][task]["direction"]

    def _axis(self, task: str) -> str:
        arrow = "↑" if self._direction(task) == "max" else "↓"
        return f"{self._summary['tasks'][task]['metric'].replace('_', ' ')} {arrow}"


def _largest_between(table: Sequence[Sequence[float | None]]) -> float:
    """Returns the largest size of a value off the diagonal; 1 with none."""
    between = [
        abs(value)
        for i, row in enumerate(table)
        for j, value in enumerate(row)
        if i != j and value is not None and math.isfinite(value)
    ]
    return max(between, default=1.0)
