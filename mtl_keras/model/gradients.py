"""Gradients of one training step: by task where a balancer needs them so."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from mtl_keras import ops
from mtl_keras.balancing.base import GradientStep, GramBalancer
from mtl_keras.balancing.pipeline import Pipeline
from mtl_keras.model.gradient_lists import (
    Gradient,
    add,
    by_id,
    masked,
    scaled,
    sum_rows,
    times,
)
from mtl_keras.model.labels import replicas, sum_over_replicas
from mtl_keras.model.nonfinite import (
    NonFiniteGuard,
    finite_gradients,
    on_all_replicas,
)
from mtl_keras.model.step import (
    BalancedGradients,
    Objectives,
    StepContext,
    StepGradients,
    TaskGradients,
)
from mtl_keras.model.task_variables import TaskVariables


class GradientStepper:
    """Computes the gradients of a model's steps.

    Args:
        pipeline: The balancing.
        guard: The policy for numbers that are not finite.
        task_clipnorm: Longest task gradient, or None.
        compute_dtypes: Those of the model's layers, by name.

    Attributes:
        reached: What the recorded steps showed of the variables that each task's loss
            reaches (`reached_in_step`), by the ids of the trainable variables.
        was_called: Whether the model has run or traced a step.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        guard: NonFiniteGuard,
        task_clipnorm: float | None,
        compute_dtypes: Sequence[str] = (),
    ):
        self._pipeline = pipeline
        self._guard = guard
        self._clipnorm = task_clipnorm
        self._compute_dtypes = compute_dtypes
        self.reached: dict[tuple[int, ...], dict[str, set[int]]] = {}
        self.was_called = False

    @property
    def changes_rows(self) -> bool:
        """Whether task gradients are looked at before they are weighted.

        The weights then have to wait for it, and cannot go into the backward pass.
        """
        return (
            self._clipnorm is not None
            or self._guard.policy == "skip_task"
            or (self._guard.skips and self._pipeline.gradient_balancer is not None)
        )

    @property
    def needs_several_gradients(self) -> bool:
        """Whether one step differentiates more than one scalar."""
        return self._pipeline.needs_several_gradients or self.changes_rows

    def gradients(
        self, tape: tf.GradientTape, variables: TaskVariables, context: StepContext
    ) -> BalancedGradients:
        """Returns the gradients of one step.

        Args:
            tape: The step's tape, persistent where `needs_several_gradients`.
            variables: The split of the trainable variables.
            context: The rest of the step.
        """
        balancer = self._pipeline.gradient_balancer
        if not self.changes_rows and (balancer is None or not variables.shared):
            step, found = self._of_weighted_losses(tape, variables, context)
        else:
            step = self._by_task(tape, variables, context)
            found = self._collected(tape, variables, context, step)
        gradients = [
            *([found[id(v)] for v in own] for own in variables.own.values()),
            [found[id(v)] for v in (*variables.shared, *variables.unused)],
        ]
        flags = tf.concat([step.finite, finite_gradients(gradients)], axis=0)
        flags = on_all_replicas(flags) | context.may_overflow
        in_rows, in_own, rest = tf.split(flags, [len(variables.own)] * 2 + [1])
        return BalancedGradients(
            found,
            step.loss_weights * step.weights,
            step.present,
            in_rows & in_own,
            rest[0],
        )

    def _by_task(
        self, tape: tf.GradientTape, variables: TaskVariables, context: StepContext
    ) -> StepGradients:
        balancer = self._pipeline.gradient_balancer
        if context.representation is not None:
            step = self._through_representation(tape, variables, context)
        elif (
            isinstance(balancer, GramBalancer)
            and balancer.update_every > 1
            and replicas() == 1
            and not self.changes_rows
        ):
            step = self._every_kth_step(tape, variables, context)
        else:
            step = self._through_backbone(tape, variables, context)
        if balancer is not None:
            balancer.after_step(step.weights, step.present)
        return step

    def _collected(
        self,
        tape: tf.GradientTape,
        variables: TaskVariables,
        context: StepContext,
        step: StepGradients,
    ) -> dict[int, Gradient]:
        """Returns the gradient of every variable, with those of added losses."""
        balancer = self._pipeline.gradient_balancer
        gradients = by_id(variables.shared, step.shared)
        for index, own_variables in enumerate(variables.own.values()):
            own = step.own[index]
            if balancer is not None and balancer.task_specific == "weighted":
                own = [scaled(gradient, step.weights[index]) for gradient in own]
            gradients |= by_id(own_variables, own)
        gradients |= by_id(variables.unused, [None] * len(variables.unused))
        if context.added:
            everything = [*variables.shared, *itertools.chain(*variables.own.values())]
            everything += variables.unused
            upstream = [context.loss_scale] * len(context.added)
            added = tape.gradient(context.added, everything, upstream)
            for variable, gradient in zip(everything, added, strict=True):
                gradients[id(variable)] = add(gradients[id(variable)], gradient)
        return gradients

    def _objectives(
        self, context: StepContext, loss_weights: tf.Tensor | None
    ) -> Objectives:
        """Returns what to differentiate, weighted unless the weights are None."""
        losses, scale = context.values, context.loss_scale
        own = shared = [scale] * len(losses)
        if loss_weights is not None:
            shared = tf.unstack(loss_weights * scale)
            if not self._pipeline.own_losses_unweighted:
                own = shared
        return Objectives(losses, shared, own, context.added, scale)

    def _task_gradients(
        self,
        tape: tf.GradientTape,
        sources: Sequence[Any],
        variables: TaskVariables,
        context: StepContext,
    ) -> TaskGradients:
        """One backward pass a task; see `TaskGradients`.

        The gradients on variables are summed over replicas; those on a
        representation are not, as every replica has its own samples.
        """
        loss_weights = None
        if not self.changes_rows:
            loss_weights = self._pipeline.loss_weights(context.losses, context.present)
        objectives = self._objectives(context, loss_weights)
        rows, own = _by_task(tape, objectives, sources, variables)
        sub_batches = [
            [
                tape.gradient(loss, list(sources), factor)
                for loss, factor in zip(losses, objectives.shared, strict=True)
            ]
            for losses in context.sub_batches
        ]
        finite = finite_gradients([[*r, *o] for r, o in zip(rows, own, strict=True)])
        if context.representation is None:
            rows = sum_rows(rows)
            sub_batches = [sum_rows(part) for part in sub_batches]
        if loss_weights is not None:
            return TaskGradients(
                rows, own, sub_batches, context.present, loss_weights, finite
            )
        kept = on_all_replicas(finite) | context.may_overflow
        present = self._guard.taking_part(context.present, kept)
        losses = tf.where(present, context.losses, 0.0)
        loss_weights = self._pipeline.loss_weights(losses, present)
        # Of what is masked nothing may be multiplied: zero times infinity is NaN.
        rows, own = masked(rows, present), masked(own, present)
        factors = loss_weights * self._clip_factors(rows, context)
        rows = times(rows, factors)
        if not self._pipeline.own_losses_unweighted:
            own = times(own, loss_weights)
        sub_batches = [times(masked(part, present), factors) for part in sub_batches]
        return TaskGradients(rows, own, sub_batches, present, loss_weights, finite)

    def _clip_factors(
        self, rows: list[list[Gradient]], context: StepContext
    ) -> tf.Tensor:
        """Returns what brings each task gradient to the longest length, `[T]`."""
        if self._clipnorm is None or not rows[0]:
            return tf.ones((len(rows),))
        # Task by task, as only the diagonal is wanted.
        squares = tf.stack([ops.gramian([row])[0, 0] for row in rows])
        if context.representation is not None:
            squares = sum_over_replicas(squares)
        norms = tf.sqrt(squares) / tf.cast(context.loss_scale, "float64")
        factors = tf.where(norms > self._clipnorm, self._clipnorm / norms, 1.0)
        return tf.cast(factors, "float32")

    def _aggregated(
        self, step: GradientStep, loss_weights: tf.Tensor
    ) -> tuple[list[Gradient], tf.Tensor]:
        """Returns the update of the rows and the gradient balancer's weights."""
        if not step.gradients[0]:
            return [], tf.ones_like(loss_weights)
        return self._pipeline.aggregate(step)

    def _through_backbone(
        self, tape: tf.GradientTape, variables: TaskVariables, context: StepContext
    ) -> StepGradients:
        """T backward passes through everything: the exact task gradients."""
        tasks = self._task_gradients(tape, variables.shared, variables, context)
        step = GradientStep(
            tasks.rows,
            context.losses * tasks.loss_weights,
            tasks.present,
            context.loss_scale,
            sub_batches=tasks.sub_batches,
            compute_dtypes=self._compute_dtypes,
            sources=variables.shared,
        )
        update, weights = self._aggregated(step, tasks.loss_weights)
        # The optimizer sums over replicas, each of which has the whole update.
        update = [scaled(gradient, 1.0 / replicas()) for gradient in update]
        return StepGradients(
            update,
            tasks.own,
            weights,
            tasks.loss_weights,
            tasks.present,
            tasks.finite,
        )

    def _through_representation(
        self, tape: tf.GradientTape, variables: TaskVariables, context: StepContext
    ) -> StepGradients:
        """T backward passes through the heads and one through the backbone."""
        assert context.representation is not None
        # Tokens or indices may cross the boundary, too; they have no gradient.
        representation = [t for t in context.representation if t.dtype.is_floating]
        tasks = self._task_gradients(tape, representation, variables, context)
        step = GradientStep(
            tasks.rows,
            context.losses * tasks.loss_weights,
            tasks.present,
            context.loss_scale,
            summed=False,
            compute_dtypes=self._compute_dtypes,
            sources=representation,
        )
        update, weights = self._aggregated(step, tasks.loss_weights)
        upstream = [
            tf.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(representation, update, strict=True)
        ]
        shared = tape.gradient(representation, variables.shared, upstream)
        return StepGradients(
            shared,
            tasks.own,
            weights,
            tasks.loss_weights,
            tasks.present,
            tasks.finite,
        )

    def _every_kth_step(
        self, tape: tf.GradientTape, variables: TaskVariables, context: StepContext
    ) -> StepGradients:
        """Solves every k-th step; in between one pass with the kept weights."""
        balancer = self._pipeline.gradient_balancer
        assert isinstance(balancer, GramBalancer)
        loss_weights = self._pipeline.loss_weights(context.losses, context.present)
        objectives = self._objectives(context, loss_weights)
        # A branch cannot return None. Both leave out the same gradients.
        connected: list[bool] = []

        def packed(
            shared: list[Gradient],
            own: list[list[Gradient]],
            weights: tf.Tensor,
            finite: tf.Tensor,
        ) -> tuple[list[Gradient], tf.Tensor, tf.Tensor]:
            flat = [*shared, *itertools.chain(*own)]
            connected[:] = [gradient is not None for gradient in flat]
            return [g for g in flat if g is not None], weights, finite

        def solve() -> tuple[list[Gradient], tf.Tensor, tf.Tensor]:
            step = self._through_backbone(tape, variables, context)
            return packed(step.shared, step.own, step.weights, step.finite)

        def keep() -> tuple[list[Gradient], tf.Tensor, tf.Tensor]:
            weights = balancer.kept_weights(context.present)
            factors = [
                weight * factor
                for weight, factor in zip(
                    tf.unstack(weights), objectives.shared, strict=True
                )
            ]
            shared = tape.gradient(objectives.losses, variables.shared, factors)
            own = [
                tape.gradient(loss, own_variables, factor)
                for loss, own_variables, factor in zip(
                    objectives.losses,
                    variables.own.values(),
                    objectives.own,
                    strict=True,
                )
            ]
            return packed(shared, own, weights, tf.ones(len(own), "bool"))

        flat, weights, finite = tf.cond(balancer.is_due(context.present), solve, keep)
        given = iter(flat)
        everything = [next(given) if there else None for there in connected]
        shared = everything[: len(variables.shared)]
        rest = iter(everything[len(variables.shared) :])
        own = [[next(rest) for _ in task] for task in variables.own.values()]
        return StepGradients(
            shared, own, weights, loss_weights, context.present, finite
        )

    def _of_weighted_losses(
        self, tape: tf.GradientTape, variables: TaskVariables, context: StepContext
    ) -> tuple[StepGradients, dict[int, Gradient]]:
        """One backward pass; one more through the heads if these are unweighted."""
        loss_weights = self._pipeline.loss_weights(context.losses, context.present)
        objectives = self._objectives(context, loss_weights)
        if self._pipeline.monitor is not None and variables.shared:
            rows, _ = _by_task(tape, objectives, variables.shared, variables)
            self._pipeline.watch(
                GradientStep(
                    sum_rows(rows),
                    context.losses * loss_weights,
                    context.present,
                    context.loss_scale,
                )
            )
        ones = tf.ones_like(loss_weights)
        step = StepGradients(
            [], [], ones, loss_weights, context.present, tf.ones_like(context.present)
        )
        return step, _of_weighted_losses(tape, objectives, variables)


