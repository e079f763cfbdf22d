"""Gram-based methods whose weights can follow their solution from step to step.

Of the Gram matrix G a step then needs only G w, its product with the present weights
w, which costs one further pass whatever the number of tasks.
"""

from __future__ import annotations

import tensorflow as tf

from mtl_keras.balancing.base import GramBalancer
from mtl_keras.errors import InputError

# A ratio (G w)_i / t_i below e^-3, as of a task that the update would harm, raises the
# weight as much as one of e^-3.
_LEAST_LOG_RATIO = -3.0
# Step sizes grow while a task's ratio stays on one side of 1, and shrink where it
# crosses and is further from 1 than before: it then oscillates, as of conflicting
# tasks. The batches' noise crosses in half of the steps, and were every crossing to
# count, step sizes would fall to where the weights lag by hundreds of steps.
_GROWTH, _DECAY = 1.1, 0.7
_RATES = (0.001, 1.0)
# What a batch's deviation from the mean size of a task's gradient tells of its products
# is learned over about 50 steps; deviations well below a tenth tell nothing.
_KEPT = 0.98
_LEAST_VARIANCE = 0.01


class RunningBalancer(GramBalancer):
    """A Gram balancer with `solve="running"` beside the exact solution.

    The exact weights w are those with (G w)_i = t_i for a target t that the method
    derives from w. Each step moves log w_i by −η_i log((G w)_i / t_i), η_i scaled by
    what makes the step exact for orthogonal gradients, so that the weights follow the
    solution. The η_i adapt to the signs of the logarithms, by task.

    Such weights know nothing of the present batch, to whose gradients an exact solution
    answers. Two numbers tell of them at no price. The norm of the gradient of a task's
    own variables, which each step takes anyway, is known before the pass (of a task
    without such variables the loss takes its place): for this step log w_i moves by the
    deviation of its logarithm from the running mean, times a slope that a regression of
    the wanted moves on these deviations learns, by task. And where the solution is
    known along w, as of `nash` and `fairgrad`, the update has its length
    (`running_factor`).

    A method implements `targets`, `residual`, and where they are not the defaults
    `log_rate` and `natural_weights`.

    Args:
        solve: `"exact"`, from the whole Gram matrix: T backward passes. `"running"`:
            one backward pass with the present weights, and one through that pass for
            G w, whatever T. `"running_difference"`: G w by a difference quotient of the
            losses instead, (L(θ + εv) − L(θ)) / ε, for layers without the derivative
            that `"running"` needs; not in bfloat16.
        update_every: Solve every k-th step only, or take G w; see `GramBalancer`.
        normalize: What divides the task gradients first; see `GramBalancer`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: For `"running_difference"` on a representation, or a running solve
            with gradients divided by their norms.

    Example:

    ```python
    balancer = mtl_keras.balancing.Nash(solve="running")
    model.compile("adam", loss="mse", balancing=balancer, monitor="residual")
    model.fit(x, y)
    ```
    """

    ways_to_solve = ("exact", "running", "running_difference")

    def __init__(
        self,
        *,
        solve: str = "exact",
        update_every: int = 1,
        normalize: str = "none",
        gradients_of: str = "shared",
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            solve=solve,
            update_every=update_every,
            normalize=normalize,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        if self.solve == "running_difference" and self.gradients_of != "shared":
            raise InputError(
                "Expected gradients_of='shared' for solve='running_difference', which "
                f"moves variables. Received: gradients_of={self.gradients_of!r}."
            )
        if self.is_running and self.normalize in ("norm", "loss+"):
            raise InputError(
                "Expected normalize='none' or 'loss' (of mgda also by its name "
                "normalization='none' or 'loss') for a running solve, as the norms of "
                f"the task gradients are not known. Received: {self.normalize!r}."
            )

    def build_state(self, num_tasks: int) -> None:
        """Creates, for running solves, the log weights and their step sizes."""
        super().build_state(num_tasks)
        if self.is_running:
            shape = (num_tasks,)
            self._logits = self.add_variable("log_weights", shape, 0.0, "float64")
            self._rates = self.add_variable("rates", shape, _RATES[1], "float64")
            self._last = self.add_variable("log_ratios", shape, 0.0, "float64")
            # Running sums of 1, the log size, its squared deviation x², and x times
            # the move of the log weight that the step wanted.
            self._moments = self.add_variable(
                "size_moments", (4, num_tasks), 0.0, "float64"
            )

    def targets(self, weights: tf.Tensor, products: tf.Tensor) -> tf.Tensor:
        """Returns the t that G w equals at the solution, positive, float64 `[T]`.

        Args:
            weights: w, float64 `[T]`, in the paper's scale.
            products: G w, float64 `[T]`.
        """
        raise NotImplementedError

    def residual(self, ratios: tf.Tensor, moves: tf.Tensor) -> tf.Tensor:
        """Returns how far weights are from the solution, a float64 scalar; 0 at it.

        Args:
            ratios: (G w)_i / t_i, float64 `[T]`.
            moves: bool `[T]`: the tasks that count.
        """
        raise NotImplementedError

    @property
    def log_rate(self) -> float:
        """d log w_i per log((G w)_i / t_i) that solves orthogonal gradients at once."""
        return 1.0

    def natural_weights(self, sizes: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """Returns the weights of a step in the paper's scale, float64 `[T]`.

        Args:
            sizes: See `running_weights`.
            present: bool `[T]`: 0 for the other tasks.
        """
        return tf.where(present, tf.exp(self.step_logits(sizes)), 0.0)

    def step_logits(self, sizes: tf.Tensor) -> tf.Tensor:
        """Returns the log weights of a step, float64 `[T]`.

        Args:
            sizes: See `running_weights`.
        """
        deviations, slopes = self._deviations(sizes)
        return self.bounded(self._logits - slopes * deviations)

    def _deviations(self, sizes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns log sizes less their means, 0 if unknown, and slopes, by task."""
        count, total, variance, covariance = tf.unstack(self._moments)
        means = tf.math.divide_no_nan(total, count)
        known = is_size(sizes) & (count > 0.0)
        deviations = tf.where(known, tf.math.log(tf.where(known, sizes, 1.0)), means)
        # The weight of an orthogonal gradient moves by this much with its log norm.
        steepest = 2.0 * self.log_rate
        slopes = covariance / (variance + _LEAST_VARIANCE)
        return deviations - means, tf.clip_by_value(slopes, -steepest, steepest)

    def bounded(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns log weights `[T]` within what float32 weights can be."""
        bound = 110.0 * tf.math.log(tf.constant(2.0, "float64"))
        return tf.clip_by_value(logits, -bound, bound)

    def running_weights(
        self, losses: tf.Tensor, sizes: tf.Tensor, present: tf.Tensor
    ) -> tf.Tensor:
        """Returns the weights of a step in the paper's scale, float32 `[T]`.

        Args:
            losses: float32 `[T]`.
            sizes: What the norms of the task gradients may go with, float64 `[T]`:
                those of the tasks' own variables. 0 for a task without gradient, and
                always 1 for one of which nothing is known.
            present: bool `[T]`.
        """
        weights = self.natural_weights(sizes, present) / self.loss_divisors(losses)
        return tf.cast(weights, "float32")

    def running_factor(
        self, norm: tf.Tensor, sizes: tf.Tensor, present: tf.Tensor
    ) -> tf.Tensor:
        """Returns what brings `running_weights` to `self.scale`, a float32 scalar.

        To be taken before `follow`.

        Args:
            norm: float64 scalar, the length of the update with those weights.
            sizes: As `running_weights` had them.
            present: bool `[T]`.
        """
        del norm, sizes
        count = tf.maximum(tf.reduce_sum(tf.cast(present, "float32")), 1.0)
        if self.scale == self.natural_scale:
            return tf.ones(())
        return count if self.scale == "sum" else 1.0 / count

    def follow(
        self,
        products: tf.Tensor,
        losses: tf.Tensor,
        sizes: tf.Tensor,
        present: tf.Tensor,
        due: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Moves the weights towards the solution.

        Args:
            products: G times `running_weights`, float64 `[T]`.
            losses: float32 `[T]`, as `running_weights` had them.
            sizes: As `running_weights` had them.
            present: bool `[T]`.
            due: bool scalar: False in steps that leave the weights as they are.

        Returns:
            The residual, a float32 scalar, and whether there is one, a bool scalar.
        """
        finite = tf.reduce_all(tf.math.is_finite(products))
        # A product of exactly 0 is that of a task without gradient.
        moves = due & finite & present & tf.not_equal(products, 0.0)
        self.count_fallback(due & ~finite)
        weights = self.natural_weights(sizes, present)
        products = tf.where(moves, products / self.loss_divisors(losses), 1.0)
        targets = self.targets(weights, products)
        ratios = tf.where(moves, products / tf.where(moves, targets, 1.0), 1.0)
        least = tf.exp(tf.constant(_LEAST_LOG_RATIO, "float64"))
        log_ratios = tf.math.log(tf.maximum(ratios, least))
        side = tf.sign(log_ratios * self._last)
        swings = (side < 0) & (tf.abs(log_ratios) >= tf.abs(self._last))
        factors = tf.where(side > 0, _GROWTH, tf.where(swings, _DECAY, 1.0))
        rates = self._rates * tf.cast(factors, "float64")
        rates = tf.clip_by_value(rates, *_RATES)
        logits = self._logits - self.log_rate * rates * log_ratios
        # The bounds may depend on all log weights.
        logits = self.bounded(tf.where(moves, logits, self._logits))
        moved = tf.reduce_any(moves)
        deviations, slopes = self._deviations(sizes)
        wanted = self.log_rate * log_ratios + slopes * deviations
        sized = is_size(sizes)
        moments = tf.stack(
            [
                tf.ones_like(wanted),
                tf.math.log(tf.where(sized, sizes, 1.0)),
                tf.square(deviations),
                deviations * wanted,
            ]
        )
        moments = _KEPT * self._moments + (1.0 - _KEPT) * moments
        self._moments.assign(tf.where(moves & sized, moments, self._moments))
        self._logits.assign(tf.where(moved, logits, self._logits))
        self._rates.assign(tf.where(moves, rates, self._rates))
        self._last.assign(tf.where(moves, log_ratios, self._last))
        if self.update_every > 1:
            steps = self._variables["steps"]
            solved = due & finite & present
            steps.assign(tf.where(solved, tf.zeros_like(steps), steps))
        return tf.cast(self.residual(ratios, moves), "float32"), moved


def is_size(sizes: tf.Tensor) -> tf.Tensor:
    """Returns which sizes, float64 `[T]`, have a logarithm, bool `[T]`."""
    return tf.math.is_finite(sizes) & (sizes > 0.0)
