"""Searches for several objectives on problems whose fronts are known.

ZDT1 and ZDT2 (Zitzler, Deb and Thiele, Evolutionary Computation 8(2), 2000) with two
objectives and DTLZ2 (Deb, Thiele, Laumanns and Zitzler, 2005) with three, all in six
variables, take the place of training. Each search has 40 trials and is repeated with 10
seeds: by ParetoOracle, by KerasTuner's random search, and by KerasTuner's Bayesian
search on the summed objective.

    python benchmarks/search_fronts.py

goes on with the runs that `benchmarks/results/search_fronts.json` lacks, writes it and
draws `docs/images/search_fronts.png`: the hypervolume over trials, as a share of the
true front's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pathlib
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent import futures
from importlib.metadata import version

import keras_tuner
import numpy as np

from mtl_keras.evaluation import hypervolume
from mtl_keras.runs.records import commit, made_with
from mtl_keras.search import ParetoOracle

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "search_fronts.json"
PICTURE = ROOT / "docs" / "images" / "search_fronts.png"
VARIABLES = 6
METHODS = ("ParetoOracle", "random", "KerasTuner's Bayesian, summed")


def zdt1(x: np.ndarray) -> list[float]:
    """Returns both objectives at `[6]`; the front is convex."""
    g = 1 + 9 * np.mean(x[1:])
    return [x[0], g * (1 - np.sqrt(x[0] / g))]


def zdt2(x: np.ndarray) -> list[float]:
    """Returns both objectives at `[6]`; the front is concave."""
    g = 1 + 9 * np.mean(x[1:])
    return [x[0], g * (1 - (x[0] / g) ** 2)]


def dtlz2(x: np.ndarray, tasks: int = 3) -> list[float]:
    """Returns the objectives at `[6]`; the front is an octant of the sphere."""
    angles, rest = x[: tasks - 1] * np.pi / 2, x[tasks - 1 :]
    radius = 1 + np.sum((rest - 0.5) ** 2)
    objectives = []
    for task in range(tasks):
        value = radius * np.prod(np.cos(angles[: tasks - 1 - task]))
        objectives.append(value * (np.sin(angles[-task]) if task else 1.0))
    return objectives


# The reference is 1.1 times the largest value that an objective takes anywhere.
PROBLEMS: dict[str, tuple[Callable, list[float]]] = {
    "ZDT1": (zdt1, [1.1, 11.0]),
    "ZDT2": (zdt2, [1.1, 11.0]),
    "DTLZ2": (dtlz2, [2.2] * 3),
}


def true_volume(name: str) -> float:
    """Returns the hypervolume of the whole front.

    It is the box up to the reference without what lies below the front: the area
    under the curve for ZDT, an eighth of the unit ball for DTLZ2.
    """
    below = {"ZDT1": 1 / 3, "ZDT2": 2 / 3, "DTLZ2": np.pi / 6}
    return float(np.prod(PROBLEMS[name][1])) - below[name]


def oracle_of(method: str, objectives: list, trials: int, seed: int):
    """Makes one of the compared oracles, over six variables in [0, 1]."""
    space = keras_tuner.HyperParameters()
    for index in range(VARIABLES):
        space.Float(f"x{index}", 0.0, 1.0)
    common = {"max_trials": trials, "hyperparameters": space, "seed": seed + 1}
    if method == "ParetoOracle":
        return ParetoOracle(objectives, **common)
    if method == "random":
        return keras_tuner.oracles.RandomSearchOracle(objectives, **common)
    # As many guided trials as ParetoOracle has.
    return keras_tuner.oracles.BayesianOptimizationOracle(
        objectives, num_initial_points=VARIABLES + 2, **common
    )


class FunctionTuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Evaluates a function instead of training a model."""

    function: Callable

    def run_trial(self, trial, *args, **kwargs):
        """Returns the objectives and their sum, which KerasTuner asks for."""
        point = [trial.hyperparameters.get(f"x{i}") for i in range(VARIABLES)]
        values = self.function(np.asarray(point))
        names = {f"f{index}": float(value) for index, value in enumerate(values)}
        return {**names, "multi_objective": float(sum(values))}


def search(name: str, method: str, trials: int, seed: int) -> tuple[list, float]:
    """Returns the hypervolume after each trial, and the seconds of CPU time."""
    warnings.filterwarnings("ignore")  # a kernel's scale at a bound is no news
    function, reference = PROBLEMS[name]
    objectives = [keras_tuner.Objective(f"f{i}", "min") for i in range(len(reference))]
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        oracle = oracle_of(method, objectives, trials, seed)
        tuner = FunctionTuner(oracle, directory=folder, project_name="search")
        tuner.function = function
        tuner.search(verbose=0)
    spent = time.process_time() - started
    points = [
        [trial.metrics.get_last_value(o.name) for o in objectives]
        for _, trial in sorted(oracle.trials.items())
    ]
    ways = ["min"] * len(reference)
    return [
        hypervolume(points[: n + 1], reference, ways) for n in range(len(points))
    ], spent


