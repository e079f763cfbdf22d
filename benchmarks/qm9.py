"""Balancers on QM9: eleven regressions, one model.

    pip install qm9pack==1.0.3
    python benchmarks/qm9.py [--seeds N] [--epochs N] [--data FOLDER]
    python benchmarks/qm9.py --all --seeds 5 [--methods NAME …]

5,000 molecules to train, 2,000 to test: running solves beside exact ones. With `--all`
2,000 molecules to train, and every balancer that needs no main task, by its defaults.
Inputs are the eigenvalues of the Coulomb matrix and histograms of inverse distances by
pair of elements; inputs and targets are standardised. A seed draws the molecules, the
weights and the batches. The single-task models, one for each target, have the same
sizes and the same budget. Of each method the mean over targets of MAE / single-task
MAE − 1 on the test molecules after the last epoch, and its mean rank over targets and
seeds. Results go to benchmarks/results/qm9.json, and to qm9_methods.json with `--all`;
runs that they hold are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import mtl_keras
from mtl_keras import balancing
from mtl_keras.runs.records import commit, made_with

RESULTS = pathlib.Path(__file__).parent / "results"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
FEATURES = CACHE / "mtl_keras_qm9.npz"
TEST, BATCH, UNITS = 2000, 128, 256
CHARGES = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
TARGETS = {
    "mu": "Dipole_debye",
    "alpha": "Polarizability_bohr3",
    "homo": "HOMO_au",
    "lumo": "LUMO_au",
    "r2": "R2_bohr2",
    "zpve": "ZPVE_au",
    "u0": "InternalEnergy_0K_au",
    "u298": "InternalEnergy_298K_au",
    "h298": "Enthalphy_298K_au",
    "g298": "GibbsFreeEnergy_298K_au",
    "cv": "Heatcapacity_Cv_cal_mol_K",
}


def method(name: str, solve: str = "exact") -> dict:
    """Returns the configuration of a balancer."""
    config = {} if solve == "exact" else {"solve": solve}
    return {"class_name": name, "config": config}


# Methods that take a task for each output alone.
WITHOUT_COLUMNS = ("consmtl", "samo")
RUNNING = {
    name if solve == "exact" else f"{name} {solve}": method(name, solve)
    for name in ("nash", "fairgrad", "mgda")
    for solve in ("running", "exact")
}
# By file of results: molecules to train, methods.
STUDIES = {
    "qm9": (
        5000,
        {"single": None, "equal": method("equal"), "famo": method("famo"), **RUNNING},
    ),
    "qm9_methods": (
        2000,
        {
            "single": None,
            **RUNNING,
            # The updates that it scales by itself are for SGD.
            "m_config": {"class_name": "m_config", "config": {"beta_2": None}},
            **{
                name: method(name)
                for name in balancing.names()
                # Methods for a main task and its helpers, and weights of one's own.
                if name
                not in {
                    *("auto_lambda", "auxinash", "gradient_cosine", "metabalance"),
                    *("m_config", "pcd", "static"),
                }
            },
        },
    ),
}


def described(elements: list[str], places: np.ndarray) -> np.ndarray:
    """Returns the features of one molecule, float32 `[29 + 15 · 24]`."""
    charges = np.array([CHARGES[e] for e in elements], np.float64)
    distances = np.linalg.norm(places[:, None] - places, axis=-1)
    inverse = np.divide(
        1.0, distances, out=np.zeros_like(distances), where=distances > 0
    )
    coulomb = charges[:, None] * charges * inverse
    coulomb += np.diag(0.5 * charges**2.4)
    spectrum = np.zeros(29)
    spectrum[: len(charges)] = np.sort(np.linalg.eigvalsh(coulomb))[::-1]
    pairs = [(a, b) for i, a in enumerate(CHARGES) for b in list(CHARGES)[i:]]
    names = np.array(elements)
    first, second = np.triu_indices(len(names), 1)
    histograms = []
    for a, b in pairs:
        of_pair = (names[first] == a) & (names[second] == b)
        of_pair |= (names[first] == b) & (names[second] == a)
        values = inverse[first, second][of_pair]
        histograms.append(np.histogram(values, bins=24, range=(0.05, 1.1))[0])
    return np.concatenate([spectrum, *histograms]).astype("float32")


def numbers(text: str) -> np.ndarray:
    """Returns the numbers of a nested list, some of them written as 1.5*^-6."""
    flat = text.replace("[", "").replace("]", "").replace("*^", "e")
    return np.array([float(number) for number in flat.split(",")])


def molecules(folder: pathlib.Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns features and targets of 40,000 molecules, every third of QM9."""
    if not FEATURES.exists():
        if folder is None:
            spec = importlib.util.find_spec("qm9pack")
            folder = pathlib.Path(spec.submodule_search_locations[0]) / "data"
        csv.field_size_limit(10**7)
        features, targets, seen = [], [], 0
        for part in (1, 2, 3):
            with open(folder / f"qm9_part{part}.csv", newline="") as file:
                for row in csv.DictReader(file):
                    seen += 1
                    if seen % 3 or len(features) == 40_000:
                        continue
                    elements = json.loads(row["Elements"].replace("'", '"'))
                    places = numbers(row["XYZ_Ang"]).reshape(-1, 3)
                    features.append(described(elements, places))
                    targets.append([numbers(row[name])[0] for name in TARGETS.values()])
        FEATURES.parent.mkdir(parents=True, exist_ok=True)
        np.savez(FEATURES, features=features, targets=np.array(targets, "float32"))
    with np.load(FEATURES) as data:
        return data["features"], data["targets"]


