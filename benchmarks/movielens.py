"""MovieLens split by time: rating and liking against user and movie biases.

    mtl-keras datasets prepare movielens_history --downloads DIR
    python benchmarks/movielens.py baselines multi hard rating liked

The newest tenth of the ratings is the test split, the tenth before it the validation
split. Models read the movie, what its earlier ratings were, and the user's earlier
ratings; they are trained with five seeds and the application's defaults, which a few
runs on validation set: `multi` on both tasks, `hard` on both with hard sharing,
`rating` and `liked` alone.

`biases` is mean + user bias + movie bias, by regularised least squares on the training
split, the two regularisations chosen on validation. `running means` has what the
models have: user and movie means of all ratings before each one, less the overall
mean of the training split. Both rank `liked` by their rating. Writes
benchmarks/results/movielens_*.json, and after every run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.metrics import roc_auc_score

from mtl_keras import data
from mtl_keras.encoding import encode
from mtl_keras.evaluation import by_slice, ndcg
from mtl_keras.runs import RunConfig
from mtl_keras.runs.config import TrainingConfig
from mtl_keras.runs.records import versions
from mtl_keras.runs.training import compiled_model, load_split

DATA = "movielens_history"
MODELS: dict[str, dict[str, Any]] = {
    "multi": {"tasks": ("rating", "liked")},
    "hard": {"tasks": ("rating", "liked"), "sharing": "hard"},
    "rating": {"tasks": ("rating",), "sharing": "hard"},
    "liked": {"tasks": ("liked",), "sharing": "hard"},
}
SEEDS = range(5)
STRENGTHS = (1, 3, 10, 30)
COLUMNS = ("user_id", "movie_id", "rating", "liked", "user_mean", "movie_mean")
RESULTS = pathlib.Path(__file__).parent / "results"


def rmse(true: np.ndarray, predicted: np.ndarray) -> float:
    """Returns the root of the mean squared error."""
    return float(np.sqrt(np.mean((np.float64(true) - predicted) ** 2)))


def biases(
    train: dict[str, Any], test: dict[str, Any], user: float, movie: float
) -> np.ndarray:
    """Returns ratings of the test rows, 0 being the bias of what is unknown."""
    mean = train["rating"].mean(dtype=np.float64)
    known = {
        name: np.unique(train[name], return_inverse=True, return_counts=True)
        for name in ("user_id", "movie_id")
    }
    offsets = {name: np.zeros(len(values[0])) for name, values in known.items()}
    pairs = (("user_id", "movie_id", user), ("movie_id", "user_id", movie))
    for _ in range(20):
        for name, other, strength in pairs:
            _, index, counts = known[name]
            rest = train["rating"] - mean - offsets[other][known[other][1]]
            sums = np.bincount(index, rest, len(counts))
            offsets[name] = sums / (counts + strength)
    total = np.full(len(test["rating"]), mean)
    for name, (values, _, _) in known.items():
        found = dict(zip(values.tolist(), offsets[name].tolist(), strict=True))
        total += [found.get(value, 0.0) for value in test[name].tolist()]
    return total


def scores(test: dict[str, Any], predicted: np.ndarray) -> dict[str, float]:
    """Returns both tasks' metrics of predicted ratings."""
    return {
        "rating_rmse": rmse(test["rating"], predicted),
        "liked_auc": float(roc_auc_score(test["liked"], predicted)),
        "ndcg_at_10": ndcg(test["rating"], predicted, test["user_id"], k=10),
    }


def baselines() -> dict[str, Any]:
    """Returns the baselines' metrics and what is known of the test split."""
    train, validation, test = (
        data.read_table(DATA, split, columns=COLUMNS)
        for split in ("train", "validation", "test")
    )
    chosen = min(
        ((user, movie) for user in STRENGTHS for movie in STRENGTHS),
        key=lambda s: rmse(validation["rating"], biases(train, validation, *s)),
    )
    mean = train["rating"].mean(dtype=np.float64)
    running = test["user_mean"] + test["movie_mean"] - mean
    return {
        "test_rows": len(test["rating"]),
        "share_of_rows_of_unseen_users": float(
            1 - np.isin(test["user_id"], train["user_id"]).mean()
        ),
        "share_of_rows_of_unseen_movies": float(
            1 - np.isin(test["movie_id"], train["movie_id"]).mean()
        ),
        "biases": {
            "user_strength": chosen[0],
            "movie_strength": chosen[1],
            **scores(test, biases(train, test, *chosen)),
        },
        "running_means": scores(test, running),
    }


def measured(config: TrainingConfig, test: dict[str, Any]) -> dict[str, Any]:
    """Trains a model and returns its metrics on the test split."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(config.seed)
    train = load_split(config, "train")
    model = compiled_model(config, len(train) * config.epochs)
    model.fit(train, epochs=config.epochs, shuffle=False, verbose=0)
    predicted = {
        task: values[:, 0]
        for task, values in model.predict(load_split(config, "test"), verbose=0).items()
    }
    results: dict[str, Any] = {}
    if "rating" in predicted:
        results["rating_rmse"] = rmse(test["rating"], predicted["rating"])
        results["ndcg_at_10"] = ndcg(
            test["rating"], predicted["rating"], test["user_id"], k=10
        )
        results["rating_rmse_by_activity"] = by_slice(
            {"rmse": rmse},
            test["user_count"],
            [5, 30],
            test["rating"],
            predicted["rating"],
        )
    if "liked" in predicted:
        results["liked_auc"] = float(roc_auc_score(test["liked"], predicted["liked"]))
    return results


def summary(runs: list[Any]) -> Any:
    """Returns mean and sample standard deviation of nested numbers."""
    if isinstance(runs[0], dict):
        return {key: summary([run[key] for run in runs]) for key in runs[0]}
    std = float(np.std(runs, ddof=1)) if len(runs) > 1 else 0.0
    return {"mean": float(np.mean(runs)), "std": std}


def main() -> None:
    """Computes the named parts, or all."""
    for name in sys.argv[1:] or ("baselines", *MODELS):
        path = RESULTS / f"movielens_{name}.json"
        results: dict[str, Any] = {
            "command": f"python benchmarks/movielens.py {name}",
            "versions": versions(),
        }
        if name == "baselines":
            results |= baselines()
            path.write_text(json.dumps(results, indent=2) + "\n")
            print(json.dumps(results), flush=True)
            continue
        test = data.read_table(DATA, "test", columns=(*COLUMNS, "user_count"))
        config = RunConfig("recommendation", data=DATA, **MODELS[name]).validate()
        results |= {"config": encode(config), "runs": []}
        for seed in SEEDS:
            run = measured(dataclasses.replace(config, seed=seed), test)
            results["runs"].append({"seed": seed, **run})
            results["summary"] = summary(
                [{k: v for k, v in r.items() if k != "seed"} for r in results["runs"]]
            )
            path.write_text(json.dumps(results, indent=2) + "\n")
            print(name, seed, json.dumps(run), flush=True)


if __name__ == "__main__":
    main()
