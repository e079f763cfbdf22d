"""The best trial of a search on `digits`, against equal weights with hard sharing.

Runs the study `tuning/digits.toml`, then trains its best trial's settings, and equal
weighting with hard sharing and the application's defaults, with five seeds each, the
budget of one trial and the best trial's batch size, so that both take as many updates.
They are compared on the test split by Δm over the tasks trained alone, which take as
many too.

    python benchmarks/search_digits.py --work /tmp/digits

goes on with what its working folder has, and writes
`benchmarks/results/search_digits.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import time
from typing import Any

import numpy as np
from rich.console import Console

from mtl_keras import runs, search
from mtl_keras.encoding import encode
from mtl_keras.evaluation import delta_m
from mtl_keras.runs.config import RunConfig
from mtl_keras.runs.records import versions
from mtl_keras.runs.results import main_metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "search_digits.json"


def metrics_of(config: RunConfig, out: pathlib.Path) -> dict[str, float]:
    """Returns the main metrics on the test split of a run, trained if it is not."""
    if not out.exists():
        started = time.process_time()
        runs.train(config, out)
        print(f"{out.name}: {time.process_time() - started:.0f} s of CPU", flush=True)
    run = runs.load_run(out)
    return main_metrics(run.metrics, run.config.get_application())


def main() -> None:
    """Runs the study and the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    study = search.load_study(ROOT / "tuning" / "digits.toml")
    out = options.work / "study"
    records = search.run_study(study, out, console=Console())
    trial, best = search.best_config(out)
    given = study.settings
    budget = {
        "epochs": given.epochs,
        "limit": given.limit,
        "batch_size": best.batch_size,
    }
    base = RunConfig(given.application, given.data, given.tasks, **budget)
    settings = {
        "best": dataclasses.replace(best, **budget),
        "equal, hard": dataclasses.replace(base, balancing="equal", sharing="hard"),
    }
    seeds = range(options.seeds)
    directions = {t: study.application.tasks[t].direction for t in study.tasks}
    alone: dict[str, list[float]] = {task: [] for task in study.tasks}
    for seed in seeds:
        for task in study.tasks:
            config = dataclasses.replace(base, tasks=(task,), seed=seed)
            values = metrics_of(config, options.work / f"alone-{task}-{seed}")
            alone[task].append(values[task])
    baselines = {task: float(np.mean(values)) for task, values in alone.items()}
    results: dict[str, Any] = {}
    for name, config in settings.items():
        label = name.replace(", ", "-")
        metrics = [
            metrics_of(
                dataclasses.replace(config, seed=seed),
                options.work / f"{label}-{seed}",
            )
            for seed in seeds
        ]
        gains = [delta_m(values, baselines, directions) for values in metrics]
        results[name] = {
            "delta_m": gains,
            "mean": float(np.mean(gains)),
            "std": float(np.std(gains, ddof=1)),
            "metrics": metrics,
        }
    difference = np.subtract(
        results["best"]["delta_m"], results["equal, hard"]["delta_m"]
    )
    results = {
        "command": "python benchmarks/search_digits.py --work FOLDER",
        "versions": versions(),
        "study": "tuning/digits.toml",
        "trials": len(records),
        "best_trial": trial,
        "best_settings": encode(settings["best"]),
        "alone": alone,
        "results": results,
        "best_minus_equal_hard": {
            "mean": float(difference.mean()),
            "std": float(difference.std(ddof=1)),
            "seeds_better": int((difference > 0).sum()),
        },
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results["best_minus_equal_hard"], indent=1))


if __name__ == "__main__":
    main()
