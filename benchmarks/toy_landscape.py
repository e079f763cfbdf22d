"""Trajectories of balancing methods on the two-task toy landscape.

The landscape and the protocol of the CAGrad and Nash-MTL papers: two parameters,
two losses, three starts, Adam. Two of the starts lie such that plain descent on the
mean loss ends in a valley from which only one task gains.

    python benchmarks/toy_landscape.py

writes `benchmarks/results/toy_landscape.json` (end points) and
`docs/images/toy_landscape.png` (trajectories over the contours of the mean loss).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from mtl_keras import balancing
from mtl_keras.runs.records import made_with

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "toy_landscape.json"
PICTURE = ROOT / "docs" / "images" / "toy_landscape.png"

STARTS = ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0))
METHODS: dict[str, Any] = {
    "mean": "equal",
    "mgda": "mgda",
    "pcgrad": {"class_name": "pcgrad", "config": {"seed": 0}},
    "cagrad": {"class_name": "cagrad", "config": {"c": 0.5}},
    "nash": "nash",
    "mgda_running": {"class_name": "mgda", "config": {"solve": "running"}},
    "nash_running": {"class_name": "nash", "config": {"solve": "running"}},
}
TITLES = {
    "mean": "Mean",
    "mgda": "MGDA",
    "pcgrad": "PCGrad",
    "cagrad": "CAGrad, c = 0.5",
    "nash": "Nash-MTL",
    "mgda_running": "MGDA, running",
    "nash_running": "Nash-MTL, running",
}
PARETO_HEIGHT = -8.355  # the Pareto set lies here, for -7 <= x1 <= 7


def losses(points: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns both losses, `[...]`, at points `[..., 2]`."""
    x1, x2 = points[..., 0], points[..., 1]
    h1 = tf.abs(0.5 * (-x1 - 7) - tf.tanh(-x2))
    h2 = tf.abs(0.5 * (-x1 + 3) + tf.tanh(-x2) + 2)
    h1 = tf.math.log(tf.maximum(h1, 5e-6)) + 6
    h2 = tf.math.log(tf.maximum(h2, 5e-6)) + 6
    s1 = (tf.square(-x1 + 7) + 0.1 * tf.square(-x2 - 8)) / 10 - 20
    s2 = (tf.square(-x1 - 7) + 0.1 * tf.square(-x2 - 8)) / 10 - 20
    c1 = tf.maximum(tf.tanh(0.5 * x2), 0)
    c2 = tf.maximum(tf.tanh(-0.5 * x2), 0)
    return h1 * c1 + s1 * c2, h2 * c1 + s2 * c2


def gradients(points: tf.Tensor) -> tf.Tensor:
    """Returns the gradients of both losses, `[S, 2, 2]`, at points `[S, 2]`."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(points)
        first, second = losses(points)
    rows = [tape.gradient(first, points), tape.gradient(second, points)]
    return tf.stack(rows, axis=1)


def weights_of(method: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function from one point's gradients `[2, 2]` to weights `[2]`.

    That of a running solve remembers its weights, and is for one trajectory alone.
    """
    balancer = balancing.get(METHODS[method])
    if isinstance(balancer, balancing.RunningBalancer) and balancer.is_running:
        balancer.build(["first", "second"])
        present, ones = tf.constant([True, True]), tf.ones((2,))
        sizes, due = tf.ones((2,), "float64"), tf.constant(True)

        def followed(rows: tf.Tensor) -> tf.Tensor:
            weights = balancer.running_weights(ones, sizes, present)
            weights = tf.cast(weights, rows.dtype)
            update = tf.linalg.matvec(rows, weights, transpose_a=True)
            products = tf.linalg.matvec(rows, update)
            factor = balancer.running_factor(tf.norm(update), sizes, present)
            balancer.follow(products, ones, sizes, present, due)
            return weights * tf.cast(factor, rows.dtype)

        return followed
    if isinstance(balancer, balancing.LossBalancer):
        constant = balancer.weights(tf.ones((2,)), tf.constant([True, True]))
        return lambda rows: tf.cast(constant, rows.dtype)
    return lambda rows: balancer.weights(tf.matmul(rows, rows, transpose_b=True))


