"""What the page on search has of results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from evidence.markdown import mean_and_std, results, table

# Methods of `benchmarks/search_fronts.py`, by their titles.
PARETO, SUMMED = "ParetoOracle", "KerasTuner's Bayesian, summed"
METHODS = {"random": "random", f"`{PARETO}`": PARETO, SUMMED: SUMMED}

OTHERS = (
    "A worker is therefore replaced when it holds 15 % more than after its first "
    "trials.",
)


def fronts(measured: Mapping[str, Any]) -> str:
    """Returns hypervolumes of searches on problems whose fronts are known."""
    trials = measured["trials"]
    rows = []
    for problem, of in measured["summary"].items():
        volumes = [of[name][f"after_{trials}"] for name in METHODS.values()]
        rows.append(
            [
                problem,
                f"{of['true_front']:.2f}",
                *map(mean_and_std, volumes),
                str(of["trials_to_reach_what_random_ends_with"]),
            ]
        )
    reached = f"trials to reach random's {trials}"
    return table(["", "true front", *METHODS, reached], rows)


def parts() -> dict[str, str]:
    """Returns the generated parts of the page, by name."""
    return {"search fronts": fronts(results("search_fronts"))}


def first_trials(measured: Mapping[str, Any]) -> str:
    """Returns where the summed objective is ahead after half of the trials."""
    half = measured["trials"] // 2
    ahead = [
        problem
        for problem, of in measured["summary"].items()
        if of[SUMMED][f"after_{half}"]["mean"] > of[PARETO][f"after_{half}"]["mean"]
    ]
    return (
        f"In the first {half} trials of {' and '.join(ahead)} the summed objective is "
        "ahead"
    )


def digits(measured: Mapping[str, Any]) -> str:
    """Returns what the best trial of a study gains over the defaults."""
    found = measured["best_settings"]
    steps = found["epochs"] * math.ceil(found["limit"] / found["batch_size"])
    best, equal = (measured["results"][name] for name in ("best", "equal, hard"))
    parity = [
        np.mean([metrics["even_sum"] for metrics in of["metrics"]])
        for of in (best, equal)
    ]
    return (
        f"all with {steps} updates (`python benchmarks/search_digits.py`): Δm over "
        f"single tasks is {mean_and_std(best, '.1f')} %, against "
        f"{mean_and_std(equal, '.1f')} %. The best trial has equal weights and hard "
        f"sharing too, and a learning rate of {found['learning_rate']:.4f}. Most of "
        "both is the parity of the sum, an accuracy of "
        f"{' and '.join(f'{value:.2f}' for value in parity)} that a model of its own "
        f"does not learn ({np.mean(measured['alone']['even_sum']):.2f})."
    )


def memory(measured: Mapping[str, Any]) -> str:
    """Returns how much the processes of a long study grew."""
    held = [trial["memory_mb"] for trial in measured["by_trial"]]
    # It falls where a worker is replaced.
    grown = [change for change in np.diff(held) if change > 0]
    growth = {
        role: max(
            process["growth"]
            for process in measured["processes"]
            if process["role"] == role and process["growth"] is not None
        )
        for role in ("worker", "parent")
    }
    return (
        f"In a study of {measured['trials']} trials of two tasks a worker grew by "
        f"{np.median(grown):.0f} MB from one trial to the next (median), none by more "
        f"than {100 * growth['worker']:.1f} % after its tenth trial, and "
        f"`mtl-keras tune` by {100 * growth['parent']:.1f} %"
    )


def workers(measured: Mapping[str, Any]) -> str:
    """Returns how much sooner two workers finish a study of small trials."""
    one, two = (measured["runs"][count]["seconds"] for count in ("1", "2"))
    return (
        f"A study of {measured['runs']['2']['trials']} trials of a second or two each "
        f"took two workers on {measured['cores']} cores {two:.0f} s, and one "
        f"{one:.0f} s, {measured['times_sooner_than_one']['2']} times as long"
    )


def sentences() -> list[str]:
    """Returns sentences of the page with figures, as the results have them."""
    known = results("search_fronts")
    return [
        f"Hypervolume after {known['trials']} trials in place of trainings",
        first_trials(known),
        digits(results("search_digits")),
        memory(results("search_memory")["200 trials"]),
        workers(results("search_workers")),
    ]
