"""What the page on ways to share has of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evidence.markdown import results, spread, table
from mtl_keras import sharing

WAYS = (
    "hard",
    "mmoe",
    "omoe",
    "dselect_k",
    "cgc",
    "ple",
    "cross_stitch",
    "sluice",
    "mtan",
    "branching",
    "aitm",
    "esmm",
)
EXPERTS = {
    "100 inputs, dense 16": "100, dense 16",
    "512 inputs, dense 64": "512, dense 64",
}
PARTS = ("products alone", "gates alone", "experts alone", "a call alone")
LOOPS = ("loop over experts", "loop over pairs")


def sizes(measured: Mapping[str, Any]) -> str:
    """Returns parameters and operations of ways to share over those of hard sharing."""
    rows = []
    for name in WAYS:
        ratios = [
            backbone[name][f"{key}_ratio"]
            for backbone in measured["sizes"].values()
            for key in ("parameters", "flops")
        ]
        rows.append(
            [
                f"`{name}`" + (", while training" if name == "branching" else ""),
                f"`{type(sharing.get(name)).__name__}`",
                *("1" if name == "hard" else f"{ratio:.2f}" for ratio in ratios),
            ]
        )
    head = ["mlp: parameters", "operations", "cnn: parameters", "operations"]
    return table(["Name", "Class", *head], rows)


def times(measured: Mapping[str, Any]) -> str:
    """Returns how many times as fast as loops experts side by side are."""
    rows = [
        [kind]
        + [
            f"{measured[kind + compiler]['speed_up'][loop]:.2f}"
            for compiler in ("", ", XLA")
            for loop in LOOPS
        ]
        for kind in measured
        if f"{kind}, XLA" in measured
    ]
    first, second = LOOPS
    head = ["Inputs, layers of an expert", *LOOPS, f"under XLA: {first}", second]
    return table(head, rows)


def limits(measured: Mapping[str, Any]) -> str:
    """Returns processor times of experts side by side, of the loop, and of parts."""
    rows = []
    for kind, title in EXPERTS.items():
        taken = measured[kind]["processor_ms"]
        loop, together = taken["loop over experts"], taken["together"]
        rows.append(
            [
                title,
                f"{loop:.2f}",
                f"{together:.2f} ({loop / together:.2f} times as fast)",
                *(f"{taken[part]:.2f}" for part in PARTS),
            ]
        )
    return table(["Inputs, experts", "loop over experts", "together", *PARTS], rows)


def related(measured: Mapping[str, Any]) -> str:
    """Returns test losses of both ways to share, by the tasks' correlation."""
    rows = [
        [correlation, *(spread(losses[way]) for way in ("hard", "mmoe"))]
        for correlation, losses in measured["test_loss"].items()
    ]
    return table(["Task correlation", "Hard sharing", "MMoE"], rows)


def parts() -> dict[str, str]:
    """Returns the generated parts of the page, by name."""
    return {
        "sizes of sharing": sizes(results("sharing_sizes")),
        "times of experts": times(results("sharing_times")),
        "limits of experts": limits(results("sharing_limits")),
        "mmoe synthetic": related(results("mmoe_synthetic")),
    }


def of_limits(measured: Mapping[str, Any]) -> str:
    """Returns the sentences on what bounds experts side by side."""
    rates = measured["billions_a_second_of_one_core"]
    small, large = (measured[kind] for kind in EXPERTS)
    millions, megabytes = (
        np.array([kind[key] / 1e6 for kind in (small, large)])
        for key in ("operations_of_products", "bytes")
    )
    computed, copied = millions / rates["operations"], megabytes / rates["bytes"]
    of_small, of_large = small["processor_ms"], large["processor_ms"]
    products = of_large["loop over experts"] / of_large["products alone"]
    # A call is in the times of both parts.
    products_and_gates = of_small["loop over experts"] / (
        of_small["products alone"] + of_small["gates alone"] - of_small["a call alone"]
    )
    return (
        "The two products of the experts' kernels have "
        f"{millions[0]:.0f} and {millions[1]:,.0f} million operations. "
        f"A core made {rates['operations']:.1f} billion a second of one large product "
        f"then, and copied {rates['bytes']:.1f} GB/s: at least {computed[0]:.1f} and "
        f"{computed[1]:.1f} ms for the operations, {copied[0]:.1f} and {copied[1]:.1f} "
        f"ms for the {megabytes[0]:.1f} and {megabytes[1]:.1f} MB "
        "of inputs, kernels and outputs. At 512 → 64 the products are at the machine's "
        f"rate, and alone are {products:.2f} times as fast as the loop; at 100 → 16 so "
        f"are products and gates ({products_and_gates:.2f} times, with a call counted "
        "once)"
    )


def sentences() -> list[str]:
    """Returns the page's sentences with figures, as the results have them."""
    related_tasks = results("mmoe_synthetic")
    weights = related_tasks["parameters"]
    losses = related_tasks["test_loss"]["0.5"]
    ahead = np.less(losses["hard"], losses["mmoe"])
    return [
        of_limits(results("sharing_limits")),
        f"({weights['hard']:,} weights with hard sharing, "
        f"{weights['mmoe']:,} with MMoE)",
        "At correlation 0.5, hard sharing is ahead in "
        f"{sum(ahead)} of {len(ahead)} seeds.",
    ]
