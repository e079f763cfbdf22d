"""One configuration per method, and a way to take a step of any method alone."""

from __future__ import annotations

import functools

import keras
import numpy as np
import tensorflow as tf

from mtl_keras import balancing
from mtl_keras.balancing import GradientBalancer, GradientStep, LossStep

CONFIGS = {
    "krum": {"n_byzantine": 0},
    **{
        name: {"primary": "b"}
        for name in ("pcd", "gradient_cosine", "metabalance", "auxinash")
    },
    "stch": {"warmup_epochs": 1},
    **{name: {"seed": 7} for name in ("random", "pcgrad", "gradvac", "graddrop")},
}
DRAWN = ("random", "pcgrad", "gradvac", "graddrop")
"""Methods that draw random numbers."""
WITH_PRIMARY = tuple(name for name, c in CONFIGS.items() if "primary" in c)
"""Methods with one main task."""
TASKS = ("a", "b", "c", "d")
SHAPES = ((2, 3), (5,))
LEARNING_RATE = 0.1


def make(name, /, tasks=TASKS, **config):
    """Returns a built balancer."""
    config = {**CONFIGS.get(name, {}), **config}
    balancer = balancing.get({"class_name": name, "config": config})
    balancer.build(tasks)
    if isinstance(balancer, GradientBalancer):
        balancer.build_variables([keras.Variable(np.zeros(s)) for s in SHAPES])
    return balancer


def rows_of(num_tasks=4, seed=0):
    """Returns task gradients `[T, 11]` that conflict and differ in length."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_tasks, 11))
    return (rows - 0.7 * rows.mean(axis=0)) * rng.uniform(0.5, 2.0, (num_tasks, 1))


def problems(count=100):
    """Yields seeds, conflicting task gradients and losses of random problems."""
    for seed in range(count):
        yield rows_of(seed=seed), losses_of(seed=seed)


def losses_of(num_tasks=4, seed=0):
    return np.random.default_rng(100 + seed).uniform(0.3, 2.0, num_tasks)


def by_variable(rows):
    """Returns the rows as T lists of gradients of variables of `SHAPES`."""
    rows = tf.cast(rows, tf.float32)
    return [
        [tf.reshape(row[:6], SHAPES[0]), tf.reshape(row[6:], SHAPES[1])]
        for row in tf.unstack(rows)
    ]


class LinearProbe:
    """A batch whose losses are linear in a model of one vector."""

    def __init__(self, rows, losses):
        self.rows = tf.cast(rows, tf.float32)
        self.offset = tf.cast(losses, tf.float32)

    def weights(self):
        return [tf.fill((self.rows.shape[1],), -0.01)]

    def losses(self, weights, part=None):
        half = {None: 1.0, 0: 0.9, 1: 1.1}[part]
        return tf.unstack(self.offset + half * tf.linalg.matvec(self.rows, weights[0]))

    def total(self, value):
        return value


def step(balancer, rows, losses, present=None):
    """Takes one step.

    Returns:
        The task weights `[T]` and the update `[11]`.
    """
    present = tf.ones((rows.shape[0],), "bool") if present is None else present
    present = tf.convert_to_tensor(present)
    losses = tf.where(present, tf.cast(losses, tf.float32), 0.0)
    rows = tf.where(present[:, None], tf.cast(rows, tf.float32), 0.0)
    if isinstance(balancer, GradientBalancer):
        halves = [by_variable(rows * 0.5 * factor) for factor in (0.8, 1.2)]
        halves = halves if balancer.num_sub_batches else ()
        update, weights = balancer.aggregate(
            GradientStep(
                by_variable(rows), losses, present, tf.ones(()), sub_batches=halves
            )
        )
        balancer.after_step(weights, present)
        flat = [tf.reshape(tf.convert_to_tensor(part), [-1]) for part in update]
        return weights, tf.concat(flat, 0)
    weights = balancer.weights(losses, present)
    balancer.update(
        LossStep(
            losses,
            present,
            tf.constant(LEARNING_RATE),
            gradient_norms=tf.norm(rows, axis=1),
            probe=LinearProbe(rows, losses),
        )
    )
    return weights, tf.linalg.matvec(rows, weights, transpose_a=True)


@functools.cache
def compiled(name, xla=False):
    """Returns a balancer, its `step` as a graph, and a function to start anew."""
    balancer = make(name)
    start = values(balancer)

    @tf.function(autograph=False, jit_compile=xla)
    def graph(rows, losses, present):
        return step(balancer, rows, losses, present)

    def run(rows, losses, present=(True,) * 4):
        return graph(
            tf.constant(rows, tf.float32),
            tf.constant(losses, tf.float32),
            tf.constant(present),
        )

    def restart():
        for key, value in start.items():
            balancer.variables[key].assign(value)

    return balancer, run, restart


def values(balancer):
    """Returns the state as arrays."""
    return {name: v.numpy().copy() for name, v in balancer.variables.items()}
