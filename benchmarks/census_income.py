"""Census-Income in the protocol of the MMoE paper: hard sharing, MMoE and PLE.

    mtl-keras datasets prepare census_income --downloads DIR
    python benchmarks/census_income.py income hard mmoe ple single
    python benchmarks/census_income.py education hard mmoe ple single

Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts", KDD 2018, section 5.1. 199,523 rows to train on, the 99,762 test
rows split 1:1 into validation and test. Group `income`: income above 50,000 dollars
and never married; group `education`: at least some college and never married. The
columns of a group's tasks are no inputs of its models, nor is the income.

Each way to share is tuned by a study of its own (Bayesian search, `BUDGET` trials of
`EPOCHS` epochs) on the validation split, for the mean AUC of both tasks; single-task
models take the settings found for hard sharing. The best settings are trained with
five seeds, and the last epoch is tested: nothing is chosen on the test split. AUCs are
exact. Results files are written after every run, and a second start goes on with the
missing ones.

Lookups, bins and normalisation have nothing to learn. They run once over the table
here instead of in every step (`Encoded`), which halves the time and changes no result.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import time
from collections.abc import Iterable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from sklearn.metrics import roc_auc_score

from mtl_keras import applications, search
from mtl_keras.applications import features
from mtl_keras.data.passes import shuffled
from mtl_keras.encoding import encode
from mtl_keras.runs.config import TrainingConfig
from mtl_keras.runs.records import commit, versions
from mtl_keras.runs.training import compiled_model, load_split

GROUPS = {
    "income": ("income", "never_married"),
    "education": ("college", "never_married"),
}
# Best and mean AUC of 400 runs, from the paper's tables 4 and 5.
PAPER = {
    "income": {
        "mmoe": {"income": [0.9410, 0.9359], "never_married": [0.9926, 0.9927]},
        "single": {"income": [0.9398, 0.9337], "never_married": [0.9933, 0.9922]},
    },
    "education": {
        "mmoe": {"college": [0.8860, 0.8826], "never_married": [0.9932, 0.9924]},
    },
}
METHODS: dict[str, list[Any]] = {
    "hard": ["hard"],
    "mmoe": [
        {"class_name": "mmoe", "config": {"num_experts": count}} for count in (4, 8)
    ],
    "ple": [
        {
            "class_name": "ple",
            "config": {"num_shared_experts": shared, "num_task_experts": own},
        }
        for shared, own in ((1, 1), (2, 2))
    ],
}
BUDGET = {"hard": 6, "mmoe": 3, "ple": 3}
EPOCHS = 3
SEEDS = range(5)
BATCH = 1_024
RESULTS = pathlib.Path(__file__).parent / "results"


class Encoded(applications.Recommendation):
    """The application, with what its models compute before the first weight cached.

    A single-task model leaves out the columns of both tasks of its group.
    """

    group = ""

    def inputs_of(self, tasks: Iterable[str]) -> dict[str, keras.KerasTensor]:
        """Returns inputs for the encoded columns."""
        fields, numbers = _raw(self.group).outputs
        return {
            "fields": keras.Input(fields.shape[1:], dtype="int32", name="fields"),
            "numbers": keras.Input(numbers.shape[1:], name="numbers"),
        }

    def encode(self, inputs: Any, backbone: str, width: int) -> keras.KerasTensor:
        """Embeds the encoded columns, as the application does."""
        size = sum(_raw(self.group).get_layer("fields").sizes)
        vectors = features.embed_fields(inputs["fields"], size)
        return keras.layers.Concatenate(name="features")([vectors, inputs["numbers"]])

    def load(self, split: str, **kwargs: Any) -> tf.data.Dataset:
        """Returns batches of encoded columns and labels."""
        chosen = tuple(kwargs["tasks"])
        inputs, labels = _encoded(self.group, split)
        samples = inputs, {task: labels[task] for task in chosen}
        order = tf.data.Dataset.range(len(labels[chosen[0]]))
        if kwargs.get("shuffle"):
            order = shuffled(order, len(order), kwargs["seed"], kwargs.get("epoch"))
        return order.batch(kwargs["batch_size"]).map(
            lambda rows: keras.tree.map_structure(
                lambda values: tf.gather(values, rows), samples
            )
        )


@functools.lru_cache
def _raw(group: str) -> keras.Model:
    """Returns the part of a group's model that has no weights."""
    raw = applications.Recommendation("census_income")
    model = raw.build(tasks=GROUPS[group], sharing="hard")
    ends = [model.get_layer(name) for name in ("fields", "numbers")]
    return keras.Model(model.inputs, [layer.output for layer in ends])


@functools.lru_cache
def _encoded(group: str, split: str) -> Any:
    """Encodes a split once; returns inputs and labels."""
    encode = tf.function(_raw(group), autograph=False)
    batches = []
    raw = applications.Recommendation("census_income")
    for x, y in raw.load(split, batch_size=8_192, tasks=GROUPS[group]):
        fields, numbers = encode(x)
        batches.append(({"fields": fields, "numbers": numbers}, y))
    return keras.tree.map_structure(lambda *parts: tf.concat(parts, 0), *batches)


def tuned(group: str, method: str, folder: pathlib.Path) -> TrainingConfig:
    """Returns the best settings of a method, out of a study of its own."""
    sharing = METHODS[method]
    study = search.StudySettings(
        application="recommendation",
        data="census_income",
        tasks=GROUPS[group],
        space={
            "sharing": list(sharing),
            "width": [32, 64, 128],
            "depth": [1, 2],
            "batch_size": BATCH,
            "learning_rate": {"min": 1e-3, "max": 6e-3, "log": True},
        },
        trials=BUDGET[method],
        epochs=EPOCHS,
    ).validate()
    out = folder / f"{group}-{method}"
    search.run_study(study, out, console=Console(width=140))
    _, config = search.best_config(out)
    return dataclasses.replace(config, epochs=EPOCHS).validate()


def test_auc(config: TrainingConfig) -> dict[str, float]:
    """Trains a model and returns its AUC on the test split, by task."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(config.seed)
    train = load_split(config, "train")
    model = compiled_model(config, len(train) * config.epochs)
    model.fit(train, epochs=config.epochs, shuffle=False, verbose=0)
    test = load_split(config, "test")
    predicted = model.predict(test, verbose=0)
    labels = list(test.map(lambda x, y: y).as_numpy_iterator())
    return {
        task: float(
            roc_auc_score(
                np.concatenate([batch[task] for batch in labels]), predicted[task]
            )
        )
        for task in config.tasks
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns mean and sample standard deviation over the seeds, by task."""
    values = {task: [run["auc"][task] for run in runs] for task in runs[0]["auc"]}
    return {
        task: {
            "mean": float(np.mean(value)),
            "std": float(np.std(value, ddof=1)) if len(value) > 1 else 0.0,
            "best": float(np.max(value)),
        }
        for task, value in values.items()
    }


def main() -> None:
    """Tunes and trains the named models of a group."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("models", nargs="+", choices=[*METHODS, "single"])
    parser.add_argument("--studies", type=pathlib.Path, default="runs/census-income")
    arguments = parser.parse_args()
    group = arguments.group
    Encoded.group = group
    applications.get = lambda name: Encoded()
    for name in arguments.models:
        path = RESULTS / f"census_income_{group}_{name}.json"
        results = json.loads(path.read_text()) if path.exists() else {"runs": []}
        config = tuned(group, "hard" if name == "single" else name, arguments.studies)
        configs = [config]
        if name == "single":
            configs = [
                dataclasses.replace(config, tasks=(task,)).validate()
                for task in GROUPS[group]
            ]
        results |= {
            "command": f"python benchmarks/census_income.py {group} {name}",
            "versions": versions(),
            "trials": BUDGET["hard" if name == "single" else name],
            "configs": [encode(config) for config in configs],
            "paper_best_and_mean": PAPER[group],
        }
        done = {each["seed"] for each in results["runs"]}
        for seed in sorted(set(SEEDS) - done):
            started, auc = time.monotonic(), {}
            for config in configs:
                auc |= test_auc(dataclasses.replace(config, seed=seed))
            seconds = round(time.monotonic() - started, 1)
            run = {"commit": commit(), "seed": seed, "auc": auc, "seconds": seconds}
            results["runs"].append(run)
            results["auc"] = summary(results["runs"])
            path.write_text(json.dumps(results, indent=2) + "\n")
            print(group, name, seed, auc, flush=True)


if __name__ == "__main__":
    main()