def trunk(x: keras.KerasTensor) -> keras.KerasTensor:
    for _ in range(3):
        x = keras.layers.Dense(UNITS, "relu")(x)
    return x


def errors(
    balancer: dict | None, size: int, seed: int, epochs: int, data: tuple
) -> dict[str, object]:
    """Trains one model and returns its MAE by target and its seconds."""
    features, targets = data
    order = np.random.default_rng(seed).permutation(len(features))
    train, test = order[:size], order[size : size + TEST]
    mean, deviation = targets[train].mean(0), targets[train].std(0)
    y = (targets - mean) / deviation
    low, high = features[train].mean(0), features[train].std(0)
    x = np.clip((features - low) / np.where(high > 0, high, 1.0), -8, 8)
    keras.utils.set_random_seed(seed)
    image = keras.Input((x.shape[1],))
    targets_of = {task: y[:, i : i + 1] for i, task in enumerate(TARGETS)}
    if balancer is None or balancer["class_name"] in WITHOUT_COLUMNS:
        # Models that share nothing train as if each stood alone: Adam goes entry by
        # entry.
        shared = None if balancer is None else trunk(image)
        outputs = {
            task: keras.layers.Dense(1)(trunk(image) if shared is None else shared)
            for task in TARGETS
        }
        labels, columns = targets_of, None
    else:
        outputs = {"all": keras.layers.Dense(len(TARGETS))(trunk(image))}
        labels, columns = {"all": y}, {"all": list(TARGETS)}
    labels = {output: values.astype("float32") for output, values in labels.items()}
    model = mtl_keras.MultiTaskModel(image, outputs)
    steps = epochs * (size // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    model.compile(
        keras.optimizers.Adam(rate),
        loss="mse",
        balancing=balancer or "equal",
        columns=columns,
    )
    start, processor = time.perf_counter(), time.process_time()
    batches = (
        tf.data.Dataset.from_tensor_slices(
            (x[train].astype("float32"), {t: v[train] for t, v in labels.items()})
        )
        .shuffle(size, seed=seed)
        .batch(BATCH, drop_remainder=True)
    )
    model.fit(batches, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - start
    processor = time.process_time() - processor
    predicted = model.predict(x[test].astype("float32"), batch_size=500, verbose=0)
    predicted = np.concatenate(
        [predicted[task] for task in TARGETS]
        if columns is None
        else [predicted["all"]],
        axis=1,
    )
    return {
        "mae": np.abs(predicted - y[test]).mean(axis=0).tolist(),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(processor, 1),
    }


def ranks(by_key: dict[tuple[str, int], np.ndarray]) -> dict[str, float]:
    """Returns the mean rank of each method over targets and the seeds of all of them.

    The best of a target and a seed has rank 1; single tasks have a rank too.
    """
    names = list(dict.fromkeys(name for name, _ in by_key))
    seeds = [s for s in {s for _, s in by_key} if all((n, s) in by_key for n in names)]
    if not seeds:
        return {}
    mae = np.array([[by_key[name, seed] for seed in seeds] for name in names])
    places = mae.argsort(axis=0).argsort(axis=0) + 1.0
    return dict(zip(names, places.mean(axis=(1, 2)).tolist(), strict=True))


def summary(runs: list[dict]) -> dict[str, dict]:
    """Returns mean relative error and rank by method over the seeds that have it."""
    by_key = {(run["method"], run["seed"]): np.array(run["mae"]) for run in runs}
    rank = ranks(by_key)
    result: dict[str, dict] = {}
    for name in dict.fromkeys(name for name, _ in by_key):
        relative = [
            100 * float(np.mean(mae / by_key["single", seed] - 1))
            for (method_name, seed), mae in by_key.items()
            if method_name == name and ("single", seed) in by_key
        ]
        if relative:
            result[name] = {
                "relative_error_percent": float(np.mean(relative)),
                "by_seed": relative,
                **({"rank": round(rank[name], 2)} if name in rank else {}),
            }
    return result


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--all", action="store_true", help="every balancer")
    parser.add_argument("--methods", nargs="+", help="of these: some alone")
    arguments = parser.parse_args()
    data = molecules(arguments.data)
    study = "qm9_methods" if arguments.all else "qm9"
    size, methods = STUDIES[study]
    if arguments.methods:
        methods = {name: methods[name] for name in arguments.methods}
    file = RESULTS / f"{study}.json"
    results = json.loads(file.read_text()) if file.exists() else {"runs": []}
    runs = [r for r in results["runs"] if r["epochs"] == arguments.epochs]
    done = {(run["method"], run["seed"]) for run in runs}
    for seed in range(arguments.seeds):
        for name, balancer in methods.items():
            if (name, seed) in done:
                continue
            runs.append(
                {
                    "commit": commit(),
                    "method": name,
                    "seed": seed,
                    "epochs": arguments.epochs,
                    **errors(balancer, size, seed, arguments.epochs, data),
                }
            )
            keras.utils.clear_session()
            results = {
                "made_with": made_with(),
                "targets": list(TARGETS),
                "train": size,
                "summary": summary(runs),
                "runs": runs,
            }
            file.write_text(json.dumps(results, indent=1) + "\n")
            print(name, seed, results["summary"].get(name), flush=True)


if __name__ == "__main__":
    main()
