"""Mixing: numbers and order of draws, and fillers."""

from __future__ import annotations

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

import mtl_keras
from mtl_keras.data import mix
from mtl_keras.errors import InputError

SIZES = {"a": 10, "b": 5, "c": 22}
FIRST = {"a": 100, "b": 200, "c": 300}


def source(name, size=None):
    """Samples that name themselves, by number, and label the task of that name."""
    size = SIZES[name] if size is None else size
    number = np.arange(size) + FIRST[name]
    return tf.data.Dataset.from_tensor_slices(
        ({"number": number, f"only_{name}": number}, {name: number})
    )


def mixed(**kwargs):
    names = kwargs.pop("names", SIZES)
    kwargs.setdefault("batch_size", 4)
    return mix({name: source(name) for name in names}, **kwargs)


def read(dataset):
    return list(dataset.as_numpy_iterator())


def numbers(batches):
    return [list(batch[0]["number"]) for batch in batches]


def flat(batches):
    return [number for batch in numbers(batches) for number in batch]


def drawn(batches):
    """How often each sample was drawn, by source."""
    count = collections.Counter(flat(batches))
    return {
        name: [count[FIRST[name] + index] for index in range(SIZES[name])]
        for name in SIZES
    }


ALL = [
    {"by": by, "homogeneous": homogeneous, **more}
    for by, more in (
        ("size", {}),
        ("temperature", {"temperature": 3.0}),
        ("ratio", {"ratio": {"a": 1, "b": 1, "c": 2}}),
    )
    for homogeneous in (False, True)
]


