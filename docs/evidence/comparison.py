"""What the page on other libraries has of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evidence.markdown import results, span, table

# The page's columns of the rows of `benchmarks/peer_steps.py`.
STEPS = {
    ("here", "upgrad"): "`upgrad`",
    ("here", "nash"): "`nash`",
    ("here", "nash running"): "`nash` running",
    ("torchjd", "autojac upgrad"): "`autojac` UPGrad",
    ("torchjd", "autojac nash"): "`autojac` NashMTL",
    ("torchjd", "autogram upgrad"): "`autogram` UPGrad",
}
OTHERS = (
    "(the release 1.1.5 has 12 methods and 7 architectures)",
    # A default of TorchJD.
    "TorchJD's Frank-Wolfe iteration stops after 100 steps",
)


def by_step(run: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Returns the rows of a run of `benchmarks/peer_steps.py` by library and step."""
    return {(row["library"], row["step"]): row for row in run["rows"]}


def peer_steps(measured: Mapping[str, Any]) -> str:
    """Returns the times of steps over those of the framework without balancing."""
    rows = []
    for run in measured["runs"]:
        ratios = by_step(run)
        cells = (f"{ratios[step]['to_stock']:.3g}" for step in STEPS)
        rows.append([str(run["tasks"]), *cells])
    return table(["T", *STEPS.values()], rows)


def parts() -> dict[str, str]:
    """Returns the generated parts of the page, by name."""
    return {"steps beside peers": peer_steps(results("peer_steps"))}


def solves(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the sentences on the times of solves here and in TorchJD."""
    here, peers = (
        [row[library]["median"] for row in rows if row["tasks"] == 8]
        for library in ("native", "torchjd")
    )
    shares = {
        (row["solver"], row["tasks"]): 1 / row["times_faster"]
        for row in rows
        if row["solver"] in ("UPGrad", "MGDA")
    }
    return [
        f"One solve for eight conflicting tasks takes at most {max(here):.0f} µs here "
        f"and {min(peers):.0f} µs to {max(peers) / 1e3:.0f} ms in TorchJD "
        "0.18 called from Python",
        f"UPGrad takes {shares['UPGrad', 64]:.2f} of TorchJD's time with 64 tasks and "
        f"{shares['UPGrad', 128]:.2f} with 128.",
        f"MGDA takes {shares['MGDA', 64]:.2f} of it with 64 and "
        f"{shares['MGDA', 128]:.1f} times as long with 128:",
    ]


def sentences() -> list[str]:
    """Returns sentences of the page with figures, as the results have them."""
    stock: dict[str, list[float]] = {"here": [], "torchjd": []}
    for run in results("peer_steps")["runs"]:
        for library, times in stock.items():
            times.append(by_step(run)[library, "stock"]["ms"]["median"])
    keras, pytorch = (span(times, ".0f") for times in stock.values())
    return [
        *solves(results("peers")["rows"]),
        f"(Keras {keras} ms, PyTorch {pytorch} ms)",
    ]
