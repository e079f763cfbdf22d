"""Tabular data sets, checked against plain Python and their own arithmetic."""

from __future__ import annotations

import gzip
import os
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mtl_keras import data
from mtl_keras.data import Behaviour, census_income, columns
from mtl_keras.data.generated import impressions
from mtl_keras.data.movielens_history import HISTORY, split_by_time, with_history
from mtl_keras.errors import InputError

DOWNLOADS = os.environ.get("MTL_KERAS_TEST_DOWNLOADS", "")


@pytest.fixture(scope="module")
def behaviour():
    """All blocks of 120,000 impressions as one table."""
    blocks = list(impressions.World(50, seed=3).users(120_000))
    assert len(blocks) > 1
    return {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}


def test_frequencies_of_behaviour_match_its_probabilities(behaviour):
    for event, probability in (
        ("click", "click_probability"),
        ("conversion_if_clicked", "conversion_probability"),
    ):
        p = behaviour[probability].astype("float64")
        for low in (0.0, 0.2, 0.6):
            part = (low <= p) & (p < low + 0.4)
            surplus = (behaviour[event] - p)[part].sum()
            assert abs(surplus) < 4 * np.sqrt((p * (1 - p))[part].sum())
    both = behaviour["click"] * behaviour["conversion_if_clicked"]
    np.testing.assert_array_equal(behaviour["conversion"], both)
    assert ((behaviour["watch_time"] > 0) == (behaviour["click"] == 1)).all()


def test_clicked_impressions_are_no_fair_sample(behaviour):
    p = behaviour["conversion_probability"]
    assert p[behaviour["click"] == 1].mean() > 1.3 * p.mean()


def test_history_is_the_users_last_clicks(behaviour):
    assert len(behaviour["user_id"]) == 120_000
    clicks: dict[int, list[int]] = {}
    for row in range(3_000):
        user = int(behaviour["user_id"][row])
        known = clicks.setdefault(user, [])
        expected = ([0] * impressions.HISTORY + known)[-impressions.HISTORY :]
        assert behaviour["history_items"][row].tolist() == expected
        if behaviour["click"][row]:
            known.append(int(behaviour["item_id"][row]))
    users = behaviour["user_id"]
    assert (np.diff(users) >= 0).all()
    assert set(np.diff(users)) == {0, 1}


def test_the_order_of_clicks_matters(behaviour):
    """The same two last clicks, in either order, on items of wanted categories."""
    history = behaviour["history_categories"]
    last, before = history[:, -1], history[:, -2]
    wanted = (before > 0) & (behaviour["category"] == before % 8 + 1)
    swapped = (last > 0) & (before > 0) & (behaviour["category"] == last % 8 + 1)
    first = wanted & (last != behaviour["category"])
    second = swapped & (before % 8 + 1 != behaviour["category"]) & (last != before)
    p = behaviour["click_probability"]
    assert min(first.sum(), second.sum()) > 300
    assert p[first].mean() > 1.5 * p[second].mean()


