"""What the page on reliability has of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evidence.markdown import results, span


def killed(measured: Mapping[str, Any]) -> str:
    """Returns what trainings that were killed ended with.

    A run that ends otherwise than the reference ends the script, so that all counted
    here are the same.
    """
    ended = measured["runs_that_ended_as_the_reference"]
    return (
        f"{measured['kills']} kills; {ended} of {ended} runs that got to their end are "
        "the same, bit for bit; nothing half-written under a final name."
    )


def further(measured: Mapping[str, Any]) -> str:
    """Returns how the trials with damage, full disks and killed commands ended."""
    broken = measured["broken_promise"]
    return broken or f"As promised above in all of {len(measured['records'])} trials."


def soaked(measured: Mapping[str, Any]) -> str:
    """Returns by how much memory and time of an epoch grew in a long training."""
    ours = [measured[f"steps_per_execution_{steps}"] for steps in (1, 50)]
    slopes = [run["memory"]["slope"] for run in ours]
    later = [1 + run["cpu_seconds"]["growth"] for run in ours]
    return (
        f"Memory grew by {span(slopes, '.2f')} MiB an epoch of "
        f"{measured['steps_per_epoch']:,} steps, that of a stock `keras.Model` with "
        f"Keras's callbacks alone by {measured['keras.Model']['memory']['slope']:.2f}; "
        f"a late epoch took {span(later, '.2f')} times the processor time of an early "
        "one."
    )


def sentences() -> list[str]:
    """Returns the page's sentences with figures, as the results have them."""
    return [
        killed(results("chaos")),
        further(results("chaos_further")),
        f"{results('fuzz')['cases']:,} damaged study files",
        soaked(results("soak")),
    ]
