"""The scenes, checked against their pixels alone."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mtl_keras.data import MultiDigits
from mtl_keras.data.generated import digits, scenes


def loaded(data_dir):
    """The test split, through TensorFlow Datasets' own front door."""
    dataset = tfds.load("multi_digits/digits", split="test", data_dir=str(data_dir))
    return next(iter(tfds.as_numpy(dataset.batch(10_000))))


@pytest.fixture(scope="module")
def test_split(tmp_path_factory):
    """The whole test split, beside few samples of the others."""
    with pytest.MonkeyPatch.context() as patch:
        scenes_of = MultiDigits.builder_configs["digits"].scenes
        for split in ("train", "validation"):
            patch.setitem(scenes_of, split, 40)
        return loaded(tmp_path_factory.mktemp("few"))


@pytest.mark.slow
def test_features_are_as_documented(tmp_path):
    test_split = loaded(tmp_path)
    assert {name: (x.dtype, x.shape[1:]) for name, x in test_split.items()} == {
        "image": (np.uint8, (36, 36, 1)),
        "left": (np.int64, ()),
        "right": (np.int64, ()),
        "even_sum": (np.int64, ()),
        "boxes": (np.float32, (2, 4)),
        "mask": (np.uint8, (36, 36, 1)),
    }
    info = tfds.builder("multi_digits", data_dir=str(tmp_path)).info
    assert info.config_name == "digits"
    assert {name: part.num_examples for name, part in info.splits.items()} == {
        "train": 12_000,
        "validation": 1_000,
        "test": 2_000,
    }
    assert all(part.num_shards > 1 for part in info.splits.values())
    assert set(test_split["left"]) == set(test_split["right"]) == set(range(10))


def test_even_sum_follows_from_the_digits(test_split):
    sums = test_split["left"] + test_split["right"]
    np.testing.assert_array_equal(test_split["even_sum"], sums % 2 == 0)
    assert 0.4 < test_split["even_sum"].mean() < 0.6


def test_boxes_are_tight_around_the_mask(test_split):
    for mask, boxes in zip(test_split["mask"], test_split["boxes"], strict=True):
        for region, box in zip((1, 2), boxes, strict=True):
            rows, columns = np.nonzero(mask[..., 0] == region)
            expected = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
            np.testing.assert_allclose(box * 36, expected, atol=1e-4)


def test_mask_is_where_the_image_is_bright_left_and_right(test_split):
    image, mask = test_split["image"], test_split["mask"]
    assert set(np.unique(mask)) == {0, 1, 2}
    assert not (mask[:, :, 18:] == 1).any()
    assert not (mask[:, :, :18] == 2).any()
    assert image[mask > 0].min() > image[mask == 0].max()


def test_places_and_sizes_vary(test_split):
    boxes = test_split["boxes"] * 36
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    heights = boxes[..., 2] - boxes[..., 0]
    assert (centres.std(axis=0)[:, 0] > 4).all()
    assert (centres.std(axis=0)[:, 1] > 0.7).all()
    assert heights.min() <= 12
    assert heights.max() == 17


def test_same_data_every_time(test_split, tmp_path, few_scenes):
    again = tfds.load("multi_digits/digits", split="test", data_dir=str(tmp_path))
    again = next(iter(tfds.as_numpy(again.batch(10_000))))
    for name, values in test_split.items():
        np.testing.assert_array_equal(values, again[name])


def test_source_digits_of_the_splits_are_disjoint():
    pools = digits.bundled_digits()
    images = {
        split: {image.tobytes() for image in pool.images}
        for split, pool in pools.items()
    }
    assert sum(len(pool.labels) for pool in pools.values()) == 1_797
    assert not images["train"] & images["validation"]
    assert not images["train"] & images["test"]
    assert not images["validation"] & images["test"]


def test_scenes_use_all_digits_of_their_pool_and_no_others():
    # Digits told apart by their brightness, which scaling roughly keeps.
    brightness = np.array([120, 160, 200, 240])
    pool = scenes.Pool(np.zeros((4, 8, 8), np.uint8), np.arange(4))
    pool.images[:, 1:7, 2:6] = brightness[:, None, None]
    seen = set()
    for scene in scenes.generate(pool, 60, np.random.default_rng(0)):
        for region, label in ((1, scene.left), (2, scene.right)):
            bright = np.median(scene.image[scene.mask == region])
            assert np.argmin(np.abs(brightness - bright)) == label
            seen.add(label)
    assert seen == {0, 1, 2, 3}


def test_crop_square_keeps_the_content_and_nothing_else():
    digit = np.zeros((9, 12), np.uint8)
    digit[2:7, 5:8] = np.arange(1, 16).reshape(5, 3)
    square = scenes.crop_square(digit)
    assert square.shape == (5, 5)
    np.testing.assert_array_equal(square[:, 1:4], digit[2:7, 5:8])
    assert not square[:, [0, 4]].any()
