"""Updates of every method that TorchJD 0.18 or LibMTL 1.1.5 has too, over five steps.

    python benchmarks/peer_updates.py [--environment FOLDER]

Installs both into an environment of its own (see peers.py) and runs them in a second
process. All get the same task gradients and losses, of float32, of five steps; state is
carried from step to step, and what is learned (log variances, logits) by Adam. Methods
that draw an order of tasks get two tasks, which have one order; LibMTL's CAGrad takes
three tasks alone. Methods that draw the update itself (`graddrop`, `random`) cannot be
compared so.

Of each method and step it compares the direction of the update, and its length: where
the ratio of lengths is the same at every step, the scales differ by convention.
Writes benchmarks/results/peer_updates.json; fails if a difference is not explained.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import pathlib
import subprocess
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

LIBMTL = "LibMTL==1.1.5"
RESULTS = pathlib.Path(__file__).parent / "results" / "peer_updates.json"
STEPS, SIZE, LEARNING_RATE = 5, 11, 0.025
SAME = 1e-3  # Relative, in float32, with solvers that stop early among the peers.
ORDERED = ("pcgrad", "gradvac")
OURS = {
    "cagrad": {"c": 0.4},
    "gradvac": {"beta": 0.01, "seed": 0},
    "pcgrad": {"seed": 0},
    "krum": {"n_byzantine": 0},
    "excess_mtl": {"step_size": 1.0},
    "pcd": {"primary": "0"},
    "modo": {"gamma": 0.1, "rho": 0.1},
    "uncertainty": {"learning_rate": LEARNING_RATE},
    "libmtl/uncertainty": {
        "learning_rate": LEARNING_RATE,
        "initial_log_variance": -0.5,
    },
    "imtl_l": {"learning_rate": LEARNING_RATE},
    "gradnorm": {"learning_rate": LEARNING_RATE},
}
"""Arguments that differ from the defaults, so that both sides have the same."""
EXPLAINED = {
    "torchjd/nash": "TorchJD's solver ends at the first step where it starts, at ones, "
    "as the authors' does; the other steps agree.",
    "torchjd/sdmgrad": "The dual step size is relative to the mean diagonal of the "
    "product of the halves here, to the square of the mean norm there.",
    "libmtl/gradnorm": "LibMTL takes weights from a softmax and starts to learn them "
    "after the first epoch; here, as in the paper, they are learned from the first "
    "step on and rescaled after each.",
}
"""Why directions differ, by peer and method."""


def steps_of(num_tasks: int) -> dict[str, list]:
    """Returns five steps' task gradients, those of two halves of the batch, losses."""
    rng = np.random.default_rng(num_tasks)
    halves = rng.normal(size=(STEPS, 2, num_tasks, SIZE))
    halves -= 0.5 * halves.mean(axis=2, keepdims=True)
    halves *= rng.uniform(0.5, 2.0, (1, 1, num_tasks, 1))
    losses = rng.uniform(0.5, 2.0, (STEPS, num_tasks))
    return {
        "halves": halves.tolist(),
        "rows": halves.sum(axis=1).tolist(),
        "losses": losses.tolist(),
        "after": (losses * rng.uniform(0.8, 1.0, losses.shape)).tolist(),
    }


