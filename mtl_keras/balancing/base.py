"""Base classes of balancing methods: configuration, tasks and tracked state."""

from __future__ import annotations

import copy
import inspect
import random
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import keras
import tensorflow as tf

from mtl_keras import ops
from mtl_keras.balancing.arguments import check_choice
from mtl_keras.errors import InputError, check_integer
from mtl_keras.ops import solvers

SCALES = ("sum", "mean")
TASK_SPECIFIC = ("own", "weighted")
NORMALIZATIONS = ("none", "norm", "loss", "loss+")

# The spacing at 1 of the dtypes in which gradients are computed.
_SPACINGS = {
    "float64": solvers.EPS,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}


_Balancer = TypeVar("_Balancer", bound="Balancer")


class Balancer:
    """A method that balances tasks; base of `LossBalancer` and `GradientBalancer`.

    All that a method remembers between steps lives in variables made by
    `add_variable`, so that checkpoints and `.keras` files hold it. `compile` starts
    it anew, with this instance too. An instance balances one model: another one that
    is compiled with it gets a copy (`model.balancers`) with a state of its own.

    Args:
        scale: `"sum"` (the default: equal weights are 1, as Keras sums the losses
            of its outputs) or `"mean"` (equal weights are 1 / T). The published
            methods mix both; one choice for all keeps the effective learning rate
            where it was when only the method changes.
        task_specific: How variables that belong to a single task are trained:
            `"own"` by the gradient of their task's loss as it is, `"weighted"` by
            that gradient times the task's weight. `None` takes the default of the
            kind: weighted for loss balancers, own for gradient balancers.
        seed: Integer for methods that draw random numbers. `None` draws one from
            Python's generator, which `keras.utils.set_random_seed` seeds.
        name: Name of the instance, by which its state is saved. Defaults to the
            registered name of the method.

    Raises:
        InputError: For an argument of another type or out of its range; at `build`
            where it does not fit the tasks.

    Example:

    ```pycon
    >>> balancer = mtl_keras.balancing.get("dwa")
    >>> balancer.build(["a", "b"])
    >>> isinstance(balancer, mtl_keras.balancing.Balancer), balancer.tasks
    (True, ('a', 'b'))
    ```
    """

    method = "balancer"
    """Name in the registry."""
    search_space: Mapping[str, Any] = types.MappingProxyType({})
    """The constructor's arguments that a study searches by default, each as a study
    file writes a setting: a list of values, or `{"min": …, "max": …}`."""
    default_task_specific = "weighted"
    uses_seed = False

    def __init__(
        self,
        *,
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        task_specific = task_specific or self.default_task_specific
        check_choice("scale", scale, SCALES)
        check_choice("task_specific", task_specific, TASK_SPECIFIC)
        if seed is None and self.uses_seed:
            seed = random.randint(1, 10**9)
        self.scale = scale
        self.task_specific = task_specific
        self.seed = seed
        self.name = name or self.method
        self.tasks: tuple[str, ...] = ()
        self.built = False
        self._owner: int | None = None
        self._variables: dict[str, keras.Variable] = {}

    def fresh_copy(self: _Balancer) -> _Balancer:
        """Returns an unbuilt balancer of the same arguments."""
        other = copy.copy(self)
        other.tasks = ()
        other.built = False
        other._owner = None
        other._variables = {}
        return other

    def owned_by(self: _Balancer, model: Any) -> _Balancer:
        """Returns this balancer, or a copy if it balances another model already."""
        if self._owner is None:
            self._owner = id(model)
        if self._owner == id(model):
            return self
        return self.fresh_copy().owned_by(model)

    @property
    def variables(self) -> dict[str, keras.Variable]:
        """The state, by name. Empty before `build`."""
        return dict(self._variables)

    def build(self, tasks: Sequence[str]) -> None:
        """Creates the state for these tasks, always anew; called by `compile`.

        Args:
            tasks: Task names, in the order of every `[T]` tensor.
        """
        self.tasks = tuple(tasks)
        self._variables = {}
        self.build_state(len(self.tasks))
        self.built = True

    def build_state(self, num_tasks: int) -> None:
        """Creates the method's variables. Methods with state override this."""

    def add_variable(
        self, name: str, shape: Sequence[int], initializer: Any, dtype: str = "float32"
    ) -> keras.Variable:
        """Adds a tracked variable, the same on every replica.

        Args:
            name: Its key in `variables`.
            shape: Its shape.
            initializer: A number for all entries, or a Keras initializer.
            dtype: Its dtype.
        """
        if isinstance(initializer, (int, float)):
            initializer = keras.initializers.Constant(initializer)
        variable = keras.Variable(
            initializer,
            shape=tuple(shape),
            dtype=dtype,
            trainable=False,
            # Every replica computes the same new value from reduced losses and
            # gradients, so one of them may write it for all.
            aggregation="only_first_replica",
            name=f"{self.name}_{name}",
        )
        self._variables[name] = variable
        return variable

    def next_seed(self) -> tf.Tensor:
        """Returns a fresh seed `[2]`, the same on every replica, and counts it.

        For methods with `uses_seed` that made an int64 variable `"draws"`. Before
        `build` it is always the first seed.
        """
        draws = tf.zeros((), "int64")
        if self.built:
            draws = tf.identity(tf.convert_to_tensor(self._variables["draws"]))
            self._variables["draws"].assign_add(1)
        return tf.stack([tf.cast(self.seed, "int64"), draws])

    def on_epoch_begin(self) -> None:
        """Called by `fit` before each epoch. Epoch-wise methods override this."""

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config: dict[str, Any] = {
            "scale": self.scale,
            "task_specific": self.task_specific,
            "name": self.name,
        }
        if self.uses_seed:
            config["seed"] = self.seed
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Balancer:
        """Returns an instance made from `get_config`'s result."""
        return cls(**config)


class Probe(Protocol):
    """The present batch's losses at any weights of the model.

    Example:

    ```python
    class LossRatio(mtl_keras.balancing.LossBalancer):
        method = "loss_ratio"
        needs_probe = True

        def build_state(self, num_tasks):
            self.ratio = self.add_variable("ratio", (num_tasks,), 1.0)

        def weights(self, losses, present):
            return tf.cast(present, "float32")

        def update(self, step):
            after = tf.stack(step.probe.losses(step.probe.weights()))
            self.ratio.assign(step.probe.total(after) / step.losses)

    model.compile("adam", loss="mse", balancing=LossRatio())
    model.fit(x, y)
    ```
    """

    def weights(self) -> list[tf.Tensor]:
        """Returns the trainable weights as they are, in their shapes and dtypes."""

    def losses(
        self, weights: Sequence[tf.Tensor], part: int | None = None
    ) -> list[tf.Tensor]:
        """Returns this replica's share of the T losses, float32 scalars.

        Args:
            weights: Where to take the losses; in the order of `weights()`.
            part: 0 or 1 for one half of the batch, `None` for all of it.
        """

    def total(self, value: tf.Tensor) -> tf.Tensor:
        """Returns the sum of a tensor over the replicas, of its shape and dtype."""


class LossStep(NamedTuple):
    """Losses of a step, and further results, from which a loss balancer learns.

    Tensors `[T]` are float32 and over the whole batch, all replicas together.

    Example:

    ```pycon
    >>> step = mtl_keras.balancing.LossStep(
    ...     losses=tf.constant([4.0, 1.0]),
    ...     present=tf.constant([True, True]),
    ...     learning_rate=tf.constant(0.001),
    ... )
    >>> step.losses.numpy()
    array([4., 1.], dtype=float32)
    ```
    """

    losses: tf.Tensor
    """`[T]`, the task losses times their static `loss_weights`; 0 where absent."""
    present: tf.Tensor
    """bool `[T]`, False for a task without any label in the batch."""
    learning_rate: tf.Tensor
    """Scalar, the present rate of the model's optimizer."""
    gradient_norms: tf.Tensor | None = None
    """`[T]`, norms of the unweighted task gradients on the last shared layer; for
    methods with `needs_gradient_norms`."""
    probe: Probe | None = None
    """The batch at any weights; for methods with `needs_probe`."""


class LossBalancer(Balancer):
    """Balances from the task losses alone: one backward pass.

    Whatever a method minimises, f(L_1, …, L_T), its gradient for the model is
    Σ ∂f/∂L_i ∇L_i. A method therefore gives these weights; the losses they are
    computed from are summed over replicas first, and absent tasks count as 0.

    Example:

    ```python
    class InverseLoss(mtl_keras.balancing.LossBalancer):
        method = "inverse_loss"

        def weights(self, losses, present):
            return tf.math.divide_no_nan(tf.cast(present, "float32"), losses)

    model.compile("adam", loss="mse", balancing=InverseLoss())
    model.fit(x, y)
    ```
    """

    needs_gradient_norms = False
    needs_probe = False

    def weights(self, losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """Returns the task weights for one step, and changes no state.

        Args:
            losses: See `LossStep`.
            present: See `LossStep`.

        Returns:
            float32 `[T]`, 0 where absent. Equal weighting is 1 in the scale
            `"sum"` and 1 / T in `"mean"`; the method applies `self.scale` itself.
        """
        raise NotImplementedError

    def update(self, step: LossStep) -> None:
        """Changes the state after the model's update."""


def agreed(value: tf.Tensor) -> tf.Tensor:
    """Returns a float tensor that replicas compute alike, the same to the bit on each.

    Sums without a fixed order, as of sparse gradients on GPUs, differ by rounding from
    replica to replica, and the weights of tasks may then differ by more. Each takes the
    mean over all.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return value
    context = tf.distribute.get_replica_context()
    return value if context is None else context.all_reduce("mean", value)


def coarsest_spacing(dtypes: Iterable[str]) -> float:
    """Returns the largest spacing at 1 of float dtypes by name; float64's for none."""
    return max((_SPACINGS[dtype] for dtype in dtypes), default=solvers.EPS)


class GradientStep:
    """Task gradients of one step, with its losses, presence and sub-batches.

    Args:
        gradients: T lists of V gradients: tensor, `tf.IndexedSlices` or None.
        losses: float32 `[T]`, the weighted losses of the whole batch; 0 where
            absent.
        present: bool `[T]`.
        loss_scale: Scalar by which mixed precision multiplied the losses.
        summed: Whether the gradients are summed over replicas. Those on
            representations are not: every replica has its own samples.
        sub_batches: For methods with `num_sub_batches`: as `gradients`, for each
            of that many disjoint parts of the batch.
        compute_dtypes: Names of further dtypes through which the gradients came;
            mixed precision computes in these, and casts to the variables' dtype.
        sources: The V shared variables or tensors of the representation that the
            gradients belong to. Empty for the variables that a method was built for.
        shared_samples: float32 `[T, T]`, samples of the batch with labels of both
            tasks, where conflicts are monitored.

    Example:

    ```pycon
    >>> gradients = [[tf.constant([1.0, 0.0])], [tf.constant([-1.0, 1.0])]]
    >>> step = mtl_keras.balancing.GradientStep(
    ...     gradients, tf.ones(2), tf.constant([True, True]), tf.ones(())
    ... )
    >>> step.gramian.numpy()
    array([[ 1., -1.],
           [-1.,  2.]])
    ```
    """

    def __init__(
        self,
        gradients: Sequence[Sequence[Any]],
        losses: tf.Tensor,
        present: tf.Tensor,
        loss_scale: tf.Tensor,
        summed: bool = True,
        sub_batches: Sequence[Sequence[Sequence[Any]]] = (),
        compute_dtypes: Sequence[str] = (),
        sources: Sequence[Any] = (),
        shared_samples: tf.Tensor | None = None,
    ):
        self.gradients = gradients
        self.losses = losses
        self.present = present
        self.loss_scale = loss_scale
        self.summed = summed
        self.sub_batches = sub_batches
        self.compute_dtypes = compute_dtypes
        self.sources = sources
        self.shared_samples = shared_samples
        self._gramian: tf.Tensor | None = None

    @property
    def precision(self) -> float:
        """The spacing at 1 of the coarsest dtype in which gradients were computed."""
        dtypes = {g.dtype.name for row in self.gradients for g in row if g is not None}
        return coarsest_spacing(dtypes.union(self.compute_dtypes))

    def total(self, value: tf.Tensor) -> tf.Tensor:
        """Returns a replica's float tensor summed over all replicas, of its shape.

        Where the gradients are summed already (`summed`), so is `value`.
        """
        if self.summed or tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return value
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, value)

    @property
    def gramian(self) -> tf.Tensor:
        """The Gram matrix of the unscaled gradients, float64 `[T, T]`."""
        # Not a `functools.cached_property`: its lock, which all instances share on
        # Python 3.11, would be held while a replica waits for the others.
        if self._gramian is None:
            gramian = ops.gramian(self.gradients)
            gramian = agreed(gramian) if self.summed else self.total(gramian)
            self._gramian = gramian / tf.square(tf.cast(self.loss_scale, "float64"))
        return self._gramian


class GradientBalancer(Balancer):
    """Balances from the task gradients on the shared variables.

    Args:
        gradients_of: `"shared"` (exact: gradients on all shared variables, T
            backward passes through the backbone) or `"representation"` (gradients
            at the boundary between shared and task-specific layers, one backward
            pass through the backbone whatever T; an approximation, as in the
            MGDA-UB of Sener & Koltun, NeurIPS 2018).
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Example:

    ```python
    class Sum(mtl_keras.balancing.GradientBalancer):
        method = "sum"

        def aggregate(self, step):
            weights = tf.cast(step.present, "float32")
            return mtl_keras.ops.combine(weights, step.gradients), weights

    model.compile("adam", loss="mse", balancing=Sum())
    model.fit(x, y)
    ```
    """

    default_task_specific = "own"
    num_sub_batches = 0
    """Into how many parts to split the batch for `GradientStep.sub_batches`."""
    compares_losses = False
    """Whether it compares losses with numbers given, so that none may weight them."""
    needs_probe = False
    """Whether task gradients are taken at other weights, by the step's probe."""
    aligns_heads = False
    """Whether `head_factor` adds gradients to those of task-specific variables."""

    def __init__(
        self,
        *,
        gradients_of: str = "shared",
        scale: str = "sum",
        task_specific: str | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(scale=scale, task_specific=task_specific, seed=seed, name=name)
        check_choice("gradients_of", gradients_of, ("shared", "representation"))
        self.gradients_of = gradients_of

    @property
    def needs_boundary(self) -> bool:
        """Whether a step differentiates by the representation."""
        return self.gradients_of == "representation" or self.aligns_heads

    def build_state(self, num_tasks: int) -> None:
        """Creates the count of steps that fell back to the mean."""
        self.add_variable("fallbacks", (), 0, dtype="int64")

    def build_variables(self, shared: Sequence[keras.Variable]) -> None:
        """Creates state that belongs to the shared variables; after `build`.

        Called again before a function is traced that trains others of them, as layers
        were frozen or thawed.
        """

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Warns of an optimizer that undoes the method; called by `compile`.

        Args:
            optimizer: The model's, without loss scaling.
        """

    def aggregate(self, step: GradientStep) -> tuple[list[Any], tf.Tensor]:
        """Returns one update of the task gradients.

        Returns:
            The V combined gradients, times the loss scale as they came, and the
            task weights float32 `[T]` to log.
        """
        raise NotImplementedError

    def head_factor(self, own: tf.Tensor, alignment: tf.Tensor) -> tf.Tensor:
        """Returns the factor of a head's alignment in the gradient of its variables.

        The alignment is the gradient of ⟨∂L_i/∂z, Σ_j w_j ∂L_j/∂z⟩, with z the
        representation, which the heads share, and the second factor held.

        Args:
            own: float64 scalar, the norm of the gradient of the head's own loss.
            alignment: float64 scalar, the norm of the alignment.
        """
        raise NotImplementedError

    def after_step(self, weights: tf.Tensor, present: tf.Tensor | None = None) -> None:
        """Called once at the end of each step.

        Args:
            weights: The step's weights, float32 `[T]`.
            present: bool `[T]`; `None` for all tasks.
        """

    def count_fallback(self, fell_back: tf.Tensor) -> None:
        """Adds to the count of steps that fell back to the mean.

        Args:
            fell_back: bool scalar.
        """
        if self.built:
            counter = self._variables["fallbacks"]
            counter.assign_add(tf.cast(fell_back, "int64"))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "gradients_of": self.gradients_of}


class GramBalancer(GradientBalancer):
    """A gradient balancer whose weights follow from the Gram matrix alone.

    A method of this kind implements `weights` and nothing else. `natural_scale`
    is the scale in which its paper writes them: `"mean"` (equal weights are 1 / T)
    or `"sum"` (equal weights are 1). A method that decides rank, conflict or
    stationarity takes a second argument, `precision`: the spacing at 1 of the dtype in
    which the gradients were computed (default: float64's). It is given to methods whose
    signature has it.

    Args:
        solve: `"exact"`; some methods have others (`ways_to_solve`), see
            `RunningBalancer`.
        update_every: Solve every k-th step and keep the weights in between; the
            steps in between take one backward pass (with several replicas they
            still take T). Each task counts the steps in which it is present: a step
            solves when one of its tasks has had k of them since a solve that it
            took part in, or none such solve yet.
        normalize: What divides each task gradient before solving: `"none"`, `"norm"`
            (its norm), `"loss"` (the size of its task's loss) or `"loss+"` (both). The
            method then works on the divided gradients and its weights apply to these;
            those that are logged apply to the gradients as they are. A gradient whose
            divisor is zero or not finite stays as it is. Running solves know no norms:
            `"none"` or `"loss"`.
        gradients_of: `"shared"` (exact) or `"representation"`; see `GradientBalancer`.
        scale: `"sum"` (equal weights are 1) or `"mean"` (1 / T).
        task_specific: `"own"` or `"weighted"` gradients of task-specific variables;
            None is `"own"`.
        seed: Not used, as the method draws no random numbers.
        name: Name by which its state is saved; None is the method's.

    Raises:
        InputError: If the method has no such way to solve, or for arguments out of
            range.

    Example:

    ```python
    class InverseNorm(mtl_keras.balancing.GramBalancer):
        method = "inverse_norm"

        def weights(self, gramian):
            norms = tf.sqrt(tf.linalg.diag_part(tf.cast(gramian, "float64")))
            return tf.math.divide_no_nan(tf.ones_like(norms), norms)

    model.compile("adam", loss="mse", balancing=InverseNorm())
    model.fit(x, y)
    ```
    """

    natural_scale = "mean"
    ways_to_solve: Sequence[str] = ("exact",)

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
            gradients_of=gradients_of,
            scale=scale,
            task_specific=task_specific,
            seed=seed,
            name=name,
        )
        if solve not in self.ways_to_solve:
            reason = (
                ""
                if len(self.ways_to_solve) > 1
                else (", whose weights need the whole Gram matrix")
            )
            raise InputError(
                f"Expected `solve` to be one of {list(self.ways_to_solve)} for "
                f"{self.method!r}{reason}. Received: solve={solve!r}."
            )
        check_choice("normalize", normalize, NORMALIZATIONS)
        self.solve = solve
        self.normalize = normalize
        self.update_every = check_integer("update_every", update_every, low=1)

    @property
    def is_running(self) -> bool:
        """Whether the weights follow the solution by products with the Gram matrix."""
        return self.solve != "exact"

    def build_state(self, num_tasks: int) -> None:
        """Creates, for `update_every` > 1, the step counts and the kept weights."""
        super().build_state(num_tasks)
        if self.update_every > 1:
            # Since the last solve, by task; a task's first step solves.
            self.add_variable("steps", (num_tasks,), self.update_every, dtype="int64")
            if not self.is_running:
                # In the scale "sum", as the tasks of a later step may be others.
                self.add_variable("kept_weights", (num_tasks,), 1.0)

    def weights(self, gramian: tf.Tensor) -> tf.Tensor:
        """Returns the weights of one step in the paper's own scale.

        Args:
            gramian: `[T, T]`, inner products of the task gradients, divided as
                `normalize` has it. A task whose row is zero (absent, or without
                gradient) is excluded.

        Returns:
            float64 `[T]`; 0 for excluded tasks, never non-finite.
        """
        raise NotImplementedError

    def weights_with_losses(
        self, gramian: tf.Tensor, losses: tf.Tensor, precision: float = solvers.EPS
    ) -> tf.Tensor:
        """Returns the weights of one step for the gradients as they are.

        Overridden by methods that read the losses too.

        Args:
            gramian: `[T, T]`, inner products of the task gradients.
            losses: float32 `[T]`.
            precision: The spacing at 1 of the dtype of the gradients.
        """
        return self.of_divided(
            lambda divided: self.weights(divided, **accepted(self.weights, precision)),
            gramian,
            losses,
        )

    def loss_divisors(self, losses: tf.Tensor) -> tf.Tensor:
        """Returns the part of the losses in what divides the gradients, float64 `[T]`.

        Args:
            losses: float32 `[T]`.
        """
        if self.normalize not in ("loss", "loss+"):
            return tf.ones(losses.shape, "float64")
        return _usable(tf.abs(tf.cast(losses, "float64")))

    def factors(self, gramian: tf.Tensor, losses: tf.Tensor) -> tf.Tensor:
        """Returns what the gradients are multiplied by before solving, float64 `[T]`.

        Args:
            gramian: `[T, T]`, inner products of the task gradients.
            losses: float32 `[T]`.
        """
        factors = tf.ones(losses.shape, "float64")
        if self.normalize in ("norm", "loss+"):
            norms = tf.sqrt(tf.linalg.diag_part(tf.cast(gramian, "float64")))
            factors = tf.math.divide_no_nan(factors, norms)
        if self.normalize in ("loss", "loss+"):
            sizes = tf.abs(tf.cast(losses, "float64"))
            factors = tf.math.divide_no_nan(factors, sizes)
        return _usable(factors)

    def of_divided(
        self,
        solve: Callable[[tf.Tensor], tf.Tensor],
        gramian: tf.Tensor,
        losses: tf.Tensor,
    ) -> tf.Tensor:
        """Returns weights for the gradients as they are, float64 `[T]`.

        Args:
            solve: From the Gram matrix of the divided gradients to their weights.
            gramian: `[T, T]`, inner products of the task gradients.
            losses: float32 `[T]`.
        """
        if self.normalize == "none":
            return solve(gramian)
        factors = self.factors(gramian, losses)
        return factors * solve(divided(gramian, factors))

    def solved(self, weights: tf.Tensor, converged: tf.Tensor) -> tf.Tensor:
        """Returns a solver's weights, and counts the step if it fell back.

        Args:
            weights: float64 `[T]`.
            converged: bool scalar, False where the solver took the mean.
        """
        self.count_fallback(~converged)
        return weights

    def is_due(self, present: tf.Tensor) -> tf.Tensor:
        """Returns whether a step of these tasks (bool `[T]`) solves; a bool scalar."""
        steps = tf.convert_to_tensor(self._variables["steps"])
        return tf.reduce_any(present & (steps >= self.update_every))

    def kept_weights(self, present: tf.Tensor) -> tf.Tensor:
        """Returns the weights of a step between solves, in `self.scale`.

        Args:
            present: bool `[T]`.

        Returns:
            float32 `[T]`: for each task in the batch its weight of the last solve in
            which it took part; 0 for the others.
        """
        kept = tf.convert_to_tensor(self._variables["kept_weights"])
        return kept * mean_weights(present, self.scale)

    def after_step(self, weights: tf.Tensor, present: tf.Tensor | None = None) -> None:
        """See `GradientBalancer.after_step`: counts the step for its tasks."""
        del weights
        if self.update_every > 1:
            counted = 1 if present is None else tf.cast(present, "int64")
            steps = self._variables["steps"]
            steps.assign_add(counted * tf.ones(steps.shape, "int64"))

    def solution(self, step: GradientStep) -> tf.Tensor:
        """Returns the step's weights in `self.scale`, float32 `[T]`."""
        weights = self.weights_with_losses(
            step.gramian,
            step.losses,
            **accepted(self.weights_with_losses, step.precision),
        )
        return self.rescaled(weights, step.gramian)

    def rescaled(self, weights: tf.Tensor, gramian: tf.Tensor) -> tf.Tensor:
        """Returns a solution in `self.scale`, float32 `[T]`.

        Where the largest weight is below 2^-110 or above 2^110, as of gradients near
        1e±30, one factor brings it there: the direction of the update is kept. The
        bounds leave room for smaller weights, and for sums over tasks and steps.

        Args:
            weights: float64 `[T]`, in the paper's scale.
            gramian: float64 `[T, T]`.
        """
        weights = tf.cast(weights, "float64")
        if self.scale != self.natural_scale:
            taking_part = tf.cast(has_gradient(gramian), "float64")
            count = tf.maximum(tf.reduce_sum(taking_part), 1.0)
            weights *= count if self.scale == "sum" else 1.0 / count
        largest = tf.reduce_max(tf.abs(weights))
        bounded = tf.clip_by_value(largest, 2.0**-110, 2.0**110)
        factor = tf.where(largest > 0.0, bounded / largest, 1.0)
        return tf.cast(weights * factor, "float32")

    def aggregate(self, step: GradientStep) -> tuple[list[Any], tf.Tensor]:
        """See `GradientBalancer.aggregate`."""
        due = self.update_every == 1
        weights = self.solution(step) if due else self._solve_if_due(step)
        return ops.combine(weights, step.gradients), weights

    def _solve_if_due(self, step: GradientStep) -> tf.Tensor:
        """Solves at every step, as replicas cannot branch, but keeps it if due."""
        due = self.is_due(step.present)
        before = {
            name: tf.identity(tf.convert_to_tensor(variable))
            for name, variable in self._variables.items()
        }
        weights = self.solution(step)
        self._keep(weights, step)
        for name, value in before.items():
            variable = self._variables[name]
            variable.assign(tf.where(due, tf.convert_to_tensor(variable), value))
        return tf.where(due, weights, self.kept_weights(step.present))

    def _keep(self, weights: tf.Tensor, step: GradientStep) -> None:
        """Keeps the weights of a solve for the tasks that took part in it."""
        kept, steps = self._variables["kept_weights"], self._variables["steps"]
        finite = tf.reduce_all(tf.math.is_finite(step.gramian))
        taking_part = has_gradient(step.gramian)
        if self.scale == "mean":
            weights *= tf.reduce_sum(tf.cast(taking_part, "float32"))
        kept.assign(tf.where(finite & taking_part, weights, kept))
        steps.assign(tf.where(finite & step.present, tf.zeros_like(steps), steps))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "solve": self.solve,
            "update_every": self.update_every,
            "normalize": self.normalize,
        }


def divided(gramian: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Returns inner products of gradients that are multiplied by factors `[T]`."""
    return factors[:, None] * tf.cast(gramian, "float64") * factors


def _usable(factors: tf.Tensor) -> tf.Tensor:
    """Returns the factors, 1 in place of those that are not finite or not positive."""
    return tf.where(tf.math.is_finite(factors) & (factors > 0), factors, 1.0)


def accepted(method: Callable[..., tf.Tensor], precision: float) -> dict[str, float]:
    """Returns `precision` as an argument, empty for a method that does not take it."""
    if "precision" in inspect.signature(method).parameters:
        return {"precision": precision}
    return {}


def has_gradient(gramian: tf.Tensor) -> tf.Tensor:
    """Returns for which tasks the row of a Gram matrix is not zero, bool `[T]`."""
    return tf.not_equal(tf.linalg.diag_part(gramian), 0.0)


def with_loss(losses: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Returns the present tasks whose loss is not exactly 0, bool `[T]`.

    A loss of 0, of a `loss_weights` of 0 or of a finished task, has no logarithm and
    no ratio; formulas made of these leave the task out as if it were absent.

    Args:
        losses: float32 `[T]`.
        present: bool `[T]`.
    """
    return present & tf.not_equal(losses, 0.0)


def mean_weights(present: tf.Tensor, scale: str) -> tf.Tensor:
    """Returns equal weights over the present tasks, float32 `[T]`.

    Args:
        present: bool `[T]`.
        scale: `"sum"` for ones, `"mean"` for 1 / (number of present tasks).
    """
    weights = tf.cast(present, "float32")
    if scale == "mean":
        weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights))
    return weights
