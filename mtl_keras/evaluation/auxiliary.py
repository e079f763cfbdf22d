"""Whether auxiliary tasks help a main task, from trainings with and without them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtl_keras.errors import InputError
from mtl_keras.evaluation.significance import paired_tests

HELPS, HURTS, UNCLEAR = "helps", "hurts", "unclear"


class HelperGain(NamedTuple):
    """The gain of a main task from auxiliary tasks, over the same seeds.

    Example:

    ```pycon
    >>> alone, together = [0.70, 0.72, 0.71], [0.75, 0.76, 0.76]
    >>> gains = mtl_keras.evaluation.helper_gains(alone, together)
    >>> gains["all"].verdict
    'helps'
    ```
    """

    gain: float
    """Mean relative gain in percent, positive where the helpers help; NaN where a value
    without them is 0."""
    difference: float
    """Mean of with minus without, in the metric's unit."""
    p: float
    """Two-sided p-value of the paired t-test; NaN where it cannot be made."""
    p_corrected: float
    """After Holm's correction over all that were tested together."""
    verdict: str
    """`"helps"` or `"hurts"` where the corrected p-value is below the level, else
    `"unclear"`."""


def helper_gains(
    alone: Sequence[float],
    together: Sequence[float],
    without: Mapping[str, Sequence[float]] | None = None,
    direction: str = "max",
    level: float = 0.05,
) -> dict[str, HelperGain]:
    """Tells whether auxiliary tasks help a main task.

    All helpers together are compared with the main task alone, and each helper by
    leaving it out: what the main task reaches with all, beside what it reaches with all
    but this one. A helper may be unclear alone and help with others, which do the same.

    Args:
        alone: The main task's metric, trained alone, by seed.
        together: Its metric with all helpers, for the same seeds.
        without: `{helper: its metric with all but this one}`, for the same seeds; none
            where there is one helper.
        direction: `"max"` where more of the metric is better, `"min"` where less is.
        level: Chance of a false verdict among all.

    Returns:
        `{"all": HelperGain, helper: HelperGain, …}`.

    Raises:
        InputError: If numbers of seeds differ, values are not finite, or a helper is
            named "all".

    Example:

    ```pycon
    >>> gains = mtl_keras.evaluation.helper_gains(
    ...     alone=[0.70, 0.72, 0.71],
    ...     together=[0.75, 0.76, 0.76],
    ...     without={"depth": [0.70, 0.72, 0.71], "normals": [0.76, 0.75, 0.77]},
    ... )
    >>> {name: gain.verdict for name, gain in gains.items()}
    {'all': 'helps', 'depth': 'helps', 'normals': 'unclear'}
    ```
    """
    if direction not in ("max", "min"):
        raise InputError(
            f"Expected `direction` to be 'max' or 'min'. Received: {direction!r}."
        )
    without = dict(without or {})
    if "all" in without:
        raise InputError("Expected no helper of the name 'all'. Received one.")
    others = {"all": alone, **without}
    sign = 1.0 if direction == "max" else -1.0
    both = np.asarray(together, float)
    differences = {}
    for name, values in others.items():
        other = np.asarray(values, float)
        if other.shape != both.shape or both.ndim != 1:
            raise InputError(
                f"Expected a value of each seed for {name!r} and as many with all. "
                f"Received shapes {other.shape} and {both.shape}."
            )
        differences[name] = both - other
    tests = paired_tests({name: d.tolist() for name, d in differences.items()}, 0.0)
    result = {}
    for name, test in tests.items():
        other = np.asarray(others[name], float)
        gain = math.nan
        if other.all():
            gain = float(100.0 * sign * np.mean(differences[name] / np.abs(other)))
        verdict = UNCLEAR
        if test.p_corrected < level:
            verdict = HELPS if sign * test.difference > 0.0 else HURTS
        result[name] = HelperGain(
            gain, test.difference, test.p, test.p_corrected, verdict
        )
    return result
