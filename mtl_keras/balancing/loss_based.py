"""Methods that balance from the task losses alone: one backward pass a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from mtl_keras.balancing.adam import TaskAdam
from mtl_keras.balancing.arguments import PerTask, check_choice, per_task, plain
from mtl_keras.balancing.base import LossBalancer, LossStep, mean_weights, with_loss
from mtl_keras.balancing.epochs import EpochMeans
from mtl_keras.errors import check_number, unknown_name

_register = keras.saving.register_keras_serializable(package="mtl_keras")


FIRST_LOSS = "first_loss"
"""Starts a trained scale at its optimum for the task's first loss."""


class MeanScaleBalancer(LossBalancer):
    """A loss balancer whose formula gives weights of 1 / T to equal tasks.

    A task whose loss is exactly 0 is left out of the formula, as an absent one is. Its
    own weight is the equal one.
    """

    def weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `LossBalancer.weights`. Equal where losses that are not finite, or
        all zero, leave the formula without a value."""
        taking_part = with_loss(losses, present)
        weights = self.mean_scale_weights(losses, taking_part)
        usable = tf.reduce_all(tf.math.is_finite(weights))
        usable &= tf.reduce_any(tf.not_equal(weights, 0.0))
        weights = tf.where(usable, weights, mean_weights(taking_part, "mean"))
        if self.scale == "sum":
            weights *= tf.reduce_sum(tf.cast(taking_part, "float32"))
        return tf.where(taking_part, weights, mean_weights(present, self.scale))

    def mean_scale_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """Returns the weights of the paper's formula, float32 `[T]`.

        Args:
            losses: float32 `[T]`.
            present: bool `[T]`, the tasks that enter the formula.
        """
        raise NotImplementedError


@_register
class Equal(LossBalancer):
    """Every task counts the same: what Keras does by itself.

    Computes Σ L_i, or Σ L_i / T with `scale="mean"`, where T counts the tasks with
    a label in the batch. Keras's `loss_weights` multiply the losses first. Takes the
    arguments of `Balancer`.

    Cost: 1 backward.
    Choose it when you need a baseline: train it first.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.Equal()
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([4.0, 1.0]), tf.constant([True, True])
    >>> balancer.weights(losses, present).numpy().round(3)
    array([1., 1.], dtype=float32)
    ```
    """

    method = "equal"

    def weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `LossBalancer.weights`."""
        del losses
        return mean_weights(present, self.scale)


@_register
class Static(LossBalancer):
    """Fixed weights: Σ c_i L_i.

    Unlike Keras's `loss_weights`, which every method applies first, these are the
    method's own, so that a search can treat them as one choice among methods.

    Cost: 1 backward; needs: `task_weights`.
    Choose it when the weights are known or searched.

    Args:
        task_weights: `{task: number}`, or numbers in the order of the tasks. Tasks
            left out of a dict count 1. Divided by T with `scale="mean"`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"weighted"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: At `build`, when the weights do not fit the tasks.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.Static({"a": 2.0, "b": 1.0})
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([4.0, 1.0]), tf.constant([True, True])
    >>> balancer.weights(losses, present).numpy().round(3)
    array([2., 1.], dtype=float32)
    ```
    """

    method = "static"

    def __init__(
        self,
        task_weights: PerTask | None = None,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(scale=scale, task_specific=task_specific, seed=seed, name=name)
        self.task_weights = {} if task_weights is None else plain(task_weights)

    def build_state(self, num_tasks: int) -> None:
        """Checks the weights against the tasks."""
        self._constants = per_task("task_weights", self.task_weights, self.tasks, 1.0)

    def weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `LossBalancer.weights`."""
        del losses
        constants = tf.constant(self._constants, "float32")
        return constants * mean_weights(present, self.scale)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "task_weights": self.task_weights}


