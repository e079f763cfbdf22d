"""Ranking and calibration against closed forms and plain definitions."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest

from mtl_keras.errors import InputError
from mtl_keras.evaluation import (
    CalibrationError,
    by_slice,
    calibration_error,
    group_auc,
    ndcg,
)


def pairs_in_order(true, score):
    """AUC as the share of pairs that are ordered well, ties counting half."""
    difference = score[true == 1][:, None] - score[true == 0][None]
    return (difference > 0).mean() + 0.5 * (difference == 0).mean()


def test_group_auc_weighs_groups_by_size_and_skips_those_without():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 9, 200)
    true = rng.integers(0, 2, 200)
    true[groups == 4] = 1
    score = np.round(rng.random(200) + 0.3 * true, 1)
    total, rows = 0.0, 0
    for group in set(groups) - {4}:
        part = groups == group
        total += part.sum() * pairs_in_order(true[part], score[part])
        rows += part.sum()
    assert group_auc(true, score, groups) == pytest.approx(total / rows)
    assert np.isnan(group_auc([1, 1], [0.2, 0.3], ["a", "b"]))
    # Telling groups apart is worth nothing.
    assert group_auc([0, 1, 0, 1], [5, 6, 1, 2], [0, 0, 1, 1]) == 1.0


def test_ndcg_by_hand():
    # List "a": gains 3, 0, 1 in the order of the scores; the best order is 3, 1, 0.
    a = (3 + 0 + 1 / np.log2(4)) / (3 + 1 / np.log2(3) + 0)
    # List "b": of two, the worse one first; only it counts at k = 1.
    values = {
        "y_true": [1, 3, 0, 0, 2],
        "y_score": [0.1, 0.9, 0.5, 0.8, 0.2],
        "groups": ["a", "a", "a", "b", "b"],
    }
    b = (0 + 2 / np.log2(3)) / 2
    assert ndcg(**values) == pytest.approx((a + b) / 2)
    assert ndcg(**values, k=1) == pytest.approx((1 + 0) / 2)
    # A list without a gain, and one of a single row, say nothing.
    assert ndcg([0, 0, 5, 1, 0], [1, 2, 3, 2, 1], [0, 0, 1, 2, 2]) == 1.0
    with pytest.raises(InputError, match="3, 2 and 3"):
        ndcg([1, 0, 1], [0.1, 0.2], [0, 0, 0])


def test_calibration_error_by_its_definition():
    rng = np.random.default_rng(1)
    p = rng.random(5_000).astype("float32")
    y = (rng.random(5_000) < p**2).astype("float32")
    keep = rng.random(5_000) < 0.7
    edges = np.linspace(0, 1, 11)
    expected = 0.0
    for low, high in itertools.pairwise(edges):
        part = keep & (low <= p) & (p < high)
        expected += abs(y[part].mean() - p[part].mean()) * part.sum() / keep.sum()
    metric = CalibrationError(bins=10)
    for rows in (slice(0, 1_234), slice(1_234, 5_000)):
        metric.update_state(y[rows, None], p[rows, None], keep[rows])
    assert float(metric.result()) == pytest.approx(expected, abs=1e-5)
    assert calibration_error(p, p) == 0.0
    # All that is predicted as 1 never happens.
    assert calibration_error(np.zeros(4), np.ones(4)) == 1.0
    metric.reset_state()
    assert float(metric.result()) == 0.0
    copy = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert copy.get_config() == metric.get_config()


def test_slices_partition_the_rows():
    activity = np.array([0, 5, 5, 19, 20, 400])
    values = np.arange(6.0)
    slices = by_slice({"sum": np.sum}, activity, [5, 20], values)
    assert slices == {
        "< 5": {"rows": 1, "sum": 0.0},
        "5 to < 20": {"rows": 3, "sum": 6.0},
        ">= 20": {"rows": 2, "sum": 9.0},
    }
    assert list(by_slice({}, [1.0], [0.5, 2.0], values[:1])) == ["0.5 to < 2"]
    with pytest.raises(InputError, match="ascend"):
        by_slice({}, activity, [20, 5])
