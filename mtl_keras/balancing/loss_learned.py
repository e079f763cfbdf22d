"""Methods that learn weights from the losses, beside `Uncertainty`."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mtl_keras.balancing.adam import TaskAdam
from mtl_keras.balancing.arguments import check_choice
from mtl_keras.balancing.base import LossBalancer, LossStep, mean_weights, with_loss
from mtl_keras.balancing.loss_based import (
    FIRST_LOSS,
    MeanScaleBalancer,
    check_start,
    masked_softmax,
)
from mtl_keras.errors import check_number

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class IMTLL(LossBalancer):
    """Makes all weighted losses equal: Σ e^(s_i) L_i − s_i with trained s_i.

    Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021. At the optimum
    of s, e^(s_i) L_i = 1. Differs from the paper in that s is trained by an Adam of
    its own, at the rate of the model's optimizer unless `learning_rate` is given.
    `scale="sum"` is the paper's formula; `"mean"` divides it by T. In a step in which
    its loss is exactly 0 a task's s stays.

    As in `Uncertainty`, s moves by about the learning rate a step: where units differ
    by more than the training can make up for, start with
    `initial_log_scale="first_loss"`.

    Cost: 1 backward; state: T log scales, Adam; needs: positive losses.
    Choose it when all weighted losses should be of one size.

    Args:
        learning_rate: Rate for s; `None` follows the model's optimizer.
        initial_log_scale: s_i at the start: a number, or `"first_loss"` for the
            optimum of each task's first loss, −log L_i.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"weighted"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.IMTLL()
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([4.0, 1.0]), tf.constant([True, True])
    >>> balancer.weights(losses, present).numpy().round(3)
    array([1., 1.], dtype=float32)
    ```
    """

    method = "imtl_l"

    def __init__(
        self,
        learning_rate: float | None = None,
        initial_log_scale: float | str = 0.0,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(scale=scale, task_specific=task_specific, seed=seed, name=name)
        self.initial_log_scale = check_start("initial_log_scale", initial_log_scale)
        if learning_rate is not None:
            learning_rate = check_number("learning_rate", learning_rate, low=0.0)
        self.learning_rate = learning_rate

    def build_state(self, num_tasks: int) -> None:
        """Creates s and the moments of its optimizer."""
        follows = self.initial_log_scale == FIRST_LOSS
        self._log_scale = self.add_variable(
            "log_scale", (num_tasks,), 0.0 if follows else self.initial_log_scale
        )
        self._adam = TaskAdam(self.add_variable, num_tasks)

    def _start(self, losses: tf.Tensor) -> tf.Tensor:
        """Returns s as it is, or at the optimum of a task's first loss, `[T]`."""
        if self.initial_log_scale != FIRST_LOSS:
            return tf.convert_to_tensor(self._log_scale)
        return self._adam.started(self._log_scale, -tf.math.log(losses))

    def weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `LossBalancer.weights`."""
        return tf.exp(self._start(losses)) * mean_weights(present, self.scale)

    def update(self, step: LossStep) -> None:
        """Moves s against the gradient of the objective."""
        start = self._start(step.losses)
        gradient = tf.exp(start) * step.losses - 1.0
        rate = step.learning_rate if self.learning_rate is None else self.learning_rate
        taking_part = with_loss(step.losses, step.present)
        self._adam.step(self._log_scale, gradient, taking_part, rate, start)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "learning_rate": self.learning_rate,
            "initial_log_scale": self.initial_log_scale,
        }


@_register
class FAMO(MeanScaleBalancer):
    """Equal relative progress of all tasks, in one backward pass.

    With z = softmax(w) and D_i = L_i − b: minimises Σ z_i log D_i / Σ (z_i / D_i).
    After the update the losses of the same batch are taken again, and w follows
    (∂z/∂w)ᵀ (log D_before − log D_after) by Adam with weight decay: who gained most
    gets less. Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS
    2023, arXiv 2306.03792. The second forward pass draws the same dropout masks and
    leaves batch statistics and seeds alone, which the authors' code does not. D_i has
    no floor but float32's, where theirs is 1e-8, so that losses may have any unit; a
    task whose loss is exactly 0 is left out.

    Cost: 1 backward, 1 forward; state: T logits, Adam; needs: losses above
    `lower_bound`.
    Choose it when many tasks should progress alike, at the price of one forward
    pass.

    Args:
        learning_rate: Adam's rate for w.
        weight_decay: γ.
        lower_bound: b, below all losses.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"mean"`.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"weighted"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```python
    model.compile("adam", loss="mse", balancing=mtl_keras.balancing.FAMO(0.025))
    ```
    """

    method = "famo"
    search_space = {  # noqa: RUF012
        "learning_rate": {"min": 1e-3, "max": 0.1, "log": True},
        "weight_decay": {"min": 1e-4, "max": 1e-2, "log": True},
    }
    needs_probe = True

    def __init__(
        self,
        learning_rate: float = 0.025,
        weight_decay: float = 1e-3,
        lower_bound: float = 0.0,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(scale=scale, task_specific=task_specific, seed=seed, name=name)
        self.learning_rate = check_number("learning_rate", learning_rate, low=0.0)
        self.weight_decay = check_number("weight_decay", weight_decay, low=0.0)
        self.lower_bound = check_number("lower_bound", lower_bound)

    def build_state(self, num_tasks: int) -> None:
        """Creates w and the moments of its optimizer."""
        self._logits = self.add_variable("logits", (num_tasks,), 0.0)
        self._adam = TaskAdam(self.add_variable, num_tasks)

    def _distance(self, losses: tf.Tensor) -> tf.Tensor:
        return tf.maximum(losses - self.lower_bound, 1e-37)

    def mean_scale_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `MeanScaleBalancer.mean_scale_weights`."""
        return masked_softmax(
            self._logits - tf.math.log(self._distance(losses)), present
        )

    def update(self, step: LossStep) -> None:
        """Moves w by the gains of the step in the log losses."""
        before = tf.math.log(self._distance(step.losses))
        assert step.probe is not None
        after = step.probe.total(tf.stack(step.probe.losses(step.probe.weights())))
        gain = before - tf.math.log(self._distance(after))
        taking_part = with_loss(after, with_loss(step.losses, step.present))
        shares = masked_softmax(tf.convert_to_tensor(self._logits), taking_part)
        gain = tf.where(taking_part, gain, 0.0)
        gradient = shares * (gain - tf.reduce_sum(shares * gain))
        gradient += self.weight_decay * self._logits
        self._adam.step(self._logits, gradient, taking_part, self.learning_rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "lower_bound": self.lower_bound,
        }