@_register
class Uncertainty(LossBalancer):
    """Homoscedastic uncertainty: Σ ½ e^(−s_i) L_i + ½ s_i with trained s_i.

    Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses
    for Scene Geometry and Semantics", CVPR 2018, arXiv 1705.07115. s_i is the log
    variance log σ_i². The paper derives ½ before the loss for regression
    and 1 for classification; `kinds` chooses per task.

    Differs from the paper in that s is trained by an Adam of its own (without
    weight decay, loss scaling or clipping), at the learning rate of the model's
    optimizer unless `learning_rate` is given. `scale="sum"` is the paper's formula
    as it stands; `"mean"` divides it by T. In a step in which its loss is exactly 0 a
    task's s stays.

    s moves by about the learning rate a step: from 0 to the log variance of a loss of
    1e13, which is 30, that takes 30 000 steps at 1e-3. Where units differ by more than
    the training can make up for, start with `initial_log_variance="first_loss"`.

    Cost: 1 backward; state: T log variances, Adam; needs: `kinds` for
    classification.
    Choose it when losses have different units or noise.

    Args:
        initial_log_variance: s_i at the start: a number, or `"first_loss"` for the
            optimum of each task's first loss (log L_i for regression), which makes
            all weighted losses equal in the first step.
        learning_rate: Rate for s; `None` follows the model's optimizer.
        kinds: `{task: "regression" | "classification"}`; tasks left out count as
            regression, the form that most code uses for all.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"weighted"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: For another kind of task.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.Uncertainty()
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([4.0, 1.0]), tf.constant([True, True])
    >>> balancer.weights(losses, present).numpy().round(3)
    array([0.5, 0.5], dtype=float32)
    ```
    """

    method = "uncertainty"

    _FACTORS: Mapping[str, float] = {"regression": 0.5, "classification": 1.0}

    def __init__(
        self,
        initial_log_variance: float | str = 0.0,
        learning_rate: float | None = None,
        kinds: Mapping[str, str] | None = None,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(scale=scale, task_specific=task_specific, seed=seed, name=name)
        self.initial_log_variance = check_start(
            "initial_log_variance", initial_log_variance
        )
        if learning_rate is not None:
            learning_rate = check_number("learning_rate", learning_rate, low=0.0)
        self.learning_rate = learning_rate
        self.kinds = dict(kinds or {})
        for kind in self.kinds.values():
            if kind not in self._FACTORS:
                raise unknown_name("task kind", kind, self._FACTORS)

    def build_state(self, num_tasks: int) -> None:
        """Creates s and the moments of its optimizer."""
        factors = {task: self._FACTORS[kind] for task, kind in self.kinds.items()}
        self._factors = per_task("kinds", factors, self.tasks, 0.5)
        follows = self.initial_log_variance == FIRST_LOSS
        self._log_variance = self.add_variable(
            "log_variance", (num_tasks,), 0.0 if follows else self.initial_log_variance
        )
        self._adam = TaskAdam(self.add_variable, num_tasks)

    def _start(self, losses: tf.Tensor) -> tf.Tensor:
        """Returns s as it is, or at the optimum of a task's first loss, `[T]`."""
        optimum = tf.math.log(2.0 * tf.constant(self._factors, "float32") * losses)
        if self.initial_log_variance != FIRST_LOSS:
            return tf.convert_to_tensor(self._log_variance)
        return self._adam.started(self._log_variance, optimum)

    def weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `LossBalancer.weights`."""
        factors = tf.constant(self._factors, "float32")
        weights = factors * tf.exp(-self._start(losses))
        return weights * mean_weights(present, self.scale)

    def update(self, step: LossStep) -> None:
        """Moves s against the gradient of the objective; see `LossBalancer.update`."""
        factors = tf.constant(self._factors, "float32")
        start = self._start(step.losses)
        gradient = 0.5 - factors * tf.exp(-start) * step.losses
        rate = step.learning_rate if self.learning_rate is None else self.learning_rate
        taking_part = with_loss(step.losses, step.present)
        self._adam.step(self._log_variance, gradient, taking_part, rate, start)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "initial_log_variance": self.initial_log_variance,
            "learning_rate": self.learning_rate,
            "kinds": self.kinds,
        }


@_register
class DWA(MeanScaleBalancer):
    """Dynamic weight average: tasks whose loss falls slowly count more.

    w_i = T · softmax(r_i / τ) with r_i the ratio of the task's mean loss in the last
    epoch to that in the one before; equal in the first two epochs. Liu, Johns &
    Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, arXiv
    1803.10704.

    Epochs are those of `fit`; a training loop of your own calls `on_epoch_begin`.
    A task's mean is over the batches that have a label for it, and a task without
    any in an epoch keeps its older means. A mean of exactly 0 has no ratio: r_i is then
    1. `scale="mean"` leaves out the factor T.

    Cost: 1 backward; state: T means of two epochs; needs: epochs (`fit`).
    Choose it when tasks learn at different speeds; simple and cheap.

    Args:
        temperature: τ. The higher, the more equal.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"weighted"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.DWA(temperature=2.0)
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([4.0, 1.0]), tf.constant([True, True])
    >>> balancer.weights(losses, present).numpy().round(3)
    array([1., 1.], dtype=float32)
    ```
    """

    method = "dwa"
    search_space = {"temperature": {"min": 0.5, "max": 8.0, "log": True}}  # noqa: RUF012

    def __init__(
        self,
        temperature: float = 2.0,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(scale=scale, task_specific=task_specific, seed=seed, name=name)
        self.temperature = check_number("temperature", temperature, low=1e-6)

    def build_state(self, num_tasks: int) -> None:
        """Creates the epoch means."""
        self._means = EpochMeans(self.add_variable, num_tasks)

    def on_epoch_begin(self) -> None:
        """Closes the epoch before."""
        self._means.close_epoch()

    def mean_scale_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `MeanScaleBalancer.mean_scale_weights`."""
        del losses
        before_last = tf.convert_to_tensor(self._means.before_last)
        ratio = tf.math.divide_no_nan(
            tf.convert_to_tensor(self._means.last), before_last
        )
        # A task that has not had two epochs yet counts as one that stands still.
        has_ratio = (self._means.epochs >= 2) & tf.not_equal(before_last, 0.0)
        ratio = tf.where(has_ratio, ratio, 1.0)
        return masked_softmax(ratio / self.temperature, present)

    def update(self, step: LossStep) -> None:
        """Adds this batch to the epoch's means; see `LossBalancer.update`."""
        self._means.add(step.losses, step.present)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "temperature": self.temperature}


def check_start(argument: str, value: Any) -> float | str:
    """Returns where a trained scale starts: a number, or `FIRST_LOSS`.

    Raises:
        InputError: For anything else.
    """
    if isinstance(value, str):
        check_choice(argument, value, (FIRST_LOSS,))
        return value
    return check_number(argument, value)


def masked_softmax(logits: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Returns a softmax over the present tasks, 0 for the others, `[T]`."""
    logits = tf.where(present, logits, logits.dtype.min)
    return tf.where(present, tf.nn.softmax(logits), 0.0)