def trajectories(
    method: str,
    steps: int,
    learning_rate: float = 1e-3,
    record_every: int = 500,
    starts: tuple[tuple[float, float], ...] = STARTS,
    jit_compile: bool = True,
) -> np.ndarray:
    """Descends by Adam with a method's weights.

    Args:
        method: A key of `METHODS`.
        steps: Number of steps.
        learning_rate: Adam's rate.
        record_every: Steps between two recorded points.
        starts: S points.
        jit_compile: Whether to compile with XLA, which pays off for long runs.

    Returns:
        Points, float64 `[S, steps / record_every + 1, 2]`.
    """
    weights = [weights_of(method) for _ in starts]

    def step(index, points, momentum, velocity):
        update = tf.stack(
            [
                tf.linalg.matvec(rows, of_start(rows), transpose_a=True)
                for of_start, rows in zip(
                    weights, tf.unstack(gradients(points), len(starts)), strict=True
                )
            ]
        )
        index += 1
        count = tf.cast(index, points.dtype)
        momentum = 0.9 * momentum + 0.1 * update
        velocity = 0.999 * velocity + 0.001 * tf.square(update)
        corrected = momentum / (1 - tf.exp(count * np.log(0.9)))
        spread = tf.sqrt(velocity / (1 - tf.exp(count * np.log(0.999))))
        points -= learning_rate * corrected / (spread + 1e-8)
        return index, points, momentum, velocity

    @tf.function(jit_compile=jit_compile, autograph=False)
    def run(*state):
        stop = state[0] + record_every
        return tf.while_loop(lambda index, *_: index < stop, step, state)

    points = tf.constant(starts, tf.float64)
    state = (tf.constant(0), points, tf.zeros_like(points), tf.zeros_like(points))
    recorded = [points.numpy()]
    for _ in range(steps // record_every):
        state = run(*state)
        recorded.append(state[1].numpy())
    return np.stack(recorded, axis=1)


def draw(paths: dict[str, np.ndarray], target: pathlib.Path) -> None:
    """Draws the trajectories over the contours of the mean loss, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x1, x2 = np.meshgrid(np.linspace(-10, 10, 400), np.linspace(-10.5, 10.5, 420))
    first, second = losses(tf.constant(np.stack([x1, x2], axis=-1)))
    mean = (first + second).numpy() / 2

    columns = min(4, len(paths))
    rows = -(-len(paths) // columns)
    figure = Figure(figsize=(3.3 * columns, 4.3 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for panel in panels[len(paths) :]:
        panel.set_axis_off()
    for panel, (method, path) in zip(panels, paths.items(), strict=False):
        panel.contour(x1, x2, mean, 24, cmap="viridis", linewidths=0.7, alpha=0.7)
        panel.plot(
            [-7, 7],
            [PARETO_HEIGHT] * 2,
            color="0.35",
            linewidth=4,
            alpha=0.6,
            solid_capstyle="round",
            label="Pareto set",
        )
        for number, points in enumerate(path):
            colour = f"C{(1, 3, 0)[number % 3]}"
            panel.plot(points[:, 0], points[:, 1], color=colour, linewidth=1.8)
            panel.plot(*points[0], "o", color="black", markersize=6)
            panel.plot(
                *points[-1], "*", color=colour, markersize=14, markeredgecolor="black"
            )
        panel.plot([], [], "o", color="black", label="start")
        panel.plot(
            [],
            [],
            "*",
            color="white",
            markeredgecolor="black",
            markersize=12,
            label="end",
        )
        panel.set_title(TITLES[method])
        panel.set_xlabel("$x_1$")
        panel.set_xlim(-10, 10)
        panel.set_ylim(-10.5, 10.5)
    for panel in panels[::columns]:
        panel.set_ylabel("$x_2$")
    panels[0].legend(loc="center right", fontsize="small")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--picture", type=pathlib.Path, default=PICTURE)
    arguments = parser.parse_args()
    paths, ends = {}, {}
    for method in METHODS:
        begin = time.perf_counter()
        paths[method] = trajectories(method, arguments.steps)
        ends[method] = np.round(paths[method][:, -1], 3).tolist()
        print(f"{method:8} {time.perf_counter() - begin:6.1f} s  {ends[method]}")
    report = {
        "made_with": made_with(),
        "protocol": {
            "starts": STARTS,
            "optimizer": "Adam, learning rate 0.001",
            "steps": arguments.steps,
            "precision": "float64",
        },
        "end_points": ends,
    }
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(report) + "\n")
    draw(paths, arguments.picture)


if __name__ == "__main__":
    main()
