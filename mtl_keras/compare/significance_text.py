"""The section of a report on the significance of differences between methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_keras.reports.rendering import Section, is_finite, p_value, section

_LEVEL = 0.05
_TITLE = "What these seeds can show"


def significance(tests: Mapping[str, Any]) -> Section:
    """Returns the report's section on the tests over seeds.

    Args:
        tests: `Summary["tests"]`.
    """
    if tests["seeds"] < 2:
        return section(_TITLE, "One seed tells nothing about chance: no test.")
    text = " ".join([_design(tests), _differences(tests), _power(tests)])
    against = tests.get("against_reference", {"t": {}, "wilcoxon": {}})
    rows = [
        [
            name,
            f"{t['difference']:+.2f}",
            _interval(t),
            p_value(t["p"]),
            p_value(t["p_corrected"]),
            p_value(against["wilcoxon"][name]["p"]),
        ]
        for name, t in against["t"].items()
    ]
    if not rows:
        return section(_TITLE, text)
    return section(
        _TITLE,
        text,
        above=f"Against {tests['reference']}, in points of Δm:",
        rows=rows,
        heads=[
            "method",
            "Δm difference",
            "95% interval",
            "p",
            "p, Holm",
            "p, Wilcoxon",
        ],
    )


def _design(tests: Mapping[str, Any]) -> str:
    single = "the single tasks and against " if "against_single" in tests else ""
    return (
        "The p-values are of two-sided paired t-tests of Δm over the seeds, against "
        f"{single}{tests['reference']}, corrected by Holm for all methods together."
    )


def _differences(tests: Mapping[str, Any]) -> str:
    families = [("against_reference", tests["reference"])]
    if "against_single" in tests:
        families.insert(0, ("against_single", "the single tasks"))
    by_family = {family: tests.get(family, {}).get("t", {}) for family, _ in families}
    sentences = []
    for family, other in families:
        names = [n for n, t in by_family[family].items() if t["p_corrected"] < _LEVEL]
        sentences.append(f"Different from {other} at 5%: {', '.join(names) or 'none'}.")
    sentences.append("That no difference was shown does not mean that there is none.")
    for family, other in families:
        reasons = [
            f"{name} ({t['untestable']})"
            for name, t in by_family[family].items()
            if t["untestable"]
        ]
        if reasons:
            sentences.append(f"Not testable against {other}: {', '.join(reasons)}.")
    return " ".join(sentences)


def _interval(test: Mapping[str, Any]) -> str:
    if not is_finite(test["low"]):
        return "–"
    return f"{test['low']:+.2f} to {test['high']:+.2f}"


def _power(tests: Mapping[str, Any]) -> str:
    seeds, detectable = tests["seeds"], tests["detectable"]
    text = ""
    if detectable is not None:
        text += (
            f"With {seeds} seeds, the t-test finds a difference in four of five cases "
            f"only when it is {detectable['one_comparison']:.1f} times as large as its "
            "standard deviation between seeds, "
            f"{detectable['all_comparisons']:.1f} times after the correction. "
        )
    smallest = tests["smallest_wilcoxon_p"]
    text += (
        "The Wilcoxon test, which assumes less, cannot get below "
        f"p = {smallest:.3g} with {seeds} seeds"
    )
    text += (
        ", so it can show nothing at 5%; it needs six. " if smallest >= _LEVEL else ". "
    )
    return text + "Seed variance does not measure variance across data sets or splits."
