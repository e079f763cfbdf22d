"""The report of a comparison: one page, of which figures are drawn here."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_keras.applications import label
from mtl_keras.balancing.conflicts import CONFIDENT
from mtl_keras.compare.summary import Summary, corrected_p, metrics_of, shown_tasks
from mtl_keras.evaluation import pareto_front
from mtl_keras.registry import spec_name
from mtl_keras.reports import figures
from mtl_keras.reports.figures import chart
from mtl_keras.reports.rendering import is_finite, mean_and_std, number, write_html

_MEASURES = {
    "lookahead": (
        "Look-ahead",
        "How much a small step on the row's task alone lowers the loss of the "
        "column's task, in percent.",
    ),
    "cosines": (
        "Gradient cosine",
        "Cosine of the two tasks' gradients on the shared weights.",
    ),
    "pairs": (
        "Trained in pairs",
        "Gain of the column's task on the test split when it is trained together with "
        "the row's, over alone, in percent.",
    ),
}


def write_report(path: pathlib.Path, summary: Summary) -> None:
    """Writes the report of a comparison, one HTML file that loads nothing."""
    write_html(path, "comparison.html", _Report(summary).context())


class _Report:
    def __init__(self, summary: Summary):
        self._summary = summary
        self._tasks = list(summary["tasks"])
        self._shown = shown_tasks(summary)
        self._methods: dict[str, Any] = {
            name: method
            for name, method in summary["methods"].items()
            if method["seeds"]
        }
        self._axes = {
            task: f"{about['metric'].replace('_', ' ')} "
            f"{'↑' if about['direction'] == 'max' else '↓'}"
            for task, about in summary["tasks"].items()
        }

    def context(self) -> dict[str, Any]:
        summary, base = self._summary, self._summary["comparison"]["base"]
        left_out = ("balancing", "sharing", "seed", "loss_weights", "tasks")
        settings = {k: v for k, v in base.items() if k not in left_out}
        settings["sharing"] = ", ".join(
            map(spec_name, summary["comparison"]["sharing"])
        )
        many = f"{len(self._tasks)} tasks\n{self._axes[self._tasks[0]]}"
        drawn = {
            "gains": self._gains,
            "fronts": self._fronts,
            "losses": self._losses,
            "weights": self._weights,
            "cosines": self._cosines,
            "affinity": self._affinity,
        }
        return {
            "title": f"{label(base['application'])}: {len(summary['methods'])} methods",
            "summary": summary,
            "methods": self._methods,
            "shown": self._shown,
            "axes": self._axes,
            "metrics": [f"{t}\n{self._axes[t]}" for t in self._shown] or [many],
            "best": self._best(),
            "figures": {k: f() if self._methods else [] for k, f in drawn.items()},
            "method_lines": figures.line_keys(list(self._methods)),
            "task_lines": figures.line_keys(self._tasks),
            "settings": settings | summary["machine"] | summary["versions"],
            "confident": CONFIDENT,
            "corrected_p": corrected_p,
            "metrics_of": metrics_of,
        }

    def _direction(self, task: str) -> str:
        return self._summary["tasks"][task]["direction"]

    def _best(self) -> dict[str, set[int]]:
        """Returns the columns of the results in which each method's mean is best."""
        best: dict[str, set[int]] = {name: set() for name in self._methods}
        own = {
            name: [method["delta_m"], method["rank"], *metrics_of(self._summary, name)]
            for name, method in self._methods.items()
        }
        ends = [max, min]
        ends += [max if self._direction(t) == "max" else min for t in self._tasks]
        columns = (1, 4, *range(5, 5 + len(self._tasks)))
        for column, end, *spreads in zip(columns, ends, *own.values(), strict=False):
            means = [spread["mean"] for spread in spreads]
            top = end(filter(is_finite, means), default=math.nan)
            for name, mean in zip(best, means, strict=True):
                best[name] |= {column} if mean == top else set()
        return best

    def _gains(self) -> list[dict[str, str]]:
        single, reference = self._summary["single"], self._summary["tests"]["reference"]
        rows = [
            (name, m["delta_m"], mean_and_std(m["delta_m"], 2, sign=True) + " %")
            for name, m in self._methods.items()
        ]
        unit = f"gain over {'the single tasks' if single else reference}, %"
        drawn = [chart("Δm, all tasks", figures.bars(rows, unit), "Δm of each method")]
        unit = f"gain over {'the task alone' if single else reference}, %"
        for task in self._shown:
            rows = [
                (name, m["gain"][task], mean_and_std(m["test"][task]))
                for name, m in self._methods.items()
            ]
            title, figure = f"{task}, {self._axes[task]}", figures.bars(rows, unit)
            drawn.append(chart(title, figure, f"Gain of each method on {task}"))
        return drawn

    def _fronts(self) -> list[dict[str, str]]:
        drawn = []
        for pair in itertools.combinations(self._shown, 2):
            points = [
                (m["test"][pair[0]]["mean"], m["test"][pair[1]]["mean"])
                for m in self._methods.values()
            ]
            front = pareto_front(points, list(map(self._direction, pair)))
            axes = [f"{task} {self._axes[task]}" for task in pair]
            title, figure = " and ".join(pair), figures.scatter(points, front, *axes)
            drawn.append(chart(title, figure, f"Pareto front of {title}"))
        return drawn

    def _losses(self) -> list[dict[str, str]]:
        logs = {task: f"val_{task}_loss" for task in self._shown}
        histories = [method["history"] for method in self._methods.values()]
        drawn = []
        for title, log in (logs or {f"{len(self._tasks)} tasks": "val_loss"}).items():
            rows = [history[log] for history in histories if log in history]
            if rows:
                about = f"Validation loss of {title} by epoch"
                drawn.append(chart(title, figures.lines(rows, "loss"), about))
        return drawn

    def _weights(self) -> list[dict[str, str]]:
        drawn = []
        for name, method in self._methods.items() if self._shown else ():
            logs = [f"{task}_weight" for task in self._tasks]
            rows = [method["history"][log] for log in logs if log in method["history"]]
            about = f"Task weights of {name} by epoch"
            drawn.append(chart(name, figures.lines(rows, "weight"), about))
        return drawn

    def _cosines(self) -> list[dict[str, str]]:
        tables = {
            name: method["cosines"]
            for name, method in self._methods.items()
            if method["cosines"] is not None
        }
        largest = max(map(_largest_between, tables.values()), default=1.0)
        return [
            chart(
                name,
                figures.heat(cosines, self._tasks, largest),
                f"Gradient cosines of {name}",
                below=self._believed(self._methods[name]),
            )
            for name, cosines in tables.items()
        ]

    def _believed(self, method: Mapping[str, Any]) -> str:
        """Returns which of a method's negative cosines are conflicts, and which not."""
        pairs: dict[bool, list[str]] = {True: [], False: []}
        for i, j in itertools.combinations(range(len(self._tasks)), 2):
            value = method["cosines"][i][j]
            if is_finite(value) and value < 0.0:
                # NaN, of one measurement, is not sure.
                sure = method["conflict_confidence"][i][j] >= CONFIDENT
                shared = method["shared_samples"]
                count = f" ({number(shared[i][j], 0)} shared)" if shared else ""
                pairs[sure].append(f"{self._tasks[i]} + {self._tasks[j]}{count}")
        texts = [
            f"{title}: {'; '.join(pairs[sure])}."
            for sure, title in ((True, "Conflicts"), (False, "Not sure"))
            if pairs[sure]
        ]
        return " ".join(texts) or "No conflicts."

    def _affinity(self) -> list[dict[str, str]]:
        affinity = self._summary["affinity"]
        drawn = []
        for name, (title, above) in _MEASURES.items():
            if affinity[name] is None:
                continue
            # The share by which a step lowers a loss is shown in percent.
            factor = 100.0 if name == "lookahead" else 1.0
            table = [
                [factor * value if is_finite(value) else None for value in row]
                for row in affinity[name]
            ]
            figure = figures.heat(table, self._tasks, _largest_between(table))
            below = ""
            if name in affinity["groups"]:
                groups = map(" + ".join, affinity["groups"][name]["groups"])
                below = f"Suggested groups: {'; '.join(groups)}"
            drawn.append(chart(title, figure, f"{title} of task pairs", above, below))
        return drawn


def _largest_between(table: Sequence[Sequence[float | None]]) -> float:
    """Returns the largest magnitude off the diagonal; 1 with none."""
    between = [
        abs(value)
        for i, row in enumerate(table)
        for j, value in enumerate(row)
        if i != j and is_finite(value)
    ]
    return max(between, default=1.0)