def torchjd_updates(problem: dict[str, list]) -> dict[str, list]:
    """Runs in the peers' environment: updates `[5, P]` by method."""
    import torch
    from torchjd import aggregation as jd
    from torchjd import scalarization as scalar

    rows, halves = torch.tensor(problem["rows"]), torch.tensor(problem["halves"])
    losses, after = torch.tensor(problem["losses"]), torch.tensor(problem["after"])
    num_tasks = rows.shape[1]
    uniform = torch.full((num_tasks,), 1.0 / num_tasks)
    aggregators = {
        "equal": jd.Sum(),
        "upgrad": jd.UPGrad(),
        "dualproj": jd.DualProj(),
        "mgda": jd.MGDA(epsilon=1e-7, max_iters=10_000),
        "cagrad": jd.CAGrad(c=0.4),
        "imtl_g": jd.IMTLG(),
        "aligned_mtl": jd.AlignedMTL(scale_mode="min"),
        "nash": jd.NashMTL(n_tasks=num_tasks, max_norm=0.0),
        "fairgrad": jd.FairGrad(alpha=2.0),
        "config": jd.ConFIG(),
        "trimmed_mean": jd.TrimmedMean(trim_number=1),
        # Without a warm-up the first exponent is the first risk itself, undivided.
        "excess_mtl": jd.ExcessMTL(robust_step_size=1.0, n_warmup_steps=1),
        "pcd": jd.PCD(),
        "pcgrad": jd.PCGrad(),
        "gradvac": jd.GradVac(beta=0.01),
        "krum": jd.Krum(n_byzantine=0),
    }
    crossed = {
        "modo": jd.MoDoWeighting(0.1, 0.1),
        "sdmgrad": jd.SDMGradWeighting(0.1, 0.0),
    }
    averaged = jd.CRMOGMWeighting(jd.MGDAWeighting(1e-7, 10_000), 0.9)
    scalarizers = {
        "gls": scalar.GeometricMean(),
        "dwa": scalar.DWA(),
        "famo": scalar.FAMO(num_tasks),
        "uncertainty": scalar.UW(num_tasks),
        "imtl_l": scalar.IMTLL(num_tasks),
        "pbi": scalar.PBI(0.5, uniform),
        "cosmos": scalar.COSMOS(1.0, uniform),
    }
    updates: dict[str, list] = {}
    for name, aggregator in aggregators.items():
        if (num_tasks == 2) == (name in ORDERED):
            updates[name] = [aggregator(matrix).tolist() for matrix in rows]
    if num_tasks == 2:
        return updates
    for name, weighting in crossed.items():
        weights = [weighting(first @ second.T) for first, second in halves]
        updates[name] = [(w @ g).tolist() for w, g in zip(weights, rows, strict=True)]
    updates["cr_mogm"] = [(averaged(g @ g.T) @ g).tolist() for g in rows]
    for name, scalarizer in scalarizers.items():
        learned = [] if name == "famo" else list(scalarizer.parameters())
        adam = torch.optim.Adam(learned, lr=LEARNING_RATE) if learned else None
        updates[name] = []
        for matrix, values, later in zip(rows, losses, after, strict=True):
            given = values.clone().requires_grad_()
            if adam:
                adam.zero_grad()
            scalarizer(given).backward()
            updates[name].append((given.grad @ matrix).tolist())
            if adam:
                adam.step()
            if name == "famo":
                scalarizer.update(later)
            if name == "dwa":
                scalarizer.step()
    return updates


@functools.cache
def libmtl_weighting() -> types.ModuleType:
    """Imports LibMTL's methods without what its package needs of old torchvisions."""
    (folder,) = importlib.util.find_spec("LibMTL").submodule_search_locations
    sys.modules["LibMTL"] = package = types.ModuleType("LibMTL")
    package.__path__ = [folder]
    return importlib.import_module("LibMTL.weighting")


def libmtl_updates(problem: dict[str, list]) -> dict[str, list]:
    """Runs in the peers' environment: updates `[5, P]` by method."""
    import torch

    libmtl = libmtl_weighting()
    rows, losses = torch.tensor(problem["rows"]), torch.tensor(problem["losses"])
    num_tasks = rows.shape[1]
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        "equal": ("EW", {}),
        "mgda": ("MGDA", {"mgda_gn": "none"}),
        "cagrad": ("CAGrad", {"calpha": 0.4, "rescale": 0}),
        "dwa": ("DWA", {"T": 2.0}),
        "gls": ("GLS", {}),
        "gradnorm": ("GradNorm", {"alpha": 1.5}),
        "imtl_l + imtl_g": ("IMTL", {}),
        "uncertainty": ("UW", {}),
        "pcgrad": ("PCGrad", {}),
        "gradvac": ("GradVac", {"beta": 0.01}),
    }
    updates = {}
    for name, (class_name, arguments) in methods.items():
        if (num_tasks == 2) != (name in ORDERED):
            continue
        method = getattr(libmtl, class_name)()
        shared = torch.nn.Parameter(torch.zeros(SIZE))
        method.task_num, method.device, method.rep_grad = num_tasks, "cpu", False
        method.train_loss_buffer = losses.T.numpy()
        method.get_share_params = lambda shared=shared: [shared]
        method.zero_grad_share_params = lambda shared=shared: shared.grad.zero_()
        method.init_param()
        learned = list(method.parameters())
        adam = torch.optim.Adam(learned, lr=LEARNING_RATE) if learned else None
        updates[name] = []
        for epoch, (matrix, values) in enumerate(zip(rows, losses, strict=True)):
            method.epoch = epoch
            shared.grad = torch.zeros(SIZE)
            if adam:
                adam.zero_grad()
            method.backward(values + matrix @ shared, **arguments)
            updates[name].append(shared.grad.tolist())
            if adam:
                adam.step()
    return updates


