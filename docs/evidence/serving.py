"""What the page on serving has of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evidence.markdown import mean_and_std, results, table

CONTENDERS = {
    "multi_task": "one model, `serving_default`",
    "five_in_a_row": "five models, one after the other",
    "five_at_once": "five models, at the same time",
}

OTHERS = (
    "the second of two names where it is above 0.5",
    "absolute and relative to values above 1: 1e-5, and 0.031 for a model of mixed "
    "precision",
)


def ratio(measured: Mapping[str, Any], name: str, reference: str) -> str:
    """Returns a latency over that of a reference, which is 1 for itself."""
    if name == reference:
        return "1"
    return mean_and_std(measured[name][f"latency_to_{reference}"])


def of_signatures(measured: Mapping[str, Any]) -> str:
    """Returns operations and latencies of signatures of one model."""
    reference = "serving_default"
    by_batch = measured["by_signature"].values()
    rows = []
    for name in measured["by_signature"]["1"]:
        cells = [ratio(by_name, name, reference) for by_name in by_batch]
        if name == reference:
            cells = [
                f"1 ({by_name[name]['latency_ms']['mean']:.2f} ms)"
                for by_name in by_batch
            ]
        rows.append([f"`{name}`", str(measured["operations"][name]), *cells])
    return table(["signature", "operations", "1 sample", "32 samples"], rows)


def one_or_five(measured: Mapping[str, Any]) -> str:
    """Returns latencies and throughputs of one model of five tasks and of five."""
    by_batch = measured["multi_task_against_five_of_one"].values()
    rows = [
        [
            title,
            *(ratio(by_name, name, "multi_task") for by_name in by_batch),
            *(
                f"{by_name[name]['samples_per_second']['mean']:,.0f}"
                for by_name in by_batch
            ),
        ]
        for name, title in CONTENDERS.items()
    ]
    latencies = ["latency, 1 sample", "latency, 32 samples"]
    return table(["", *latencies, "samples/s, 1", "samples/s, 32"], rows)


def of_weights(measured: Mapping[str, Any]) -> str:
    """Returns sizes and latencies of forms of the weights."""
    by_batch = measured["by_weights"].values()
    rows = [
        [
            weights,
            f"{size / 1e6:.2f} MB",
            *(ratio(by_name, weights, "float32") for by_name in by_batch),
        ]
        for weights, size in measured["size_bytes"]["multi_task"].items()
    ]
    return table(["weights", "size", "latency, 1 sample", "latency, 32 samples"], rows)


def parts() -> dict[str, str]:
    """Returns the generated parts of the page, by name."""
    measured = results("serving")
    return {
        "cost of signatures": of_signatures(measured),
        "one model or five": one_or_five(measured),
        "smaller weights": of_weights(measured),
    }


def sentences() -> list[str]:
    """Returns sentences of the page with figures, as the results have them."""
    measured = results("serving")
    size = measured["size_bytes"]
    one, five = size["multi_task"]["float32"], sum(size["single_task"].values())
    return [
        f"the vision application with its defaults, {measured['cores']} cores, "
        "requests one after the other; mean ± standard deviation over "
        f"{measured['rounds']} rounds in turns",
        f"The one model is {one / 1e6:.2f} MB, graph and weights; the five are "
        f"{five / 1e6:.2f} MB, {five / one:.2f} times as much.",
    ]
