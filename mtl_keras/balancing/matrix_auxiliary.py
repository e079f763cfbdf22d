"""Methods on gradients by variable for one main task, which the others only help."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mtl_keras.balancing.arguments import check_choice, check_primary, primary_index
from mtl_keras.balancing.base import GradientStep, agreed, mean_weights
from mtl_keras.balancing.matrix_averaging import AveragingBalancer
from mtl_keras.balancing.matrix_based import all_finite, shaped, weighted_sum
from mtl_keras.errors import check_number

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class MetaBalance(AveragingBalancer):
    """Brings auxiliary gradients to the length of the main task's, by variable.

    g_j ← (r m₁ / m_j + 1 − r) g_j for the auxiliary tasks j, with m a moving average of
    the norm of a task's gradient on one variable; the update is the sum. He et al.,
    "MetaBalance: Improving Multi-Task Recommendations via Adapting Gradient Magnitudes
    of Auxiliary Tasks", WWW 2022, arXiv 2203.06801.

    Differs from the authors' code in that averages, which start at zero, are corrected
    for that bias: it cancels there, as every task is in every batch. Where the main
    task has no gradient (a variable that it does not reach, a batch without it) the
    others' stay as they are. The weights that are logged are how much longer or shorter
    a task's whole gradient became.

    Cost: T backward; state: T norms by variable, T step counts; needs: `primary`.
    Choose it when helpers' gradients are far larger or smaller than the main task's.

    Args:
        primary: Name of the main task; the first by name if `None`.
        relax: r: 0 leaves the gradients alone, 1 makes them of one length.
        adjust: `"both"`, or `"reduce"` or `"enlarge"` for those only that are longer or
            shorter than the main task's (strategies C, A and B of the paper).
        beta: Share of the old average.
        gradients_of: `"shared"`; the method has no other way.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"sum"`.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: At `build`, when `primary` is no task.

    Example:

    ```python
    balancer = mtl_keras.balancing.MetaBalance(primary="a", relax=0.7)
    model.compile("adam", loss="mse", balancing=balancer)
    ```
    """

    method = "metabalance"
    search_space = {"relax": {"min": 0.1, "max": 1.0}}  # noqa: RUF012
    natural_scale = "sum"

    def __init__(
        self,
        primary: str | None = None,
        relax: float = 0.7,
        adjust: str = "both",
        beta: float = 0.9,
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
        self.primary = primary
        self.relax = check_number("relax", relax, 0.0, 1.0)
        check_choice("adjust", adjust, ("both", "reduce", "enlarge"))
        self.adjust = adjust
        self.beta = check_number("beta", beta, 0.0, 1.0 - 1e-9)

    def build_state(self, num_tasks: int) -> None:
        """Checks the main task, and creates the tasks' step counts."""
        super().build_state(num_tasks)
        check_primary(self.primary, self.tasks)
        self._steps = self.add_variable("steps", (num_tasks,), 0.0)

    def state_shape(self, variable: keras.Variable) -> tuple[int, ...]:
        """See `AveragingBalancer.state_shape`: a norm per task."""
        return (len(self.tasks),)

    def combine(
        self, matrix: list[tf.Tensor], step: GradientStep
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """See `MatrixBalancer.combine`."""
        main = primary_index(self.primary, self.tasks)
        moves = step.present & all_finite(matrix)
        steps = self._steps + tf.cast(moves, "float32")
        self._steps.assign(steps)
        correction = tf.math.divide_no_nan(1.0, 1.0 - tf.pow(self.beta, steps))
        is_main = tf.one_hot(main, len(self.tasks), on_value=True, off_value=False)
        adjusted, before, after = [], [], []
        by_variable = agreed(tf.stack([_norms_of_rows(rows) for rows in matrix]))
        for rows, state, norms in zip(
            matrix, self.state_of(step), tf.unstack(by_variable), strict=True
        ):
            average = self.beta * state + (1 - self.beta) * norms
            average = tf.where(moves, average, state)
            state.assign(average)
            average = tf.where(step.present, correction * average, 0.0)
            target = average[main]
            changes = ~is_main & (average > 0.0) & (target > 0.0)
            if self.adjust == "reduce":
                changes &= average > target
            elif self.adjust == "enlarge":
                changes &= average < target
            ratio = tf.math.divide_no_nan(target, average)
            factors = self.relax * ratio + (1.0 - self.relax)
            factors = tf.where(changes, factors, 1.0)
            adjusted.append(shaped(factors, rows) * rows)
            before.append(norms)
            after.append(factors * norms)
        lengths = [_norms_of_rows(tf.stack(parts, axis=1)) for parts in (after, before)]
        weights = tf.math.divide_no_nan(*lengths)
        ones = mean_weights(step.present, "sum")
        return weighted_sum(ones, adjusted), tf.where(step.present, weights, 0.0)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "primary": self.primary,
            "relax": self.relax,
            "adjust": self.adjust,
            "beta": self.beta,
        }


def _norms_of_rows(rows: tf.Tensor) -> tf.Tensor:
    """Returns the norm of each row `[T, …]`, `[T]`, where squares may overflow."""
    flat = tf.reshape(rows, (rows.shape[0], -1))
    largest = tf.reduce_max(tf.abs(flat), axis=1)
    return largest * tf.norm(tf.math.divide_no_nan(flat, largest[:, None]), axis=1)
