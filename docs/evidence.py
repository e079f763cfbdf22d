"""Tables and pictures of pages on what was measured, out of benchmarks/results.

`python docs/generate.py` writes them; no figure of theirs is written by hand.
"""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_keras.evaluation import PairedTest, delta_m, paired_tests
from mtl_keras.reports.figures import new_figure, save_png, styled

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
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
_MOST_DRAWN = 60  # percent; longer bars are cut off and bear their number
# The numbers of labels in the README and the picture.
SHOWN = {"tox21": None, "fdu_mtl": 200, "school": None, "census": 1000}
MEASURES = {"auc": ("AUC", 3), "accuracy": ("accuracy", 3), "rmse": ("RMSE", 2)}


def results(name: str) -> dict[str, Any]:
    """Returns a results file."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


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


def label(size: int | None) -> str:
    """Returns a number of labels as text."""
    return "all" if size is None else f"{size:,}"


def interval(test: PairedTest, digits: int) -> str:
    """Returns a difference with its interval; bold where Holm's p is below 0.05."""
    text = f"{test.difference:+.{digits}f}"
    if test.p_corrected < 0.05:
        text = f"**{text}**"
    return f"{text} ({test.low:+.{digits}f} to {test.high:+.{digits}f})"


def spread(values: Sequence[float] | np.ndarray, digits: str = ".3f") -> str:
    """Returns a mean with its standard deviation, which one value alone has none of."""
    mean = format(np.mean(values), digits)
    if len(values) == 1:
        return mean
    return f"{mean} ± {format(np.std(values, ddof=1), digits.lstrip('+'))}"


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


def method_title(name: str) -> str:
    """Returns a method's title; runs name it with its `solve`, as in "nash running"."""
    method, *solve = name.split()
    return f"`{method}`" + (f', `solve="{solve[0]}"`' if solve else "")


def method_on_qm9(name: str, values: np.ndarray) -> list[str]:
    """Returns a method's name and its error over single-task models, with spread."""
    if name == "single":
        return ["one model for each target", "0"]
    return [method_title(name), spread(values, "+.1f")]


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


# Δm in percent of 11 targets of QM9 with 110,000 molecules and a graph network, over
# single tasks, as printed by the papers on FAMO (NeurIPS 2023) and FairGrad (ICML
# 2024).
PUBLISHED = {
    "random": 203.8,
    "equal": 177.6,
    "dwa": 175.3,
    "pcgrad": 125.7,
    "mgda": 120.5,
    "cagrad": 112.8,
    "uncertainty": 108.0,
    "scale_invariant": 77.8,
    "imtl_g": 77.2,
    "nash": 62.0,
    "famo": 58.5,
    "fairgrad": 57.9,
}