def _of_weighted_losses(
    tape: tf.GradientTape, objectives: Objectives, variables: TaskVariables
) -> dict[int, Gradient]:
    """One backward pass; one more through the heads if these are unweighted."""
    # A tape differentiates a list of scalars as their sum.
    scalars = [*objectives.losses, *objectives.added]
    added = [objectives.loss_scale] * len(objectives.added)
    own_variables = list(itertools.chain(*variables.own.values()))
    shared_variables = [*variables.shared, *variables.unused]
    weighted = [*objectives.shared, *added]
    if objectives.own is objectives.shared:
        everything = [*shared_variables, *own_variables]
        return by_id(everything, tape.gradient(scalars, everything, weighted))
    shared = tape.gradient(scalars, shared_variables, weighted)
    own = tape.gradient(scalars, own_variables, [*objectives.own, *added])
    return by_id(shared_variables, shared) | by_id(own_variables, own)


def _by_task(
    tape: tf.GradientTape,
    objectives: Objectives,
    sources: Sequence[Any],
    variables: TaskVariables,
) -> tuple[list[list[Gradient]], list[list[Gradient]]]:
    """One backward pass a task: gradients on `sources`, and on its own variables."""
    rows, owns = [], []
    for loss, shared, own, own_variables in zip(
        objectives.losses,
        objectives.shared,
        objectives.own,
        variables.own.values(),
        strict=True,
    ):
        if own is shared:
            both = tape.gradient(loss, [*sources, *own_variables], shared)
            rows.append(both[: len(sources)])
            owns.append(both[len(sources) :])
        else:
            rows.append(tape.gradient(loss, list(sources), shared))
            owns.append(tape.gradient(loss, own_variables, own))
    return rows, owns


def norms_on_last_shared_layer(
    tape: tf.GradientTape, context: StepContext, variables: TaskVariables
) -> tf.Tensor:
    """Returns ‖∇ L_i‖ on the shared layer next to the heads, float32 `[T]`.

    The gradients are those of the unweighted losses over all replicas. Ones where
    tasks share nothing.
    """
    if not variables.shared:
        return tf.ones((len(context.values),))
    layer = variables.shared[-1].path.rpartition("/")[0]
    last = [v for v in variables.shared if v.path.rpartition("/")[0] == layer]
    rows = [tape.gradient(loss, last, context.loss_scale) for loss in context.values]
    gramian = ops.gramian(sum_rows(rows))
    norms = tf.sqrt(tf.linalg.diag_part(gramian))
    return tf.cast(norms, "float32") / context.loss_scale
