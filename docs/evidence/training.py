"""What the page on training has of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evidence.markdown import power, results, span

# What is to rounding: a few times the float32 spacing at 1.
_ROUNDING = 1e-6
OTHERS = (
    # 0.95 ** 64 of the steps are left, 4 %.
    "with 5 % of the labels NaN and 64 samples in a batch, hardly a step is left",
    # Ten bits of a factor.
    "gradients differ from a CPU's by 1e-3",
)


def trials_under_xla(measured: Mapping[str, Any]) -> str:
    """Returns the sentences on a study's trials with and without XLA."""
    trials = [measured[f"jit = {jit}"]["by_trial"] for jit in ("false", "true")]
    plain, compiled = ([trial["seconds"] for trial in study] for study in trials)
    memory = [[trial["memory_mb"] for trial in study] for study in trials]
    growth = [f"{np.mean(np.diff(held)):.0f} MB" for held in memory]
    last = [f"{held[-1]:,.0f} MB" for held in memory]
    return (
        "In a study of six trials of 16 steps each, on two cores that had other work "
        f"as well, a trial took {span(plain, '.0f')} s without XLA, and with it "
        f"{span(compiled, '.0f')} s, half of them above {np.median(compiled):.0f} s. "
        f"The process of the trials grew by {growth[0]} with each of them, to "
        f"{last[0]}, and under XLA by {growth[1]}, to {last[1]}"
    )


def workers(measured: Mapping[str, Any]) -> str:
    """Returns the sentence on the weights of two workers and of one process."""
    by_method = measured["largest_difference_of_a_weight"]
    others = ", ".join(
        f"`{method}` ({power(off['from_one_process'], 1)})"
        for method, off in by_method.items()
        if off["from_one_process"] > _ROUNDING
    )
    return (
        f"after {measured['steps']} steps, with each of the {len(by_method)} methods "
        "the weights of the workers are the same, and those of one process with the "
        f"same batches to rounding, but for methods that magnify it, {others}:"
    )


def sentences() -> list[str]:
    """Returns sentences of the page with figures, as the results have them."""
    return [
        trials_under_xla(results("search_memory")),
        workers(results("multiworker")),
    ]