def test_same_seed_same_world():
    tables = [next(impressions.World(20, seed).users(500)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(tables[0]["item_id"], tables[1]["item_id"])
    assert (tables[0]["item_id"] != tables[2]["item_id"]).any()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with `behaviour/small` of 600 impressions, and one of its own name."""
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Behaviour.builder_configs["small"], "samples", 600)
        data.prepare("behaviour", data_dir=folder)
    return folder


def test_streaming_equals_tensorflow_datasets(small):
    table = data.read_table("behaviour", "train", data_dir=small)
    dataset = data.load("behaviour/small", "train", data_dir=small)
    examples = next(iter(tfds.as_numpy(dataset.batch(1_000))))
    assert set(table) == set(examples)
    for name, values in examples.items():
        np.testing.assert_array_equal(table[name], values)
    batches = data.stream(
        "behaviour", "train", batch_size=64, columns=["click"], data_dir=small
    )
    sizes = [len(batch["click"]) for batch in batches]
    assert sizes[:-1] == [64] * (len(sizes) - 1)
    assert sum(sizes) == len(table["click"])
    with pytest.raises(InputError, match="train, validation, test"):
        data.stream("behaviour", "tset", batch_size=1, data_dir=small)


def test_each_user_is_tested_on_later_impressions(small):
    tables = {
        split: data.read_table("behaviour", split, data_dir=small)
        for split in ("train", "validation", "test")
    }
    assert sum(len(table["click"]) for table in tables.values()) == 600
    train, test = tables["train"], tables["test"]
    for user in np.unique(test["user_id"]):
        before = train["impressions_before"][train["user_id"] == user]
        after = test["impressions_before"][test["user_id"] == user]
        assert before.size == 0 or before.max() < after.min()


def test_columns_come_back_from_metadata():
    described = {
        "city": columns.category(np.array(["b", "a", "b"])),
        "gain": columns.number(np.array([0, 0, 0, 5.0, 7.0])),
        "past": columns.Column("category", "string", length=3, same_as="city"),
    }
    assert described["city"].vocabulary == ("b", "a")
    assert described["gain"].mean == pytest.approx(2.4)
    # Zero has a bin of its own.
    bins = np.digitize([-1, 0, 1e-6, 6], described["gain"].boundaries)
    assert bins[0] < bins[1] < bins[2] <= bins[3]
    metadata = columns.to_metadata(described, ["liked"])
    assert columns.from_metadata(metadata) == described


def test_ratings_depend_on_earlier_ratings_only():
    rng = np.random.default_rng(0)
    count = 400
    table = {
        "user_id": rng.choice([*"abcde"], count).astype(object),
        "movie_id": rng.choice([*"123456789"], count).astype(object),
        "timestamp": np.sort(rng.integers(0, 120, count)),
        "rating": rng.integers(1, 11, count).astype("float32") / 2,
    }
    result = with_history(table)
    for row in range(count):
        earlier = table["timestamp"] < table["timestamp"][row]
        prior = table["rating"][earlier].mean() if earlier.any() else 0.0
        own = np.flatnonzero(earlier & (table["user_id"] == table["user_id"][row]))
        recent = own[-HISTORY:]
        present = result["history_movies"][row] != ""
        assert present[HISTORY - len(recent) :].all()
        assert present.sum() == len(recent)
        expected = table["rating"][recent]
        np.testing.assert_array_equal(result["history_ratings"][row][present], expected)
        assert result["user_count"][row] == len(own)
        same = earlier & (table["movie_id"] == table["movie_id"][row])
        mean = (table["rating"][same].sum() + 5 * prior) / (same.sum() + 5)
        assert result["movie_mean"][row] == pytest.approx(mean, abs=1e-5)


def test_split_by_time_never_parts_a_second():
    times = np.sort(np.random.default_rng(1).integers(0, 40, 1_000))
    parts = split_by_time(times)
    np.testing.assert_array_equal(np.concatenate([*parts.values()]), np.arange(1_000))
    assert times[parts["train"]].max() < times[parts["validation"]].min()
    assert times[parts["validation"]].max() < times[parts["test"]].min()
    assert parts["test"][0] + 40 > 900


def test_census_rows_are_read_by_name(tmp_path):
    fields = [str(number) for number in range(41)]
    fields[4], fields[7] = "Some college but no degree", "Never married"
    fields[24], fields[39], fields[40] = "1053.55", "52", "94"
    row = ", ".join(fields)
    path = tmp_path / "rows.gz"
    with gzip.open(path, "wt") as file:
        file.write(f"{row}, - 50000.\n{row},  50000+.\n")
    table = census_income.read(path)
    assert table["income"].tolist() == [0, 1]
    assert table["never_married"].tolist() == table["college"].tolist() == [1, 1]
    assert table["weeks_worked"].tolist() == [52.0, 52.0]
    assert table["year"].tolist() == ["94", "94"]
    assert "instance_weight" not in table
    assert len(table) == 40 + 3


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not DOWNLOADS, reason="MTL_KERAS_TEST_DOWNLOADS is not set")
def test_census_income_from_files(tmp_path):
    folder = pathlib.Path(DOWNLOADS) / "census_income_kdd"
    data.prepare("census_income", downloads=folder, data_dir=tmp_path)
    labels = {
        split: data.read_table(
            "census_income", split, columns=census_income.TASKS, data_dir=tmp_path
        )
        for split in ("train", "validation", "test")
    }
    rows = {split: len(table["income"]) for split, table in labels.items()}
    assert rows == {"train": 199_523, "validation": 49_881, "test": 49_881}

    def positives(task, *splits):
        return sum(int(labels[split][task].sum()) for split in splits)

    assert positives("income", "train") == 12_382
    assert positives("income", "validation", "test") == 6_186
    assert positives("never_married", "train") == 86_485
    assert positives("never_married", "validation", "test") == 43_143


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not DOWNLOADS, reason="MTL_KERAS_TEST_DOWNLOADS is not set")
def test_movielens_from_files(tmp_path):
    data.prepare("movielens_history", downloads=DOWNLOADS, data_dir=tmp_path)
    times = {
        split: data.read_table(
            "movielens_history", split, columns=["timestamp"], data_dir=tmp_path
        )["timestamp"]
        for split in ("train", "validation", "test")
    }
    assert sum(map(len, times.values())) == 100_836
    assert times["train"].max() < times["validation"].min()
    assert times["validation"].max() < times["test"].min()
