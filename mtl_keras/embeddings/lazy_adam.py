"""Adam whose cost for an embedding table follows the batch, not the table."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mtl_keras.errors import InputError
from mtl_keras.ops.segments import segments

# Each of these touches every row of a table at every step.
_DENSE_OPTIONS = (
    "amsgrad",
    "weight_decay",
    "use_ema",
    "gradient_accumulation_steps",
    "clipvalue",
    "clipnorm",
    "global_clipnorm",
)


@keras.saving.register_keras_serializable(package="mtl_keras")
class LazyAdam(keras.optimizers.Adam):
    """Adam that leaves rows alone which a batch did not look up.

    Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015
    (arXiv:1412.6980). For a dense gradient it is Keras's Adam. For a sparse one
    (`tf.IndexedSlices`, as embedding layers give), gradients of the same row are
    added, and then the row and its two moments are updated by Adam's formula;
    Keras's own updates, with zero gradients, all other rows too, at the cost of the
    whole table.

    Differs from Adam in that the moments of a row do not decay, and the row does not
    move by its momentum, in steps without a gradient for it. The correction of the
    moments' bias counts all steps. Rows that are looked up in every step are those of
    Adam.

    Args:
        learning_rate: As in `keras.optimizers.Adam`.
        beta_1: As in `keras.optimizers.Adam`.
        beta_2: As in `keras.optimizers.Adam`.
        epsilon: As in `keras.optimizers.Adam`.
        name: As in `keras.optimizers.Adam`.
        **kwargs: As in `keras.optimizers.Adam`.

    Raises:
        InputError: For options of Adam that touch whole tables: `amsgrad`,
            `weight_decay`, `use_ema`, `gradient_accumulation_steps`, and clipping.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        name: str = "lazy_adam",
        **kwargs: Any,
    ):
        for option in _DENSE_OPTIONS:
            if kwargs.get(option):
                raise InputError(
                    f"Expected LazyAdam without `{option}`, which touches whole "
                    f"tables. Received: {option}={kwargs[option]!r}. Use "
                    "keras.optimizers.Adam."
                )
        super().__init__(
            learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            name=name,
            **kwargs,
        )

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable and its moments; see Keras."""
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        momentums, velocities = self._momentums[index], self._velocities[index]
        dtype = variable.dtype
        distinct = segments(gradient.indices)
        rows, total = distinct.ids, distinct.sums(tf.cast(gradient.values, dtype))
        momentum = tf.gather(momentums.value, rows)
        velocity = tf.gather(velocities.value, rows)
        momentum += (total - momentum) * (1.0 - self.beta_1)
        velocity += (tf.square(total) - velocity) * (1.0 - self.beta_2)
        steps = tf.cast(self.iterations.value + 1, dtype)
        rate = tf.cast(learning_rate, dtype) * (
            tf.sqrt(1.0 - tf.pow(tf.cast(self.beta_2, dtype), steps))
            / (1.0 - tf.pow(tf.cast(self.beta_1, dtype), steps))
        )
        change = rate * momentum / (tf.sqrt(velocity) + self.epsilon)
        self.assign(momentums, tf.IndexedSlices(momentum, rows))
        self.assign(velocities, tf.IndexedSlices(velocity, rows))
        # Not subtracted: an id that occurs twice, as under XLA, would move twice.
        changed = tf.gather(variable, rows) - change
        self.assign(variable, tf.IndexedSlices(changed, rows))
