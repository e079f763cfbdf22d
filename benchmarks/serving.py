"""Serving cost of one task, and of one model of five tasks against five of one.

    python benchmarks/serving.py

The vision application with its defaults, untrained: five tasks, and five models of one
task each, built and exported in the same way; and the five tasks with smaller weights.
Everything is answered by a session of TensorFlow in one process, one request after
the other. Contenders take turns in short rounds, so that a slow moment of the machine
hits all; a round's figure is its median latency, and the results are mean and standard
deviation over rounds, ratios being taken within a round. Writes
benchmarks/results/serving.json.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from mtl_keras import applications, serving
from mtl_keras.runs.records import made_with
from mtl_keras.serving.served_model import served_model
from mtl_keras.serving.signatures import signatures

ROUNDS, SECONDS, SEED = 12, 0.08, 0
BATCHES = (1, 32)
TASKS = list(applications.get("vision").tasks)
RESULTS = pathlib.Path(__file__).parent / "results" / "serving.json"


def exported(
    folder: str,
    images: np.ndarray,
    tasks: list[str] | None = None,
    weights: str = "float32",
) -> pathlib.Path:
    """Exports an untrained model of these tasks."""
    keras.utils.set_random_seed(SEED)
    application = applications.get("vision")
    return serving.export(
        serving.compress(application.build(tasks=tasks), weights),
        folder,
        class_names=application.class_names(),
        samples={"image": images},
    )


def operations() -> dict[str, int]:
    """Returns the number of operations in each signature's graph."""
    model = applications.get("vision").build()
    class_names = applications.get("vision").class_names()
    found = signatures(served_model(model, class_names=class_names))
    return {s.name: len(s.function().graph.get_operations()) for s in found}


def median_ms(answer: Callable[[], object]) -> float:
    """Returns the median latency of one round, in milliseconds."""
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begun < SECONDS:
        start = time.perf_counter()
        answer()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def in_turns(contenders: Mapping[str, Callable[[], object]]) -> dict[str, np.ndarray]:
    """Returns each contender's median latency in every round."""
    for answer in contenders.values():
        answer()
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(ROUNDS):
        for name in list(contenders)[:: 1 if index % 2 else -1]:
            rounds[name].append(median_ms(contenders[name]))
    return {name: np.array(values) for name, values in rounds.items()}


def spread(values: np.ndarray) -> dict[str, float]:
    """Returns mean and standard deviation."""
    return {"mean": float(values.mean()), "std": float(values.std(ddof=1))}


def compared(
    rounds: Mapping[str, np.ndarray], reference: str, batch: int
) -> dict[str, dict[str, object]]:
    """Returns latency, throughput and the ratio to the reference's latency."""
    return {
        name: {
            "latency_ms": spread(values),
            "samples_per_second": spread(1e3 * batch / values),
            f"latency_to_{reference}": spread(values / rounds[reference]),
        }
        for name, values in rounds.items()
    }


def by_signature(model: serving.Runtime, images: np.ndarray) -> dict[str, object]:
    """Compares each task's signature, and the features, with `serving_default`."""
    request = {"image": images}
    contenders = {
        name: functools.partial(model.predict, name, request)
        for name in ("serving_default", *TASKS, "features")
    }
    return compared(in_turns(contenders), "serving_default", len(images))


def against_single_tasks(
    multi: serving.Runtime, single: Mapping[str, serving.Runtime], images: np.ndarray
) -> dict[str, object]:
    """Compares one model of all tasks with one model for each."""
    request = {"image": images}

    def ask(task: str) -> object:
        return single[task].predict(task, request)

    with concurrent.futures.ThreadPoolExecutor(len(single)) as pool:
        contenders = {
            "multi_task": lambda: multi.predict("serving_default", request),
            "five_in_a_row": lambda: [ask(task) for task in single],
            "five_at_once": lambda: list(pool.map(ask, single)),
        }
        return compared(in_turns(contenders), "multi_task", len(images))


def by_weights(
    models: Mapping[str, serving.Runtime], images: np.ndarray
) -> dict[str, object]:
    """Compares forms of the weights, all tasks being answered."""
    contenders = {
        weights: functools.partial(model.predict, "serving_default", {"image": images})
        for weights, model in models.items()
    }
    return compared(in_turns(contenders), "float32", len(images))


def size(version: pathlib.Path) -> int:
    """Returns the bytes that a server loads: graph and variables."""
    files = [version / "saved_model.pb", *(version / "variables").iterdir()]
    return sum(file.stat().st_size for file in files)


def main() -> None:
    """Runs the comparison."""
    rng = np.random.default_rng(SEED)
    images = rng.integers(0, 256, (max(BATCHES), 36, 36, 1)).astype("uint8")
    with tempfile.TemporaryDirectory() as folder:
        fives = {
            weights: exported(f"{folder}/{weights}", images, weights=weights)
            for weights in serving.WEIGHTS
        }
        ones = {task: exported(f"{folder}/{task}", images, [task]) for task in TASKS}
        sizes = {
            "multi_task": {
                weights: size(version) for weights, version in fives.items()
            },
            "single_task": {task: size(version) for task, version in ones.items()},
        }
        models = {w: serving.Runtime(version) for w, version in fives.items()}
        multi = models["float32"]
        single = {task: serving.Runtime(version) for task, version in ones.items()}
    latency = {batch: by_signature(multi, images[:batch]) for batch in BATCHES}
    against = {
        batch: against_single_tasks(multi, single, images[:batch]) for batch in BATCHES
    }
    weights = {batch: by_weights(models, images[:batch]) for batch in BATCHES}
    total = sum(sizes["single_task"].values())
    result = {
        "command": "python benchmarks/serving.py",
        "made_with": made_with(),
        "cores": os.cpu_count(),
        "seed": SEED,
        "rounds": ROUNDS,
        "operations": operations(),
        "by_signature": latency,
        "multi_task_against_five_of_one": against,
        "by_weights": weights,
        "size_bytes": {
            **sizes,
            "five_to_multi_task": total / sizes["multi_task"]["float32"],
        },
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