def by_error(measured: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the summary of `qm9.py --all` by method, best first."""
    items = measured["summary"].items()
    ordered = sorted(items, key=lambda item: item[1]["relative_error_percent"])
    return {
        name: {**method, "by_seed": np.array(method["by_seed"])}
        for name, method in ordered
    }


def all_methods(measured: Mapping[str, Any]) -> str:
    """Returns the errors of every balancer on QM9 beside published ones."""
    rows, compared = [], []
    for name, method in by_error(measured).items():
        values = method["by_seed"]
        published = ""
        if name in PUBLISHED:
            published = f"{PUBLISHED[name]:+.1f}"
            compared.append((values.mean(), PUBLISHED[name]))
        cells = method_on_qm9(name, values)
        rows.append([*cells, f"{method['rank']:.1f}", published, str(len(values))])
    ranks = np.argsort(np.argsort(np.array(compared), axis=0), axis=0)
    correlation = np.corrcoef(ranks.T)[0, 1]
    head = ["", "error over single, %", "mean rank", "published Δm, %", "seeds"]
    return (
        f"{table(head, rows)}\nRank correlation of this order and the published one, "
        f"over the {len(compared)} methods of both: {correlation:+.2f}.\n"
    )


def running_steps(measured: Mapping[str, Any]) -> str:
    """Returns times of steps of running solves over those of stock Keras."""
    methods = {
        "floor": "floor of exact solves",
        **{name: f"`{name}` running" for name in ("nash", "fairgrad", "mgda")},
    }
    rows = []
    for title, runs in (("LeNet", "runs"), ("ResNet-18", "resnet")):
        for run in measured[runs]:
            ratios = {row["model"]: f"{row['ratio']:.2f}" for row in run["rows"]}
            cells = [ratios.get(method, "not run") for method in methods]
            rows.append([title, str(run["tasks"]), *cells, str(run["steps_each"])])
    return table(["", "T", *methods.values(), "steps"], rows)


def toxcast(measured: Mapping[str, Any]) -> str:
    """Returns AUC and prices of methods on the assays of ToxCast."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in measured["runs"]:
        runs.setdefault(run["method"], []).append(run)
    rows = []
    for name, of_method in runs.items():
        title, auc = "`keras.Model`, an output for each assay", "–"
        if name != "stock":
            title = method_title(name)
            auc = spread([run["mean_auc"] for run in of_method])
        prices = {"first_step_seconds": ".1f", "step_ms": ".0f", "memory_mb": ",.0f"}
        medians = [
            format(float(np.median([run[key] for run in of_method])), digits)
            for key, digits in prices.items()
        ]
        rows.append([title, auc, *medians])
    return table(["", "AUC", "first step, s", "step, ms", "memory, MB"], rows)


# Names of data and models in the table of `benchmarks/preferences.py`.
PREFERENCES = {
    "census": "Census-Income",
    "digits": "Scenes of two digits",
    "manifold": "one model, `manifold`",
    "hypernetwork": "one model, `hypernetwork(rank=4)`",
    "separate": "five models, a fifth of the updates each",
    "separate in full": "five models, all the updates each",
}


def preferences(measured: Mapping[str, Any]) -> str:
    """Returns hypervolumes of one model for all preferences and of a model for each."""
    runs: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for run in measured["runs"]:
        runs.setdefault((run["data"], run["method"]), {})[run["seed"]] = run
    # Those of every seed that the comparison has.
    seeds = {data: runs[data, "separate"].keys() for data in measured["data"]}
    volumes = {
        key: np.array([by_seed[seed]["hypervolume"] for seed in sorted(seeds[key[0]])])
        for key, by_seed in runs.items()
        if seeds[key[0]] <= by_seed.keys()
    }
    gains = {
        (data, method): volume - volumes[data, "separate"]
        for (data, method), volume in volumes.items()
        if method != "separate"
    }
    tests = paired_tests(gains, 0.0)
    rows = []
    for data, method in itertools.product(measured["data"], list(PREFERENCES)[2:]):
        if (data, method) not in volumes:
            continue
        of_all = list(runs[data, method].values())
        volume = volumes[data, method]
        rows.append(
            [
                PREFERENCES[data],
                PREFERENCES[method],
                f"{of_all[0]['updates']:,}",
                f"{of_all[0]['parameters']:,}",
                spread(volume),
                interval(tests[data, method], 3) if (data, method) in tests else "–",
                f"{np.mean([run['cpu_seconds'] for run in of_all]):.0f}",
                str(len(volume)),
            ]
        )
    head = ["", "", "updates", "weights", "hypervolume", "gain (95 %)", "CPU s"]
    return table([*head, "seeds"], rows)


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


def vision_in_short(comparison: Mapping[str, Any]) -> str:
    """Returns what one model and models of each task alone reach on `vision`."""
    alone = comparison["single"]
    methods = comparison["methods"]
    default = list(methods)[-1]
    shown = {
        "each task alone": {task: one["test"][task] for task, one in alone.items()},
        "one model, `hard, equal`": methods["hard, equal"]["test"],
        f"one model, `{default}`": methods[default]["test"],
    }
    rows = [
        [name, *(spread(test["values"]) for test in reached.values())]
        for name, reached in shown.items()
    ]
    head = [f"{task}, {one['metric']}" for task, one in comparison["tasks"].items()]
    return table(["", *head], rows)


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


class Texts(NamedTuple):
    """Tested runs of `benchmarks/text_real.py`.

    Attributes:
        joint: `{model: {seed: run}}` of the joint models.
        alone: `{seed: {task: metrics}}` of the models of one task.
    """

    joint: dict[str, dict[int, Mapping[str, Any]]]
    alone: dict[int, dict[str, Mapping[str, float]]]


def texts(measured: Mapping[str, Any]) -> Texts:
    """Returns the text models' runs."""
    by_model: dict[str, dict[int, Mapping[str, Any]]] = {}
    for run in measured["runs"]:
        by_model.setdefault(run["model"], {})[run["seed"]] = run
    single = {task: by_model.pop(task) for task in measured["round"]}
    seeds = sorted(set.intersection(*map(set, single.values())))
    alone = {s: {t: runs[s]["test"][t] for t, runs in single.items()} for s in seeds}
    return Texts(by_model, alone)


def text(measured: Mapping[str, Any]) -> str:
    """Returns the text models' results: alone, jointly, and balanced."""
    joint, alone = texts(measured)
    rows = [["one model for each task", *text_metrics(alone), "0"]]
    for name, runs in joint.items():
        changes = [text_change(runs[seed]["test"], alone[seed]) for seed in runs]
        tests = {seed: run["test"] for seed, run in runs.items()}
        rows.append([text_title(name), *text_metrics(tests), spread(changes, "+.1f")])
    head = ["", *(name for _, _, name, _ in TEXT_METRICS), "Δm, %"]
    return table(head, rows)


TEXT_METRICS = (
    ("sentiment", "accuracy", "sentiment accuracy", 1.0),
    ("answer", "exact_match", "answer exact match", 100.0),
    ("answer", "f1", "F1", 100.0),
    ("translation", "bleu", "translation BLEU", 1.0),
)
MAIN_OF_TEXT = {"sentiment": "accuracy", "answer": "f1", "translation": "bleu"}


def text_title(model: str) -> str:
    """Returns what a joint text model is called on the page."""
    method = model.removeprefix("balanced ")
    if method == model:
        return "joint, one source in each step"
    return f"joint, all sources in each step, `{method}`"


def text_metrics(by_seed: Mapping[int, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Returns text models' metrics as cells."""
    cells = []
    for task, metric, _, unit in TEXT_METRICS:
        values = [unit * tasks[task][metric] for tasks in by_seed.values()]
        cells.append(spread(values, ".3f" if metric == "accuracy" else ".1f"))
    return cells


def text_change(
    joint: Mapping[str, Mapping[str, float]], alone: Mapping[str, Mapping[str, float]]
) -> float:
    """Returns Δm in percent of a joint text model over models of one task."""
    one, other = (
        {task: tasks[task][metric] for task, metric in MAIN_OF_TEXT.items()}
        for tasks in (joint, alone)
    )
    return delta_m(one, other, dict.fromkeys(MAIN_OF_TEXT, "max"))


def text_cosines(measured: Mapping[str, Any]) -> str:
    """Returns the cosines between the text tasks' gradients, by method, and costs."""
    joint, _ = texts(measured)
    equal = next(iter(joint["balanced equal"].values()))
    tasks = sorted(measured["round"])
    pairs = list(itertools.combinations(range(len(tasks)), 2))
    rows = []
    for name, runs in joint.items():
        run = next(iter(runs.values()))
        if "mean_cosines" in run:
            price = run["train_cpu_minutes"] / equal["train_cpu_minutes"]
            rows.append(
                [
                    f"`{name.removeprefix('balanced ')}`",
                    *(f"{run['mean_cosines'][a][b]:+.2f}" for a, b in pairs),
                    f"{100 * np.mean(run['conflicts']):.0f} %",
                    f"{price:.2f}",
                ]
            )
    names = [f"{tasks[a]}, {tasks[b]}" for a, b in pairs]
    return table(["", *names, "pairs in conflict", "processor time, `equal` = 1"], rows)


def multimodal(measured: Mapping[str, Any]) -> str:
    """Returns accuracies on images, recordings and texts, by model."""
    by_model: dict[str, dict[str, list[float]]] = {}
    for run in measured["runs"]:
        for key, value in run["accuracy"].items():
            by_model.setdefault(run["model"], {}).setdefault(key, []).append(value)
    alone = {
        key: values
        for model, accuracies in by_model.items()
        if model.endswith(" alone")
        for key, values in accuracies.items()
    }
    joint = {m: of for m, of in by_model.items() if not m.endswith(" alone")}
    rows, keys = [], list(measured["runs"][0]["accuracy"])
    for model, of in (joint | {"one model for each task": alone}).items():
        rows.append([model, *(spread(of[key]) for key in keys)])
    heads = (key.split("/") for key in keys)
    return table(
        ["", *(f"{task}, {SENSES[modality]}" for task, modality in heads)], rows
    )


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


def summary(all_runs: Mapping[str, Runs]) -> str:
    """Returns the rows of the README: single tasks beside shared ones."""
    rows = []
    for data, runs in all_runs.items():
        size = SHOWN[data]
        if not runs.share("equal", size):
            continue
        alone, joint = (list(runs.means(m, size).values()) for m in ("alone", "equal"))
        tasks = [test.difference > 0 for test in runs.by_task("equal", size).values()]
        rows.append(
            [
                f"{DATA[data]}, {label(size)} labels",
                runs.measure,
                f"{np.mean(alone):.{runs.digits}f}",
                f"{np.mean(joint):.{runs.digits}f}",
                interval(runs.tests()["equal", size], runs.digits),
                f"{sum(tasks)} of {len(tasks)}",
                runs.share("equal", size).split()[0],
            ]
        )
    head = ["", "", "each alone", "shared, `equal`", "gain (95 %)", "tasks better"]
    return table([*head, "training time"], rows)


def parts() -> dict[str, str]:
    """Returns the generated parts of the pages, by name."""
    worth = results("worth")
    runs = {data: Runs(data, worth) for data in DATA if data in worth["data"]}
    runs = {data: one for data, one in runs.items() if one.tests()}
    generated = {data: gains(one) for data, one in runs.items()}
    generated["costs"] = costs(list(runs.values()))
    generated["serving"] = serving(worth)
    generated["negative"] = negative()
    comparison = ROOT / "docs" / "compare" / "vision" / "results.json"
    compared = json.loads(comparison.read_text("utf-8"))
    generated["vision"] = vision(compared)
    generated["vision in short"] = vision_in_short(compared)
    generated["worth"] = summary(runs)
    generated["qm9"] = balancing(results("qm9"))
    generated["methods of qm9"] = all_methods(results("qm9_methods"))
    generated["running steps"] = running_steps(results("step_running"))
    generated["toxcast"] = toxcast(results("toxcast"))
    generated["multimodal"] = multimodal(results("multimodal_real"))
    generated["text"] = text(results("text_real"))
    generated["cosines of text"] = text_cosines(results("text_real"))
    generated["preferences"] = preferences(results("preferences"))
    return generated


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


@styled
def draw_methods() -> None:
    """Draws the error of every balancer on QM9, docs/images/qm9_methods.png."""
    methods = by_error(results("qm9_methods"))
    figure, axis = new_figure(7.6, 0.17 * len(methods) + 0.8)
    for place, (name, method) in enumerate(methods.items()):
        values = method["by_seed"]
        axis.barh(place, values.mean(), color="C1" if name == "equal" else "C0")
        axis.plot(values, [place] * len(values), ".", color="0.2", markersize=3)
        if values.mean() > _MOST_DRAWN:
            end, text = _MOST_DRAWN - 1, f"{values.mean():+.0f}"
            axis.text(end, place, text, ha="right", va="center", fontsize=7, color="w")
    axis.set_xlim(right=_MOST_DRAWN)
    axis.set_yticks(range(len(methods)), list(methods), fontsize=7)
    axis.invert_yaxis()
    axis.axvline(0.0, color="0.2", linewidth=1)
    axis.set_xlabel("mean error over single-task models, %")
    axis.grid(axis="x")
    save_png(figure, IMAGES / "qm9_methods.png")