def draw(runs: dict, options: argparse.Namespace) -> None:
    """Draws mean and spread of the curves, one panel per problem."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(options.problems), squeeze=False)[0]
    for axis, name in zip(panels, options.problems, strict=True):
        for method in METHODS:
            own = runs_of(runs, name, method, options)
            shares = np.asarray([run["curve"] for run in own]) / true_volume(name)
            count = np.arange(1, shares.shape[1] + 1)
            mean, spread = shares.mean(0), shares.std(0, ddof=1)
            axis.plot(count, mean, label=f"{method} ({len(own)} seeds)")
            axis.fill_between(count, mean - spread, mean + spread, alpha=0.2)
        axis.set_title(name, fontsize="medium")
        axis.set_xlabel("trials")
        axis.set_ylim(0.5, 1.0)
        axis.grid(alpha=0.25)
    panels[0].set_ylabel("hypervolume / the true front's")
    panels[0].legend(loc="lower right", fontsize="small")
    options.picture.parent.mkdir(exist_ok=True)
    figure.savefig(options.picture)


def main() -> None:
    """Runs all searches and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--jobs", type=int, default=1, help="searches at a time")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--picture", type=pathlib.Path, default=PICTURE)
    options = parser.parse_args()
    cases = [
        (name, method, options.trials, seed)
        for method in METHODS
        for seed in range(options.seeds)
        for name in options.problems
    ]
    runs: dict[str, dict] = {}
    if options.out.is_file():
        runs = json.loads(options.out.read_text(encoding="utf-8"))["runs"]
    todo = [case for case in cases if key_of(case) not in runs]
    # TensorFlow, which KerasTuner loads, does not survive a fork.
    spawn = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
        waiting = {pool.submit(search, *case): case for case in todo}
        for done in futures.as_completed(waiting):
            curve, seconds = done.result()
            runs[key_of(waiting[done])] = {
                "commit": commit(),
                "seconds": seconds,
                "curve": curve,
            }
            write(options, runs)
    print(json.dumps(write(options, runs)["summary"], indent=1))
    draw(runs, options)


def key_of(case: tuple) -> str:
    """Returns a case as the results file names it."""
    return "/".join(map(str, case))


def runs_of(runs: dict, name: str, method: str, options: argparse.Namespace) -> list:
    """Returns the finished runs of one method on one problem."""
    keys = [key_of((name, method, options.trials, s)) for s in range(options.seeds)]
    return [runs[key] for key in keys if key in runs]


def write(options: argparse.Namespace, runs: dict) -> dict:
    """Writes the results so far, and returns them."""
    summary: dict[str, dict] = {}
    half = options.trials // 2
    for name in options.problems:
        summary[name] = {"true_front": true_volume(name)}
        for method in METHODS:
            own = runs_of(runs, name, method, options)
            if not own:
                continue
            array = np.asarray([run["curve"] for run in own])
            summary[name][method] = {
                "seeds": len(own),
                f"after_{half}": mean_and_spread(array[:, half - 1]),
                f"after_{options.trials}": mean_and_spread(array[:, -1]),
                "cpu_seconds_per_search": float(np.mean([r["seconds"] for r in own])),
            }
        both = [runs_of(runs, name, m, options) for m in METHODS[:2]]
        if all(both):
            curves, ends = (np.asarray([r["curve"] for r in own]) for own in both)
            reached = np.flatnonzero(curves.mean(0) >= ends[:, -1].mean())
            summary[name]["trials_to_reach_what_random_ends_with"] = (
                int(reached[0]) + 1 if len(reached) else None
            )
    results = {
        "command": " ".join(["python benchmarks/search_fronts.py", *sys.argv[1:]]),
        "made_with": made_with(jobs=options.jobs),
        "versions": {p: version(p) for p in ("keras-tuner", "scikit-learn")},
        "trials": options.trials,
        "reference": {name: PROBLEMS[name][1] for name in options.problems},
        "summary": summary,
        "runs": {
            key: {
                "commit": run["commit"],
                "seconds": round(run["seconds"], 2),
                "curve": np.round(run["curve"], 5).tolist(),
            }
            for key, run in sorted(runs.items())
        },
    }
    text = json.dumps(results, indent=1)
    # One line for each curve.
    text = re.sub(r"\[[^\[\]{}]*\]", lambda m: " ".join(m[0].split()), text)
    options.out.write_text(text + "\n", encoding="utf-8")
    return results


def mean_and_spread(values: np.ndarray) -> dict[str, float]:
    """Returns mean and standard deviation over seeds."""
    return {"mean": float(values.mean()), "std": float(values.std(ddof=1))}


if __name__ == "__main__":
    main()
