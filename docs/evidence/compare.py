"""What the page on comparisons of methods has of results."""

from __future__ import annotations

from collections.abc import Sequence

from evidence.worth import vision_comparison
from mtl_keras.evaluation import detectable_difference

OTHERS = ("below 1e-7, the round-off of float32 metrics",)


def joined(groups: Sequence[Sequence[str]]) -> str:
    """Returns the groups that have several tasks."""
    several = [group for group in groups if len(group) > 1]
    return " and of ".join(
        " and ".join(f"`{task}`" for task in group) for group in several
    )


def sentences() -> list[str]:
    """Returns sentences of the page with figures, as the results have them."""
    example = vision_comparison()
    tests, groups = example["tests"], example["affinity"]["groups"]
    lookahead, cosines = (groups[name]["groups"] for name in ("lookahead", "cosines"))
    corrected = detectable_difference(tests["seeds"], comparisons=7)
    return [
        "the Wilcoxon test cannot get below "
        f"p = {tests['smallest_wilcoxon_p']}, and the t-test needs a difference of "
        f"{tests['detectable']['one_comparison']:.1f} times its standard deviation "
        f"between seeds ({corrected:.1f} times after the correction for seven methods)",
        f"look-ahead makes a group of {joined(lookahead)}, and the cosines make groups "
        f"of {joined(cosines)}.",
    ]
