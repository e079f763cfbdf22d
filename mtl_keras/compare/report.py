"""The report of a comparison: the sections of its page."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtl_keras.balancing.conflicts import CONFIDENT
from mtl_keras.compare.significance_text import significance
from mtl_keras.compare.summary import Summary, corrected_p, metrics_of, shown_tasks
from mtl_keras.evaluation import pareto_front
from mtl_keras.reports import figures
from mtl_keras.reports.rendering import (
    Section,
    is_finite,
    mean_and_std,
    number,
    p_value,
    section,
    span,
    write_html,
)
from mtl_keras.runs.config import spec_name

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
    """Writes the report of a comparison, one HTML file that loads nothing.

    Args:
        path: The file. An existing one is replaced.
        summary: The values of `results.json`.
    """
    write_html(path, "comparison.html", _Report(summary).context())


class _Report:
    def __init__(self, summary: Summary):
        self._summary = summary
        self._base = summary["comparison"]["base"]
        self._tasks = list(summary["tasks"])
        # Tasks that are shown one by one.
        self._shown = shown_tasks(summary)
        self._over = "the single tasks"
        if not summary["single"]:
            self._over = summary["tests"]["reference"]
        self._methods: dict[str, Any] = {
            name: method
            for name, method in summary["methods"].items()
            if method["seeds"]
        }

    def context(self) -> dict[str, Any]:
        count = len(self._summary["methods"])
        sections = list(self._of_methods()) if self._methods else []
        return {
            "title": f"{self._base['application']}: {count} methods",
            "introduction": self._introduction(),
            "sections": [*sections, *self._failures(), self._settings()],
        }

    def _of_methods(self) -> Iterator[Section]:
        yield self._results()
        yield significance(self._summary["tests"])
        yield from self._helpers()
        yield self._gains()
        if self._shown:
            yield self._fronts()
        yield self._losses()
        if self._shown:
            yield self._weights()
        yield from self._cosines()
        yield from self._affinity()

    def _introduction(self) -> str:
        seeds, base = self._summary["comparison"]["seeds"], self._base
        samples = f", {base['limit']} training samples" if base["limit"] else ""
        against = "each task alone" if self._summary["single"] else self._over
        return (
            f"{len(self._summary['methods'])} ways to train {len(self._tasks)} tasks "
            f"of {base['application']} on {base['data']} in one model, against "
            f"{against}: {seeds} seed{'s' if seeds > 1 else ''}, {base['epochs']} "
            f"epochs each{samples}. Every training keeps the epoch that is best on "
            "the validation split; all values here are of the test split."
        )

    def _results(self) -> Section:
        heads = ["method", "Δm %", "p\nsingle", "p\nreference", "rank"]
        heads += [f"{task}\n{self._axis(task)}" for task in self._shown]
        if not self._shown:
            heads.append(f"{len(self._tasks)} tasks\n{self._axis(self._tasks[0])}")
        heads += ["epoch", "jobs", "ms\na step", "CPU\nms", "MB"]
        single = self._summary["single"]
        rows = list(itertools.starmap(self._row, self._methods.items()))
        excluded = ""
        if self._summary["excluded"]:
            excluded = (
                f" Δm excludes {', '.join(self._summary['excluded'])}: by "
                f"{self._over}, its metric is 0 for some seed, and a gain over 0 has "
                "no value."
            )
        if single:
            alone = [
                "single tasks",
                *("0", "", "", ""),
                *map(mean_and_std, metrics_of(self._summary, None)),
                span(epoch for one in single.values() for epoch in one["epochs"]),
                *("", "", "", ""),
            ]
            rows.insert(0, alone)
        return section(
            "Results",
            "Mean ± standard deviation over seeds; the best of a column is bold. Δm is "
            f"the mean relative gain over {self._over} of the same seed. Rank is "
            "the mean over tasks and seeds. ◆ marks methods on the Pareto front of all "
            "tasks. Jobs is how many trainings shared the machine: times of a step "
            "compare only where it is the same. CPU ms is its processor time; "
            "MB the most that the whole process held, TensorFlow and data included."
            + excluded,
            rows=rows,
            heads=heads,
            best=self._best(),
        )

    def _row(self, name: str, method: Mapping[str, Any]) -> list[str]:
        return [
            f"{name} ◆" if method["on_front"] else name,
            mean_and_std(method["delta_m"], 2, sign=True),
            p_value(corrected_p(self._summary, "against_single", name)),
            p_value(corrected_p(self._summary, "against_reference", name)),
            mean_and_std(method["rank"], 1),
            *map(mean_and_std, metrics_of(self._summary, name)),
            span(method["epochs"]),
            span(method["jobs"]),
            number(method["step_ms"]["mean"], 1),
            number(method["step_cpu_ms"]["mean"], 1),
            number(method["peak_memory_mb"]["mean"], 0),
        ]

    def _best(self) -> set[tuple[int, int]]:
        """Returns the (row, column) of each cell that holds its column's best mean."""
        methods = self._methods.values()
        columns = {
            1: ([method["delta_m"]["mean"] for method in methods], "max"),
            4: ([method["rank"]["mean"] for method in methods], "min"),
        }
        shown = [metrics_of(self._summary, name) for name in self._methods]
        for index, spreads in enumerate(zip(*shown, strict=True)):
            means = [one["mean"] for one in spreads]
            columns[5 + index] = (means, self._direction(self._tasks[index]))
        cells = set()
        for column, (means, direction) in columns.items():
            finite = [mean for mean in means if is_finite(mean)]
            best = (max if direction == "max" else min)(finite, default=None)
            # The first row is that of the single tasks, if any.
            cells |= {
                (row, column)
                for row, mean in enumerate(means, start=bool(self._summary["single"]))
                if best is not None and mean == best
            }
        return cells

    def _helpers(self) -> Iterator[Section]:
        helpers = self._summary["helpers"]
        if not helpers:
            return
        primary, axis = helpers["primary"], self._axis(helpers["primary"])
        heads = ["trained with", f"{primary}\n{axis}", "gain %", "p", "verdict"]
        rows = [["nothing else", mean_and_std(helpers["alone"]), "", "", ""]]
        trained = {"all": ("all helpers", helpers["together"])}
        for name, reached in helpers["without"].items():
            trained[name] = (f"all but {name}", reached)
        for name, (title, reached) in trained.items():
            cells = ["", "", ""]
            if name in helpers["gains"]:
                gain = helpers["gains"][name]
                cells = [
                    number(gain["gain"], 2),
                    p_value(gain["p_corrected"]),
                    f"{'' if name == 'all' else name + ' '}{gain['verdict']}",
                ]
            rows.append([title, mean_and_std(reached), *cells])
        yield section(
            "Do the helpers help?",
            f"What {primary} reaches by {helpers['method']}: alone, with all other "
            "tasks, and with each of them left out. Gain: of all helpers over none, "
            "and of each over leaving it out. p: paired t-test over seeds, after "
            "Holm's correction; a verdict needs p below 0.05.",
            rows=rows,
            heads=heads,
        )

    def _gains(self) -> Section:
        methods = self._methods.items()
        rows = [
            (name, m["delta_m"], mean_and_std(m["delta_m"], 2, sign=True) + " %")
            for name, m in methods
        ]
        drawn = figures.bars(rows, f"gain over {self._over}, %")
        shown = [figures.chart("Δm, all tasks", drawn, "Δm of each method")]
        over = "the task alone" if self._summary["single"] else self._over
        for task in self._shown:
            rows = [
                (name, m["gain"][task], mean_and_std(m["test"][task]))
                for name, m in methods
            ]
            drawn = figures.bars(rows, f"gain over {over}, %")
            title = f"{task}, {self._axis(task)}"
            shown.append(figures.chart(title, drawn, f"Gain of each method on {task}"))
        return section(
            "Gain by task",
            f"Bars start at what is reached by {self._over}; to the right is better, "
            "also for metrics of which less is better. Whiskers are one standard "
            "deviation over seeds. The numbers are the metrics themselves.",
            figures=shown,
        )

    def _fronts(self) -> Section:
        shown = []
        for first, second in itertools.combinations(self._shown, 2):
            points = [
                (method["test"][first]["mean"], method["test"][second]["mean"])
                for method in self._methods.values()
            ]
            directions = [self._direction(first), self._direction(second)]
            front = pareto_front(points, directions)
            axes = [f"{task} {self._axis(task)}" for task in (first, second)]
            drawn = figures.scatter(points, front, *axes)
            title = f"{first} and {second}"
            shown.append(figures.chart(title, drawn, f"Pareto front of {title}"))
        return section(
            "Pareto fronts",
            "Means over seeds, two tasks at a time. Ringed and joined: no other method "
            "is better in one of the two and as good in the other. Arrows point "
            "to the better end.",
            legend=list(self._methods),
            figures=shown,
        )

    def _losses(self) -> Section:
        shown = []
        logs = {task: f"val_{task}_loss" for task in self._shown}
        for title, log in (logs or {f"{len(self._tasks)} tasks": "val_loss"}).items():
            rows = [
                method["history"][log]
                for method in self._methods.values()
                if log in method["history"]
            ]
            if rows:
                drawn = figures.lines(rows, "loss")
                about = f"Validation loss of {title} by epoch"
                shown.append(figures.chart(title, drawn, about))
        return section(
            "Loss curves",
            "Validation loss, mean over seeds.",
            legend=figures.svg(figures.line_legend(list(self._methods)), "Methods"),
            figures=shown,
        )

    def _weights(self) -> Section:
        shown = []
        for name, method in self._methods.items():
            logs = [f"{task}_weight" for task in self._tasks]
            rows = [method["history"][log] for log in logs if log in method["history"]]
            drawn = figures.lines(rows, "weight")
            shown.append(figures.chart(name, drawn, f"Task weights of {name} by epoch"))
        return section(
            "Task weights",
            "Mean weight of each task in the steps of an epoch, mean over seeds.",
            legend=figures.svg(figures.line_legend(self._tasks), "Tasks"),
            figures=shown,
        )

    def _cosines(self) -> Iterator[Section]:
        tables = {
            name: method["cosines"]
            for name, method in self._methods.items()
            if method["cosines"] is not None
        }
        largest = max(map(_largest_between, tables.values()), default=1.0)
        shown = [
            figures.chart(
                name,
                figures.heat(cosines, self._tasks, largest),
                f"Gradient cosines of {name}",
                below=self._believed(self._methods[name]),
            )
            for name, cosines in tables.items()
        ]
        if shown:
            yield section(
                "Gradient cosines",
                "Cosine between the gradients of two tasks on the shared weights, "
                "where the method has brought the model: mean over epochs and seeds, "
                "on the same batches for all. Below 0, the tasks conflict, if it is "
                "more than noise: named are the pairs whose mean is below 0 at a "
                f"confidence of {CONFIDENT:.0%} by a t-test over epochs and seeds, "
                "those below 0 that are not, and the samples of a batch that the two "
                "share; cosines of tasks that share few are mostly noise. All have one "
                "scale of colours, whose end is the largest value between two tasks.",
                figures=shown,
            )

    def _believed(self, method: Mapping[str, Any]) -> str:
        """Returns which of a method's negative cosines are conflicts, and which not."""
        pairs: dict[bool, list[str]] = {True: [], False: []}
        for i, j in itertools.combinations(range(len(self._tasks)), 2):
            value = method["cosines"][i][j]
            if not is_finite(value) or value >= 0.0:
                continue
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

    def _affinity(self) -> Iterator[Section]:
        affinity = self._summary["affinity"]
        shown = []
        for name, (title, text) in _MEASURES.items():
            if affinity[name] is None:
                continue
            # The share by which a step lowers a loss is shown in percent.
            factor = 100.0 if name == "lookahead" else 1.0
            table = [
                [factor * value if is_finite(value) else None for value in row]
                for row in affinity[name]
            ]
            drawn = figures.heat(table, self._tasks, _largest_between(table))
            groups = affinity["groups"][name]["groups"]
            named = "; ".join(" + ".join(group) for group in groups)
            shown.append(
                figures.chart(
                    title,
                    drawn,
                    f"{title} of task pairs",
                    above=text,
                    below=f"Suggested groups: {named}",
                )
            )
        if shown:
            yield section(
                "Which tasks help which",
                "Rows act on columns. Look-ahead and cosines were measured in the "
                f"trainings by {self._summary['tests']['reference']}. The groups are "
                "the split with the most mean gain for each task from the others in "
                "its group; train a suggestion before you trust it, as the measures "
                "need not agree.",
                figures=shown,
            )

    def _failures(self) -> Iterator[Section]:
        failed = self._summary["failed"]
        if failed:
            yield section(
                "Failed trainings",
                "The same command, started again, retries them.",
                rows=failed.items(),
            )

    def _settings(self) -> Section:
        left_out = ("balancing", "sharing", "seed", "loss_weights", "tasks")
        settings = {k: v for k, v in self._base.items() if k not in left_out}
        sharing = self._summary["comparison"]["sharing"]
        settings["sharing"] = ", ".join(map(spec_name, sharing))
        settings |= self._summary["machine"] | self._summary["versions"]
        command = self._summary["command"]
        return section(
            "Settings",
            "The budget is the same for all." + (" Made by:" if command else ""),
            command=command,
            rows=[
                [key.replace("_", " "), str(value)]
                for key, value in settings.items()
                if value is not None
            ],
        )

    def _direction(self, task: str) -> str:
        return self._summary["tasks"][task]["direction"]

    def _axis(self, task: str) -> str:
        arrow = "↑" if self._direction(task) == "max" else "↓"
        return f"{self._summary['tasks'][task]['metric'].replace('_', ' ')} {arrow}"


def _largest_between(table: Sequence[Sequence[float | None]]) -> float:
    """Returns the largest magnitude off the diagonal; 1 with none."""
    between = [
        abs(value)
        for i, row in enumerate(table)
        for j, value in enumerate(row)
        if i != j and is_finite(value)
    ]
    return max(between, default=1.0)
