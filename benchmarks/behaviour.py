"""Conversions of all impressions: ESMM against a tower that sees clicks only.

    python benchmarks/behaviour.py

`behaviour/small`, generated, whose true probabilities are known. `esmm` learns the
conversion through click and click-and-conversion on all impressions; `clicks only` is
one tower trained on clicked impressions; `hard` shares one tower between click and a
conversion trained on clicked impressions. Same features, widths, optimizer and
epochs; each keeps the epoch that is best at telling conversions among the clicks of the
validation split, which a shop can observe. Tested on all impressions of the test
split, with conversions drawn from the true probability for clicked and other
impressions alike. Five seeds. Writes benchmarks/results/behaviour.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

from mtl_keras import data
from mtl_keras.encoding import encode
from mtl_keras.evaluation import by_slice, calibration_error, group_auc, ndcg
from mtl_keras.runs import RunConfig
from mtl_keras.runs.config import TrainingConfig
from mtl_keras.runs.records import versions
from mtl_keras.runs.training import compiled_model, load_split

DATA = "behaviour/small"
MODELS: dict[str, tuple[tuple[str, ...], str]] = {
    "esmm": (("click", "conversion", "click_and_conversion"), "esmm"),
    "clicks only": (("conversion",), "hard"),
    "hard": (("click", "conversion"), "hard"),
}
SEEDS = range(5)
RESULTS = pathlib.Path(__file__).parent / "results" / "behaviour.json"


def predictions(config: TrainingConfig, valid: dict[str, Any]) -> dict[str, np.ndarray]:
    """Trains a model and returns its outputs on the test split, `{task: [rows]}`."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(config.seed)
    train, validation, test = (
        load_split(config, split) for split in ("train", "validation", "test")
    )
    model = compiled_model(config, len(train) * config.epochs)
    clicked = valid["click"] == 1
    best, weights = 0.0, None
    for epoch in range(config.epochs):
        model.fit(
            train, epochs=epoch + 1, initial_epoch=epoch, shuffle=False, verbose=0
        )
        predicted = model.predict(validation, verbose=0)["conversion"][clicked, 0]
        auc = roc_auc_score(valid["conversion"][clicked], predicted)
        if auc > best:
            best, weights = auc, model.get_weights()
    model.set_weights(weights)
    return {task: p[:, 0] for task, p in model.predict(test, verbose=0).items()}


def measured(test: dict[str, Any], predicted: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the metrics of one model."""
    p, true = predicted["conversion"], test["conversion_probability"]
    drawn, clicked = test["conversion_if_clicked"], test["click"] == 1
    results: dict[str, Any] = {
        "conversion": {
            "auc_all_impressions": float(roc_auc_score(drawn, p)),
            "auc_clicked": float(roc_auc_score(drawn[clicked], p[clicked])),
            "log_loss_all_impressions": float(log_loss(drawn, p)),
            "calibration_error_all_impressions": calibration_error(true, p),
            "calibration_error_clicked": calibration_error(true[clicked], p[clicked]),
            "by_activity": by_slice(
                {"auc": roc_auc_score},
                test["impressions_before"],
                [10, 30],
                drawn,
                p,
            ),
        }
    }
    if "click" in predicted:
        click, users = predicted["click"], test["user_id"]
        results["click"] = {
            "auc": float(roc_auc_score(test["click"], click)),
            "group_auc": group_auc(test["click"], click, users),
            "ndcg_at_10": ndcg(test["click"], click, users, k=10),
            "log_loss": float(log_loss(test["click"], click)),
            "calibration_error": calibration_error(test["click_probability"], click),
        }
    return results


def summary(runs: list[Any]) -> Any:
    """Returns mean and sample standard deviation of nested numbers."""
    if isinstance(runs[0], dict):
        return {key: summary([run[key] for run in runs]) for key in runs[0]}
    return {"mean": float(np.mean(runs)), "std": float(np.std(runs, ddof=1))}


def main() -> None:
    """Trains and tests all models."""
    valid, test = (data.read_table(DATA, split) for split in ("validation", "test"))
    results: dict[str, Any] = {
        "command": "python benchmarks/behaviour.py",
        "versions": versions(),
        "data": DATA,
        "seeds": list(SEEDS),
        "true_probability": measured(
            test,
            {
                "click": test["click_probability"],
                "conversion": test["conversion_probability"],
            },
        ),
        "models": {},
    }
    for name, (tasks, sharing) in MODELS.items():
        config = RunConfig(
            "recommendation", data=DATA, tasks=tasks, sharing=sharing
        ).validate()
        runs = []
        for seed in SEEDS:
            seeded = dataclasses.replace(config, seed=seed)
            runs.append(measured(test, predictions(seeded, valid)))
            print(name, seed, json.dumps(runs[-1]["conversion"]), flush=True)
        results["models"][name] = {
            "config": encode(config),
            "runs": runs,
            "summary": summary(runs),
        }
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