class Measured:
    """A batch at the new weights, whose losses are given."""

    def __init__(self, losses: np.ndarray):
        self._losses = losses

    def weights(self) -> list:
        """The model's weights, which nothing here depends on."""
        return []

    def losses(self, weights: Sequence, part: int | None = None) -> list:
        """The losses after the step."""
        del weights, part
        import tensorflow as tf

        return tf.unstack(tf.constant(self._losses, tf.float32))

    def total(self, value: Any) -> Any:
        """The value, as there is one replica."""
        return value


def our_updates(peer: str, name: str, problem: dict[str, list]) -> np.ndarray:
    """Returns the updates `[5, P]` of a method, or of two that are joined."""
    import keras
    import tensorflow as tf

    from mtl_keras import balancing

    num_tasks = len(problem["losses"][0])
    tasks = [str(task) for task in range(num_tasks)]
    methods = [
        balancing.get(
            {
                "class_name": part,
                "config": OURS.get(f"{peer}/{part}", OURS.get(part, {})),
            }
        )
        for part in name.split(" + ")
    ]
    for method in methods:
        method.build(tasks)
        if isinstance(method, balancing.GradientBalancer):
            method.build_variables([keras.Variable(np.zeros(SIZE))])
    updates = []
    present = tf.ones((num_tasks,), "bool")
    for step in range(STEPS):
        rows = tf.constant(problem["rows"][step], tf.float32)
        losses = tf.constant(problem["losses"][step], tf.float32)
        update = None
        for method in methods:
            method.on_epoch_begin()
            if isinstance(method, balancing.GradientBalancer):
                halves = tf.constant(problem["halves"][step], tf.float32)
                parts = [[[row] for row in tf.unstack(half)] for half in halves]
                task_gradients = [[row] for row in tf.unstack(rows)]
                gradient_step = balancing.GradientStep(
                    task_gradients,
                    losses,
                    present,
                    tf.ones(()),
                    sub_batches=parts if method.num_sub_batches else (),
                )
                (update,), weights = method.aggregate(gradient_step)
                method.after_step(weights, present)
                continue
            weights = method.weights(losses, present)
            update = tf.linalg.matvec(rows, weights, transpose_a=True)
            rows_before, rows = rows, rows * weights[:, None]
            method.update(
                balancing.LossStep(
                    losses,
                    present,
                    tf.constant(LEARNING_RATE),
                    gradient_norms=tf.norm(rows_before, axis=1),
                    probe=Measured(problem["after"][step]),
                )
            )
        updates.append(tf.convert_to_tensor(update).numpy())
    return np.array(updates, "float64")


def compared(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Returns by step how far directions differ, and the ratio of lengths."""
    lengths = np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    units = [u / np.linalg.norm(u, axis=1, keepdims=True) for u in (ours, theirs)]
    off = np.linalg.norm(units[0] - units[1], axis=1)
    return {
        "direction_off": off.round(9).tolist(),
        "length_ratio": lengths.round(6).tolist(),
        "same": bool(off.max() < SAME and np.ptp(lengths) < SAME * lengths.max()),
    }


def main() -> int:
    """Compares all methods and writes the results; 1 if any differs unexplained."""
    import peers

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    folder = peers.CACHE / "mtl_keras_torchjd"
    parser.add_argument("--environment", type=pathlib.Path, default=folder)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        problems = json.load(sys.stdin)
        by_peer = {"torchjd": torchjd_updates, "libmtl": libmtl_updates}
        answer = {peer: [of(p) for p in problems] for peer, of in by_peer.items()}
        json.dump(answer, sys.stdout)
        return 0
    from mtl_keras.runs.records import made_with

    python = peers.environment(arguments.environment)
    # What LibMTL needs besides are data sets.
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", LIBMTL]
    subprocess.run(install, check=True)
    problems = [steps_of(2), steps_of(3)]
    served = subprocess.run(
        [str(python), __file__, "--serve"],
        input=json.dumps(problems),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows = []
    for peer, answers in json.loads(served.stdout).items():
        for problem, updates in zip(problems, answers, strict=True):
            for name, theirs in updates.items():
                row = {"peer": peer, "method": name, "tasks": len(problem["rows"][0])}
                row |= compared(our_updates(peer, name, problem), np.array(theirs))
                if not row["same"]:
                    row["why"] = EXPLAINED.get(f"{peer}/{name}")
                rows.append(row)
                outcome = "same" if row["same"] else row["why"] or "NOT EXPLAINED"
                print(
                    f"{peer:8} {name:16} {max(row['direction_off']):.1e} "
                    f"{row['length_ratio'][-1]:6.3f}  {outcome}"
                )
    results = {
        "command": "python benchmarks/peer_updates.py",
        "peers": {"torchjd": "0.18", "libmtl": LIBMTL.split("==")[1]},
        "rows": rows,
        "made_with": made_with(),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(row["same"] or row["why"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