@_register
class GradNorm(MeanScaleBalancer):
    """Weights that bring the gradient norms in line with the training rates.

    w = T · softmax(v); n_i = ‖w_i g_i‖ on the last shared layer; r_i = L_i / L_i(0)
    over its mean. v follows the gradient of Σ |n_i − n̄ r_i^α| (the target held
    fixed). Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss
    Balancing in Deep Multitask Networks", ICML 2018, arXiv 1711.02257.

    Differs from the paper in the softmax, which keeps weights positive, where the
    paper renormalises after each step. As in the paper, and unlike LibMTL, norms
    are those of the last shared layer, so that T short backward passes suffice.

    Cost: 1 + T on the last shared layer backward; state: T logits, Adam, T first
    losses; needs: positive losses.
    Choose it when gradient norms differ and passes must stay few.

    Args:
        alpha: α, how strongly slow tasks are pushed.
        learning_rate: Adam's rate for v.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). `scale="mean"` leaves
            out the factor T.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"weighted"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```python
    model.compile("adam", loss="mse", balancing=mtl_keras.balancing.GradNorm(alpha=1.5))
    ```
    """

    method = "gradnorm"
    search_space = {"alpha": {"min": 0.1, "max": 3.0}}  # noqa: RUF012
    needs_gradient_norms = True

    def __init__(
        self,
        alpha: float = 1.5,
        learning_rate: float = 0.025,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(scale=scale, task_specific=task_specific, seed=seed, name=name)
        self.alpha = check_number("alpha", alpha, low=0.0)
        self.learning_rate = check_number("learning_rate", learning_rate, low=0.0)

    def build_state(self, num_tasks: int) -> None:
        """Creates v, the moments of its optimizer, and the first losses."""
        self._logits = self.add_variable("logits", (num_tasks,), 0.0)
        self._first = self.add_variable("first_losses", (num_tasks,), -1.0)
        self._adam = TaskAdam(self.add_variable, num_tasks)

    def mean_scale_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `MeanScaleBalancer.mean_scale_weights`."""
        del losses
        return masked_softmax(tf.convert_to_tensor(self._logits), present)

    def update(self, step: LossStep) -> None:
        """Moves v towards the target norms."""
        # A task without gradient would be taken for one that is behind all others.
        assert step.gradient_norms is not None
        present = with_loss(step.losses, step.present) & (step.gradient_norms > 0)
        # A first loss that no ratio can be taken to waits for a better one.
        is_first = present & (self._first < 0)
        is_first &= tf.math.is_finite(step.losses) & (step.losses > 0)
        first = tf.where(is_first, step.losses, self._first)
        self._first.assign(first)
        equal = mean_weights(present, "mean")
        count = tf.reduce_sum(tf.cast(present, "float32"))
        shares = masked_softmax(tf.convert_to_tensor(self._logits), present)
        norms = tf.where(present, step.gradient_norms, 0.0)
        weighted = count * shares * norms
        rates = tf.where(first > 0, step.losses / first, 1.0)
        rates = tf.math.divide_no_nan(rates, tf.reduce_sum(equal * rates))
        target = tf.reduce_sum(equal * weighted) * tf.pow(
            tf.maximum(rates, 0.0), self.alpha
        )
        slope = tf.sign(weighted - target) * norms
        gradient = count * shares * (slope - tf.reduce_sum(shares * slope))
        self._adam.step(self._logits, gradient, present, self.learning_rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "learning_rate": self.learning_rate,
        }


@_register
class LDCMTL(MeanScaleBalancer):
    """Loss discrepancy control: weights that close the gaps between weighted losses.

    With σ_i = sigmoid(v_i) of trained v and ℓ_i the normalised losses, model and v both
    descend Σ σ_i ℓ_i / sg(Σ σ) + λ Σ |σ_i ℓ_i − σ_(i+1) ℓ_(i+1)|, the first-order form
    of a bilevel problem: the upper level closes the gaps of neighbouring tasks, the
    lower one trains the model. Xiao et al., "LDC-MTL: Balancing Multi-Task Learning
    through Scalable Loss Discrepancy Control", 2025, arXiv 2502.08585.

    That is the form of the authors' code for many tasks (CelebA and QM9), where the
    weights are a vector; for dense prediction it computes them from the features, by a
    layer and a clipped softmax. Differs from the code in that v is trained by an Adam
    of its own, and that the losses which `"log"` divides by are those of the first step
    instead of each epoch's. Neighbours are those among the tasks in the batch.
    A weight is negative where λ exceeds 1 / (2 Σ σ) and a task's weighted loss is below
    both neighbours'.

    Cost: 1 backward; state: T logits, Adam, T first losses; needs: positive losses for
    `"log"`.
    Choose it when there are many tasks, and their losses should fall at one pace.

    Args:
        strength: λ; 0.01 to 0.1 in the authors' runs.
        normalization: ℓ: `"log"` for log(L_i / L_i(0)), as the authors on QM9, or
            `"none"` for L_i itself, as on CelebA.
        learning_rate: Rate for v; `None` follows the model's optimizer.
        initial_logit: v at the start; 1 on CelebA.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            `"mean"`.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"weighted"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: For another normalisation.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.LDCMTL(strength=0.1, normalization="none")
    >>> balancer.build(["a", "b"])
    >>> losses, present = tf.constant([4.0, 1.0]), tf.constant([True, True])
    >>> balancer.weights(losses, present).numpy().round(3)
    array([1.146, 0.854], dtype=float32)
    ```
    """

    method = "ldc_mtl"
    search_space = {"strength": {"min": 1e-3, "max": 1.0, "log": True}}  # noqa: RUF012

    def __init__(
        self,
        strength: float = 0.05,
        normalization: str = "log",
        learning_rate: float | None = None,
        initial_logit: float = 1.0,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(scale=scale, task_specific=task_specific, seed=seed, name=name)
        check_choice("normalization", normalization, ("log", "none"))
        self.strength = check_number("strength", strength, low=0.0)
        self.normalization = normalization
        if learning_rate is not None:
            learning_rate = check_number("learning_rate", learning_rate, low=0.0)
        self.learning_rate = learning_rate
        self.initial_logit = check_number("initial_logit", initial_logit)

    def build_state(self, num_tasks: int) -> None:
        """Creates v, the moments of its optimizer, and the first losses."""
        self._logits = self.add_variable("logits", (num_tasks,), self.initial_logit)
        self._first = self.add_variable("first_losses", (num_tasks,), -1.0)
        self._adam = TaskAdam(self.add_variable, num_tasks)

    def _normalised(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """Returns ℓ of the present tasks, 0 for the others, `[T]`."""
        if self.normalization == "none":
            return tf.where(present, losses, 0.0)
        first = tf.where(self._first > 0, self._first, losses)
        logs = tf.math.log(tf.where(present, losses, 1.0))
        return logs - tf.math.log(tf.where(present, first, 1.0))

    def _gap_slopes(self, weighted: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """Returns ∂ Σ |d_i − d_(i+1)| / ∂d over neighbours in the batch, `[T]`.

        Args:
            weighted: d, float32 `[T]`.
            present: bool `[T]`.
        """
        ranks = tf.cumsum(tf.cast(present, "int32"))
        adjacent = tf.equal(ranks[None, :] - ranks[:, None], 1)
        adjacent &= present[:, None] & present[None, :]
        signs = tf.sign(weighted[:, None] - weighted[None, :])
        signs = tf.where(adjacent, signs, 0.0)
        return tf.reduce_sum(signs, axis=1) - tf.reduce_sum(signs, axis=0)

    def _slopes(self, losses: tf.Tensor, present: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns σ, ℓ and the objective's slope by each σ_i ℓ_i, `[T]` each."""
        shares = tf.where(present, tf.sigmoid(self._logits), 0.0)
        normalised = self._normalised(losses, present)
        gaps = self._gap_slopes(shares * normalised, present)
        total = tf.reduce_sum(shares)
        slopes = tf.math.divide_no_nan(1.0, total) + self.strength * gaps
        return shares, normalised, slopes

    def mean_scale_weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """See `MeanScaleBalancer.mean_scale_weights`."""
        shares, _, slopes = self._slopes(losses, present)
        if self.normalization == "none":
            return shares * slopes
        return tf.where(present, shares * slopes / tf.where(present, losses, 1.0), 0.0)

    def update(self, step: LossStep) -> None:
        """Moves v against the gradient of the objective."""
        present = with_loss(step.losses, step.present)
        shares, normalised, slopes = self._slopes(step.losses, present)
        gradient = slopes * normalised * shares * (1.0 - shares)
        rate = step.learning_rate if self.learning_rate is None else self.learning_rate
        self._adam.step(self._logits, gradient, present, rate)
        is_first = present & (self._first < 0)
        is_first &= tf.math.is_finite(step.losses) & (step.losses > 0)
        self._first.assign(tf.where(is_first, step.losses, self._first))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "strength": self.strength,
            "normalization": self.normalization,
            "learning_rate": self.learning_rate,
            "initial_logit": self.initial_logit,
        }
