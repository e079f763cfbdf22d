"""Effect of a step on one task on the losses of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from mtl_keras import ops
from mtl_keras.errors import InputError
from mtl_keras.model.multi_task_model import MultiTaskModel


class Lookahead:
    """Tries a step on each task alone, on one batch, and leaves no trace.

    Args:
        model: A compiled model of at least two tasks that share weights.
        step_size: Length of the step, relative to the norm of the shared weights.

    Raises:
        InputError: If there is nothing that tasks share.
    """

    def __init__(self, model: MultiTaskModel, step_size: float):
        self._model = model
        self._step_size = step_size
        self._shared = model.shared_variables
        if not self._shared:
            raise InputError(
                "Expected a model whose tasks share trainable weights. Received: one "
                f"of the tasks {model.tasks} that shares none."
            )
        # Traced here once, and not with the step: the losses at T other weights would
        # make its graph T times as large.
        self._gradients = tf.function(self._task_gradients)
        self._losses = tf.function(self._losses_at)

    def __call__(
        self, x: Any, y: Any, sample_weight: Any = None
    ) -> tuple[Any, Any, Any]:
        """Measures on one batch.

        Args:
            x: Inputs.
            y: Labels.
            sample_weight: Sample weights, or None.

        Returns:
            The cosines of the task gradients, the share by which a step on task i (row)
            lowers the loss of task j (column), and the samples with labels of both, all
            float64 `[T, T]`. NaN in the first two where a task is absent from the batch
            or has no gradient, and in the second where the loss is not positive.
        """
        before, gramian, shared, gradients = self._gradients(x, y, sample_weight)
        before, gramian = before.numpy().astype(np.float64), gramian.numpy()
        norms = np.sqrt(np.diag(gramian))
        with np.errstate(divide="ignore", invalid="ignore"):
            cosines = gramian / norms[:, None] / norms
        length = self._step_size * np.sqrt(
            sum(float(tf.reduce_sum(tf.square(v))) for v in self._shared)
        )
        affinity = np.full_like(gramian, np.nan)
        for task, norm in enumerate(norms):
            if np.isfinite(norm) and norm > 0:
                step = tf.constant(length / norm, "float32")
                after = self._losses(x, y, sample_weight, gradients[task], step)
                with np.errstate(divide="ignore", invalid="ignore"):
                    affinity[task] = 1.0 - after.numpy().astype(np.float64) / before
        # An absent task, whose loss is 0, has neither helped nor been helped.
        affinity[:, ~(before > 0)] = np.nan
        return cosines, affinity, shared.numpy().astype(np.float64)

    def _task_gradients(self, x: Any, y: Any, sample_weight: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            outputs = self._model(x, training=False)
            losses = self._model.task_losses(y, outputs, sample_weight)
        gradients = [
            tape.gradient(
                loss, [v.value for v in self._shared], unconnected_gradients="zero"
            )
            for loss in losses.values()
        ]
        shared = self._model.shared_samples(y, outputs, sample_weight)
        values = tf.stack(list(losses.values()))
        return values, ops.gramian(gradients), shared, gradients

    def _losses_at(
        self, x: Any, y: Any, sample_weight: Any, gradient: Any, step: tf.Tensor
    ) -> tf.Tensor:
        moved = {
            id(variable): variable.value - step * tf.convert_to_tensor(change)
            for variable, change in zip(self._shared, gradient, strict=True)
        }
        outputs, _ = self._model.stateless_call(
            [moved.get(id(v), v.value) for v in self._model.trainable_variables],
            [v.value for v in self._model.non_trainable_variables],
            x,
            training=False,
        )
        return tf.stack(
            list(self._model.task_losses(y, outputs, sample_weight).values())
        )
