"""Searches for several objectives on problems whose fronts are known.

ZDT1 and ZDT2 (Zitzler, Deb and Thiele, Evolutionary Computation 8(2), 2000) with two
objectives and DTLZ2 (Deb, Thiele, Laumanns and Zitzler, 2005) with three, all in six
variables, take the place of training. Each search has 40 trials and is repeated with 10
seeds: by ParetoOracle, by KerasTuner's random search, and by KerasTuner's Bayesian
search on the summed objective.

    python benchmarks/search_fronts.py

writes `benchmarks/results/search_fronts.json` and `docs/images/search_fronts.png`: the
hypervolume over trials, as a share of the true front's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pathlib
import platform
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
from mtl_keras.search import ParetoOracle

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "search_fronts.json"
PICTURE = ROOT / "docs" / "images" / "search_fronts.png"
VARIABLES = 6
COLORS = ("C0", "C1", "C2")


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


def draw(curves: dict, path: pathlib.Path) -> None:
    """Draws mean and spread of the curves, one panel per problem."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (name, methods) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        for color, (method, runs) in zip(COLORS, methods.items(), strict=True):
            shares = np.asarray(runs) / true_volume(name)
            count = np.arange(1, shares.shape[1] + 1)
            mean, spread = shares.mean(0), shares.std(0)
            axis.plot(count, mean, color=color, label=method)
            axis.fill_between(
                count, mean - spread, mean + spread, color=color, alpha=0.2
            )
        axis.set_title(name, fontsize="medium")
        axis.set_xlabel("trials")
        axis.set_ylim(0.4, 1.0)
        axis.grid(alpha=0.25)
    figure.axes[0].set_ylabel("hypervolume / true front's")
    figure.axes[0].legend(loc="lower right", fontsize="small")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)


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
    methods = ("ParetoOracle", "random", "KerasTuner's Bayesian, summed")
    cases = [
        (name, method, options.trials, seed)
        for name in options.problems
        for seed in range(options.seeds)
        for method in methods
    ]
    # TensorFlow, which KerasTuner loads, does not survive a fork.
    spawn = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
        results = pool.map(search, *zip(*cases, strict=True))
        runs = dict(zip(cases, results, strict=True))
    curves: dict[str, dict[str, list]] = {}
    summary: dict[str, dict] = {}
    half = options.trials // 2
    for name in options.problems:
        curves[name] = {}
        summary[name] = {"true_front": true_volume(name)}
        for method in methods:
            own = [run for case, run in runs.items() if case[:2] == (name, method)]
            curves[name][method] = [curve for curve, _ in own]
            array = np.asarray(curves[name][method])
            summary[name][method] = {
                f"after_{half}": mean_and_spread(array[:, half - 1]),
                f"after_{options.trials}": mean_and_spread(array[:, -1]),
                "cpu_seconds_per_search": float(np.mean([s for _, s in own])),
            }
        mean = np.mean(curves[name]["ParetoOracle"], axis=0)
        goal = summary[name]["random"][f"after_{options.trials}"]["mean"]
        reached = np.flatnonzero(mean >= goal)
        summary[name]["trials_to_reach_what_random_ends_with"] = (
            int(reached[0]) + 1 if len(reached) else None
        )
        print(name, json.dumps(summary[name], indent=1), flush=True)
    results = {
        "command": "python benchmarks/search_fronts.py " + " ".join(sys.argv[1:]),
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("keras-tuner", "scikit-learn", "numpy")},
        },
        "trials": options.trials,
        "seeds": list(range(options.seeds)),
        "reference": {name: PROBLEMS[name][1] for name in options.problems},
        "summary": summary,
        "curves": {
            name: {m: np.round(c, 5).tolist() for m, c in methods_.items()}
            for name, methods_ in curves.items()
        },
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(curves, options.picture)


def mean_and_spread(values: np.ndarray) -> dict[str, float]:
    """Returns mean and standard deviation over seeds."""
    return {"mean": float(values.mean()), "std": float(values.std())}


if __name__ == "__main__":
    main()
