"""The Pareto oracle: its front, its proposals and its state."""

from __future__ import annotations

import itertools
import json
import warnings

import keras_tuner
import numpy as np
import pytest

from mtl_keras.errors import InputError
from mtl_keras.evaluation import hypervolume
from mtl_keras.search import ParetoOracle
from mtl_keras.search.pareto import SpaceEncoding

OBJECTIVES = [
    keras_tuner.Objective("cost", "min"),
    keras_tuner.Objective("gain", "max"),
]


def oracle_of(space, tmp_path, trials=16, **kwargs):
    oracle = ParetoOracle(
        OBJECTIVES, max_trials=trials, hyperparameters=space, seed=3, **kwargs
    )
    oracle._set_project_dir(str(tmp_path), "state")
    oracle.verbose = 0
    return oracle


def run(oracle, function, count):
    proposals = []
    for _ in range(count):
        trial = oracle.create_trial("a")
        if trial.status == "STOPPED":
            break
        values = trial.hyperparameters.values
        proposals.append(dict(values))
        cost, gain = function(values)
        oracle.update_trial(trial.trial_id, {"cost": cost, "gain": gain})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
        oracle.save()  # as every tuner does
    return proposals


@pytest.fixture(autouse=True)
def no_bounds():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The optimal value found for dim")
        warnings.filterwarnings("ignore", "All-NaN")
        yield


def continuous():
    space = keras_tuner.HyperParameters()
    for name in "xyz":
        space.Float(name, 0.0, 1.0)
    return space


def concave(values):
    # The front is where y and z are 0.3: gain = -sqrt(1 - cost^2), which no
    # weighted sum finds but at its ends.
    away = (values["y"] - 0.3) ** 2 + (values["z"] - 0.3) ** 2
    angle = values["x"] * np.pi / 2
    return (1 + away) * np.cos(angle), -(1 + away) * np.sin(angle)


def test_it_finds_the_middle_of_a_concave_front(tmp_path):
    oracle = oracle_of(continuous(), tmp_path, 20)
    run(oracle, concave, 20)
    points = [oracle.objectives_of(t) for t in oracle.trials.values()]
    volume = hypervolume(points, [1.5, -1.5], ["min", "max"])
    # All of the box but the quarter disc; its two ends alone would give 1.25.
    assert volume > 1.32
    assert volume < 1.5**2 - np.pi / 4
    front = oracle.pareto_trials()
    assert oracle.get_best_trials(len(front)) != []
    assert {t.trial_id for t in oracle.get_best_trials(len(front))} == {
        t.trial_id for t in front
    }
    assert max(abs(t.hyperparameters.values["y"] - 0.3) for t in front) < 0.5


def test_the_state_is_json_and_resumes_with_the_same_trials(tmp_path):
    whole = run(oracle_of(continuous(), tmp_path / "whole", 10), concave, 10)
    first = oracle_of(continuous(), tmp_path / "cut", 10)
    begun = run(first, concave, 7)
    for path in (tmp_path / "cut").rglob("*"):
        if path.is_file():
            json.loads(path.read_text())
    again = oracle_of(continuous(), tmp_path / "cut", 10)
    again.reload()
    assert begun + run(again, concave, 3) == whole


def test_names_and_conditions_are_searched_and_nothing_is_tried_twice(tmp_path):
    space = keras_tuner.HyperParameters()
    method = space.Choice("method", ["a", "b", "c"])
    assert method == "a"
    with space.conditional_scope("method", ["b"]):
        space.Int("steps", 1, 3)
    tried = run(oracle_of(space, tmp_path, 40), lambda v: (len(str(v)), 1.0), 40)
    # a, c, and b with three numbers of steps: five settings in all.
    assert len({json.dumps(values, sort_keys=True) for values in tried}) == len(tried)
    assert len(tried) == 5
    assert all(("steps" in values) == (values["method"] == "b") for values in tried)


def test_a_constant_objective_leaves_the_search_to_the_others(tmp_path):
    oracle = oracle_of(continuous(), tmp_path, 20)

    def bowl(values):
        return sum((values[name] - 0.3) ** 2 for name in "xyz"), 0.0

    run(oracle, bowl, 20)
    best = min(oracle.objectives_of(trial)[0] for trial in oracle.trials.values())
    # The best of 20 random points: 0.045 on average, and 0.01 in one of 20 runs.
    assert best < 0.01


def test_while_all_trials_score_the_same_they_are_spread(tmp_path):
    tried = run(oracle_of(continuous(), tmp_path, 16), lambda values: (1.0, 2.0), 16)
    # Of 16 points of a Sobol sequence each quarter of each range has four.
    for name in "xyz":
        counts = np.histogram([values[name] for values in tried], 4, (0.0, 1.0))[0]
        assert counts.tolist() == [4, 4, 4, 4]


def test_without_a_number_of_trials_it_runs_until_the_space_is_exhausted(tmp_path):
    space = keras_tuner.HyperParameters()
    space.Choice("a", [1, 2, 3])
    space.Boolean("b")
    tried = run(oracle_of(space, tmp_path, None), lambda v: (v["a"], 1.0), 40)
    assert len(tried) == 6


def test_nothing_is_tried_almost_again(tmp_path):
    space = keras_tuner.HyperParameters()
    space.Float("x", 0.0, 1.0)
    space.Choice("width", [8, 16])

    def one_best(values):
        return (values["x"] - 0.5) ** 2, -values["width"] - 0.1 * values["x"]

    tried = run(oracle_of(space, tmp_path, 16), one_best, 16)
    near = [
        abs(one["x"] - two["x"])
        for one, two in itertools.combinations(tried, 2)
        if one["width"] == two["width"]
    ]
    assert min(near) > 0.009


def test_settings_that_train_the_same_model_have_the_same_features(tmp_path):
    space = keras_tuner.HyperParameters()
    space.Choice("method", ["a", "b", "c"])
    with space.conditional_scope("method", ["b"]):
        space.Float("rate", 1e-3, 1e-1, sampling="log")
    encoding = SpaceEncoding(space.space)
    low, high = np.array([[0.1, 0.2], [0.1, 0.9]]), np.array([[0.5, 0.2], [0.5, 0.9]])
    assert np.array_equal(*encoding.features(low))
    assert not np.array_equal(*encoding.features(high))
    a, b, c = encoding.features(np.array([[0.1, 0.0], [0.5, 0.0], [0.9, 0.0]]))[:, :3]
    assert np.linalg.norm(a - b) == pytest.approx(np.linalg.norm(a - c))
    values = oracle_of(space, tmp_path)._vector_to_values(high[1])
    assert values["rate"] == pytest.approx(1e-3 * 100**0.9)


def test_a_trial_without_a_number_is_left_out(tmp_path):
    oracle = oracle_of(continuous(), tmp_path, 8, num_initial_points=3)

    def sometimes(values):
        cost, gain = concave(values)
        return cost, (np.nan if len(oracle.trials) % 3 == 0 else gain)

    assert len(run(oracle, sometimes, 8)) == 8
    statuses = [trial.status for trial in oracle.trials.values()]
    assert statuses.count("FAILED") == 2
    assert all(trial.status == "COMPLETED" for trial in oracle.pareto_trials())


def test_one_objective_is_refused():
    with pytest.raises(InputError, match="at least two"):
        ParetoOracle(OBJECTIVES[:1])
