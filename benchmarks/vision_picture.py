"""Draws what a trained vision model says about scenes of the test split.

    mtl-keras train vision --out runs/vision
    python benchmarks/vision_picture.py runs/vision

Writes docs/images/vision.png.
"""

from __future__ import annotations

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib

matplotlib.use("Agg")
import keras
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

import mtl_keras

COLUMNS, ROWS = 6, 2
COLOURS = ("tab:orange", "tab:cyan")
PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "images" / "vision.png"


def draw(axes: plt.Axes, image: np.ndarray, answers: dict[str, np.ndarray]) -> None:
    """Draws one scene `[height, width, 1]` with the answers of the five tasks."""
    height, width = image.shape[:2]
    axes.imshow(image[..., 0], cmap="gray")
    regions = answers["mask"].argmax(-1)
    tint = np.zeros((height, width, 4))
    for index, colour in enumerate(COLOURS):
        tint[regions == index + 1] = (*matplotlib.colors.to_rgb(colour), 0.45)
        top, left, bottom, right = answers["boxes"][index]
        axes.add_patch(
            Rectangle(
                (left * width - 0.5, top * height - 0.5),
                (right - left) * width,
                (bottom - top) * height,
                fill=False,
                edgecolor=colour,
                linewidth=1.8,
            )
        )
    axes.imshow(tint)
    parity = "even" if answers["even_sum"][0] > 0.5 else "odd"
    digits = f"{answers['left'].argmax()} + {answers['right'].argmax()}"
    axes.set_title(f"{digits} is {parity}", fontsize=11)
    axes.axis("off")


def main(run: str) -> None:
    """Draws the first scenes of the test split with the answers of `run`."""
    model = keras.models.load_model(pathlib.Path(run) / "model.keras")
    vision = mtl_keras.applications.get("vision")
    inputs, _ = next(iter(vision.load("test", batch_size=COLUMNS * ROWS)))
    answers = {task: np.array(v) for task, v in model(inputs, training=False).items()}
    images = np.array(inputs["image"])
    figure, grid = plt.subplots(ROWS, COLUMNS, figsize=(1.8 * COLUMNS, 2.05 * ROWS))
    for index, axes in enumerate(grid.flat):
        draw(axes, images[index], {task: v[index] for task, v in answers.items()})
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1])
