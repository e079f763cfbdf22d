"""What "Does it pay?" has of results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from evidence import text
from evidence.balancing import method_on_qm9
from evidence.markdown import IMAGES, ROOT, interval, label, results, spread, table
from mtl_keras.evaluation import PairedTest, paired_tests
from mtl_keras.reports.figures import new_figure, save_png, styled

METHODS = {
    "alone": "each task alone",
    "equal": "shared, `equal`",
    "uncertainty": "shared, `uncertainty`",
    "fairgrad": 'shared, `fairgrad`, `solve="running"`',
    "mmoe": "`mmoe`, `equal`",
    "pooled": "one output for all tasks",
    "linear": "linear model of each task",
    "separate": "each task alone",
}
JOINT = ("equal", "uncertainty", "fairgrad", "mmoe")
DATA = {
    "tox21": "Tox21, 12 assays",
    "fdu_mtl": "Reviews of 16 domains",
    "school": "School, 139 schools",
    "census": "Census-Income, 2 tasks",
}
SENSES = {"image": "seen", "audio": "heard", "text": "read"}
# The numbers of labels in the README and the picture.
SHOWN = {"tox21": None, "fdu_mtl": 200, "school": None, "census": 1000}
OTHERS = (
    "with the 95 % interval of the paired difference over seeds",
    "Bold differences stay significant at 5 % after Holm's correction",
    "twelve assays of 8,014 molecules, 83 % of the labels known",
    "mean over ten seeds, and its 95 % interval, for each task by itself",
)
MEASURES = {"auc": ("AUC", 3), "accuracy": ("accuracy", 3), "rmse": ("RMSE", 2)}


class Runs:
    """Tested runs of one data set of `benchmarks/worth.py`, by method and labels."""

    def __init__(self, data: str, results: Mapping[str, Any]):
        about = results["data"][data]
        self.data, self.tasks = data, about["tasks"]
        self.measure, self.digits = MEASURES[about["measure"]]
        self.sign = -1.0 if about["measure"] == "rmse" else 1.0
        self.runs = [r for r in results["runs"] if r["data"] == data and "test" in r]
        done = {(run["labels"], run["method"]) for run in self.runs}
        sizes = [size for size in about["sizes"] if (size, "alone") in done]
        self.sizes = sorted(sizes, key=lambda size: size or np.inf)
        compared = [method for method in METHODS if method != "separate"]
        self.methods = [m for m in compared if any((s, m) in done for s in sizes)]

    def by_seed(self, method: str, size: int | None) -> dict[int, dict[str, Any]]:
        """Returns runs by seed."""
        return {
            run["seed"]: run
            for run in self.runs
            if run["method"] == method and run["labels"] == size
        }

    def means(self, method: str, size: int | None) -> dict[int, float]:
        """Returns means over tasks by seed, those without test rows left out."""
        runs = self.by_seed(method, size)
        return {seed: float(np.nanmean(run["test"])) for seed, run in runs.items()}

    def tests(self) -> dict[tuple[str, int | None], PairedTest]:
        """Returns the gains over each task alone, Holm over the whole data set."""
        gains = {}
        for size in self.sizes:
            alone = self.means("alone", size)
            for method in self.methods:
                values = self.means(method, size)
                seeds = sorted(alone.keys() & values.keys())
                if method != "alone" and len(seeds) > 1:
                    gains[method, size] = [
                        self.sign * (values[seed] - alone[seed]) for seed in seeds
                    ]
        return paired_tests(gains, 0.0)

    def share(self, method: str, size: int | None) -> str:
        """Returns the processor time over that of separate models, "" if not timed.

        The mean over seeds, and the range.
        """
        alone, other = self.by_seed("separate", size), self.by_seed(method, size)
        key = "cpu_seconds"
        ratio = [other[s][key] / alone[s][key] for s in alone.keys() & other.keys()]
        if not ratio:
            return ""
        return f"{np.mean(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})"

    def by_task(self, method: str, size: int | None) -> dict[str, PairedTest]:
        """Returns the gain of each task over the task alone, Holm over tasks.

        Seeds that draw no test rows of a task are left out for it.
        """
        alone, other = self.by_seed("alone", size), self.by_seed(method, size)
        seeds = sorted(alone.keys() & other.keys())
        gain = [np.subtract(other[seed]["test"], alone[seed]["test"]) for seed in seeds]
        columns = (self.sign * np.array(gain)).T
        drawn = [column[np.isfinite(column)] for column in columns]
        return paired_tests(dict(zip(self.tasks, drawn, strict=True)), 0.0)


def tested(worth: Mapping[str, Any]) -> dict[str, Runs]:
    """Returns the runs of each data set that has tests."""
    runs = {data: Runs(data, worth) for data in DATA if data in worth["data"]}
    return {data: one for data, one in runs.items() if one.tests()}


def gains(runs: Runs) -> str:
    """Returns the table of one data set: values alone, gains of the others."""
    tests = runs.tests()
    rows = []
    for method in runs.methods:
        cells = [METHODS[method]]
        for size in runs.sizes:
            values = list(runs.means(method, size).values())
            if method == "alone":
                cells.append(spread(values, f".{runs.digits}f"))
            elif (method, size) in tests:
                cells.append(interval(tests[method, size], runs.digits))
            else:
                cells.append("not run")
        rows.append(cells)
    seeds = {
        len(runs.by_seed(method, size))
        for method in runs.methods
        for size in runs.sizes
    }
    few, many = min(seeds - {0}), max(seeds)
    count = f"{many}" if few == many else f"{few} to {many}"
    title = f"**{DATA[runs.data]}**, {runs.measure}, {count} seeds:"
    head = ["labels of each task", *map(label, runs.sizes)]
    return f"{title}\n\n{table(head, rows)}"


def costs(all_runs: Sequence[Runs]) -> str:
    """Returns the processor seconds of training N models and one."""
    timed = [(r, size) for r in all_runs for size in r.sizes if r.share("equal", size)]
    methods = [m for m in JOINT if any(r.share(m, size) for r, size in timed)]
    rows = []
    for runs, size in timed:
        row = [DATA[runs.data], label(size)]
        for method in ("separate", *methods):
            values = runs.by_seed(method, size).values()
            seconds = [run["cpu_seconds"] for run in values]
            row.append(f"{np.mean(seconds):.1f}" if seconds else "not run")
        rows.append([*row, runs.share("equal", size)])
    head = ["", "labels of each task", "all alone", *(f"`{m}`" for m in methods)]
    return table([*head, "`equal` / alone"], rows)


def serving(worth: Mapping[str, Any]) -> str:
    """Returns what a request of all tasks takes."""
    rows = []
    for data, cost in worth.get("serving", {}).items():
        for method, one in cost.items():
            rows.append(
                [
                    DATA[data],
                    METHODS[method],
                    str(one["models"]),
                    f"{one['megabytes']:.2f}",
                    f"{one['cpu_ms_1']:.2f}",
                    f"{one['cpu_ms_256']:.1f}",
                ]
            )
    head = ["", "", "models", "MB on disk", "CPU ms, 1 row", "CPU ms, 256 rows"]
    return table(head, rows)


def balancing(qm9: Mapping[str, Any]) -> str:
    """Returns what balancing gains over equal weights on QM9."""
    error = {
        name: np.array(method["by_seed"]) for name, method in qm9["summary"].items()
    }
    # Seeds count from 0, and some methods have fewer.
    others = {
        name: values - error["equal"][: len(values)]
        for name, values in error.items()
        if name not in ("single", "equal")
    }
    tests = paired_tests(others, 0.0)
    rows = [[*method_on_qm9("single", error["single"]), "", ""]]
    for name, values in sorted(error.items(), key=lambda item: item[1].mean()):
        if name == "single":
            continue
        change = "–"
        if name in tests:
            change = f"{tests[name].difference:+.1f}"
            if np.isfinite(tests[name].low):
                change = interval(tests[name], 1)
        rows.append([*method_on_qm9(name, values), change, str(len(values))])
    return table(["", "error over single, %", "against `equal`, points", "seeds"], rows)


class Pairs(NamedTuple):
    """Values of one task by seed, shared and alone."""

    name: str
    measure: str
    joint: list[float]
    alone: list[float]

    @property
    def sign(self) -> float:
        """Returns -1 for an error, else 1."""
        return -1.0 if self.measure == "RMSE" else 1.0


def earlier() -> list[Pairs]:
    """Returns results of the applications, on files of other benchmarks."""
    rows = []
    for group, task in (("income", "income"), ("education", "college")):
        alone = results(f"census_income_{group}_single")["runs"]
        for sharing in ("hard", "mmoe"):
            joint = results(f"census_income_{group}_{sharing}")["runs"]
            values = ([run["auc"][task] for run in runs] for runs in (joint, alone))
            rows.append(Pairs(f"Census-Income: {task}, `{sharing}`", "AUC", *values))
    for task, measure in (("rating", "rmse"), ("liked", "auc")):
        key = f"{task}_{measure}"
        alone = results(f"movielens_{task}")["runs"]
        for sharing, model in (("hard", "hard"), ("mmoe", "multi")):
            joint = results(f"movielens_{model}")["runs"]
            values = ([run[key] for run in runs] for runs in (joint, alone))
            rows.append(
                Pairs(f"MovieLens: {task}, `{sharing}`", measure.upper(), *values)
            )
    runs = results("multimodal_real")["runs"]
    for key in runs[0]["accuracy"]:
        task, modality = key.split("/")
        values = (
            [run["accuracy"][key] for run in runs if run["model"] == model]
            for model in ("joint", f"{task} alone")
        )
        name = f"Images, recordings, texts: {task}, {SENSES[modality]}"
        rows.append(Pairs(name, "accuracy", *values))
    return [*rows, *of_texts(results("text_real"))]


def of_texts(measured: Mapping[str, Any]) -> list[Pairs]:
    """Returns results on three data sets of text, over the seeds of all models."""
    joint, alone = text.texts(measured)
    shared = {seed: run["test"] for seed, run in joint["joint"].items()}
    seeds = sorted(shared.keys() & alone.keys())
    rows = []
    for task, metric, measure, unit in (
        ("sentiment", "accuracy", "accuracy", 1.0),
        ("answer", "f1", "F1", 1.0),
        ("translation", "bleu", "BLEU / 100", 0.01),
    ):
        values = (
            [unit * models[seed][task][metric] for seed in seeds]
            for models in (shared, alone)
        )
        rows.append(Pairs(f"Three data sets of text: {task}", measure, *values))
    return rows


def negative() -> str:
    """Returns the table of applications that gain little or lose by sharing."""
    rows = earlier()
    gains = {row.name: row.sign * np.subtract(row.joint, row.alone) for row in rows}
    tests = paired_tests(gains, 0.0)
    cells = [
        [
            row.name,
            row.measure,
            f"{np.mean(row.alone):.4f}",
            f"{np.mean(row.joint):.4f}",
            interval(tests[row.name], 4),
            str(len(row.joint)),
        ]
        for row in rows
    ]
    return table(["", "", "alone", "shared", "gain (95 %)", "seeds"], cells)


def vision_comparison() -> dict[str, Any]:
    """Returns the committed comparison of `vision`."""
    comparison = ROOT / "docs" / "compare" / "vision" / "results.json"
    return json.loads(comparison.read_text("utf-8"))


def vision(comparison: Mapping[str, Any]) -> str:
    """Returns the tasks of `vision` alone, and what ways to share gain on each."""
    alone = {
        task: np.array(one["test"][task]["values"])
        for task, one in comparison["single"].items()
    }
    methods = comparison["methods"]
    changes = {
        (name, task): np.array(method["test"][task]["values"]) - alone[task]
        for name, method in methods.items()
        for task in alone
    }
    tests = paired_tests(changes, 0.0)
    rows = []
    for task, values in alone.items():
        measure = comparison["tasks"][task]["metric"]
        gained = [interval(tests[name, task], 3) for name in methods]
        rows.append([f"{task}, {measure}", spread(values), *gained])
    totals = paired_tests({n: m["delta_m"]["values"] for n, m in methods.items()}, 0.0)
    rows.append(["Δm, %", "0", *(interval(totals[name], 1) for name in methods)])
    # Every training takes as many steps.
    one = sum(task["step_cpu_ms"]["mean"] for task in comparison["single"].values())
    times = [f"{m['step_cpu_ms']['mean'] / one:.2f}" for m in methods.values()]
    rows.append(["processor time of training, all alone = 1", "1", *times])
    return table(["", "alone", *(f"`{name}`" for name in methods)], rows)


def parts() -> dict[str, str]:
    """Returns the generated parts of the page, by name."""
    measured = results("worth")
    all_runs = tested(measured)
    return {
        **{data: gains(runs) for data, runs in all_runs.items()},
        "costs": costs(list(all_runs.values())),
        "serving": serving(measured),
        "negative": negative(),
        "vision": vision(vision_comparison()),
        "qm9": balancing(results("qm9")),
    }


def sentences() -> list[str]:
    """Returns sentences of the page with figures, as the results have them."""
    qm9, methods = results("qm9"), results("qm9_methods")
    error = {
        name: method["relative_error_percent"]
        for name, method in methods["summary"].items()
    }
    return [
        "eleven properties of a molecule, as regressions from "
        f"{qm9['train']:,} molecules",
        f"With {methods['train']:,} molecules, every method by its defaults:",
        f"which takes one backward pass, is {-error['scale_invariant']:.0f} points "
        f"better than single-task models there, and `equal` {error['equal']:.0f} worse",
    ]


@styled
def draw() -> None:
    """Draws the gain of each task, docs/images/worth.png."""
    worth = results("worth")
    shown = [Runs(data, worth) for data in ("tox21", "fdu_mtl")]
    figure, axes = new_figure(7.6, 3.6, ncols=len(shown))
    for axis, runs in zip(axes, shown, strict=True):
        tests = runs.by_task("equal", SHOWN[runs.data])
        order = sorted(tests, key=lambda task: tests[task].difference)
        means = np.array([tests[task].difference for task in order])
        spans = np.array([tests[task].high for task in order]) - means
        axis.barh(order, means, xerr=spans, alpha=0.75, error_kw={"capsize": 2})
        axis.axvline(0.0, color="0.2", linewidth=1)
        axis.tick_params(axis="y", labelsize=7)
        axis.set_title(f"{DATA[runs.data]}, {label(SHOWN[runs.data])} labels")
        axis.set_xlabel(f"gain over the task alone, {runs.measure}")
        axis.grid(axis="x")
    save_png(figure, IMAGES / "worth.png")
