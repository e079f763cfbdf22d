"""Gradients of one training step: by task where a balancer needs them so."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from mtl_keras import ops
from mtl_keras.balancing.base import (
    GradientBalancer,
    GradientStep,
    GramBalancer,
)
from mtl_keras.balancing.gram_sharpness import SAMO
from mtl_keras.balancing.matrix_momentum import MConFIG
from mtl_keras.balancing.pipeline import Pipeline
from mtl_keras.model.backward import (
    below_representation,
    norm_of,
    of_all_replicas,
    of_whole_batch,
    own_gradients,
    task_rows,
)
from mtl_keras.model.gradient_lists import (
    Gradient,
    add,
    by_id,
    inner_product,
    masked,
    scaled,
    sum_of,
    sum_rows,
    times,
)
from mtl_keras.model.labels import (
    batch_size,
    replicas,
    shared_samples,
)
from mtl_keras.model.nonfinite import (
    NonFiniteGuard,
    finite_by_task,
    finite_gradients,
    on_all_replicas,
)
from mtl_keras.model.running_pass import running_update
from mtl_keras.model.step import Step
from mtl_keras.model.task_variables import TaskVariables
from mtl_keras.model.uphill import rows_uphill


class GradientStepper:
    """Computes the gradients of a model's steps.

    Args:
        pipeline: The balancing.
        guard: The policy for numbers that are not finite.
        task_clipnorm: Longest task gradient, or None.
        compute_dtypes: Those of the model's layers, by name.

    Attributes:
        reached: Ids of the variables that each task's loss reaches in recorded steps
            (`reached_in_step`), by the ids of the trainable variables.
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
        """Whether task gradients are checked or clipped before they are weighted.

        The weights then depend on the result, and cannot go into the backward pass.
        """
        if self._pipeline.running_balancer is not None:
            return False
        return (
            self._clipnorm is not None
            or self._guard.policy == "skip_task"
            or (self._guard.skips and self._pipeline.gradient_balancer is not None)
        )

    @property
    def needs_several_gradients(self) -> bool:
        """Whether one step differentiates more than one scalar."""
        return self._pipeline.needs_several_gradients or self.changes_rows

    @property
    def _gram_matrix_tells(self) -> bool:
        """Whether the Gram matrix tells which rows are finite, without further passes.

        Its diagonal in float64 is finite where a task's gradient is; methods with
        gradients of parts of the batch have no other use for it.
        """
        balancer = self._pipeline.gradient_balancer
        return (
            isinstance(balancer, GramBalancer)
            and not balancer.num_sub_batches
            and not self.changes_rows
        )

    def gradients(self, step: Step, variables: TaskVariables) -> dict[int, Gradient]:
        """Returns the balanced gradient of every trainable variable, by its id.

        Adds to the step its weights and which gradients are finite, and leaves
        present the tasks that took part.

        Args:
            step: Its tape is persistent where `needs_several_gradients`.
            variables: The split of the trainable variables.
        """
        balancer = self._pipeline.gradient_balancer
        step.finite = tf.ones_like(step.present)
        if not self.changes_rows:
            step.loss_weights = self._loss_weights(step)
        if not self.changes_rows and (balancer is None or not variables.shared):
            balanced = self._of_weighted_losses(step, variables)
        else:
            balanced = self._balanced(step, variables)
        gradients = [
            *([balanced[id(v)] for v in own] for own in variables.own.values()),
            [balanced[id(v)] for v in (*variables.shared, *variables.unused)],
        ]
        in_own = finite_by_task(step.losses.layout, gradients[:-1])
        flags = [step.finite, in_own, finite_gradients(gradients[-1:])]
        flags = on_all_replicas(tf.concat(flags, axis=0)) | step.may_overflow
        size = step.present.shape[0]
        # `tf.split` has no kernel for bool on GPUs.
        in_rows, in_own, rest = flags[:size], flags[size:-1], flags[-1:]
        step.finite, step.rest_finite = in_rows & in_own, rest[0]
        return balanced

    def _loss_weights(self, step: Step) -> tf.Tensor:
        return self._pipeline.loss_weights(step.batch_losses, step.present)

    def _upstream(self, step: Step) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Returns factors of the losses for shared variables, and for own ones.

        By output, in the shapes of the losses. One list twice where they are the same.
        Weights that depend on the checked task gradients (`changes_rows`) are left
        out.
        """
        unweighted = [tf.fill(v.shape, step.loss_scale) for v in step.losses.values]
        if self.changes_rows:
            return unweighted, unweighted
        weighted = step.losses.layout.split(step.loss_weights * step.loss_scale)
        unweights_own = self._pipeline.own_losses_unweighted
        return weighted, unweighted if unweights_own else weighted

    def _balanced(self, step: Step, variables: TaskVariables) -> dict[int, Gradient]:
        """Returns the gradient of every variable, with those of added losses."""
        balancer = self._pipeline.gradient_balancer
        running = self._pipeline.running_balancer
        if running is not None:
            self._watch(step, variables)
            shared, own = running_update(
                step,
                variables,
                running,
                self._upstream(step),
                self._compute_dtypes,
                self._pipeline.residual,
            )
        elif step.representation is not None:
            shared, own = self._through_representation(step, variables)
        elif isinstance(balancer, MConFIG) and not self.changes_rows:
            shared, own = self._one_task(step, variables, balancer)
        elif (
            isinstance(balancer, GramBalancer)
            and balancer.update_every > 1
            and replicas() == 1
            and not self.changes_rows
        ):
            shared, own = self._every_kth_step(step, variables, balancer)
        else:
            shared, own = self._through_backbone(step, variables)
        if balancer is not None:
            balancer.after_step(step.weights, step.present)
            if balancer.aligns_heads and variables.shared:
                own = self._aligned(step, variables, own, balancer)
            if balancer.task_specific == "weighted":
                own = times(own, step.losses.layout.split(step.weights))
        gradients = by_id(variables.shared, shared)
        for own_variables, of_task in zip(variables.own.values(), own, strict=True):
            gradients |= by_id(own_variables, of_task)
        gradients |= by_id(variables.unused, [None] * len(variables.unused))
        if step.added:
            everything = [*variables.shared, *itertools.chain(*variables.own.values())]
            everything += variables.unused
            upstream = [step.loss_scale] * len(step.added)
            added = step.tape.gradient(step.added, everything, upstream)
            for variable, gradient in zip(everything, added, strict=True):
                gradients[id(variable)] = add(gradients[id(variable)], gradient)
        return gradients

    def _task_gradients(
        self, step: Step, sources: Sequence[Any], variables: TaskVariables
    ) -> tuple[list[list[Gradient]], list[list[Gradient]], list[list[list[Gradient]]]]:
        """Returns the gradients of the task losses, times the loss balancer's weights.

        One backward pass a task. The gradients on variables are summed over replicas;
        those on a representation are not, as every replica has its own samples.

        Returns:
            Gradients by task on the sources; by output on its own variables; and by
            part of the batch, then by task, on the sources.
        """
        rows, own = self._rows(step, sources, variables)
        upstream, _ = self._upstream(step)
        sub_batches = [
            task_rows(step.tape, losses, sources, upstream)
            for losses in step.sub_batches
        ]
        if self.changes_rows:
            # Else those on own variables are checked with the update.
            step.finite &= finite_by_task(step.losses.layout, own)
        if not self._gram_matrix_tells:
            step.finite &= finite_gradients(rows)
        if step.representation is None:
            rows = sum_rows(rows)
            sub_batches = [sum_rows(part) for part in sub_batches]
        if not self.changes_rows:
            return rows, own, sub_batches
        kept = on_all_replicas(step.finite) | step.may_overflow
        step.present = self._guard.taking_part(step.present, kept)
        step.loss_weights = self._loss_weights(step)
        # Mask before scaling: 0 × inf is NaN.
        split, kept = step.losses.layout.split, tf.unstack(step.present)
        rows, own = masked(rows, kept), masked(own, split(step.present))
        factors = tf.unstack(step.loss_weights * self._clip_factors(step, rows))
        rows = times(rows, factors)
        if not self._pipeline.own_losses_unweighted:
            own = times(own, split(step.loss_weights))
        sub_batches = [times(masked(part, kept), factors) for part in sub_batches]
        return rows, own, sub_batches

    def _rows(
        self, step: Step, sources: Sequence[Any], variables: TaskVariables
    ) -> tuple[list[list[Gradient]], list[list[Gradient]]]:
        """One backward pass a task: on the sources, and by output on own variables."""
        balancer = self._pipeline.gradient_balancer
        if isinstance(balancer, SAMO):
            return rows_uphill(step, variables, balancer, self._upstream(step)[0])
        rows, owns = [], []
        for loss, shared, own, own_variables in zip(
            step.losses.values,
            *self._upstream(step),
            variables.own.values(),
            strict=True,
        ):
            if own is shared and loss.shape.rank == 0:
                both = step.tape.gradient(loss, [*sources, *own_variables], shared)
                rows.append(both[: len(sources)])
                owns.append(both[len(sources) :])
            else:
                rows += task_rows(step.tape, [loss], sources, [shared])
                owns.append(step.tape.gradient(loss, own_variables, own))
        return rows, owns

    def _clip_factors(self, step: Step, rows: list[list[Gradient]]) -> tf.Tensor:
        """Returns per-task clipping factors, float32 `[T]`."""
        if self._clipnorm is None or not rows[0]:
            return tf.ones((len(rows),))
        # Task by task, as only the diagonal is wanted.
        squares = tf.stack([ops.gramian([row])[0, 0] for row in rows])
        squares = of_all_replicas(step, squares)
        norms = tf.sqrt(squares) / tf.cast(step.loss_scale, "float64")
        factors = tf.where(norms > self._clipnorm, self._clipnorm / norms, 1.0)
        return tf.cast(factors, "float32")

    def _aggregated(
        self,
        step: Step,
        rows: list[list[Gradient]],
        sources: Sequence[Any],
        sub_batches: list[list[list[Gradient]]],
    ) -> list[Gradient]:
        """Returns the update of the rows, and adds the weights to the step."""
        if not rows[0]:
            step.weights = tf.ones_like(step.loss_weights)
            return []
        gradient_step = GradientStep(
            rows,
            step.batch_losses * step.loss_weights,
            step.present,
            step.loss_scale,
            summed=step.representation is None,
            sub_batches=sub_batches,
            compute_dtypes=self._compute_dtypes,
            sources=sources,
            shared_samples=self._shared_samples(step),
        )
        update, step.weights = self._pipeline.aggregate(gradient_step)
        if self._gram_matrix_tells:
            squares = tf.linalg.diag_part(gradient_step.gramian)
            step.finite &= tf.math.is_finite(squares)
        return update

    def _through_backbone(
        self, step: Step, variables: TaskVariables
    ) -> tuple[list[Gradient], list[list[Gradient]]]:
        """T backward passes through everything: the exact task gradients.

        Returns:
            The update of the shared variables; by output, the gradients of its own.
        """
        shared = variables.shared
        rows, own, sub_batches = self._task_gradients(step, shared, variables)
        update = self._aggregated(step, rows, shared, sub_batches)
        return of_whole_batch(step, variables, update), own

    def _through_representation(
        self, step: Step, variables: TaskVariables
    ) -> tuple[list[Gradient], list[list[Gradient]]]:
        """T backward passes through the heads and one through the backbone."""
        rows, own, _ = self._task_gradients(step, step.sources, variables)
        update = self._aggregated(step, rows, step.sources, [])
        return below_representation(step, variables, update), own

    def _aligned(
        self,
        step: Step,
        variables: TaskVariables,
        own: list[list[Gradient]],
        balancer: GradientBalancer,
    ) -> list[list[Gradient]]:
        """Adds to the gradients of the heads those that align them at the boundary.

        One backward pass through the heads for each task, and one through that pass.

        Args:
            step: With its weights.
            variables: The split of the trainable variables.
            own: By output, the gradients of its own variables.
            balancer: Its `head_factor` scales the alignments.
        """
        assert step.heads_tape is not None
        upstream, _ = self._upstream(step)
        weights = step.losses.layout.split(step.weights / step.loss_scale)
        with step.heads_tape:
            rows = [
                step.tape.gradient(loss, step.sources, factor)
                for loss, factor in zip(step.losses.values, upstream, strict=True)
            ]
            direction = sum_of(times(rows, weights))
            alignments = [inner_product(row, direction) for row in rows]
        result = []
        for alignment, variables_of, gradients, kept in zip(
            alignments,
            variables.own.values(),
            own,
            step.losses.layout.split(step.present),
            strict=True,
        ):
            further = step.heads_tape.gradient(alignment, variables_of)
            (further,) = masked([further], [kept])
            factor = balancer.head_factor(norm_of(gradients), norm_of(further))
            both = zip(gradients, further, strict=True)
            result.append([add(one, scaled(other, factor)) for one, other in both])
        return result

    def _every_kth_step(
        self, step: Step, variables: TaskVariables, balancer: GramBalancer
    ) -> tuple[list[Gradient], list[list[Gradient]]]:
        """Solves every k-th step; in between one pass with the kept weights."""
        upstream, own_upstream = self._upstream(step)
        # A branch cannot return None. Both leave out the same gradients.
        connected: list[bool] = []

        def packed(
            shared: list[Gradient], own: list[list[Gradient]]
        ) -> tuple[list[Gradient], tf.Tensor, tf.Tensor]:
            flat = [*shared, *itertools.chain(*own)]
            connected[:] = [gradient is not None for gradient in flat]
            return [g for g in flat if g is not None], step.weights, step.finite

        def solve() -> tuple[list[Gradient], tf.Tensor, tf.Tensor]:
            return packed(*self._through_backbone(step, variables))

        def keep() -> tuple[list[Gradient], tf.Tensor, tf.Tensor]:
            step.weights = balancer.kept_weights(step.present)
            step.finite = tf.ones_like(step.present)
            losses = step.losses.values
            weights = step.losses.layout.split(step.weights)
            factors = [w * factor for w, factor in zip(weights, upstream, strict=True)]
            shared = step.tape.gradient(losses, variables.shared, factors)
            return packed(shared, own_gradients(step, variables, own_upstream))

        flat, step.weights, step.finite = tf.cond(
            balancer.is_due(step.present), solve, keep
        )
        present = iter(flat)
        everything = [next(present) if is_any else None for is_any in connected]
        rest = iter(everything[len(variables.shared) :])
        own = [[next(rest) for _ in task] for task in variables.own.values()]
        return everything[: len(variables.shared)], own

    def _one_task(
        self, step: Step, variables: TaskVariables, balancer: MConFIG
    ) -> tuple[list[Gradient], list[list[Gradient]]]:
        """One backward pass for the gradient of the task whose turn it is."""
        self._watch(step, variables)
        losses = step.batch_losses * step.loss_weights
        chosen = balancer.chosen(losses, step.present)
        upstream, own_upstream = self._upstream(step)
        parts = step.losses.layout.split(chosen)
        factors = [part * factor for part, factor in zip(parts, upstream, strict=True)]
        gradient = step.tape.gradient(step.losses.values, variables.shared, factors)
        rows = sum_rows([gradient])
        step.finite = tf.equal(chosen, 0.0) | finite_gradients(rows)
        update, step.weights = balancer.aggregate_one(
            GradientStep(
                rows,
                losses,
                step.present,
                step.loss_scale,
                compute_dtypes=self._compute_dtypes,
                sources=variables.shared,
            ),
            chosen,
        )
        # The optimizer sums over replicas, each of which has the whole update.
        update = [scaled(gradient, 1.0 / replicas()) for gradient in update]
        return update, own_gradients(step, variables, own_upstream)

    def _watch(self, step: Step, variables: TaskVariables) -> None:
        """Updates the monitor of conflicts with the task gradients, if there is one."""
        if self._pipeline.monitor is not None and variables.shared:
            rows, _ = self._rows(step, variables.shared, variables)
            self._pipeline.watch(
                GradientStep(
                    sum_rows(rows),
                    step.batch_losses * step.loss_weights,
                    step.present,
                    step.loss_scale,
                    shared_samples=self._shared_samples(step),
                )
            )

    def _shared_samples(self, step: Step) -> tf.Tensor | None:
        if self._pipeline.monitor is None:
            return None
        return shared_samples(step.labels, step.losses.layout, batch_size(step.y_pred))

    def _of_weighted_losses(
        self, step: Step, variables: TaskVariables
    ) -> dict[int, Gradient]:
        """One backward pass; one more through the heads if these are unweighted."""
        self._watch(step, variables)
        step.weights = tf.ones_like(step.loss_weights)
        upstream, own_upstream = self._upstream(step)
        losses, is_one = step.losses, own_upstream is upstream
        with step.tape:
            added = [loss * step.loss_scale for loss in step.added]
            total = losses.weighted_total(upstream, added)
            own_total = total if is_one else losses.weighted_total(own_upstream, added)
        own = list(itertools.chain(*variables.own.values()))
        shared = [*variables.shared, *variables.unused]
        if is_one:
            everything = [*shared, *own]
            return by_id(everything, step.tape.gradient(total, everything))
        return by_id(shared, step.tape.gradient(total, shared)) | by_id(
            own, step.tape.gradient(own_total, own)
        )
