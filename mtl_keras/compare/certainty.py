"""What the seeds of a comparison can show, in words and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_keras.compare.html_parts import (
    is_finite,
    p_value,
    paragraph,
    section,
    table,
)

_LEVEL = 0.05
_TITLE = "What these seeds can show"


def certainty(tests: Mapping[str, Any]) -> str:
    """Returns the part of the report about the tests over seeds.

    Args:
        tests: `Summary["tests"]`.
    """
    if tests["seeds"] < 2:
        return section(_TITLE, "One seed tells nothing about chance: no test.", "")
    words = [_what_was_tested(tests), _what_was_found(tests), _limits(tests)]
    found = tests.get("against_reference", {"t": {}, "wilcoxon": {}})
    rows = [
        [
            name,
            f"{t['difference']:+.2f}",
            _interval(t),
            p_value(t["p"]),
            p_value(t["p_corrected"]),
            p_value(found["wilcoxon"][name]["p"]),
        ]
        for name, t in found["t"].items()
    ]
    if not rows:
        return section(_TITLE, " ".join(words), "")
    heads = ["method", "Δm difference", "95% interval", "p", "p, Holm", "p, Wilcoxon"]
    against = f"Against {tests['reference']}, in points of Δm:"
    return section(_TITLE, " ".join(words), paragraph(against) + table(rows, heads))


def _what_was_tested(tests: Mapping[str, Any]) -> str:
    return (
        "The p-values are of two-sided paired t-tests of Δm over the seeds, against "
        f"the single tasks and against {tests['reference']}, corrected by Holm for all "
        "methods together."
    )


def _what_was_found(tests: Mapping[str, Any]) -> str:
    families = (
        ("against_single", "the single tasks"),
        ("against_reference", tests["reference"]),
    )
    shown = {
        family: [
            name
            for name, found in tests.get(family, {}).get("t", {}).items()
            if found["p_corrected"] < _LEVEL
        ]
        for family, _ in families
    }
    words = []
    for family, other in families:
        names = shown[family]
        words.append(f"Different from {other} at 5%: {', '.join(names) or 'none'}.")
    words.append("That no difference was shown does not mean that there is none.")
    for family, other in families:
        reasons = {
            name: found["untestable"]
            for name, found in tests.get(family, {}).get("t", {}).items()
            if found["untestable"]
        }
        if reasons:
            named = ", ".join(f"{name} ({why})" for name, why in reasons.items())
            words.append(f"Not testable against {other}: {named}.")
    return " ".join(words)


def _interval(test: Mapping[str, Any]) -> str:
    if not is_finite(test["low"]):
        return "–"
    return f"{test['low']:+.2f} to {test['high']:+.2f}"


def _limits(tests: Mapping[str, Any]) -> str:
    seeds, found = tests["seeds"], tests["detectable"]
    words = ""
    if found is not None:
        words += (
            f"With {seeds} seeds, the t-test finds a difference in four of five cases "
            f"only when it is {found['one_comparison']:.1f} times as large as its "
            "standard deviation between seeds, "
            f"{found['all_comparisons']:.1f} times after the correction. "
        )
    smallest = tests["smallest_wilcoxon_p"]
    words += (
        "The Wilcoxon test, which assumes less, cannot get below "
        f"p = {smallest:.3g} with {seeds} seeds"
    )
    words += (
        ", so it can show nothing at 5%; it needs six. " if smallest >= _LEVEL else ". "
    )
    return words + "Seeds speak of this data set and split, not of others."
