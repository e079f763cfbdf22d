"""Paired significance tests of methods over seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_keras import optional
from mtl_keras.errors import InputError, check_integer, check_number

_TESTS = ("t", "wilcoxon")
# Differences of metrics, which are float32, that are no larger are round-off.
_ROUND_OFF = 4 * float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """The difference of two methods over the same seeds.

    Attributes:
        difference: Mean of first minus second, in the metric's unit.
        low: Lower end of the 95% confidence interval of the mean difference, of the
            t distribution and not corrected for several comparisons; NaN where the
            differences have no variance.
        high: Upper end.
        p: Two-sided p-value; NaN where the test cannot be made.
        p_corrected: The p-value after Holm's correction over all comparisons that
            were made together; NaN where `p` is, which does not count among them.
        untestable: Why `p` is NaN; empty where it is not.

    Example:

    ```pycon
    >>> values = {"nash": [0.9, 0.8, 0.9]}  # by seed
    >>> tests = mtl_keras.evaluation.paired_tests(values, [0.7, 0.7, 0.8])
    >>> round(tests["nash"].difference, 4)
    0.1333
    ```
    """

    difference: float
    low: float
    high: float
    p: float
    p_corrected: float
    untestable: str = ""


def paired_tests(
    values: Mapping[str, Sequence[float]],
    reference: Sequence[float] | float,
    test: str = "t",
) -> dict[str, PairedTest]:
    """Tests methods against one reference, seed by seed.

    Each seed gives one difference, so that what a seed does to both cancels. `"t"` is
    Student's paired t-test, which takes the differences to be normally distributed;
    `"wilcoxon"` is the exact signed-rank test, which does not, and cannot tell
    anything at 5% with fewer than six seeds: its smallest p-value is 2 / 2ⁿ.
    Dietterich, "Approximate Statistical Tests for Comparing Supervised Classification
    Learning Algorithms" (Neural Computation 1998) and Demšar (JMLR 2006) discuss
    both. Tests over seeds speak of the same data with other seeds, not of other data.

    Args:
        values: `{method: [value of each seed]}`.
        reference: The reference's values for the same seeds in the same order; or one
            number, to test the methods' means against.
        test: `"t"` or `"wilcoxon"`.

    Returns:
        `{method: PairedTest}`. With one seed nothing can be tested. Where all
        differences are 0, p is 1. Where they are equal and not 0, a t-test has no
        variance to measure them by: p is NaN, and `untestable` says why. Values are
        taken for metrics in float32, so differences are equal, or 0, up to its
        round-off.

    Raises:
        InputError: If the numbers of seeds differ, a value is not finite, or the test
            is unknown.

    Example:

    ```pycon
    >>> values = {"nash": [0.9, 0.8, 0.9]}  # by seed
    >>> tests = mtl_keras.evaluation.paired_tests(values, [0.7, 0.7, 0.8])
    >>> round(tests["nash"].p, 4)
    0.0572
    ```
    """
    if test not in _TESTS:
        raise InputError(
            f"Expected `test` to be 't' or 'wilcoxon'. Received: {test!r}."
        )
    results = {
        m: _test(m, np.asarray(v, float), reference, test) for m, v in values.items()
    }
    corrected = holm([single.p for single in results.values()])
    return {
        method: dataclasses.replace(single, p_corrected=p)
        for (method, single), p in zip(results.items(), corrected, strict=True)
    }


def _test(
    method: str, values: np.ndarray, reference: Sequence[float] | float, test: str
) -> PairedTest:
    other = np.asarray(reference, float)
    if values.ndim != 1 or not values.size or other.shape not in ((), values.shape):
        raise InputError(
            f"Expected a value of each seed for {method!r} and as many of the "
            f"reference. Received shapes {values.shape} and {other.shape}."
        )
    differences = values - other
    if not np.isfinite(differences).all():
        raise InputError(f"Expected finite values for {method!r}. Received: {values}.")
    mean = float(differences.mean())
    low = high = p = math.nan
    if len(differences) < 2:
        return PairedTest(mean, low, high, p, math.nan, "one seed")
    round_off = _ROUND_OFF * max(np.abs(values).max(), np.abs(other).max())
    differences = np.where(np.abs(differences) <= round_off, 0.0, differences)
    if np.ptp(differences) > round_off:
        result = _stats().ttest_1samp(differences, 0.0)
        p = float(result.pvalue)
        low, high = map(float, result.confidence_interval(0.95))
    if not differences.any():
        p = 1.0
    elif test == "wilcoxon":
        p = _signed_rank(differences)
    untestable = "no variance over the seeds" if math.isnan(p) else ""
    return PairedTest(mean, low, high, p, math.nan, untestable)


def _signed_rank(differences: np.ndarray) -> float:
    # Zero differences have no sign, and are left out as Wilcoxon does. With ties,
    # SciPy enumerates or draws the signs.
    nonzero = differences[differences != 0]
    tied = len(np.unique(np.abs(nonzero))) < len(nonzero)
    stats = _stats()
    method = stats.PermutationMethod(rng=0) if tied else "exact"
    return float(stats.wilcoxon(nonzero, method=method).pvalue)


def _stats() -> Any:
    """Returns SciPy's statistics, which take a second to load, on first use."""
    with optional.extra("evaluation", "scipy", "A test over seeds"):
        from scipy import stats

    return stats


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for having made several comparisons at once.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (Scandinavian
    Journal of Statistics 1979): below 0.05 after it means that the chance of even one
    false alarm among all is below 5%, whatever depends on what.

    Args:
        p_values: From 0 to 1; NaN stays NaN and does not count.

    Returns:
        The corrected p-values, in the same order, at most 1.

    Example:

    ```pycon
    >>> mtl_keras.evaluation.holm([0.01, 0.04])
    [0.02, 0.04]
    ```
    """
    values = np.asarray(p_values, float)
    corrected = np.full(values.shape, np.nan)
    order = [i for i in np.argsort(values, kind="stable") if not np.isnan(values[i])]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * values[index]))
        corrected[index] = largest
    return corrected.tolist()


def detectable_difference(
    seeds: int, comparisons: int = 1, power: float = 0.8, level: float = 0.05
) -> float:
    """Returns how large a difference must be for a paired t-test to see it.

    Args:
        seeds: Number of pairs, at least 2.
        comparisons: Number of comparisons made at once; the first step of Holm's
            correction, which is Bonferroni's, is taken.
        power: Chance of finding it.
        level: Chance of a false alarm.

    Returns:
        The mean difference in units of the standard deviation of the differences
        between seeds (Cohen's d_z).

    Raises:
        InputError: For a number out of range.

    Example:

    ```pycon
    >>> round(mtl_keras.evaluation.detectable_difference(seeds=5), 2)
    1.68
    ```
    """
    check_integer("seeds", seeds, low=2)
    check_integer("comparisons", comparisons, low=1)
    check_number("power", power, low=0.01, high=0.999)
    with optional.extra("evaluation", "scipy", "The power of a test"):
        from scipy import optimize, stats

    freedom = seeds - 1
    critical = stats.t.isf(level / comparisons / 2, freedom)

    def surplus(effect: float) -> float:
        # The other tail is a wrong sign, and no finding.
        return float(stats.nct.sf(critical, freedom, effect * math.sqrt(seeds))) - power

    return float(optimize.brentq(surplus, 0.0, 10.0 * critical))
