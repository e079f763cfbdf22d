"""Adam for a balancing method's own `[T]` parameters."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf


class TaskAdam:
    """Adam (Kingma & Ba, ICLR 2015) over one vector with an entry per task.

    Keras's Adam moves every entry at every step, by its momentum even where the
    gradient is zero. Here an absent task's entry, its moments and its step count
    stay where they are, which a masked update of a stock optimizer cannot do.

    Args:
        add_variable: `Balancer.add_variable`, which makes the moments tracked.
        num_tasks: T.
    """

    def __init__(self, add_variable: Callable[..., keras.Variable], num_tasks: int):
        self._momentum = add_variable("adam_momentum", (num_tasks,), 0.0)
        self._velocity = add_variable("adam_velocity", (num_tasks,), 0.0)
        self._steps = add_variable("adam_steps", (num_tasks,), 0.0)

    def started(self, variable: keras.Variable, start: tf.Tensor) -> tf.Tensor:
        """Returns `variable`, or `start` where it has not moved yet, float32 `[T]`.

        Args:
            variable: float32 `[T]`.
            start: float32 `[T]`; entries that are not finite are not taken.
        """
        takes = tf.equal(self._steps, 0.0) & tf.math.is_finite(start)
        return tf.where(takes, start, variable)

    def step(
        self,
        variable: keras.Variable,
        gradient: tf.Tensor,
        present: tf.Tensor,
        learning_rate: tf.Tensor,
        start: tf.Tensor | None = None,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        """Moves `variable` against `gradient` where `present`.

        Args:
            variable: float32 `[T]`.
            gradient: float32 `[T]`.
            present: bool `[T]`. Entries whose gradient is not finite, or has no
                finite square, count as absent.
            learning_rate: Scalar.
            start: float32 `[T]`, `started`'s result: entries that start elsewhere
                are set to it and not moved; `None` for `variable` itself.
            beta_1: Decay of the first moment.
            beta_2: Decay of the second moment.
            epsilon: Added to the root of the second moment.
        """
        start = tf.convert_to_tensor(variable) if start is None else start
        moves = present & tf.math.is_finite(tf.square(gradient))
        # At the optimum, where Adam would make a step even of round-off.
        gradient = tf.where(moves & tf.equal(start, variable), gradient, 0.0)
        steps = self._steps + tf.cast(moves, "float32")
        momentum = beta_1 * self._momentum + (1 - beta_1) * gradient
        velocity = beta_2 * self._velocity + (1 - beta_2) * tf.square(gradient)
        at_least_one = tf.maximum(steps, 1.0)
        corrected = momentum / (1 - tf.pow(beta_1, at_least_one))
        spread = tf.sqrt(velocity / (1 - tf.pow(beta_2, at_least_one)))
        change = learning_rate * corrected / (spread + epsilon)
        self._steps.assign(steps)
        self._momentum.assign(tf.where(moves, momentum, self._momentum))
        self._velocity.assign(tf.where(moves, velocity, self._velocity))
        variable.assign(tf.where(moves, start - change, variable))
