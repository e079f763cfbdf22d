"""What the page on balancing has of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evidence.markdown import (
    IMAGES,
    method_title,
    power,
    results,
    span,
    spread,
    table,
)
from mtl_keras.reports.figures import new_figure, save_png, styled

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
_MOST_DRAWN = 60  # percent; longer bars are cut off and bear their number


def method_on_qm9(name: str, values: np.ndarray) -> list[str]:
    """Returns a method's name and its error over single-task models, with spread."""
    if name == "single":
        return ["one model for each target", "0"]
    return [method_title(name), spread(values, "+.1f")]


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


def sentences() -> list[str]:
    """Returns the page's sentences with figures, as the results have them."""
    defects: dict[str, list[float]] = {}
    for row in results("gradient_noise")["rows"]:
        defects.setdefault(row["dtype"], []).append(row["defect"])
    *others, most = sorted(defects["mixed_bfloat16"])
    pairs = [(r["vectorised"], r["loop"]) for r in results("column_gradients")["rows"]]
    times = [vectorised["ms"] / loop["ms"] for vectorised, loop in pairs]
    memory = max(one["memory_mb"] / loop["memory_mb"] for one, loop in pairs)
    return [
        "a gradient that is the mean of two others is off by at most "
        f"{power(max(defects['float32']), 1)}, {max(defects['mixed_float16']):.3f} and "
        f"{most:.3f}; the last, above its bound, is one case of {len(others) + 1} "
        "(convolutions trained on the very batch, on a CPU that computes in "
        f"bfloat16), the others are at most {others[-1]:.3f}.",
        f"`tf.vectorized_map` in its place takes {span(times, '.1f')} times as long, "
        f"and up to {memory:.1f} times the memory",
    ]


OTHERS = (
    "weigh losses of 1e13 and 0.7 alike from the first step",
    "(2e-5 for float32, 0.01 for float16, 0.04 for bfloat16) of unit gradients counts",
    "`fairgrad` at gradients near 1e-30",
    "From 0.95 on reports and images call it a conflict",
    "617 assays, 29 % of the labels known",
    "Adam at 0.001 for 100 000 steps",
)


def parts() -> dict[str, str]:
    """Returns the generated parts of the page, by name."""
    return {
        "methods of qm9": all_methods(results("qm9_methods")),
        "running steps": running_steps(results("step_running")),
        "toxcast": toxcast(results("toxcast")),
    }


@styled
def draw() -> None:
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
