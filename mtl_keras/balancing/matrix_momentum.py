"""Methods that read one task's gradient a step and remember the others'."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mtl_keras.balancing.base import GradientStep, with_loss
from mtl_keras.balancing.matrix_averaging import AveragingBalancer
from mtl_keras.balancing.matrix_based import (
    all_finite,
    as_gradients,
    by_row,
    dense_matrix,
    gramian_of_rows,
    shaped,
    weighted_sum,
)
from mtl_keras.errors import check_number, warn_caller
from mtl_keras.ops import solvers

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class MConFIG(AveragingBalancer):
    """Momentum ConFIG: one task's gradient a step, ConFIG on the averages of all.

    Each step takes the gradient of one task, the one whose turn it is, into that task's
    average m_i (β₁, corrected for its bias); the update is ConFIG's of the averages,
    divided entry by entry by the root of a second moment (β₂) of what the step would
    have to add to an average of such updates. Liu, Chu & Thuerey, "ConFIG: Towards
    Conflict-free Training of Physics Informed Neural Networks", ICLR 2025, arXiv
    2408.11104.

    With its second moment it is an optimizer of Adam's kind: use it with
    `keras.optimizers.SGD`, whose learning rate then is Adam's; `compile` warns of
    another, which would divide by a second moment again. With `beta_2=None` the second
    moment is left out, and any optimizer does. Differs from the authors' code in
    that the first T − 1 steps are those of the tasks seen so far, where the code stands
    still, and in that ε is relative to the largest root. One backward pass a step
    whatever T (heads take one of their own); T passes where a step checks or clips task
    gradients (`task_clipnorm`, `on_nonfinite="skip_task"` or `"skip_step"`).

    Cost: 1 backward; state: T × P averages, 2 × P moments, T step counts.
    Choose it when `config` would do, and T backward passes cost too much.

    Args:
        beta_1: β₁.
        beta_2: β₂, or `None` for no second moment.
        epsilon: ε, relative.
        gradients_of: `"shared"`; the method has no other way.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"sum"`.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```python
    sgd = keras.optimizers.SGD(1e-3)
    model.compile(sgd, loss="mse", balancing=mtl_keras.balancing.MConFIG())
    ```
    """

    method = "m_config"
    natural_scale = "sum"

    def __init__(
        self,
        beta_1: float = 0.9,
        beta_2: float | None = 0.999,
        epsilon: float = 1e-8,
        *,
        gradients_of: str = "shared",
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        self.beta_1 = check_number("beta_1", beta_1, 0.0, 1.0 - 1e-9)
        if beta_2 is not None:
            beta_2 = check_number("beta_2", beta_2, 0.0, 1.0 - 1e-9)
        self.beta_2 = beta_2
        self.epsilon = check_number("epsilon", epsilon, 0.0)

    def build_state(self, num_tasks: int) -> None:
        """Creates the counts of steps, and those of each task's last turn."""
        super().build_state(num_tasks)
        self._steps = self.add_variable("steps", (num_tasks,), 0.0)
        self._turns = self.add_variable("turns", (num_tasks,), -1, "int64")
        self._updates = self.add_variable("updates", (), 0, "int64")

    def state_shape(self, variable: keras.Variable) -> tuple[int, ...]:
        """See `AveragingBalancer.state_shape`: T averages, the moments behind them."""
        moments = 0 if self.beta_2 is None else 2
        return (len(self.tasks) + moments, *variable.shape)

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """See `GradientBalancer.check_optimizer`."""
        if self.beta_2 is None or isinstance(optimizer, keras.optimizers.SGD):
            return
        warn_caller(
            "Expected keras.optimizers.SGD for balancing='m_config', whose updates are "
            "Adam's already (or `beta_2=None`, which leaves its second moment out). "
            f"Received: optimizer={type(optimizer).__name__}."
        )

    def chosen(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """Returns 1 for the task whose turn it is and 0 for the others, float32 `[T]`.

        The one in the batch whose last turn is the longest ago.

        Args:
            losses: float32 `[T]`.
            present: bool `[T]`.
        """
        waiting = with_loss(losses, present)
        waiting = tf.where(tf.reduce_any(waiting), waiting, present)
        turns = tf.where(waiting, self._turns, tf.int64.max)
        mask = tf.one_hot(tf.argmin(turns), len(self.tasks))
        return mask * tf.cast(waiting, "float32")

    def aggregate(self, step: GradientStep) -> tuple[list[Any], tf.Tensor]:
        """See `GradientBalancer.aggregate`: reads one of the gradients."""
        matrix, connected = dense_matrix(step)
        chosen = self.chosen(step.losses, step.present)
        gradient = weighted_sum(chosen, matrix)
        update, weights = self._advance(gradient, chosen, step)
        return as_gradients(update, connected, step), weights

    def aggregate_one(
        self, step: GradientStep, chosen: tf.Tensor
    ) -> tuple[list[Any], tf.Tensor]:
        """Returns `aggregate`'s result from the gradient of one task.

        Args:
            step: Its `gradients` are those of the chosen task alone, one list.
            chosen: `chosen`'s result, float32 `[T]`.

        Returns:
            The V gradients of the update, times the loss scale, and the task weights
            float32 `[T]` to log.
        """
        matrix, connected = dense_matrix(step)
        gradient = [rows[0] for rows in matrix]
        update, weights = self._advance(gradient, chosen, step)
        return as_gradients(update, connected, step), weights

    def _advance(
        self, gradient: list[tf.Tensor], chosen: tf.Tensor, step: GradientStep
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Takes a gradient into its task's average; the update and the weights."""
        finite = all_finite(gradient)
        moves = (chosen > 0.0) & finite
        steps = self._steps + tf.cast(moves, "float32")
        turn = self._updates + tf.cast(tf.reduce_any(moves), "int64")
        correction = tf.math.divide_no_nan(1.0, 1.0 - tf.pow(self.beta_1, steps))
        seen = tf.where(step.present, correction, 0.0)
        states = self.state_of(step)
        averages, means = [], []
        for value, state in zip(gradient, states, strict=True):
            old = state[: len(self.tasks)]
            new = self.beta_1 * old + (1 - self.beta_1) * value[None]
            new = tf.where(by_row(moves, old), new, old)
            averages.append(new)
            means.append(shaped(seen, new) * new)
        weights, has_solution = solvers.config(gramian_of_rows(means), step.precision)
        weights = tf.cast(weights, "float32")
        update = weighted_sum(weights, means)
        moments = [state[len(self.tasks) :] for state in states]
        if self.beta_2 is not None:
            update, moments = self._divided(update, moments, turn)
        usable = tf.reduce_any(moves) & all_finite(update)
        present = tf.reduce_any(step.present)
        self.count_fallback(present & ~(usable & has_solution))
        for state, *parts in zip(states, averages, moments, strict=True):
            state.assign(tf.where(usable, tf.concat(parts, axis=0), state))
        self._steps.assign(tf.where(usable, steps, self._steps))
        self._turns.assign(tf.where(moves & usable, turn, self._turns))
        self._updates.assign(tf.where(usable, turn, self._updates))
        factor = self.rescaling(step.present)
        update = [
            tf.where(usable, part, value) * factor
            for part, value in zip(update, gradient, strict=True)
        ]
        return update, tf.where(usable, weights, chosen) * factor

    def _divided(
        self, update: list[tf.Tensor], moments: list[tf.Tensor], turn: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Returns the update over the root of its second moment, and the moments.

        Args:
            update: ConFIG's, by variable.
            moments: `[2, …]`: the average that gives this update, and the root of the
                second moment.
            turn: int64 scalar, the number of updates with this one.
        """
        assert self.beta_2 is not None
        count = tf.cast(tf.maximum(turn, 1), "float32")
        bias_1 = 1.0 - tf.pow(self.beta_1, count)
        bias_2 = 1.0 - tf.pow(self.beta_2, count)
        new, roots = [], []
        for part, moment in zip(update, moments, strict=True):
            average = part * bias_1
            added = (average - self.beta_1 * moment[0]) / (1.0 - self.beta_1)
            # Of roots, whose squares may leave the range of float32.
            largest = tf.maximum(tf.abs(added), moment[1])
            one, other = (
                tf.math.divide_no_nan(value, largest) for value in (added, moment[1])
            )
            square = (1.0 - self.beta_2) * one**2 + self.beta_2 * other**2
            root = largest * tf.sqrt(square)
            new.append(tf.stack([average, root]))
            roots.append(root / tf.sqrt(bias_2))
        top = tf.reduce_max(tf.stack([tf.reduce_max(root) for root in roots]))
        divided = [
            tf.math.divide_no_nan(part, root + self.epsilon * top)
            for part, root in zip(update, roots, strict=True)
        ]
        return divided, new

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }
