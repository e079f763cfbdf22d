"""Methods that train the weights on held-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mtl_keras.balancing.adam import TaskAdam
from mtl_keras.balancing.base import LossBalancer, LossStep, Probe, mean_weights
from mtl_keras.errors import InputError, check_number

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class AutoLambda(LossBalancer):
    """Auto-λ: loss weights trained through a one-step look-ahead.

    Half of each batch trains, the other half validates. With θ' = θ − η Σ λ_i ∇L_i
    (training half) and v = ∇ Σ_j L_j(θ') over the primary tasks (validation half),
    ∂/∂λ_i = −η ⟨v, ∇L_i(θ)⟩, taken by a finite difference of L_i along ±v. λ follows
    it by Adam and stays non-negative. Liu, James, Davison & Johns, "Auto-Lambda:
    Disentangling Dynamic Task Relationships", TMLR 2022, arXiv 2202.03091.

    Differs from the paper in that the validation half comes from the same batch
    (the model also trains on it), and that the look-ahead is plain gradient descent
    from the weights after the step. Costs four more forward and two more backward
    passes a step; batch statistics and seeds are as if these had not run.

    Cost: 3 backward, 4 forward; state: T weights, Adam; needs: halves of the batch.
    Choose it when some tasks only help others (`primary`).

    Args:
        primary: Name or names of the tasks to validate on; all if `None`.
        learning_rate: Adam's rate for λ.
        initial: λ at the start, relative to the primary tasks' equal weights.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"sum"`.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"weighted"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: At `build`, when `primary` names no task.

    Example:

    ```python
    model.compile("adam", loss="mse", balancing=mtl_keras.balancing.AutoLambda())
    ```
    """

    method = "auto_lambda"
    needs_probe = True

    def __init__(
        self,
        primary: str | Sequence[str] | None = None,
        learning_rate: float = 1e-3,
        initial: float = 1.0,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(scale=scale, task_specific=task_specific, seed=seed, name=name)
        if isinstance(primary, str):
            primary = [primary]
        self.primary = None if primary is None else list(primary)
        self.learning_rate = check_number("learning_rate", learning_rate, 0.0)
        self.initial = check_number("initial", initial, 0.0)

    def build_state(self, num_tasks: int) -> None:
        """Creates λ and the moments of its optimizer."""
        known = self.primary is None or set(self.primary) <= set(self.tasks)
        if not known or self.primary == []:
            raise InputError(
                f"Expected `primary` to name tasks out of {list(self.tasks)}. "
                f"Received: primary={self.primary}."
            )
        self._lambda = self.add_variable("lambda", (num_tasks,), self.initial)
        self._adam = TaskAdam(self.add_variable, num_tasks)

    def weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `LossBalancer.weights`."""
        del losses
        return self._lambda * mean_weights(present, self.scale)

    def update(self, step: LossStep) -> None:
        """Moves λ against the gradient of the validation loss."""
        probe = step.probe
        assert probe is not None
        weights = tf.unstack(self.weights(step.losses, step.present))
        start = probe.weights()
        ahead = self._look_ahead(probe, start, weights, step.learning_rate)
        direction = self._validation_gradient(probe, ahead)
        square = tf.add_n(
            [tf.reduce_sum(tf.square(tf.cast(v, "float32"))) for v in direction]
        )
        # The step length of DARTS (Liu et al., ICLR 2019), which the paper follows.
        epsilon = tf.math.divide_no_nan(0.01, tf.sqrt(square))
        forth = probe.losses(_moved(start, direction, epsilon), part=0)
        back = probe.losses(_moved(start, direction, -epsilon), part=0)
        difference = probe.total(tf.stack(forth) - tf.stack(back))
        slopes = tf.math.divide_no_nan(difference, 2.0 * epsilon)
        gradient = -step.learning_rate * slopes
        self._adam.step(self._lambda, gradient, step.present, self.learning_rate)
        self._lambda.assign(tf.maximum(self._lambda, 0.0))

    def _look_ahead(
        self,
        probe: Probe,
        start: list[tf.Tensor],
        weights: list[tf.Tensor],
        rate: tf.Tensor,
    ) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(start)
            losses = probe.losses(start, part=0)
        gradients = tape.gradient(losses, start, weights)
        return _moved(start, _dense(probe, gradients, start), -rate)

    def _validation_gradient(
        self, probe: Probe, ahead: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        primary = self.primary or self.tasks
        with tf.GradientTape() as tape:
            tape.watch(ahead)
            losses = probe.losses(ahead, part=1)
        chosen = [
            loss
            for task, loss in zip(self.tasks, losses, strict=True)
            if task in primary
        ]
        return _dense(probe, tape.gradient(chosen, ahead), ahead)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "primary": self.primary,
            "learning_rate": self.learning_rate,
            "initial": self.initial,
        }


def _moved(
    start: list[tf.Tensor], direction: list[tf.Tensor], length: tf.Tensor
) -> list[tf.Tensor]:
    return [
        weight + tf.cast(length, weight.dtype) * tf.cast(step, weight.dtype)
        for weight, step in zip(start, direction, strict=True)
    ]


def _dense(
    probe: Probe, gradients: list[Any], like: list[tf.Tensor]
) -> list[tf.Tensor]:
    return [
        tf.zeros_like(weight)
        if gradient is None
        else probe.total(tf.convert_to_tensor(gradient))
        for gradient, weight in zip(gradients, like, strict=True)
    ]
