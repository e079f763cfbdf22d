"""One model of three real data sets, and models of one task each beside it.

    mtl-keras datasets prepare imdb_reviews --downloads DIR
    mtl-keras datasets prepare squad/v1.1 --downloads DIR
    mtl-keras datasets prepare multi30k/de --downloads DIR
    python benchmarks/text_real.py --work WORK --seeds 0 1 2
    python benchmarks/text_real.py --work WORK --balancing METHOD …

The joint model is trained on rounds of homogeneous batches of IMDB, SQuAD 1.1 and
Multi30k (English to German); a model of one task is the same encoder with one head,
trained for as many steps on this task's data, in the same order, with the same
schedule of the learning rate. All are then scored on the official test splits: IMDB's
test reviews (here those of the files that were prepared), SQuAD's development set, and
test_2016_flickr. WORK keeps the models after each part of the training: started
again, the script goes on where it stopped. Writes benchmarks/results/text_real.json
(or `--out`) after every finished model.

`--balancing METHOD …` trains joint models on as many samples in steps that have all
three sources, in the same ratio, so that gradients of all tasks meet in every step:
three batches in one, a third of the steps. They are scored the same way, and the mean
cosines between gradients of the tasks are kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import mtl_keras
from mtl_keras import data
from mtl_keras.applications import Text
from mtl_keras.files import atomic_write
from mtl_keras.runs.records import made_with
from mtl_keras.runs.results import by_task, metric_names

DATA = "imdb_reviews,squad/v1.1,multi30k/de"
BATCH, WIDTH, LEARNING_RATE = 64, 128, 1e-3
ROUND = {"sentiment": 3, "answer": 4, "translation": 10}
ROUNDS, PARTS = 300, 30
RESULTS = pathlib.Path(__file__).parent / "results" / "text_real.json"


def compiled(
    tasks: list[str], steps: int, balancing: str | None, seed: int
) -> mtl_keras.MultiTaskModel:
    """Returns a new model of these tasks."""
    application = Text(DATA)
    keras.utils.set_random_seed(seed)
    model = application.build(width=WIDTH, tasks=tasks)
    decay = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    model.compile(
        keras.optimizers.Adam(decay, global_clipnorm=1.0),
        loss=application.losses(tasks),
        metrics=application.metrics(tasks),
        balancing=balancing or "equal",
        # Costs nothing where the balancer takes the gradients of all tasks anyway.
        monitor="conflicts" if balancing not in (None, "equal") else None,
        skip_unlabelled=balancing is not None,
    )
    return model


def trained(
    tasks: list[str], work: pathlib.Path, balancing: str | None, seed: int
) -> tuple[keras.Model, dict]:
    """Returns a trained model and what its training took; goes on from `work`.

    Args:
        tasks: Tasks of the model.
        work: Its folder.
        balancing: Method of a training whose steps have every source; `None` for
            steps of one source each.
        seed: Of the model and of the order of the samples.
    """
    work.mkdir(parents=True, exist_ok=True)
    progress, file = work / "progress.json", work / "model.keras"
    ratio = {task: ROUND[task] for task in tasks}
    together = 1 if balancing is None else len(ratio)
    steps = ROUNDS * sum(ratio.values()) // together
    mixture = data.mix(
        Text(DATA).streams("train", tasks=tasks),
        batch_size=BATCH * together,
        by="ratio",
        ratio=ratio,
        homogeneous=balancing is None,
        even=balancing is not None,
        ends=steps // PARTS,
        seed=seed,
    )
    spent: dict[str, Any] = {
        "parts": 0,
        "cpu_seconds": 0.0,
        "wall_seconds": 0.0,
        "logs": [],
    }
    if progress.is_file():
        spent = json.loads(progress.read_text())
        model = keras.models.load_model(file)
    else:
        model = compiled(tasks, steps, balancing, seed)
    for part in range(spent["parts"], PARTS):
        cpu, wall = time.process_time(), time.monotonic()
        logs = model.fit(mixture.epoch(part), verbose=0, shuffle=False).history
        spent["cpu_seconds"] += time.process_time() - cpu
        spent["wall_seconds"] += time.monotonic() - wall
        spent["logs"].append({key: values[0] for key, values in logs.items()})
        if "conflicts" in logs:
            spent["logs"][-1]["cosines"] = model.gradient_cosines().tolist()
        spent["parts"] = part + 1
        model.save(file)
        progress.write_text(json.dumps(spent))
        print(work.name, spent["parts"], spent["logs"][-1], flush=True)
    of_task = {task: ROUNDS * count for task, count in ratio.items()}
    took = {
        "steps": of_task if balancing is None else steps,
        "parameters": model.count_params(),
        "train_cpu_minutes": spent["cpu_seconds"] / 60,
        "train_wall_minutes": spent["wall_seconds"] / 60,
    }
    if balancing is not None:
        took["samples"] = {task: BATCH * batches for task, batches in of_task.items()}
    cosines = [log["cosines"] for log in spent["logs"] if "cosines" in log]
    if cosines:
        took["mean_cosines"] = np.mean(cosines, axis=0).tolist()
        took["conflicts"] = [log["conflicts"] for log in spent["logs"]]
    return model, took


def scored(model: keras.Model, tasks: list[str]) -> dict[str, dict[str, float]]:
    """Returns all metrics on the test splits."""
    application = Text(DATA)
    test = application.load("test", batch_size=BATCH, tasks=tasks)
    logs = model.evaluate(test, verbose=0, return_dict=True)
    metrics = by_task(logs, metric_names(application, tasks))
    texts = application.measure(model, "test", tasks=tasks, batch_size=BATCH)
    for task, values in texts.items():
        metrics[task].update(values)
    return metrics


def main() -> None:
    """Trains and scores what WORK does not hold yet."""
    groups = {"joint": list(ROUND), **{task: [task] for task in ROUND}}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument(
        "--models", nargs="+", choices=groups, help="of steps of one source; else all"
    )
    parser.add_argument(
        "--balancing", nargs="+", help="methods, for steps that have every source"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.balancing:
        models = {f"balanced {m}": (list(ROUND), m) for m in arguments.balancing}
    else:
        models = {m: (groups[m], None) for m in arguments.models or groups}
    for seed, name in itertools.product(arguments.seeds, models):
        tasks, method = models[name]
        folder = arguments.work / f"{name.replace(' ', '-')}-{seed}"
        scores = folder / "scores.json"
        if not scores.is_file():
            model, took = trained(tasks, folder, method, seed)
            took = {"made_with": made_with(), **took, "test": scored(model, tasks)}
            scores.write_text(json.dumps(took))
        run = {"model": name, "seed": seed, **json.loads(scores.read_text())}
        write(run, arguments.out)


def write(run: dict, out: pathlib.Path) -> None:
    """Writes the results with this run, in place of an earlier one of its model."""
    runs = json.loads(out.read_text())["runs"] if out.exists() else []
    by_key = {(one["model"], one["seed"]): one for one in [*runs, run]}
    result = {
        "command": "python benchmarks/text_real.py --work WORK "
        "[--seeds SEED …] [--balancing METHOD …]",
        "data": DATA,
        "examples": {name: data.info(name).splits for name in DATA.split(",")},
        "batch_size": BATCH,
        "width": WIDTH,
        "learning_rate": LEARNING_RATE,
        "round": ROUND,
        "runs": list(by_key.values()),
    }
    with atomic_write(out) as file:
        file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