@pytest.mark.parametrize("homogeneous", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_by_size_every_sample_occurs_once(homogeneous, shuffle):
    mixture = mixed(homogeneous=homogeneous, shuffle=shuffle)
    for epoch in (0, 3):
        batches = read(mixture.epoch(epoch))
        assert all(set(counts) == {1} for counts in drawn(batches).values())
        assert len(batches) == mixture.steps == mixture.epoch(epoch).cardinality()


@pytest.mark.parametrize("config", ALL[:2])
def test_labels_weights_and_fillers_belong_to_their_sample(config):
    for inputs, labels, weights in read(mixed(**config, presence="_there").epoch(1)):
        origin = np.array([number // 100 for number in inputs["number"]])
        assert set(inputs) == {"number"} | {
            f"only_{name}{suffix}" for name in SIZES for suffix in ("", "_there")
        }
        for name, first in FIRST.items():
            own = origin == first // 100
            expected = np.where(own, inputs["number"], 0)
            np.testing.assert_array_equal(labels[name], expected)
            np.testing.assert_array_equal(weights[name], own.astype("float32"))
            np.testing.assert_array_equal(inputs[f"only_{name}"], expected)
            np.testing.assert_array_equal(inputs[f"only_{name}_there"], own)
        if config["homogeneous"]:
            assert len(set(origin)) == 1


@pytest.mark.parametrize("config", ALL)
def test_the_longest_is_given_in_full_and_the_others_evenly_again(config):
    mixture = mixed(**config)
    counts = drawn(read(mixture.epoch(0)))
    assert all(min(times) >= 1 for times in counts.values())
    assert all(max(times) - min(times) <= 1 for times in counts.values())
    if config["by"] == "ratio" and not config["homogeneous"]:
        assert {name: sum(c) for name, c in counts.items()} == {
            "a": 11,
            "b": 11,
            "c": 22,
        }


@pytest.mark.parametrize(
    "config", [ALL[2], pytest.param(ALL[3], marks=pytest.mark.slow)]
)
def test_the_shortest_ends_it_and_epochs_resume_where_the_last_one_stopped(config):
    mixture = mixed(**config, ends="shortest")
    assert all(max(counts) == 1 for counts in drawn(read(mixture.epoch(0))).values())
    passes = [read(mixture.epoch(number)) for number in range(12)]
    for name, counts in drawn([b for epoch in passes for b in epoch]).items():
        # Nothing is starved: over epochs all samples are drawn equally often.
        assert min(counts) >= 1, name
        assert max(counts) - min(counts) <= 1, name


def test_a_number_of_steps_ends_it():
    for homogeneous in (False, True):
        mixture = mixed(ends=7, homogeneous=homogeneous, by="temperature")
        batches = read(mixture.epoch(2))
        assert len(batches) == mixture.steps == 7
        assert all(any(counts) for counts in drawn(batches).values())


@pytest.mark.parametrize("config", ALL[:2])
def test_the_seed_alone_gives_the_order(config):
    tf.random.set_seed(0)
    first = numbers(read(mixed(**config, seed=5).epoch(1)))
    tf.random.set_seed(99)
    assert numbers(read(mixed(**config, seed=5).epoch(1))) == first
    assert numbers(read(mixed(**config, seed=6).epoch(1))) != first
    assert numbers(read(mixed(**config, seed=5).epoch(2))) != first


@pytest.mark.parametrize("config", ALL[1:5])
def test_it_resumes_within_an_epoch(config):
    whole = numbers(read(mixed(**config).epoch(1)))
    for step in (1, len(whole) // 2, len(whole) - 1):
        rest = mixed(**config).epoch(1, step)
        assert int(rest.cardinality()) == len(whole) - step
        assert numbers(read(rest)) == whole[step:]


def test_each_iteration_is_the_next_epoch():
    mixture = mixed()
    dataset = mixture.dataset(first_epoch=2)
    assert int(dataset.cardinality()) == mixture.steps
    for number in (2, 3, 4):
        assert numbers(read(dataset)) == numbers(read(mixture.epoch(number)))


def test_equal_shares_of_homogeneous_batches_are_rounds():
    mixture = mixed(by="ratio", ratio=dict.fromkeys(SIZES, 1), homogeneous=True)
    turns = [batch[0] // 100 for batch in numbers(read(mixture.epoch(0)))]
    assert len(turns) == 3 * 6
    assert turns == [1, 2, 3] * 6


def test_even_batches_have_their_share_of_every_source():
    mixture = mixed(even=True, batch_size=12, shuffle=True)
    batches = read(mixture.epoch(0))
    assert drawn(batches) == {name: [1] * size for name, size in SIZES.items()}
    assert [len(batch) for batch in numbers(batches)] == [12, 12, 12, 1]
    for batch in numbers(batches)[:-1]:
        for name, size in SIZES.items():
            of_source = [n for n in batch if FIRST[name] <= n < FIRST[name] + 100]
            assert abs(len(of_source) - 12 * size / 37) <= 1, name
    assert numbers(batches) != numbers(read(mixture.epoch(1)))


def test_temperature_is_the_power_of_the_papers():
    # Sizes 1 : 16 at temperature 4 are shares 1 : 2.
    sources = {"a": source("a", 4), "c": source("c", 64)}
    mixture = mix(sources, batch_size=4, by="temperature", temperature=4.0)
    assert mixture.counts == {"a": 32, "c": 64}


def test_shapes_of_unknown_length_are_padded():
    ragged = tf.data.Dataset.from_tensor_slices(
        ({"words": tf.ragged.constant([[1], [2, 3], [4]])}, {"a": [1, 2, 3]})
    ).map(lambda x, y: ({"words": x["words"] + 0}, y))
    sources = {"a": ragged, "b": source("b")}
    for inputs, _, weights in read(mix(sources, batch_size=3, shuffle=False).epoch(0)):
        lengths = (inputs["words"] != 0).sum(axis=1)
        assert ((lengths > 0) == (weights["a"] == 1)).all()


def test_a_sources_own_weights_stay():
    half = source("a").map(lambda x, y: (x, y, {"a": tf.constant(0.5)}))
    batches = read(mix({"a": half, "b": source("b")}, batch_size=4).epoch(0))
    weights = np.concatenate([batch[2]["a"] for batch in batches])
    assert sorted(weights) == [0.0] * 5 + [0.5] * 10


def test_it_trains_a_model_as_if_each_source_were_alone():
    """Homogeneous batches without shared layers: as training one task at a time."""

    def points(task, seed):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(12, 3)).astype("float32")
        return {"x": x}, {task: x.sum(axis=1, keepdims=True)}

    arrays = {task: points(task, seed) for seed, task in enumerate("ab")}

    def model(cls, tasks):
        keras.utils.set_random_seed(3)
        x = keras.Input((3,), name="x")
        heads = {t: keras.layers.Dense(1, name=t)(x) for t in ("a", "b")}
        return cls(x, {task: heads[task] for task in tasks})

    mixture = mix(
        {t: tf.data.Dataset.from_tensor_slices(a) for t, a in arrays.items()},
        batch_size=4,
        homogeneous=True,
        shuffle=False,
    )
    joint = model(mtl_keras.MultiTaskModel, "ab")
    joint.compile(keras.optimizers.SGD(0.1), loss="mse")
    joint.fit(mixture.dataset(), epochs=2, verbose=0)
    for task, (x, y) in arrays.items():
        alone = model(keras.Model, [task])
        alone.compile(keras.optimizers.SGD(0.1), loss={task: "mse"})
        alone.fit(x["x"], y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        for one, two in zip(
            alone.get_layer(task).get_weights(),
            joint.get_layer(task).get_weights(),
            strict=True,
        ):
            np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)


EMPTY = tf.data.Dataset.from_tensor_slices(
    ({"number": np.zeros(0, int)}, {"a": np.zeros(0, int)})
)


@pytest.mark.parametrize(
    ("sources", "config", "message"),
    [
        ({}, {}, "at least one source"),
        ({"a": EMPTY, "b": source("b")}, {}, "'a' is empty"),
        ({"a": source("a").repeat()}, {}, "'a'.*an endless"),
        ({"a": source("a").filter(lambda *x: True)}, {}, "assert_cardinality"),
        ({"a": tf.data.Dataset.range(3)}, {}, r"'a' to give \(inputs, labels\)"),
        (
            {
                "a": source("a"),
                "b": source("b").map(lambda x, y: ({"number": [1.0]}, y)),
            },
            {},
            "'number' to have one dtype and rank",
        ),
        (None, {"by": "sizes"}, "Did you mean 'size'"),
        (None, {"ends": "short"}, "Did you mean 'shortest'"),
        (None, {"ends": 0}, "`ends`"),
        (None, {"ends": 2, "homogeneous": True}, "room for each of 3 sources"),
        (None, {"by": "ratio"}, "`ratio`"),
        (None, {"ratio": {"a": 1}}, "`ratio`"),
        (None, {"by": "ratio", "ratio": {"a": 1, "b": 1, "c": 0}}, "above 0"),
        (None, {"by": "ratio", "ratio": {"a": 1, "b": 1, "d": 1}}, "source in `ratio`"),
        (None, {"by": "temperature", "temperature": 0}, "`temperature`"),
        (None, {"batch_size": 0}, "`batch_size`"),
    ],
)
def test_sources_that_cannot_be_mixed_are_one_clear_line(sources, config, message):
    if sources is None:
        sources = {name: source(name) for name in SIZES}
    with pytest.raises(InputError, match=message) as error:
        mix(sources, **{"batch_size": 4, **config})
    assert "\n" not in str(error.value)


def test_a_step_beyond_the_epoch_is_an_error():
    mixture = mixed()
    with pytest.raises(InputError, match="below the 10 steps"):
        mixture.epoch(0, 10)
