"""Losses of a batch at other weights, without a trace in the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from mtl_keras.model.gradient_lists import Gradient
from mtl_keras.model.labels import Labels, batch_size, sub_batch, sum_over_replicas

if TYPE_CHECKING:
    from mtl_keras.model.step import Step


class BatchProbe:
    """Evaluates the present batch statelessly; see `mtl_keras.balancing.Probe`.

    Every call starts from the state before the step's own forward pass: it draws
    the same dropout masks, and leaves seeds and batch statistics alone.

    Args:
        model: The model.
        x: The batch's inputs.
        step: The step, whose labels these are; the losses of tasks that it has not
            present are 0.
        state: Values of `model.non_trainable_variables` before the forward pass.
        losses_of: From labels and outputs to the T task losses.
    """

    def __init__(
        self,
        model: keras.Model,
        x: Any,
        step: Step,
        state: Sequence[tf.Tensor],
        losses_of: Callable[[Labels, dict[str, Any]], list[tf.Tensor]],
    ):
        self.model = model
        self._x = x
        self._step = step
        self._state = list(state)
        self._losses_of = losses_of

    def weights(self) -> list[tf.Tensor]:
        """Returns the trainable weights as they are."""
        return [tf.identity(v.value) for v in self.model.trainable_variables]

    def moved(self, moves: Mapping[int, Gradient]) -> list[tf.Tensor]:
        """Returns the trainable weights after moves, in their dtypes.

        Args:
            moves: By id of their variable; None, or no entry, for those that stay.
        """
        weights = []
        for variable, weight in zip(
            self.model.trainable_variables, self.weights(), strict=True
        ):
            move = moves.get(id(variable))
            if move is not None:
                weight = weight + tf.cast(tf.convert_to_tensor(move), weight.dtype)
            weights.append(weight)
        return weights

    def losses(
        self, weights: Sequence[tf.Tensor], part: int | None = None
    ) -> list[tf.Tensor]:
        """Returns this replica's share of the T losses at these weights.

        Args:
            weights: In the order of `weights()`.
            part: 0 or 1 for one half of the batch, `None` for all of it.
        """
        y_pred, _ = self.model.stateless_call(
            list(weights), self._state, self._x, training=True
        )
        labels = self._step.labels
        if part is not None:
            labels = sub_batch(labels, part, 2, batch_size(y_pred))
        losses = self._losses_of(labels, y_pred)
        return [
            tf.where(takes_part, loss, 0.0)
            for takes_part, loss in zip(
                tf.unstack(self._step.present), losses, strict=True
            )
        ]

    def total(self, value: tf.Tensor) -> tf.Tensor:
        """Returns the sum of a tensor over the replicas."""
        return sum_over_replicas(value)
