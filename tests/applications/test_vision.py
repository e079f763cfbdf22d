"""The vision application: its data, models and trainings."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from mtl_keras import applications, backbones, data, runs
from mtl_keras.applications import heads
from mtl_keras.errors import InputError
from mtl_keras.evaluation.boxes import box_iou

TASKS = ["left", "right", "even_sum", "boxes", "mask"]
SIZES = {"cnn": (4, 3), "rnn": (2, 1), "mlp": (1, 2)}


@pytest.fixture
def vision():
    return applications.get("vision")


def images(count):
    shape = (count, 36, 36, 1)
    return np.random.default_rng(0).integers(0, 256, shape).astype("uint8")


def build(vision, backbone, **kwargs):
    width, depth = SIZES[backbone]
    return vision.build(backbone=backbone, width=width, depth=depth, **kwargs)


def test_labels_are_the_data_sets_own(vision, small_digits):
    batches = vision.load("test", batch_size=30, data_dir=small_digits)
    inputs, labels = zip(*tfds.as_numpy(batches), strict=True)
    assert [len(batch["left"]) for batch in labels] == [30, 30, 30, 10]
    assert list(labels[0]) == TASKS
    joined = {task: np.concatenate([batch[task] for batch in labels]) for task in TASKS}
    raw = data.load("multi_digits/digits", "test", data_dir=small_digits)
    raw = next(iter(tfds.as_numpy(raw.batch(1_000))))
    np.testing.assert_array_equal(
        np.concatenate([x["image"] for x in inputs]), raw["image"]
    )
    for task in ("left", "right", "boxes"):
        np.testing.assert_array_equal(joined[task], raw[task])
    np.testing.assert_array_equal(joined["even_sum"][:, 0], raw["even_sum"])
    np.testing.assert_array_equal(joined["mask"], raw["mask"][..., 0])


def test_shuffle_limit_and_tasks(vision, small_digits):
    def order(**kwargs):
        dataset = vision.load(
            "train", batch_size=64, tasks=["left"], data_dir=small_digits, **kwargs
        )
        passes = [list(dataset.as_numpy_iterator()) for _ in range(2)]
        return [
            [brightness for x, _ in batches for brightness in x["image"].sum((1, 2, 3))]
            for batches in passes
        ]

    plain, again = order()
    assert plain == again
    first, second = order(shuffle=True, seed=3)
    assert first != second
    assert sorted(first) == sorted(second) == sorted(plain)
    assert order(shuffle=True, seed=3) == [first, second]
    assert order(limit=100)[0] == plain[:100]


@pytest.mark.parametrize(
    ("backbone", "sharing"),
    [
        ("cnn", "mmoe"),
        pytest.param("rnn", "hard", marks=pytest.mark.slow),
        pytest.param("mlp", "hard", marks=pytest.mark.slow),
    ],
)
def test_every_backbone_builds_and_learns(vision, small_digits, backbone, sharing):
    model = build(vision, backbone, sharing=sharing)
    assert set(model.tasks) == set(TASKS)
    model.compile(
        optimizer=keras.optimizers.Adam(3e-3),
        loss=vision.losses(),
        metrics=vision.metrics(),
    )
    train = vision.load("train", batch_size=50, data_dir=small_digits)
    history = model.fit(train, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
    assert all(np.isfinite(values).all() for values in history.values())
    for task in TASKS:
        assert f"{task}_{vision.tasks[task].objective}" in history


@pytest.mark.parametrize("backbone", sorted(SIZES))
def test_outputs_are_probabilities_and_boxes(vision, backbone):
    outputs = build(vision, backbone).predict({"image": images(5)}, verbose=0)
    assert {task: value.shape[1:] for task, value in outputs.items()} == {
        "left": (10,),
        "right": (10,),
        "even_sum": (1,),
        "boxes": (2, 4),
        "mask": (36, 36, 3),
    }
    for task in ("left", "right", "mask"):
        np.testing.assert_allclose(outputs[task].sum(axis=-1), 1, atol=1e-5)
    for value in outputs.values():
        assert value.min() >= 0
        assert value.max() <= 1


def test_mask_blocks_lie_where_their_features_look():
    """A place of the features decides its own pixels and the blocks around it."""
    features = keras.Input((9, 9, 4))
    mask = heads.segmentation(features, name="mask", size=(36, 36), count=3, hidden=8)
    model = keras.Model(features, mask)
    base = np.zeros((1, 9, 9, 4), "float32")
    changed = base.copy()
    changed[0, 2, 6] = 5.0
    differs = np.any(model(base) != model(changed), axis=-1)[0]
    assert differs[8:12, 24:28].all()
    differs[4:16, 20:32] = False
    assert not differs.any()


def test_mixed_precision_gives_float32_outputs(vision):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = build(vision, "cnn")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    for value in model({"image": images(2)}).values():
        assert value.dtype == tf.float32


def test_a_subset_of_tasks_in_the_applications_order(vision, small_digits):
    model = build(vision, "cnn", tasks=["mask", "left"])
    assert set(model.tasks) == {"left", "mask"}
    assert list(vision.losses(["mask", "left"])) == ["left", "mask"]
    batch = vision.load("test", batch_size=4, tasks=["mask"], data_dir=small_digits)
    assert list(batch.element_spec[1]) == ["mask"]


@pytest.mark.parametrize(
    ("settings", "balancing"),
    [
        ({}, "scale_invariant"),
        ({"balancing": "equal"}, "equal"),
        ({"tasks": ("boxes",)}, "equal"),
        ({"preferences": "manifold"}, "equal"),
        ({"loss_weights": {"boxes": 2.0}}, "equal"),
    ],
)
def test_several_tasks_are_balanced_as_suits_them(settings, balancing):
    config = runs.RunConfig("vision", **settings).validate()
    assert config.balancing == balancing
    # One task has one backbone and one head, unless told otherwise.
    one_task = len(config.tasks) == 1
    assert (config.sharing == "hard") == one_task
    own = runs.RunConfig("vision", sharing="mmoe", **settings).validate()
    assert own.sharing == "mmoe"


def test_metrics_and_losses_are_new_each_time(vision):
    assert vision.metrics()["mask"][0] is not vision.metrics()["mask"][0]


def test_saved_model_gives_the_same_outputs(vision, tmp_path):
    model = build(vision, "rnn", sharing="mmoe")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = model({"image": images(3)})
    for task, value in loaded({"image": images(3)}).items():
        np.testing.assert_allclose(value, expected[task], atol=1e-6)


def test_stages_of_the_backbones_keep_places():
    stages = backbones.get("cnn")(4, 4)
    x = keras.Input((36, 36, 1))
    for stage in stages:
        x = stage(x)
    assert x.shape == (None, 9, 9, 8)
    x = keras.Input((36, 36, 1))
    for stage in backbones.get("rnn")(5, 2):
        x = stage(x)
    assert x.shape == (None, 36, 10)


def test_box_labels_overlap_themselves(vision, small_digits):
    batches = vision.load("test", batch_size=100, data_dir=small_digits)
    boxes = next(iter(batches))[1]["boxes"]
    np.testing.assert_allclose(box_iou(boxes, boxes), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: applications.get("visoin"), "Did you mean 'vision'"),
        (lambda v: backbones.get("cn"), "Did you mean 'cnn'"),
        (lambda v: v.build(backbone="ccn"), "Did you mean 'cnn'"),
        (lambda v: v.build(tasks=["lefft"]), "Did you mean 'left'"),
        (lambda v: v.build(tasks=[]), "at least one task"),
        (lambda v: v.build(width=0), "`width`.*Received: 0"),
        (lambda v: v.build(depth=1.5), "`depth`.*Received: 1.5"),
        (lambda v: v.build(sharing="mmo"), "Did you mean 'mmoe'"),
        (lambda v: v.losses(["maks"]), "Did you mean 'mask'"),
        (lambda v: v.load("tset", batch_size=1), "Did you mean 'test'"),
        (lambda v: v.load("test", batch_size=1, data="mnist"), "multi_digits/mnist"),
    ],
)
def test_unknown_names_give_the_nearest(vision, call, message):
    with pytest.raises(InputError, match=message):
        call(vision)
