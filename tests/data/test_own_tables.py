"""Tables of one's own: reading, splits, statistics, samples, proposals."""

from __future__ import annotations

import collections
import pathlib
import tomllib
import tracemalloc

import damaged_tables
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tensorflow as tf
from PIL import Image

import mtl_keras
from mtl_keras.data.tables import (
    labels,
    names,
    proposal,
    reading,
    schema,
    splits,
    table,
    values,
)
from mtl_keras.data.tables.describing import describe
from mtl_keras.data.tables.reading import FileReader, in_memory
from mtl_keras.data.tables.samples import Samples
from mtl_keras.data.tables.statistics import Numbers
from mtl_keras.data.tables.table import OpenTable
from mtl_keras.errors import InputError

ROWS = 400


def frame(rows=ROWS):
    rng = np.random.default_rng(0)
    x = rng.normal(size=rows)
    return pd.DataFrame(
        {
            "x": np.where(np.arange(rows) % 9 == 0, np.nan, x),
            "city": rng.choice(["Bern", "Roma", "Kyoto"], rows),
            "user": np.arange(rows) // 4,
            "day": np.arange(rows)[::-1],
            "price": np.where(np.arange(rows) % 5 == 0, np.nan, 1e5 + 1e4 * x),
            "sold": (x > 0).astype(int),
            "kind": np.where(x > 0.5, "hut", np.where(x < -0.5, "flat", "house")),
        }
    )


TASKS = {"price": "number", "sold": "binary", "kind": "multiclass"}


def data_file(folder, files="t.csv", split=None, **data):
    values = {
        "data": {"files": files, **({"split": split} if split else {}), **data},
        "features": {"x": "number", "city": "category"},
        "tasks": dict(TASKS),
    }
    return schema.make_data_file(values, folder / "t.toml")


def opened(folder, **kwargs):
    file = data_file(folder, **kwargs)
    return OpenTable(file, in_memory(FileReader(file), file.columns))


@pytest.fixture
def folder(tmp_path):
    frame().to_csv(tmp_path / "t.csv", index=False)
    return tmp_path


def split_of_rows(table):
    (unit,) = table.reader.units
    (chunk,) = table.reader.read(unit, table.file.columns)
    return table.splitter.of(chunk, unit, 0)


def test_random_splits_have_exact_shares_and_follow_the_seed(folder):
    shares = {"validation": 0.15, "test": 0.25}
    of_seed = [
        split_of_rows(opened(folder, split={**shares, "seed": seed}))
        for seed in (0, 0, 1)
    ]
    assert np.bincount(of_seed[0]).tolist() == [240, 60, 100]
    assert (of_seed[0] == of_seed[1]).all()
    assert (of_seed[0] != of_seed[2]).any()


def test_a_row_keeps_its_split_however_the_rows_are_chunked():
    whole = splits._draws(3, 0, 1_000)
    for first in (1, 2, 5, 998):
        assert (splits._draws(3, first, 1_000 - first) == whole[first:]).all()


def test_groups_stay_together_and_the_newest_rows_are_for_test(folder):
    groups = split_of_rows(opened(folder, split={"group": "user"}))
    by_user = groups.reshape(-1, 4)
    assert (by_user == by_user[:, :1]).all()
    assert np.bincount(by_user[:, 0]).tolist() == [80, 10, 10]
    times = split_of_rows(opened(folder, split={"time": "day"}))
    # `day` counts down.
    assert times.tolist() == [2] * 40 + [1] * 40 + [0] * 320


