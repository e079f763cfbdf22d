"""One joint model of images, recordings and texts against one model per task.

    mtl-keras datasets prepare multimodal/unpaired --downloads DIR
    python benchmarks/multimodal_real.py

`multimodal/unpaired`: 2,000 images of MNIST, 1,500 reviews of IMDB and 500 recordings
of the Free Spoken Digit Dataset for training; the test splits of the sources. All
models have the application's defaults, a model of one task with hard sharing, and are
measured once, after the last epoch. Beside the default way to share: hard sharing.
Writes benchmarks/results/multimodal_real.json after each training, and goes on where
it stopped.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import mtl_keras
from mtl_keras.runs.records import commit, made_with

DATA = "multimodal/unpaired"
MODALITIES = ("image", "audio", "text")
SEEDS = range(5)
RESULTS = pathlib.Path(__file__).parent / "results" / "multimodal_real.json"

application = mtl_keras.applications.get("multimodal").for_data(DATA)
defaults = application.defaults


def trained(tasks: list[str], sharing: str | None, seed: int) -> keras.Model:
    """Trains one model with the application's defaults, but for what is given."""
    keras.utils.set_random_seed(seed)
    train = application.load(
        "train",
        batch_size=defaults.batch_size,
        tasks=tasks,
        shuffle=True,
        seed=seed,
    )
    model = application.build(tasks=tasks, sharing=sharing)
    decay = keras.optimizers.schedules.CosineDecay(
        defaults.learning_rate, len(train) * defaults.epochs
    )
    model.compile(keras.optimizers.Adam(decay), loss=application.losses(tasks))
    model.fit(train, epochs=defaults.epochs, shuffle=False, verbose=0)
    return model


def accuracies(
    model: keras.Model, batches: list[tuple[Any, Any, Any]]
) -> dict[str, float]:
    """Returns the accuracy by task and by the modality of the samples."""
    right = defaultdict(list)
    for inputs, labels, weights in batches:
        answers = model.predict_on_batch(inputs)
        # Unpaired samples have one modality each.
        modality = np.select(
            [inputs["image"].any((1, 2, 3)), inputs["audio"].any(1)],
            MODALITIES[:2],
            MODALITIES[2],
        )
        for task, answer in answers.items():
            binary = answer.shape[1] == 1
            said = answer[:, 0] > 0.5 if binary else answer.argmax(1)
            is_right = said == labels[task].reshape(-1)
            for name in MODALITIES:
                chosen = (modality == name) & (weights[task] > 0)
                if chosen.any():
                    right[f"{task}/{name}"] += is_right[chosen].tolist()
    return {name: float(np.mean(values)) for name, values in right.items()}


def runs() -> Iterator[tuple[str, list[str], str | None, int]]:
    """Gives name, tasks, way to share and seed of each training, seed by seed."""
    tasks = list(application.tasks)
    for seed in SEEDS:
        yield "joint", tasks, None, seed
        yield "joint, hard", tasks, "hard", seed
        for task in tasks:
            yield f"{task} alone", [task], "hard", seed


def summary(done: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns mean and standard deviation over the seeds, by model."""
    by_name = defaultdict(list)
    for run in done:
        by_name[run["model"]].append(run["accuracy"])
    return {
        name: {
            "seeds": len(results),
            **{
                key: {
                    "mean": float(np.mean([r[key] for r in results])),
                    "std": spread([r[key] for r in results]),
                }
                for key in results[0]
            },
        }
        for name, results in by_name.items()
    }


def spread(values: list[float]) -> float:
    """Returns the sample standard deviation, 0 of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def main() -> None:
    """Trains what is not done yet."""
    done = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    test = application.load("test", batch_size=1_000)
    batches = list(test.as_numpy_iterator())
    for name, tasks, sharing, seed in runs():
        if any((run["model"], run["seed"]) == (name, seed) for run in done):
            continue
        started = time.process_time()
        model = trained(tasks, sharing, seed)
        seconds = time.process_time() - started
        result = accuracies(model, batches)
        done.append(
            {
                "commit": commit(),
                "model": name,
                "seed": seed,
                "accuracy": result,
                "cpu_seconds": round(seconds, 1),
            }
        )
        print(name, seed, result, f"{seconds:.0f} s", flush=True)
        results = {
            "command": "python benchmarks/multimodal_real.py",
            "made_with": made_with(),
            "epochs": defaults.epochs,
            "batch_size": defaults.batch_size,
            "learning_rate": defaults.learning_rate,
            "backbone": defaults.backbone,
            "sharing": defaults.sharing,
            "summary": summary(done),
            "runs": done,
        }
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        keras.utils.clear_session()


if __name__ == "__main__":
    main()
