"""Whole training steps beside TorchJD 0.18's, in one run.

    python benchmarks/peer_steps.py [--environment FOLDER] [--seconds S] [TASKS ...]

The LeNet of step.py, batch 256, Adam. Here: stock Keras, `upgrad` and `nash` by exact
solves, `nash` running. In TorchJD's environment (see peers.py), the same layers: one
backward pass of the summed loss; UPGrad and NashMTL by its `autojac`, and UPGrad by its
`autogram`. The two processes take turns step by step. Ratios are to the step without
balancing of the same framework. Writes benchmarks/results/peer_steps.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

BATCH, SIDE = 256, 36
TASKS = (2, 8, 32)
PEERS = ("stock", "autojac upgrad", "autojac nash", "autogram upgrad")
RESULTS = pathlib.Path(__file__).parent / "results" / "peer_steps.json"


def serve() -> None:
    """Runs in TorchJD's environment: takes a step for each line, writes its seconds."""
    import torch
    from torch import nn
    from torchjd import aggregation, autogram, autojac

    num_tasks = int(sys.argv[2])
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(BATCH, 1, SIDE, SIDE)), dtype=torch.float32)
    y = [torch.tensor(rng.integers(0, 10, BATCH)) for _ in range(num_tasks)]

    def stepper(name: str):
        torch.manual_seed(0)
        shared = nn.Sequential(
            nn.Conv2d(1, 10, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(10, 20, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(720, 50),
            nn.ReLU(),
        )
        heads = nn.ModuleList(nn.Linear(50, 10) for _ in range(num_tasks))
        optimizer = torch.optim.Adam([*shared.parameters(), *heads.parameters()])
        aggregator = (
            aggregation.NashMTL(n_tasks=num_tasks)
            if name.endswith("nash")
            else aggregation.UPGrad()
        )
        weighting = aggregation.UPGradWeighting()
        engine = (
            autogram.Engine(*shared, batch_dim=None) if "autogram" in name else None
        )

        def step() -> None:
            features = shared(x)
            losses = [
                nn.functional.cross_entropy(head(features), labels)
                for head, labels in zip(heads, y, strict=True)
            ]
            optimizer.zero_grad()
            if name == "stock":
                sum(losses).backward()
            elif engine:
                stacked = torch.stack(losses)
                weights = weighting(engine.compute_gramian(stacked))
                stacked.backward(weights)
            else:
                autojac.mtl_backward(losses, features)
                autojac.jac_to_grad(shared.parameters(), aggregator)
            optimizer.step()

        return step

    steps = {name: stepper(name) for name in PEERS}
    for step in steps.values():
        step()
    print(json.dumps(torch.__version__), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        steps[line.strip()]()
        print(time.perf_counter() - start, flush=True)


def here(num_tasks: int) -> dict:
    """Returns functions that take one step, traced, and return its seconds."""
    import keras
    import step

    from mtl_keras import MultiTaskModel, balancing

    tasks = [f"task_{i}" for i in range(num_tasks)]

    def compiled(cls: type[keras.Model], **kwargs) -> keras.Model:
        model = cls(*step.lenet(tasks))
        model.compile("adam", loss="sparse_categorical_crossentropy", **kwargs)
        model.make_train_function()
        return model

    def ours(balancer: balancing.Balancer) -> keras.Model:
        return compiled(MultiTaskModel, balancing=balancer)

    return step.steppers(
        tasks,
        {
            "stock": compiled(keras.Model),
            "upgrad": ours(balancing.UPGrad()),
            "nash": ours(balancing.Nash()),
            "nash running": ours(balancing.Nash(solve="running")),
        },
    )


def measure(python: pathlib.Path, num_tasks: int, seconds: float) -> dict:
    """Times the steps of both in turns, for about `seconds`."""
    from mtl_keras.runs.records import made_with

    command = [str(python), __file__, "serve", str(num_tasks)]
    times: dict[str, dict[str, list[float]]] = {"here": {}, "torchjd": {}}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as peer:
        version = json.loads(peer.stdout.readline())
        steps = here(num_tasks)
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            for name, step in steps.items():
                times["here"].setdefault(name, []).append(step())
            for name in PEERS:
                peer.stdin.write(name + "\n")
                peer.stdin.flush()
                took = float(peer.stdout.readline())
                times["torchjd"].setdefault(name, []).append(took)
        peer.stdin.close()
    rows = []
    for library, by_name in times.items():
        stock = np.median(by_name["stock"])
        for name, values in by_name.items():
            low, median, high = 1e3 * np.quantile(values, [0.25, 0.5, 0.75])
            rows.append(
                {
                    "library": library,
                    "step": name,
                    "ms": {"median": median, "low": low, "high": high},
                    "to_stock": median / (1e3 * stock),
                }
            )
    return {
        "tasks": num_tasks,
        "steps_each": len(times["here"]["stock"]),
        "torch": version,
        "made_with": made_with(),
        "rows": rows,
    }


def main() -> None:
    """Measures the numbers of tasks on the command line, or all."""
    import peers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", type=int, default=TASKS)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument(
        "--environment",
        type=pathlib.Path,
        default=peers.CACHE / "mtl_keras" / "torchjd",
    )
    arguments = parser.parse_args()
    python = peers.environment(arguments.environment)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": []}
    for num_tasks in arguments.tasks:
        run = measure(python, num_tasks, arguments.seconds)
        print(f"T = {num_tasks}, {run['steps_each']} steps each, torch {run['torch']}")
        for row in run["rows"]:
            median, ratio = row["ms"]["median"], row["to_stock"]
            print(f"{row['library']:8} {row['step']:16} {median:9.1f} ms {ratio:6.2f}")
        kept = [old for old in results["runs"] if old["tasks"] != num_tasks]
        results = {
            "command": "python benchmarks/peer_steps.py",
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "runs": sorted([*kept, run], key=lambda run: run["tasks"]),
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve()
    else:
        main()
