from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mtl_keras.errors import InputError
from mtl_keras.evaluation import (
    delta_m,
    hypervolume,
    pareto_front,
    task_affinity,
)
from mtl_keras.evaluation.plots import trade_off

POINTS = arrays(
    np.float64, st.tuples(st.integers(0, 12), st.just(2)), elements=st.integers(0, 6)
)


@given(POINTS)
@settings(max_examples=50, deadline=None)
def test_front_is_that_of_the_definition(points):
    front = pareto_front(points, ["max", "min"])
    for index, (gain, cost) in enumerate(points):
        dominated = any(
            g >= gain and c <= cost and (g > gain or c < cost) for g, c in points
        )
        assert (index in front) == (not dominated)


def test_front_keeps_equal_points_and_leaves_nan_out():
    points = [[1, 1], [1, 1], [np.nan, 9], [0, 2], [0, 1]]
    assert pareto_front(points, ["max", "max"]) == [0, 1, 3]


@given(POINTS)
@settings(max_examples=50, deadline=None)
def test_hypervolume_is_the_number_of_dominated_unit_squares(points):
    # On whole numbers the dominated area is made of unit squares: count them.
    squares = sum(
        any(x >= i + 1 and y >= j + 1 for x, y in points)
        for i in range(6)
        for j in range(6)
    )
    assert hypervolume(points, [0, 0], ["max", "max"]) == squares
    flipped = points * [1, -1]
    assert hypervolume(flipped, [0, 0], ["max", "min"]) == squares


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(0, 8), st.integers(1, 4)),
        elements=st.integers(0, 3),
    )
)
@settings(max_examples=50, deadline=None)
def test_hypervolume_is_the_number_of_dominated_unit_cubes(points):
    tasks = points.shape[1]
    cubes = np.stack(np.meshgrid(*[np.arange(1, 4)] * tasks), -1).reshape(-1, tasks)
    inside = (points[:, None, :] >= cubes).all(-1).any(0).sum() if len(points) else 0
    assert hypervolume(points, [0] * tasks, ["max"] * tasks) == inside


def test_delta_m_by_hand():
    # 10% better accuracy and 20% lower error: 15% better on average.
    assert delta_m(
        {"a": 0.88, "b": 0.4}, {"a": 0.8, "b": 0.5}, {"a": "max", "b": "min"}
    ) == pytest.approx(15.0)
    with pytest.raises(InputError, match="Did you mean 'mask'"):
        delta_m({"masks": 1.0}, {"mask": 1.0}, {"mask": "max"})


@pytest.mark.parametrize(
    ("value", "baseline", "direction", "expected"),
    [
        (-0.5, -1.0, "max", 50.0),  # R²: better
        (-1.5, -1.0, "max", -50.0),
        (0.5, -1.0, "max", 150.0),
        (-3.0, -2.0, "min", 50.0),  # a log-likelihood with its sign turned
        (-1.0, -2.0, "min", -50.0),
        (np.float32(1.5), np.float32(1.0), "max", 50.0),
    ],
)
def test_better_than_a_baseline_below_0_is_a_gain(value, baseline, direction, expected):
    gain = delta_m({"a": value}, {"a": baseline}, {"a": direction})
    assert gain == pytest.approx(expected)
    # The same gain, measured from 0 upwards.
    size = abs(baseline)
    shifted = delta_m({"a": value - baseline + size}, {"a": size}, {"a": direction})
    assert gain == pytest.approx(shifted)


@pytest.mark.parametrize("zero", [0, 0.0, -0.0, 1e-8, -1e-300, np.nan, np.inf, None])
def test_tasks_without_a_relative_gain_are_excluded_with_a_warning(zero):
    directions = {"a": "max", "b": "max"}
    with pytest.warns(UserWarning, match=rf"excludes .*: b \({zero}\)\."):
        gain = delta_m({"a": 0.9, "b": 0.5}, {"a": 0.6, "b": zero}, directions)
    assert gain == pytest.approx(50.0)
    with pytest.raises(InputError, match="other than 0"):
        delta_m({"b": 0.5}, {"b": zero}, directions)
    pairs = {("a", "b"): {"a": 0.9, "b": 0.5}}
    table = task_affinity(pairs, {"a": 0.6, "b": zero}, directions)
    np.testing.assert_allclose(table, [[0, np.nan], [50.0, 0]])
    # A metric that is not a number is no reason to leave its task out.
    assert np.isnan(delta_m({"a": np.nan, "b": 1}, {"a": 1, "b": 1}, directions))


@pytest.mark.parametrize("tasks", [2, 3])
def test_trade_off_is_a_picture(tmp_path, tasks):
    points = np.random.default_rng(0).uniform(size=(5, tasks))
    points[3] = np.nan
    path = trade_off(
        points,
        [f"task {t}" for t in range(tasks)],
        ["max"] * tasks,
        tmp_path / "plot.png",
        groups=["a", "b", "a", "b", "b"],
    )
    assert path.read_bytes().startswith(b"\x89PNG")


@given(st.integers(2, 4), st.integers(0, 9), st.integers(0, 2**20))
@settings(max_examples=40, deadline=None)
def test_hypervolume_is_the_volume_of_the_union_of_boxes(objectives, count, seed):
    """By inclusion and exclusion over all subsets of points."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-0.5, 3.0, (count, objectives))
    reference = rng.uniform(-0.5, 0.5, objectives)
    sides = points - reference
    sides = sides[(sides > 0).all(axis=1)]
    expected = 0.0
    for size in range(1, len(sides) + 1):
        for chosen in itertools.combinations(sides, size):
            expected -= (-1) ** size * np.min(chosen, axis=0).prod()
    directions = ["max"] * objectives
    assert hypervolume(points, reference, directions) == pytest.approx(expected)
    flip = np.where(rng.random(objectives) < 0.5, -1, 1)
    directions = ["max" if sign > 0 else "min" for sign in flip]
    assert hypervolume(points * flip, reference * flip, directions) == pytest.approx(
        expected
    )
