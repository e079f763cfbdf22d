"""What the page on Pareto fronts has of results."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from evidence.markdown import interval, results, spread, table
from mtl_keras.evaluation import paired_tests

# Names of data and models in the table of `benchmarks/preferences.py`.
PREFERENCES = {
    "census": "Census-Income",
    "digits": "Scenes of two digits",
    "manifold": "one model, `manifold`",
    "hypernetwork": "one model, `hypernetwork(rank=4)`",
    "separate": "five models, a fifth of the updates each",
    "separate in full": "five models, all the updates each",
}

OTHERS = (
    "which spreads the solutions; try λ from 0.01 to 8",
    "hypervolume of the losses at these points up to 1.1 times the largest of each "
    "task",
    "with the 95 % interval of the paired difference (bold: significant at 5 % after "
    "Holm's correction)",
)


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


def parts() -> dict[str, str]:
    """Returns the generated parts of the page, by name."""
    return {"preferences": preferences(results("preferences"))}


def sentences() -> list[str]:
    """Returns sentences of the page with figures, as the results have them."""
    measured = results("preferences")
    runs = [run for run in measured["runs"] if run["method"] == "separate"]
    each = runs[0]["updates"] // len(measured["preferences"])
    return [f"each of the five models has its own {each}, after which"]
