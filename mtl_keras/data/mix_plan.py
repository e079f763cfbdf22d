"""Draws of each source of a mixture in an epoch: their number and order.

A unit is drawn at a time: a sample, or a whole batch of one source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mtl_keras.errors import InputError, check_integer, unknown_name

WAYS = ("size", "temperature", "ratio")
ENDS = ("longest", "shortest")


def shares(
    sizes: Mapping[str, int],
    by: str,
    temperature: float,
    ratio: Mapping[str, float] | None,
) -> np.ndarray:
    """Returns the share of each source, float64, not normalised.

    Args:
        sizes: Samples of each source.
        by: One of `WAYS`.
        temperature: T of the shares `size ** (1 / T)`.
        ratio: Shares by source.

    Raises:
        InputError: An argument is unknown, missing, not wanted or out of range.
    """
    if by not in WAYS:
        raise unknown_name("way to mix (`by`)", by, WAYS)
    if (ratio is not None) != (by == "ratio"):
        raise InputError(
            'Expected `ratio` with by="ratio", and only with it. '
            f"Received: by={by!r}, ratio={ratio!r}."
        )
    counts = np.array(list(sizes.values()), float)
    if by == "size":
        return counts
    if by == "temperature":
        if not 0 < temperature < np.inf:
            raise InputError(
                "Expected `temperature` to be a number above 0. "
                f"Received: {temperature!r}."
            )
        # Divided by the largest, so that no power overflows.
        return (counts / counts.max()) ** (1 / temperature)
    assert ratio is not None
    for name in ratio:
        if name not in sizes:
            raise unknown_name("source in `ratio`", name, sizes)
    values = np.array([ratio.get(name, 0) for name in sizes], float)
    if not (np.isfinite(values) & (values > 0)).all():
        raise InputError(
            "Expected `ratio` to have a number above 0 for each of the sources "
            f"{', '.join(sizes)}. Received: {dict(ratio)!r}."
        )
    return values


def unit_counts(
    units: Sequence[int], share: np.ndarray, ends: str | int, per_step: int
) -> np.ndarray:
    """Returns the units that an epoch draws of each source, at least 1 each.

    Args:
        units: Units of one pass over each source.
        share: `shares`' result.
        ends: One of `ENDS`, or a number of steps.
        per_step: Units of a step.

    Raises:
        InputError: `ends` is neither, or has not room for every source.
    """
    passes = np.asarray(units) / share
    if ends == "longest":
        # Rounded first: a share that is whole but for rounding stays as it is.
        return np.ceil(np.round(share * passes.max(), 6)).astype(int)
    if ends == "shortest":
        return np.maximum(np.floor(np.round(share * passes.min(), 6)), 1).astype(int)
    if isinstance(ends, str):
        raise unknown_name("end (`ends`)", ends, (*ENDS, "a number of steps"))
    total = check_integer("ends", ends, low=1) * per_step
    if total < len(units):
        raise InputError(
            f"Expected `ends` to leave room for each of {len(units)} sources. "
            f"Received: {ends} steps."
        )
    return _apportion(total, share)


def _apportion(total: int, share: np.ndarray) -> np.ndarray:
    """Splits a total by shares (largest remainders), with at least 1 for each."""
    exact = 1 + (total - len(share)) * share / share.sum()
    counts = np.floor(exact).astype(int)
    rest = total - counts.sum()
    largest = np.argsort(counts - exact, kind="stable")[:rest]
    counts[largest] += 1
    return counts


def even_order(counts: np.ndarray) -> np.ndarray:
    """Returns source numbers, int64 `[sum(counts)]`, each spread out evenly.

    Equal counts give rounds: every source once, then every source again.
    """
    sources = np.repeat(np.arange(len(counts)), counts)
    moments = np.concatenate([(np.arange(n) + 0.5) / n for n in counts])
    return sources[np.argsort(moments, kind="stable")].astype(np.int64)
