"""Ranks, paired tests and their correction against SciPy, tables and definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mtl_keras.errors import InputError
from mtl_keras.evaluation import (
    average_rank,
    detectable_difference,
    helper_gains,
    holm,
    paired_tests,
)


def test_average_rank_by_hand():
    results = {
        "a": {"x": 0.9, "y": 3.0},
        "b": {"x": 0.8, "y": 1.0},
        "c": {"x": 0.9, "y": math.nan},
    }
    # x, higher is better: 1.5, 3, 1.5. y, lower is better: 2, 1, last.
    ranks = average_rank(results, {"x": "max", "y": "min"})
    assert ranks == {"a": 1.75, "b": 2.0, "c": 2.25}
    with pytest.raises(InputError, match="'b': x"):
        average_rank({"a": results["a"], "b": {"x": 1.0}}, {"x": "max", "y": "min"})
    with pytest.raises(InputError, match="direction"):
        average_rank(results, {"x": "max"})


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 2**20))
@settings(max_examples=30, deadline=None)
def test_average_rank_counts_who_is_better(methods, tasks, seed):
    table = np.random.default_rng(seed).integers(0, 4, (methods, tasks))
    results = {f"m{i}": dict(enumerate(map(float, row))) for i, row in enumerate(table)}
    ranks = average_rank(results, dict.fromkeys(range(tasks), "min"))
    for i in range(methods):
        better = (table < table[i]).sum(axis=0)
        equal = (table == table[i]).sum(axis=0) - 1
        assert ranks[f"m{i}"] == pytest.approx(np.mean(1 + better + equal / 2))


def test_paired_t_test_is_that_of_scipy():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=5)
    values = {name: rng.normal(size=5) + 0.5 for name in "abc"}
    results = paired_tests(values, reference)
    for name, sample in values.items():
        expected = stats.ttest_rel(sample, reference)
        assert results[name].p == pytest.approx(expected.pvalue)
        assert results[name].difference == pytest.approx(np.mean(sample - reference))
        interval = expected.confidence_interval()
        assert (results[name].low, results[name].high) == pytest.approx(tuple(interval))
    assert [f.p_corrected for f in results.values()] == holm(
        [f.p for f in results.values()]
    )
    against_zero = paired_tests({"a": values["a"]}, 0.0)["a"]
    assert against_zero.p == pytest.approx(stats.ttest_1samp(values["a"], 0).pvalue)
    assert against_zero.p_corrected == against_zero.p


@pytest.mark.parametrize("differences", [[1, 2, 3], [1, -2, 3, 4, -5, 6, 7]])
def test_wilcoxon_is_the_share_of_signs_that_are_as_extreme(differences):
    differences = np.array(differences, float)
    ranks = stats.rankdata(np.abs(differences))
    observed = abs(np.sum(ranks * np.sign(differences)))
    signs = itertools.product((-1, 1), repeat=len(differences))
    sums = np.array([abs(np.dot(ranks, s)) for s in signs])
    result = paired_tests({"a": differences}, 0.0, test="wilcoxon")["a"]
    assert result.p == pytest.approx(np.mean(sums >= observed))
    # The bound of the docstring for few seeds.
    assert result.p >= 2 / 2 ** len(differences)


def test_without_spread_or_seeds_nothing_is_invented():
    same = paired_tests({"a": [1.0, 2.0], "b": [1.5, 2.5]}, [1.0, 2.0])
    # Two seeds with one difference: SciPy's own p of 0 is that of a variance of 0.
    assert same["a"].p == 1.0
    assert same["b"].difference == 0.5
    for value in ("p", "p_corrected", "low", "high"):
        assert math.isnan(getattr(same["b"], value))
    assert same["b"].untestable == "no variance over the seeds"
    assert same["a"].p_corrected == 1.0  # the only one that was tested
    single = paired_tests({"a": [2.0]}, [1.0])["a"]
    assert single.difference == 1.0
    assert single.untestable == "one seed"
    assert math.isnan(single.p)
    assert math.isnan(single.p_corrected)
    with pytest.raises(InputError, match=r"\(2,\) and \(3,\)"):
        paired_tests({"a": [1.0, 2.0]}, [1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="finite"):
        paired_tests({"a": [1.0, math.nan]}, 0.0)


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_differences_that_are_equal_up_to_round_off_have_no_variance(seeds):
    rng = np.random.default_rng(seeds)
    reference = rng.uniform(0.5, 0.9, seeds).astype("float32")
    shifted = (reference + np.float32(0.05)).astype("float64")
    results = paired_tests({"shifted": shifted, "same": reference}, reference)
    assert math.isnan(results["shifted"].p)
    assert results["same"].p == 1.0
    # Signs need no variance: all seeds on one side are 2 of the 2ⁿ ways.
    results = paired_tests({"shifted": shifted}, reference, "wilcoxon")["shifted"]
    assert results.p == pytest.approx(2 / 2**seeds)
    # A difference that varies by more than that is tested as ever.
    varied = shifted + rng.normal(0, 1e-3, seeds)
    expected = stats.ttest_rel(varied, reference.astype("float64")).pvalue
    assert paired_tests({"a": varied}, reference)["a"].p == pytest.approx(expected)


def test_holm_by_hand():
    # Times 4, 3, 2, 1 in order of size, and never below an earlier one.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    corrected = holm([0.01, math.nan, 0.02])
    assert corrected[0] == pytest.approx(0.02)
    assert math.isnan(corrected[1])


def test_detectable_difference_is_found_with_the_stated_power():
    effect = detectable_difference(seeds=3, comparisons=7)
    draws = np.random.default_rng(0).normal(effect, 1.0, (20_000, 3))
    p = stats.ttest_1samp(draws, 0.0, axis=1).pvalue
    assert np.mean(p < 0.05 / 7) == pytest.approx(0.8, abs=0.01)
    assert detectable_difference(10) < detectable_difference(3) < effect


def test_helpers_are_judged_by_paired_tests_of_with_against_without():
    rng = np.random.default_rng(0)
    seeds = rng.normal(0.7, 0.05, 6)
    together = seeds + rng.normal(0.0, 0.004, 6)
    without = {
        "useful": together - 0.03 - rng.normal(0.0, 0.004, 6),
        "harmful": together + 0.03 + rng.normal(0.0, 0.004, 6),
        "neither": together + rng.normal(0.0, 0.01, 6),
    }
    alone = together - 0.05 - rng.normal(0.0, 0.004, 6)
    p = {
        name: stats.ttest_rel(together, other).pvalue
        for name, other in {"all": alone, **without}.items()
    }
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    expected = ["helps", "helps", "hurts", "unclear"]
    for sign, direction in ((1, "max"), (-1, "min")):
        gains = helper_gains(
            sign * alone,
            sign * together,
            {name: sign * values for name, values in without.items()},
            direction,
        )
        assert [gain.verdict for gain in gains.values()] == expected
        for name, other in {"all": alone, **without}.items():
            assert gains[name].p == pytest.approx(p[name])
            assert gains[name].p_corrected == pytest.approx(corrected[name])
            gain = np.mean(100 * (together - other) / np.abs(other))
            assert gains[name].gain == pytest.approx(gain)
    # One seed says how much, and not how sure.
    (one,) = helper_gains([0.5], [0.6]).values()
    assert one.gain == pytest.approx(20.0)
    assert one.verdict == "unclear"
    with pytest.raises(InputError, match="as many with all"):
        helper_gains([0.5, 0.6], [0.6])
