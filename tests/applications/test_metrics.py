"""Box and mask metrics against plain NumPy."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mtl_keras.evaluation import BoxIoU
from mtl_keras.evaluation.boxes import box_iou
from mtl_keras.evaluation.segmentation import MaskIoU


def overlap(a, b):
    """IoU by counting the cells of a fine grid that each box covers."""
    centres = (np.arange(400) + 0.5) / 400

    def cells(box):
        ymin, xmin, ymax, xmax = box
        rows = (centres > ymin) & (centres < ymax)
        columns = (centres > xmin) & (centres < xmax)
        return rows[:, None] & columns[None]

    union = (cells(a) | cells(b)).sum()
    return (cells(a) & cells(b)).sum() / union if union else 0.0


@pytest.fixture
def boxes():
    """Boxes on the grid's lines, so that counting cells is exact."""
    corners = np.random.default_rng(0).integers(0, 401, size=(2, 40, 2, 2, 2)) / 400
    corners = np.sort(corners, axis=-2)
    return corners.reshape(2, 40, 2, 4).astype("float32")


def test_box_iou_counts_cells(boxes):
    true, predicted = boxes
    expected = [
        [overlap(true[i, j], predicted[i, j]) for j in (0, 1)] for i in range(40)
    ]
    np.testing.assert_allclose(box_iou(true, predicted), expected, atol=1e-5)


def test_box_iou_of_inverted_and_empty_boxes_is_zero():
    true = np.array([[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.2, 0.2]], "float32")
    inverted = np.array([[0.5, 0.5, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2]], "float32")
    np.testing.assert_array_equal(box_iou(true, inverted), [0, 0])


def test_box_metric_leaves_out_samples_of_weight_0(boxes):
    true, predicted = boxes
    weight = (np.arange(40) % 3 == 0).astype("float32")
    metric = BoxIoU()
    metric.update_state(true[:20], predicted[:20], sample_weight=weight[:20])
    metric.update_state(true[20:], predicted[20:], sample_weight=weight[20:])
    kept = weight == 1
    expected = np.mean(box_iou(true[kept], predicted[kept]))
    assert float(metric.result()) == pytest.approx(float(expected), abs=1e-6)


@pytest.fixture
def masks():
    rng = np.random.default_rng(1)
    true = rng.integers(0, 3, size=(6, 9, 7)).astype("uint8")
    scores = rng.random((6, 9, 7, 3)) + 0.5 * np.eye(3)[true]
    return true, scores.astype("float32")


@pytest.mark.parametrize("weighted", [False, True])
def test_mask_metric_is_mean_over_classes(masks, weighted):
    true, scores = masks
    keep = np.array([1, 0, 1, 1, 0, 1], bool) if weighted else np.ones(6, bool)
    metric = MaskIoU(3)
    metric.update_state(true, scores, keep.astype("float32") if weighted else None)
    t, p = true[keep], scores[keep].argmax(-1)
    expected = [
        ((t == c) & (p == c)).sum() / ((t == c) | (p == c)).sum() for c in (0, 1, 2)
    ]
    assert float(metric.result()) == pytest.approx(np.mean(expected), abs=1e-6)


def test_mask_metric_equals_keras_batch_by_batch(masks):
    true, scores = masks
    ours, stock = MaskIoU(3), keras.metrics.MeanIoU(3, sparse_y_pred=False)
    for part in (slice(0, 2), slice(2, 6)):
        ours.update_state(true[part], scores[part])
        stock.update_state(true[part], scores[part])
    assert float(ours.result()) == pytest.approx(float(stock.result()), abs=1e-6)


def test_weights_per_pixel_equal_weights_per_image(masks):
    true, scores = masks
    weight = np.array([1, 0, 1, 0, 1, 1], "float32")
    per_image, per_pixel = MaskIoU(3), MaskIoU(3)
    per_image.update_state(true, scores, weight)
    pixels = np.broadcast_to(weight[:, None, None], true.shape)
    per_pixel.update_state(true, scores, pixels)
    assert float(per_image.result()) == float(per_pixel.result())


@pytest.mark.parametrize("metric", [BoxIoU(name="b"), MaskIoU(3, name="m")])
def test_metrics_round_trip(metric):
    copy = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert type(copy) is type(metric)
    assert copy.get_config() == metric.get_config()
