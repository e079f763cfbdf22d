"""One model of three real data sets, and models of one task each beside it.

    mtl-keras datasets prepare imdb_reviews --downloads DIR
    mtl-keras datasets prepare squad/v1.1 --downloads DIR
    mtl-keras datasets prepare multi30k/de --downloads DIR
    python benchmarks/text_real.py --work WORK

The joint model is trained on rounds of homogeneous batches of IMDB, SQuAD 1.1 and
Multi30k (English to German); a model of one task is the same encoder with one head,
trained for as many steps on this task's data, in the same order, with the same
schedule of the learning rate. All are then scored on the official test splits: IMDB's
test reviews (here those of the files that were prepared), SQuAD's development set, and
test_2016_flickr. WORK keeps the models after each part of the training: started
again, the script goes on where it stopped. Writes benchmarks/results/text_real.json
(or `--out`) after every finished model.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from mtl_keras import applications, data
from mtl_keras.evaluation import delta_m
from mtl_keras.runs.records import versions
from mtl_keras.runs.results import by_task, metric_names

DATA = "imdb_reviews,squad/v1.1,multi30k/de"
BATCH, WIDTH, LEARNING_RATE, SEED = 64, 128, 1e-3, 0
ROUND = {"sentiment": 3, "answer": 4, "translation": 10}
ROUNDS, PARTS = 300, 30
MAIN = {
    "sentiment": "accuracy",
    "answer": "f1",
    "translation": "bleu",
}
RESULTS = pathlib.Path(__file__).parent / "results" / "text_real.json"


def compiled(tasks: list[str], steps: int) -> keras.Model:
    """Returns a new model of these tasks."""
    application = applications.get("text").for_data(DATA)
    keras.utils.set_random_seed(SEED)
    model = application.build(width=WIDTH, tasks=tasks)
    decay = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    model.compile(
        keras.optimizers.Adam(decay, global_clipnorm=1.0),
        loss=application.losses(tasks),
        metrics=application.metrics(tasks),
    )
    return model


def trained(tasks: list[str], work: pathlib.Path) -> tuple[keras.Model, dict]:
    """Returns a trained model and what its training took; goes on from `work`."""
    work.mkdir(parents=True, exist_ok=True)
    progress, file = work / "progress.json", work / "model.keras"
    ratio = {task: ROUND[task] for task in tasks}
    steps = ROUNDS * sum(ratio.values())
    mixture = data.mix(
        applications.get("text").for_data(DATA).streams("train", tasks=tasks),
        batch_size=BATCH,
        by="ratio",
        ratio=ratio,
        homogeneous=True,
        ends=steps // PARTS,
        seed=SEED,
    )
    spent = {"parts": 0, "cpu_seconds": 0.0, "wall_seconds": 0.0, "logs": []}
    if progress.is_file():
        spent = json.loads(progress.read_text())
        model = keras.models.load_model(file)
    else:
        model = compiled(tasks, steps)
    for part in range(spent["parts"], PARTS):
        cpu, wall = time.process_time(), time.monotonic()
        logs = model.fit(mixture.epoch(part), verbose=0, shuffle=False).history
        spent["cpu_seconds"] += time.process_time() - cpu
        spent["wall_seconds"] += time.monotonic() - wall
        spent["logs"].append({key: values[0] for key, values in logs.items()})
        spent["parts"] = part + 1
        model.save(file)
        progress.write_text(json.dumps(spent))
        print(tasks, spent["parts"], spent["logs"][-1], flush=True)
    return model, {
        "steps": {task: ROUNDS * count for task, count in ratio.items()},
        "parameters": model.count_params(),
        "train_cpu_minutes": spent["cpu_seconds"] / 60,
        "train_wall_minutes": spent["wall_seconds"] / 60,
    }


def scored(model: keras.Model, tasks: list[str]) -> dict[str, dict[str, float]]:
    """Returns all metrics on the test splits."""
    application = applications.get("text").for_data(DATA)
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
        "--models", nargs="+", choices=groups, default=list(groups), help="else all"
    )
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    for name in arguments.models:
        folder = arguments.work / name
        if not (folder / "scores.json").is_file():
            model, spent = trained(groups[name], folder)
            scores = {**spent, "test": scored(model, groups[name])}
            (folder / "scores.json").write_text(json.dumps(scores))
        finished = {
            group: json.loads((arguments.work / group / "scores.json").read_text())
            for group in groups
            if (arguments.work / group / "scores.json").is_file()
        }
        write(finished, arguments.out)


def write(models: dict[str, dict], out: pathlib.Path) -> None:
    """Writes the results so far, with Δm once all models are there."""
    result = {
        "command": "python benchmarks/text_real.py --work WORK",
        "data": DATA,
        "examples": {name: data.info(name).splits for name in DATA.split(",")},
        "batch_size": BATCH,
        "width": WIDTH,
        "learning_rate": LEARNING_RATE,
        "seed": SEED,
        "round": ROUND,
        "versions": versions(),
        "models": models,
    }
    if len(models) == 1 + len(ROUND):
        main_metrics = {
            task: models["joint"]["test"][task][name] for task, name in MAIN.items()
        }
        single = {task: models[task]["test"][task][name] for task, name in MAIN.items()}
        result["main_metrics"] = {"joint": main_metrics, "single": single}
        result["delta_m_percent"] = delta_m(
            main_metrics, single, dict.fromkeys(MAIN, "max")
        )
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2), flush=True)


if __name__ == "__main__":
    main()