def test_rows_of_one_time_stay_together_and_each_split_has_some(folder):
    table = frame()
    # A tenth would be for each of validation and test; 2024 alone has more.
    table["day"] = np.repeat([2021, 2022, 2023, 2024], [150, 30, 60, 160])
    table.to_csv(folder / "t.csv", index=False)
    times = split_of_rows(opened(folder, split={"time": "day"}))
    assert times.tolist() == [0] * 180 + [1] * 60 + [2] * 160
    for days in ([2023, 2024], [2024]):
        table["day"] = np.repeat(days, ROWS // len(days))
        table.to_csv(folder / "t.csv", index=False)
        with pytest.raises(InputError, match="rows with one 'day' stay together"):
            opened(folder, split={"time": "day"})


def test_a_split_column_and_files_by_split_leave_the_rest_to_chance(folder):
    table = frame()
    table["fold"] = ["test"] * 100 + ["Train"] * 300
    table.to_csv(folder / "t.csv", index=False)
    of_column = split_of_rows(opened(folder, split={"column": "fold"}))
    assert (of_column[:100] == 2).all()
    assert np.bincount(of_column[100:]).tolist() == [270, 30]
    table[:100].to_csv(folder / "test.csv", index=False)
    table[100:].to_csv(folder / "train.csv", index=False)
    files = {"train": "train.csv", "test": "test.csv"}
    of_files = opened(folder, files=files, split={"validation": 0.1})
    assert dict(of_files.description.rows) == {
        "train": 270,
        "validation": 30,
        "test": 100,
    }


def test_statistics_are_those_of_the_training_rows(folder):
    table = opened(folder)
    train = frame()[split_of_rows(table) == 0]
    x = table.description.features["x"]
    assert x.missing == train["x"].isna().sum()
    np.testing.assert_allclose(x.mean, train["x"].mean(), rtol=1e-6)
    np.testing.assert_allclose(x.variance, train["x"].var(ddof=0), rtol=1e-6)
    price, kind = (table.description.tasks[name] for name in ("price", "kind"))
    np.testing.assert_allclose(price.mean, train["price"].mean(), rtol=1e-9)
    np.testing.assert_allclose(price.deviation, train["price"].std(ddof=0))
    assert price.labels["train"] == train["price"].notna().sum()
    counts = train["kind"].value_counts()
    assert kind.counts["train"] == tuple(counts[c] for c in ("flat", "house", "hut"))
    city = table.description.features["city"].vocabulary
    assert [train["city"].value_counts()[c] for c in city] == sorted(
        train["city"].value_counts(), reverse=True
    )


def test_statistics_of_chunks_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    values = rng.lognormal(3, 2, 700_000)
    values[::7] = np.nan
    gathered = Numbers()
    for part in np.array_split(values, [10, 1_000, 400_000]):
        gathered.add(part)
    np.testing.assert_allclose(gathered.mean, np.nanmean(values), rtol=1e-10)
    np.testing.assert_allclose(gathered.variance, np.nanvar(values), rtol=1e-10)
    bounds = np.array(gathered.boundaries())
    below = [(values < bound).sum() for bound in bounds]
    # The most frequent value has a bin of its own; here it is the lowest.
    np.testing.assert_allclose(np.diff(below)[1:] / 600_000, 1 / 32, atol=0.002)


def columns_of(batches):
    rows = collections.Counter()
    for inputs, y, weights in batches:
        rows.update(
            zip(
                inputs["x"].numpy().astype(str),
                inputs["city"].numpy(),
                y["price"][:, 0].numpy(),
                weights["price"].numpy(),
                y["kind"].numpy(),
                strict=True,
            )
        )
    return rows


@pytest.mark.parametrize("stream", [False, True])
def test_a_table_is_described_once_for_all_processes(tmp_path, monkeypatch, stream):
    frame().to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.setenv("MTL_KERAS_DATA_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(table, "KEPT_BYTES", 0)
    table._opened.cache_clear()
    file = data_file(tmp_path, stream=stream)
    first = table.open_table(file)
    rows = columns_of(Samples(first, "test", first.description.tasks).dataset(16))
    # As another process would, which has opened no table.
    table._opened.cache_clear()
    monkeypatch.setattr(table, "describe", None)
    again = table.open_table(file)
    assert again.description == first.description
    samples = Samples(again, "test", again.description.tasks)
    assert columns_of(samples.dataset(16)) == rows
    # Nothing can be kept below a file: the pass is made again.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MTL_KERAS_DATA_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(table, "describe", describe)
    table._opened.cache_clear()
    assert table.open_table(file).description == first.description


def test_streamed_samples_are_those_from_memory(tmp_path, monkeypatch):
    frame()[:250].to_parquet(tmp_path / "a.parquet", row_group_size=60)
    frame()[250:].to_parquet(tmp_path / "b.parquet", row_group_size=40)
    file = data_file(tmp_path, files="*.parquet")
    streamed = OpenTable(file, FileReader(file))
    loaded = OpenTable(file, in_memory(FileReader(file), file.columns))
    assert len(streamed.reader.units) == 9
    for name in ("rows", "unlabelled", "bounds", "warnings"):
        both = [getattr(table.description, name) for table in (streamed, loaded)]
        assert both[0] == both[1]
    price = [table.description.tasks["price"] for table in (streamed, loaded)]
    np.testing.assert_allclose(price[0].deviation, price[1].deviation, rtol=1e-12)
    assert price[0].labels == price[1].labels
    monkeypatch.setattr(mtl_keras.data.tables.samples, "_BUFFER_ROWS", 100)
    tasks = loaded.description.tasks
    for split in schema.SPLITS:
        for limit in (None, 25):
            parts = [Samples(t, split, tasks, limit) for t in (streamed, loaded)]
            rows = [columns_of(part.dataset(16)) for part in parts]
            assert rows[0] == rows[1] == columns_of(parts[0].dataset(16, shuffle=True))
            assert (
                rows[0].total() == parts[0].count == min(limit or 400, parts[1].count)
            )
    for name, task in tasks.items():
        # A task alone has those of the rows within the limit that label it.
        parts = [Samples(t, "train", {name: task}, 100) for t in (streamed, loaded)]
        both = [
            np.concatenate([x["x"].numpy() for x, *_ in part.dataset(16)])
            for part in parts
        ]
        np.testing.assert_array_equal(*both)
        together = Samples(loaded, "train", tasks, 100).dataset(16)
        present = np.concatenate([w[name].numpy() > 0 for *_, w in together])
        expected = np.concatenate([x["x"].numpy() for x, *_ in together])[present]
        np.testing.assert_array_equal(both[0], expected)
        assert parts[0].count == parts[1].count == len(expected)
    epoch = tf.Variable(3, dtype=tf.int64)
    samples = Samples(streamed, "train", tasks)
    orders = [
        [x["x"].numpy().tolist() for x, *_ in samples.dataset(16, True, 7, epoch)]
        for _ in range(2)
    ]
    assert str(orders[0]) == str(orders[1])
    assert len(orders[0]) == len(samples.dataset(16))
    skipped = samples.dataset(16, True, 7, epoch).skip(4)
    assert str([x["x"].numpy().tolist() for x, *_ in skipped]) == str(orders[0][4:])
    epoch.assign(4)
    other = [x["x"].numpy().tolist() for x, *_ in samples.dataset(16, True, 7, epoch)]
    assert str(other) != str(orders[0])


def test_labels_are_those_of_the_table_with_weight_0_where_missing():
    table = frame(60)
    data = mtl_keras.data.from_dataframe(table, tasks=TASKS, batch_size=60)
    inputs, y, weights = next(iter(data.train))
    assert set(inputs) == {"x", "city", "user", "day"}
    order = 59 - inputs["day"].numpy().astype(int)
    rows = table.iloc[order]
    price = rows["price"].to_numpy()
    assert (weights["price"].numpy() == ~np.isnan(price)).all()
    np.testing.assert_allclose(y["price"][:, 0], np.nan_to_num(price), rtol=1e-6)
    assert (y["sold"][:, 0].numpy() == rows["sold"]).all()
    classes = np.array(["flat", "house", "hut"])
    assert (classes[y["kind"].numpy()] == rows["kind"]).all()
    assert len(data.train) == len(data.validation) == len(data.test) == 1


def test_a_column_tells_tasks_apart_and_each_has_its_share_of_every_split():
    table = pd.DataFrame(
        {
            "x": np.arange(200.0),
            "school": np.repeat(["b", "a"], 100),
            "score": np.arange(200.0),
        }
    )
    tasks = {"by": "school", "label": "score", "kind": "number"}
    data = mtl_keras.data.from_dataframe(table, tasks=tasks, batch_size=200)
    for part, share in zip(data, (80, 10, 10), strict=True):
        inputs, y, weights = next(iter(part))
        assert list(y) == ["a", "b"]
        assert [weights[t].numpy().sum() for t in y] == [share, share]
        assert (weights["a"].numpy() == (inputs["x"].numpy() >= 100)).all()
        np.testing.assert_array_equal(y["a"][:, 0] + y["b"][:, 0], inputs["x"])


def test_balanced_classes_weigh_the_same_in_training_alone():
    table = frame()
    table["sold"] = (np.arange(ROWS) % 10 == 0).astype(int)
    tasks = {"sold": {"kind": "binary", "class_weight": "balanced"}}
    data = mtl_keras.data.from_dataframe(table, tasks=tasks, batch_size=ROWS)
    _, y, weights = next(iter(data.train))
    positive = y["sold"][:, 0].numpy() == 1
    weight = weights["sold"].numpy()
    np.testing.assert_allclose(weight[positive].sum(), weight[~positive].sum(), 1e-5)
    np.testing.assert_allclose(weight.mean(), 1, rtol=1e-5)
    assert set(next(iter(data.test))[2]["sold"].numpy()) == {1.0}


def test_names_that_layers_cannot_have_become_others_each_its_own():
    titles = [
        "a b",
        "a_b",
        "价格",
        "Preis (€)",
        "a/b",
        "experts",
        "x..y",
        "NR-AR",
        "A_B",
    ]
    mapped = names.layer_names(titles)
    assert mapped["a_b"] == "a_b"
    assert mapped["NR-AR"] == "NR-AR"
    assert mapped["Preis (€)"] == "Preis"
    lower = [name.lower() for name in mapped.values()]
    assert len(set(lower)) == len(titles)
    assert all(name.isascii() and ".." not in name for name in lower)
    assert "experts" not in lower
    # Names of layers of tasks, and names that only resemble them.
    columns = ["y_hidden", "y_stitch_0", "shared_gate", "class", "self"]
    columns += ["growth_stage", "y_label_2", "Class_"]
    mapped = names.layer_names(columns, ["y"])
    assert [title for title in columns if mapped[title] == title] == columns[5:]


def test_suspicious_columns_are_warned_of(folder):
    table = frame()
    table["constant"] = 3
    table["id"] = [f"id{i}" for i in range(ROWS)]
    table["KIND"] = table["kind"].str.upper()
    table["cents"] = table["price"] * 100
    table["rare"] = ["once"] + ["often", "other"] * 199 + ["often"]
    table.to_csv(folder / "t.csv", index=False)
    values = {
        "data": {"files": "t.csv"},
        "features": {
            "constant": "number",
            "id": "category",
            "KIND": "category",
            "cents": "number",
        },
        "tasks": {**TASKS, "rare": "multiclass"},
    }
    file = schema.make_data_file(values, folder / "t.toml")
    description, _ = describe(file, in_memory(FileReader(file), file.columns))
    told = "\n".join(description.warnings)
    assert "'constant' is 3 in all training rows" in told
    assert "'id' has another value in every row" in told
    assert "'KIND' tells the task 'kind'" in told
    assert "'cents' tells the task 'price'" in told
    assert "'rare' lacks 'once' in" in told
    assert "'sold'" not in told


def test_a_proposal_reads_back_with_the_kinds_that_the_columns_have(tmp_path):
    table = frame()
    table["notes, long"] = [f"a b c d {i}" for i in range(ROWS)]
    table["smiles"] = ["CCN(C)" * 5 + str(i) for i in range(ROWS)]
    table["评分 €"] = table.pop("price")
    table["row"] = range(ROWS)
    table.to_csv(tmp_path / "t.csv", index=False, sep=";", encoding="utf-8-sig")
    text = proposal.propose(
        [tmp_path / "t.csv"], tmp_path / "t.toml", tasks=["评分 €", "sold"]
    )
    values = tomllib.loads(text)
    assert values["data"]["delimiter"] == ";"
    assert values["features"] == {
        "x": "number",
        "city": "category",
        "user": "number",
        "kind": "category",
        "notes, long": "text",
        "smiles": {"kind": "text", "by": "character"},
    }
    assert values["tasks"] == {"评分 €": "number", "sold": "binary"}
    (tmp_path / "t.toml").write_text(text, encoding="utf-8")
    table = mtl_keras.applications.Table(tmp_path / "t.toml")
    assert table.description.tasks["column"].title == "评分 €"


PAIRS = {
    # Two classes, the positive one last.
    "nein ja": None,
    "non oui": None,
    "no si": None,
    "否 是": None,
    "FALSE TRUE": None,
    "Negative Positive": None,
    "N J": None,
    "- +": None,
    "0 1": None,
    "10 9.5": "9.5",
    # Not a yes and a no: by name.
    "ja vielleicht": None,
    "ham spam": None,
    "ja nein": "nein",
}


@pytest.mark.parametrize(("pair", "positive"), PAIRS.items())
def test_the_yes_of_two_classes_is_positive(tmp_path, monkeypatch, pair, positive):
    others = pair.split()
    if positive is None:
        positive = others[-1]
        settings = '"binary"'
    else:
        settings = f'{{ kind = "binary", positive = "{positive}" }}'
    cells = pd.DataFrame({"x": np.arange(40) / 2, "answer": others * 20})
    cells.to_csv(tmp_path / "t.csv", index=False)
    text = proposal.propose([tmp_path / "t.csv"], tmp_path / "t.toml", tasks=["answer"])
    line = next(line for line in text.splitlines() if line.startswith("answer"))
    if settings == '"binary"':
        assert line.endswith(f"; positive: {positive!r}")
    text = text.replace(line, f"answer = {settings}")
    (tmp_path / "t.toml").write_text(text, encoding="utf-8")
    own = mtl_keras.applications.Table(tmp_path / "t.toml")
    assert own.description.tasks["answer"].classes[1] == positive
    for x, y in own.load("train", batch_size=64).map(lambda x, y, *_: (x, y)):
        expected = [others[int(2 * row) % 2] == positive for row in x["x"]]
        np.testing.assert_array_equal(y["answer"][:, 0], expected)
    # A run whose positive class was chosen by name is of another table.
    with monkeypatch.context() as patch:
        patch.setattr(values, "_ANSWERS", {})
        by_name = mtl_keras.applications.Table(tmp_path / "t.toml")
        table._opened.cache_clear()
        same = by_name.description.tasks["answer"].classes[1] == positive
        assert (by_name.default_data == own.default_data) is same
    table._opened.cache_clear()


def test_a_headless_table_with_markers_and_files_by_split_is_proposed(tmp_path):
    lines = [f"{i % 7}, {'yes' if i % 3 else '?'}, - 50000." for i in range(50)]
    lines += [f"{i % 5}, no, 50000+." for i in range(50)]
    for name in ("my.data", "my.test"):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    text = proposal.propose(
        [tmp_path / n for n in ("my.data", "my.test")], tmp_path / "t"
    )
    values = tomllib.loads(text)
    assert values["data"]["files"] == {"train": "my.data", "test": "my.test"}
    assert values["data"]["header"] is False
    assert values["data"]["missing"] == ["?"]
    assert values["tasks"] == {"column_3": "binary"}


MARKED = {
    # A row of cells, the numbers that they are, `delimiter`, `decimal`, `thousands`.
    "1.234,5;-0,25;12;1.000.000": ([1234.5, -0.25, 12, 1e6], ";", ",", "."),
    "1 234,5;0,5;12;1\u202f000": ([1234.5, 0.5, 12, 1000], ";", ",", " "),
    "1,234;0,5;12;3": ([1.234, 0.5, 12, 3], ";", ",", None),
    '"1,234.5",0.5,12,"1,000,000"': ([1234.5, 0.5, 12, 1e6], None, None, ","),
    "1'234.5\t0.5\t12\t1'000": ([1234.5, 0.5, 12, 1000], "\t", None, "'"),
    "1.234,0.5,12,1e3": ([1.234, 0.5, 12, 1000], None, None, None),
}


@pytest.mark.parametrize(("cells", "expected"), MARKED.items())
def test_marks_in_numbers_are_found_and_read(tmp_path, cells, expected):
    parsed, delimiter, *marks = expected
    header = (delimiter or ",").join("abcd")
    other = "7" + f"{delimiter or ','}7" * 3
    text = "\n".join([header, *[cells, other] * 9]) + "\n"
    (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig")
    proposed = tomllib.loads(
        proposal.propose([tmp_path / "t.csv"], tmp_path / "t.toml", tasks=["d"])
    )
    assert proposed["features"] == dict.fromkeys("abc", "number")
    data = proposed["data"]
    assert [data.get(k) for k in ("delimiter", "decimal", "thousands")] == [
        delimiter,
        *marks,
    ]
    reader = FileReader(schema.make_data_file(proposed, tmp_path / "t.toml"))
    (chunk,) = reader.read(reader.units[0], list("abcd"))
    read = [values.numbers(chunk, name)[0] for name in "abcd"]
    assert read == pytest.approx(parsed, rel=1e-12)


@pytest.mark.parametrize("cell", ["1.5", "1.2345", "12.34,5", "1,5,5"])
def test_a_number_with_other_marks_is_refused(cell):
    marks = reading.NumberMarks(",", ".")
    columns = {"a": pa.array(["1,5", cell])}
    with pytest.raises(InputError, match=r"t\.csv, row 3: Expected numbers"):
        values.numbers(reading.Chunk(columns, [(0, "t.csv", 2)], marks=marks), "a")


def test_times_of_a_zone_are_those_of_utc():
    cells = ["2024-03-01T02:30:00+02:00", "2024-03-01 00:30:00Z", None, "2024-03-01"]
    days = 19783 + np.array([1 / 48, 1 / 48, np.nan, 0])
    times = pd.to_datetime(cells[:3], utc=True, format="ISO8601")
    for column in (pa.array(cells), pa.Array.from_pandas(times)):
        chunk = reading.Chunk({"t": column}, [(0, "t.csv", 2)])
        assert values.is_dated(column)
        read = values.numbers(chunk, "t", dates=True)
        known = ~np.isnan(read)
        assert known.tolist() == [True, True, False, True][: len(column)]
        np.testing.assert_allclose(read[known], days[: len(column)][known], rtol=1e-12)


@pytest.mark.parametrize("labels", [["price", "sold"], []])
def test_a_file_without_labels_is_left_for_predictions(tmp_path, labels):
    table = frame(60)[["x", "city", "price", "sold"]]
    table.to_csv(tmp_path / "train.csv", index=False)
    held_out = (
        table.assign(price=np.nan, sold=np.nan) if labels else table[["x", "city"]]
    )
    held_out.to_csv(tmp_path / "test.csv", index=False)
    table.to_csv(tmp_path / "valid.csv", index=False)
    paths = [tmp_path / f"{name}.csv" for name in ("train", "valid", "test")]
    for given in (paths, [paths[0], paths[2]]):
        text = proposal.propose(given, tmp_path / "t.toml", tasks=labels)
        proposed = tomllib.loads(text)
        assert "test.csv has no labels" in text
        assert proposed["tasks"] == {"price": "number", "sold": "binary"}
        train = {"train": "train.csv", "validation": "valid.csv"}
        files = proposed["data"]["files"]
        assert files == (train if given is paths else "train.csv")
        file = schema.make_data_file(proposed, tmp_path / "t.toml")
        OpenTable(file, in_memory(FileReader(file), file.columns))


@pytest.mark.parametrize(
    ("names", "encoding"),
    [
        (["评分", "城市"], "gb18030"),
        (["Größe", "naïve Ära"], "latin1"),
        (["评分", "é"], "utf-8"),
    ],
)
def test_an_encoding_is_found(tmp_path, names, encoding):
    table = pd.DataFrame({names[0]: range(9), names[1]: ["中", "国"] * 4 + ["中"]})
    if encoding == "latin1":
        table[names[1]] = ["Zürich", "Köln"] * 4 + ["Orléans"]
    table.to_csv(tmp_path / "t.csv", index=False, encoding=encoding)
    text = proposal.propose([tmp_path / "t.csv"], tmp_path / "t.toml")
    assert tomllib.loads(text)["data"].get("encoding", "utf-8") == encoding
    assert names[0] in text


def test_images_are_told_by_their_paths_and_first_bytes(tmp_path):
    (tmp_path / "sub").mkdir()
    for index in range(20):
        path = tmp_path / "sub" / f"{index}.png"
        Image.new("LA" if index % 2 else "RGB", (9, 9)).save(path)
    table = pd.DataFrame({"photo": [f"sub/{i}.png" for i in range(20)], "y": range(20)})
    table.to_csv(tmp_path / "t.csv", index=False)
    # From another folder than the table's.
    own = mtl_keras.applications.Table(tmp_path / "t.csv", tasks={"y": "number"})
    assert own.description.features["photo"].kind == "image"
    (tmp_path / "sub" / "text.jpg").write_text("no image")
    for path, fault in {
        "sub/text.jpg": "which is no JPEG, PNG, GIF or BMP file",
        "sub/none.png": f"which is no file in {tmp_path / 'sub'}",
    }.items():
        columns = {"photo": pa.array(["sub/0.png", None, path])}
        chunk = reading.Chunk(columns, [(0, "new.csv", 2)])
        with pytest.raises(InputError, match=rf"new\.csv, row 4: .*{fault}"):
            values.image_paths(chunk, "photo", tmp_path)


ERRORS = {
    "a,b\n1,2\n3\n": "t.csv, row 3: Expected 2 cells",
    "a,b\n1,2\nx,1\n": "t.csv, row 3: Expected numbers in the column 'a'",
    "a,b\n1,2\n1e400,1\n": "row 3: Expected numbers below 3.4e38",
    "": "Expected a table with a header and rows",
    "a,b\n": "Expected a table with rows",
    "a,a\n1,2\n": "Expected each column once. Received 'a' 2 times",
    "a,c\n1,2\n": "Unknown column",
    'a,"c\n\x1b"\n1,2\n': "Expected one of: a, c\\n\\x1b. Received: 'b'",
    "a,b\n" + "1,2\n" * 20: "Expected at least two classes",
    "a,b\n1,\n2,\n3,\n": "Expected rows with labels for train",
    "a,b\n1,2\n2,3\n3,4\n": "row 4: Expected at most 2 classes",
    "a,b\n1,2\n2,3\n3,2\0\n": "row 4: Expected at most 2 classes",
    "a,b\n1,2\n2,\xe9\n".encode("latin1"): "row 3: Expected text in the encoding",
}


@pytest.mark.parametrize(("content", "message"), ERRORS.items())
def test_damaged_tables_are_one_line_with_file_and_row(tmp_path, content, message):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "t.csv").write_bytes(content)
    values = {
        "data": {"files": "t.csv"},
        "features": {"a": "number"},
        "tasks": {"b": "binary"},
    }
    file = schema.make_data_file(values, tmp_path / "t.toml")
    with pytest.raises(InputError) as caught:
        describe(file, in_memory(FileReader(file), file.columns))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"files": "t", "spilt": {}}}, "Did you mean 'split'"),
        (
            {"features": {"a": "numbr"}},
            "features.a: Unknown kind. Did you mean 'number'",
        ),
        ({"features": {"b": "number"}}, "Received both: 'b'"),
        (
            {"tasks": {"b": {"kind": "number", "loss": "focal"}}},
            "loss of a number task",
        ),
        (
            {"data": {"files": "t.csv", "split": {"test": 2}}},
            "data: Expected split.test",
        ),
        ({"task": {}}, "Unknown table. Did you mean 'tasks'"),
        ({"tasks": {"by": "a", "kind": "binary"}}, "Expected tasks.label"),
    ],
)
def test_errors_of_a_data_file_name_the_key(tmp_path, values, message):
    whole = {
        "data": {"files": "t.csv"},
        "features": {"a": "number"},
        "tasks": {"b": "binary"},
        **values,
    }
    with pytest.raises(InputError) as caught:
        schema.make_data_file(whole, tmp_path / "t.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "t.toml"))


def test_values_of_other_types_equal_those_of_csv():
    table = pd.DataFrame(
        {
            "date": pd.to_datetime(["1970-01-03 00:00", None, "1970-01-01 12:00"]),
            "flag": [True, False, None],
            "code": [1.0, np.nan, 2.0],
        }
    )
    reader = reading.of_frame(table)
    (chunk,) = reader.read(reader.units[0], reader.names)
    from mtl_keras.data.tables.values import numbers, texts

    np.testing.assert_array_equal(numbers(chunk, "date"), [2.0, np.nan, 0.5])
    assert texts(chunk, "flag").tolist() == ["true", "false", ""]
    assert texts(chunk, "code").tolist() == ["1", "", "2"]
    assert labels.class_name("1.0") == labels.class_name("1") == "1"


def test_one_long_text_costs_its_own_length_alone():
    # Strings of one width, as NumPy has them, would take 8 GB here.
    texts = np.array(["b", "a", "", "a", "x" * 1_000_000] * 400, object)
    tracemalloc.start()
    distinct, index = values.factorised(texts)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 50e6
    assert distinct[:3].tolist() == ["", "a", "b"]
    assert (distinct[index] == texts).all()


def outcome_of_damaged(number, folder):
    """Opens the table of a number as training does, and proposes a file for it."""
    path = damaged_tables.write(number, folder)
    outcomes = []
    for run in (lambda: _opened_whole(path), lambda: _proposed(folder)):
        try:
            run()
            outcomes.append("read")
        except InputError as error:
            lines = len(str(error).splitlines())
            named = "t.csv" in str(error) or "t.toml" in str(error)
            outcomes.append("refused" if lines == 1 and named else str(error))
    return outcomes


def _opened_whole(path):
    application = mtl_keras.applications.Table(path)
    assert application.summary()
    for batch in application.load("train", batch_size=16).take(1):
        assert all(np.isfinite(y).all() for y in batch[1].values())
    application.inputs()


def _proposed(folder):
    tomllib.loads(proposal.propose([folder / "t.csv"], folder / "new.toml"))


@pytest.mark.parametrize(
    "numbers",
    [range(60), pytest.param(range(60, 1_000), marks=pytest.mark.slow)],
    ids=["60", "1000"],
)
def test_damaged_and_awkward_tables_are_read_or_refused_in_one_line(tmp_path, numbers):
    counts = collections.Counter()
    for number in numbers:
        try:
            counts.update(outcome_of_damaged(number, tmp_path))
        except Exception as error:
            raise AssertionError(f"table {number}") from error
    assert set(counts) == {"read", "refused"}


def test_the_format_of_a_table_goes_by_its_name():
    files = ("a.csv.gz", "a.b.PQ", "a.parquet", "a.tsv", "a.tsv.zst", "a.dat", "a")
    formats = [reading.format_of(pathlib.Path(file)) for file in files]
    assert formats == ["csv", "parquet", "parquet", "tsv", "tsv", None, None]
