"""Methods that take task gradients at weights moved to where losses are higher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mtl_keras.balancing.gram_stochastic import WrappingBalancer
from mtl_keras.errors import InputError, check_number

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class SAMO(WrappingBalancer):
    """Sharpness-aware: wraps another method, on gradients at weights moved uphill.

    For task i the shared weights move by a vector of length ρ along
    (1 − β) g + β ζ_i, and those of its head by one along their gradient. g is the
    gradient of the mean loss; ζ_i = ‖g‖ d_i z / ‖z‖ by variable, with z ~ N(0, I) and
    d_i the sign of L_i(θ + εz) − L_i(θ − εz), stands for the task's own gradient at the
    price of two forward passes. The wrapped method weighs the task gradients of the
    moved weights, which favours flat minima. Ban et al., "SAMO: A Lightweight
    Sharpness-Aware Approach for Multi-Task Optimization with Joint Global-Local
    Perturbation", ICCV 2025.

    Follows the authors' code for CelebA. Differs from it in that all passes are in
    training mode, with the step's own dropout masks and without a trace in batch
    statistics, and in that the update is not multiplied by T. Several replicas move
    alike; XLA draws other numbers of the same seed.

    Cost: T + 1 backward, 3 T forward; state: step count, the wrapped method's; needs:
    `seed`, a method to wrap.
    Choose it when training losses are low and held-out ones are not, and time is no
    matter.

    Args:
        balancer: The method to wrap: a name, a configuration or a `GramBalancer`, but
            none that reads halves of the batch. What belongs to every method (`scale`,
            `task_specific`) is given to the wrapper; the wrapped method's own is not
            read.
        rho: ρ; 1e-3 in the authors' runs, 1e-5 on QM9.
        local: β, the share of the task's own part; 0.5 in the authors' runs, 0.9 on
            QM9.
        epsilon: ε.
        solve: `"exact"`; the method has no other way.
        update_every: 1; the method has no other way.
        normalize: What divides the task gradients first; see `GramBalancer`.
        gradients_of: `"shared"`; the method has no other way.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T). The paper's scale is
            the wrapped method's.
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Of z; see `Balancer`.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: For a method that it cannot wrap; at `compile` for `columns`.

    Example:

    ```python
    balancer = mtl_keras.balancing.SAMO(balancer="fairgrad", rho=1e-3)
    model.compile("adam", loss="mse", balancing=balancer)
    ```
    """

    method = "samo"
    uses_seed = True
    needs_probe = True
    search_space = {"rho": {"min": 1e-5, "max": 0.1, "log": True}}  # noqa: RUF012

    def __init__(
        self,
        balancer: Any = "fairgrad",
        rho: float = 1e-3,
        local: float = 0.5,
        epsilon: float = 0.01,
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
            balancer,
            solve=solve,
            update_every=update_every,
            normalize=normalize,
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        if self.gradients_of != "shared" or self.update_every != 1:
            raise InputError(
                "Expected gradients_of='shared' and update_every=1 for "
                f"balancing='samo'. Received: gradients_of={self.gradients_of!r}, "
                f"update_every={self.update_every}."
            )
        self.rho = check_number("rho", rho, low=0.0)
        self.local = check_number("local", local, 0.0, 1.0)
        self.epsilon = check_number("epsilon", epsilon, low=1e-6)

    def build_state(self, num_tasks: int) -> None:
        """Creates the count of draws and the wrapped method's state."""
        super().build_state(num_tasks)
        self.add_variable("draws", (), 0, dtype="int64")

    def directions(self, shapes: Sequence[tf.TensorShape]) -> list[list[tf.Tensor]]:
        """Returns the step's z, float32 by task and variable, the same on replicas.

        Args:
            shapes: Of the V shared variables.
        """
        # Named, as CPU and GPU would choose different generators.
        seed, fold = self.next_seed(), tf.random.experimental.stateless_fold_in
        seeds = [fold(seed, task, alg="philox") for task in range(len(self.tasks))]
        return [
            [
                tf.random.stateless_normal(
                    shape, fold(of_task, index, alg="philox"), alg="philox"
                )
                for index, shape in enumerate(shapes)
            ]
            for of_task in seeds
        ]

    def shift(
        self,
        gradients: Sequence[tf.Tensor],
        direction: Sequence[tf.Tensor],
        rise: tf.Tensor,
    ) -> list[tf.Tensor]:
        """Returns what one task's gradients are taken at, less the shared variables.

        Args:
            gradients: V tensors, the gradient of the mean loss; a common factor does
                not matter.
            direction: V tensors, the task's z.
            rise: float32 scalar, L(θ + εz) − L(θ − εz).
        """
        mixed = []
        for gradient, drawn in zip(gradients, direction, strict=True):
            gradient = tf.cast(gradient, "float32")
            size = tf.math.divide_no_nan(tf.norm(gradient), tf.norm(drawn))
            local = tf.sign(rise) * size * drawn
            mixed.append((1.0 - self.local) * gradient + self.local * local)
        return self.uphill(mixed)

    def uphill(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns the vector of length ρ along gradients, float32 by variable.

        Args:
            gradients: Of any shapes `[…]`, which the parts of the vector have too.
        """
        parts = [tf.cast(gradient, "float32") for gradient in gradients]
        length = tf.linalg.global_norm(parts)
        return [part * tf.math.divide_no_nan(self.rho, length) for part in parts]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "rho": self.rho,
            "local": self.local,
            "epsilon": self.epsilon,
        }
