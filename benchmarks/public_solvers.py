"""Weights that public solvers give, for the tests of the Gram methods.

    python benchmarks/public_solvers.py [--environment FOLDER]

Draws task gradients of five kinds for 2, 3, 5 and 8 tasks and solves them in TorchJD's
environment (see peers.py), all in float64: by TorchJD 0.18 where its method is the
same, else by SciPy, quadprog and Clarabel from the published objective, as TorchJD's
own solutions of those are good to few digits only. Writes
tests/balancing/public_weights.json, with where each weight comes from.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np

RESULTS = (
    pathlib.Path(__file__).resolve().parents[1]
    / "tests"
    / "balancing"
    / "public_weights.json"
)
TASKS = (2, 3, 5, 8)
KINDS = ("plain", "conflict", "scales", "aligned", "short")
C, ALPHA = 0.4, 2.0


def gradients(kind: str, num_tasks: int, rng: np.random.Generator) -> np.ndarray:
    """Returns task gradients `[T, 3 T + 5]` of six significant digits."""
    rows = rng.normal(size=(num_tasks, 3 * num_tasks + 5))
    if kind == "conflict":
        rows -= 0.9 * rows.mean(0)
    if kind == "scales":
        rows *= 10.0 ** rng.uniform(-2, 2, size=(num_tasks, 1))
    if kind == "aligned":
        rows += 2.0 * rng.normal(size=rows.shape[1])
    if kind == "short":
        rows *= 1e-2  # TorchJD takes what is shorter than 1e-4 for 0
    return np.array([[float(f"{value:.6g}") for value in row] for row in rows])


def by_torchjd(rows: np.ndarray) -> dict[str, tuple]:
    """Returns weights, and the solver they come from, of the methods TorchJD has."""
    import torch
    from torchjd import aggregation as jd

    solvers = {
        "upgrad": jd.UPGradWeighting(),
        "dualproj": jd.DualProjWeighting(),
        "imtlg": jd.IMTLGWeighting(),
        **{
            f"aligned_{mode}": jd.AlignedMTLWeighting(scale_mode=mode)
            for mode in ("min", "median", "rmse")
        },
    }
    if len(rows) == 2:  # The order of the projections cannot matter.
        solvers["pcgrad"] = jd.PCGradWeighting()
    if len(rows) >= 4:
        solvers["krum_f1_m2"] = jd.KrumWeighting(n_byzantine=1, n_selected=2)
    gram = torch.tensor(rows @ rows.T)
    weights = {name: solve(gram).numpy() for name, solve in solvers.items()}
    return {name: (w, f"torchjd {solvers[name]}") for name, w in weights.items()}


def by_objective(rows: np.ndarray) -> dict[str, tuple]:
    """Returns weights, and the solver they come from, of the published objectives."""
    import cvxpy
    import quadprog
    from scipy import optimize

    gram = rows @ rows.T
    size = len(gram)
    # The least norm in the convex hull, in units that make the diagonal 1.
    norms = np.sqrt(np.diag(gram))
    unit = gram / np.outer(norms, norms)
    constraints = np.column_stack([1 / norms / (1 / norms).max(), np.eye(size)])
    bounds = np.zeros(size + 1)
    bounds[0] = 1.0
    hull = quadprog.solve_qp(unit, np.zeros(size), constraints, bounds, meq=1)[0]
    hull = hull / norms
    # CAGrad's dual, of gradients of length near 1.
    scaled = rows / norms.mean()
    mean = scaled.mean(0)
    w = cvxpy.Variable(size)
    combined = scaled.T @ w
    radius = C * np.linalg.norm(mean)
    dual = combined @ mean + radius * cvxpy.norm(combined)
    problem = cvxpy.Problem(cvxpy.Minimize(dual), [w >= 0, cvxpy.sum(w) == 1])
    tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-14)
    problem.solve(solver=cvxpy.CLARABEL, **tight)
    length = np.linalg.norm(scaled.T @ w.value)
    cagrad = 1 / size + radius / length * np.maximum(w.value, 0.0)

    def root(alpha: float) -> np.ndarray:
        """Solves G x = x ** (-1 / alpha) in the logarithms of x · norms."""

        def rest(y: np.ndarray) -> np.ndarray:
            return unit @ np.exp(y) - np.exp(-y / alpha) * norms ** (1 / alpha - 1)

        start = np.log(1 / norms.mean()) * np.ones(size) + np.log(norms)
        found = optimize.root(rest, start, tol=1e-15)
        assert np.abs(found.fun).max() < 1e-10, found
        return np.exp(found.x) / norms

    return {
        "mgda": (hull / hull.sum(), "quadprog"),
        "cagrad_c0.4": (cagrad, "Clarabel through CVXPY, 1e-14"),
        "nash": (root(1.0), "scipy.optimize.root"),
        "fairgrad_a2": (root(ALPHA), "scipy.optimize.root"),
    }


def solve() -> None:
    """Runs in TorchJD's environment: writes the file."""
    import torch
    from torchjd import aggregation

    rng = np.random.default_rng(0)
    cases = []
    for num_tasks in TASKS:
        for kind in KINDS:
            rows = gradients(kind, num_tasks, rng)
            solved = {**by_torchjd(rows), **by_objective(rows)}
            update = aggregation.ConFIG()(torch.tensor(rows)).numpy()
            cases.append(
                {
                    "kind": kind,
                    "J": rows.tolist(),
                    "weights": {
                        name: {"w": w.tolist(), "source": source}
                        for name, (w, source) in solved.items()
                    },
                    "config_update": update.tolist(),
                }
            )
    RESULTS.write_text(json.dumps({"cases": cases}) + "\n")


def main() -> None:
    """Runs `solve` in TorchJD's environment."""
    import peers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--environment", type=pathlib.Path, default=peers.CACHE / "mtl_keras/torchjd"
    )
    python = peers.environment(parser.parse_args().environment)
    subprocess.run([str(python), __file__, "solve"], check=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["solve"]:
        solve()
    else:
        main()
