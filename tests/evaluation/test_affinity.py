"""Pairwise gains by hand, groups against a search over all splits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_keras.errors import InputError
from mtl_keras.evaluation import suggest_groups, task_affinity


def test_pairwise_gains_by_hand():
    gains = task_affinity(
        {
            ("a", "b"): {"a": 0.9, "b": 1.0},
            ("c", "a"): {"c": 0.5, "a": 0.6},
        },
        baseline={"a": 0.75, "b": 2.0, "c": 0.5},
        directions={"a": "max", "b": "min", "c": "max"},
    )
    expected = [[0, 50, 0], [20, 0, np.nan], [-20, np.nan, 0]]
    np.testing.assert_allclose(gains, expected, atol=1e-12)
    with pytest.raises(InputError, match="baselines of both"):
        task_affinity({("a", "b"): {"a": 1.0, "b": 1.0}}, {"a": 1.0}, {"a": "max"})


def splits(items):
    """All ways to split a list into groups."""
    if not items:
        yield []
        return
    first, *rest = items
    for split in splits(rest):
        yield [[first], *split]
        for i in range(len(split)):
            yield [*split[:i], [first, *split[i]], *split[i + 1 :]]


def mean_gain(affinity, split):
    gains = [
        np.mean([affinity[i, j] for i in group if i != j])
        for group in split
        if len(group) > 1
        for j in group
    ]
    return sum(gains) / len(affinity)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_groups_are_the_best_of_all_splits(count, most, seed):
    affinity = np.random.default_rng(seed).normal(size=(count, count))
    grouping = suggest_groups(affinity, range(count), max_groups=most)
    best = max(
        mean_gain(affinity, s) for s in splits(list(range(count))) if len(s) <= most
    )
    assert grouping.score == pytest.approx(best, abs=1e-12)
    assert mean_gain(affinity, grouping.groups) == pytest.approx(best, abs=1e-12)
    assert sorted(task for group in grouping.groups for task in group) == list(
        range(count)
    )
    assert len(grouping.groups) <= most


def test_groups_of_two_camps_and_their_limits():
    camp = np.array([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    assert suggest_groups(camp, ["a", "b", "c"]).groups == [["a", "b"], ["c"]]
    # Nothing to gain from a split: one model.
    assert suggest_groups(np.zeros((3, 3)), "abc").groups == [["a", "b", "c"]]
    with pytest.raises(InputError, match="12 tasks"):
        suggest_groups(np.zeros((13, 13)), [str(i) for i in range(13)])
