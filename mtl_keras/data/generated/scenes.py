"""Scenes of two digits: the picture and every label that follows from it.

Pure NumPy and Pillow; the TensorFlow Datasets builder around it is in
`multi_digits.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

SIZE = 36
"""Height and width of a scene, in pixels."""

HALF = SIZE // 2
SMALLEST, LARGEST = 12, 17
"""Shortest and longest side of the square that a digit is scaled to."""

INK = 96
"""Pixels at least this bright (of 255) belong to a digit."""

BACKGROUND, LEFT, RIGHT = 0, 1, 2


class Pool(NamedTuple):
    """Source digits that scenes are made from.

    Attributes:
        images: uint8, `[digits, height, width]`, bright on black.
        labels: int64, `[digits]`, 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


class Scene(NamedTuple):
    """One scene and its labels.

    Attributes:
        image: uint8, `[36, 36, 1]`.
        left: Digit in the left half, 0 to 9.
        right: Digit in the right half, 0 to 9.
        boxes: float32, `[2, 4]`, left digit first, each `ymin, xmin, ymax,
            xmax` as a share of the scene's height and width.
        mask: uint8, `[36, 36, 1]`, 0 background, 1 left digit, 2 right digit.
    """

    image: np.ndarray
    left: int
    right: int
    boxes: np.ndarray
    mask: np.ndarray


def crop_square(digit: np.ndarray) -> np.ndarray:
    """Crops a digit to its content and centres that in the smallest square.

    Data sets frame their digits differently; after this, the side of the
    square is the size of the digit whatever the data set.

    Args:
        digit: uint8, `[height, width]`, with at least one pixel that is not 0.

    Returns:
        uint8, `[side, side]`.
    """
    rows = np.flatnonzero(digit.any(axis=1))
    columns = np.flatnonzero(digit.any(axis=0))
    content = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = content.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side), np.uint8)
    square[top : top + height, left : left + width] = content
    return square


def compose(
    left: np.ndarray, right: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places two square digits at random size and place, one in each half.

    Args:
        left: uint8, `[side, side]`, the digit for the left half.
        right: The same for the right half.
        rng: Gives the sizes and places.

    Returns:
        `(image, boxes, mask)` as in `Scene`.
    """
    image = np.zeros((SIZE, SIZE), np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    boxes = np.zeros((2, 4), np.float32)
    for index, digit in enumerate((left, right)):
        side = int(rng.integers(SMALLEST, LARGEST + 1))
        top = int(rng.integers(0, SIZE - side + 1))
        start = index * HALF + int(rng.integers(0, HALF - side + 1))
        place = (slice(top, top + side), slice(start, start + side))
        scaled = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
        image[place] = np.asarray(scaled)
        ink = image[place] >= INK
        mask[place][ink] = (LEFT, RIGHT)[index]
        rows = np.flatnonzero(ink.any(axis=1)) + top
        columns = np.flatnonzero(ink.any(axis=0)) + start
        boxes[index] = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
    return image[..., None], boxes / np.float32(SIZE), mask[..., None]


def generate(pool: Pool, count: int, rng: np.random.Generator) -> Iterator[Scene]:
    """Yields scenes of the digits of one pool, and of no others.

    Args:
        pool: The source digits.
        count: Number of scenes.
        rng: Gives all randomness: the same state gives the same scenes.

    Yields:
        `count` scenes.
    """
    squares = [crop_square(image) for image in pool.images]
    chosen = rng.integers(0, len(squares), size=(count, 2))
    for left, right in chosen:
        image, boxes, mask = compose(squares[left], squares[right], rng)
        yield Scene(image, int(pool.labels[left]), int(pool.labels[right]), boxes, mask)
