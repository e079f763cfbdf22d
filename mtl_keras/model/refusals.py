"""Arguments of `compile` that do not go with each other, or with a model's class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import keras

from mtl_keras.balancing import Balancer, Equal, RunningBalancer
from mtl_keras.balancing.pipeline import Pipeline
from mtl_keras.errors import InputError
from mtl_keras.model.derivatives import check_derivatives
from mtl_keras.model.nonfinite import NonFiniteGuard
from mtl_keras.model.representation import SplitModel
from mtl_keras.model.task_variables import compute_dtypes


def is_equal(balancers: Sequence[Balancer]) -> bool:
    """Returns whether these balancers train as stock Keras does."""
    (first, *others) = balancers
    equal = isinstance(first, Equal) and first.scale == "sum"
    return equal and not others


def check_one_loss(
    class_name: str,
    pipeline: Pipeline,
    guard: NonFiniteGuard,
    task_clipnorm: float | None,
) -> None:
    """Raises `InputError` for options that split by task what is one loss.

    Args:
        class_name: Of a class that overrides `compute_loss`.
        pipeline: The balancing.
        guard: The policy for numbers that are not finite.
        task_clipnorm: As `compile` takes it.
    """
    options = (pipeline.monitored, task_clipnorm)
    stock = is_equal(pipeline.balancers) and guard.policy == "raise"
    if not stock or any(options):
        raise InputError(
            "Expected balancing='equal' alone, without monitor, task_clipnorm and "
            f"on_nonfinite, as {class_name} overrides `compute_loss`, whose one loss "
            "cannot be split by task; to balance, change the outputs' losses, or call "
            "`add_loss` in a layer. "
            f"Received: balancing={[b.name for b in pipeline.balancers]}, "
            f"monitor={pipeline.monitored!r}, task_clipnorm={task_clipnorm}, "
            f"on_nonfinite={guard.policy!r}."
        )


def check_groups(
    outputs: Iterable[str], pipeline: Pipeline, overrides_compute_loss: bool
) -> None:
    """Raises `InputError` for options that groups of tasks do not support.

    Args:
        outputs: Those that are groups of tasks.
        pipeline: The balancing.
        overrides_compute_loss: Whether the model's class does.
    """
    if overrides_compute_loss or not pipeline.takes_columns:
        raise InputError(
            "Expected gradients_of='shared', another method than 'consmtl' and "
            "'samo', and no `compute_loss` of the class's own for `columns`. "
            f"Received: columns of {list(outputs)}."
        )


def check_skipping(
    class_name: str, pipeline: Pipeline, overrides: bool, jit_compile: str | bool
) -> None:
    """Raises `InputError` for options that `skip_unlabelled` does not support.

    Args:
        class_name: The model's.
        pipeline: The balancing.
        overrides: Whether the class overrides `call` or `compute_loss`.
        jit_compile: As `compile` takes it.
    """
    if overrides or pipeline.needs_boundary or jit_compile is True:
        raise InputError(
            "Expected gradients_of='shared', another method than 'consmtl', another "
            "jit_compile than True, and no `call` or `compute_loss` of the class's own "
            f"for skip_unlabelled=True. Received: {class_name}, balancing="
            f"{[b.name for b in pipeline.balancers]}, jit_compile={jit_compile!r}."
        )


def check_boundary(class_name: str, overrides_call: bool) -> None:
    """Raises `InputError` for a model that cannot be cut at its representation.

    Args:
        class_name: The model's.
        overrides_call: Whether the class does.
    """
    if overrides_call:
        raise InputError(
            "Expected a model whose layers make its outputs for gradients of the "
            f"representation. Received: {class_name}, which overrides `call`; use "
            'gradients_of="shared", and another method than "consmtl".'
        )


def check_running(
    balancer: RunningBalancer,
    model: keras.Model,
    split: SplitModel | None,
    shared: Sequence[keras.Variable],
    task_clipnorm: float | None,
) -> None:
    """Raises `InputError` for options that running solves do not support.

    Args:
        balancer: With the running solve.
        model: The model.
        split: Its halves where it is cut at its representation.
        shared: The variables that tasks share.
        task_clipnorm: As `compile` takes it.
    """
    if task_clipnorm is not None:
        raise InputError(
            f"Expected task_clipnorm=None for solve={balancer.solve!r}, which "
            "computes no task's gradient alone. "
            f"Received: task_clipnorm={task_clipnorm}."
        )
    dtypes = compute_dtypes(model)
    if balancer.solve == "running_difference" and "bfloat16" in dtypes:
        raise InputError(
            "Expected layers that compute in float32, float64 or float16 for "
            "solve='running_difference', as bfloat16 rounds the difference of "
            f"losses away. Received: layers that compute in {dtypes}."
        )
    if balancer.solve == "running" and shared:
        if split is None:
            check_derivatives(model, shared)
        elif split.heads is not None:
            check_derivatives(split.heads, None)
