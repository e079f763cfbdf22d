"""Gradients of one training step: by task where a balancer needs them so."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from mtl_keras import ops
from mtl_keras.balancing.base import (
    GradientBalancer,
    GradientStep,
    GramBalancer,
    agreed,
    coarsest_spacing,
)
from mtl_keras.balancing.gram_sharpness import SAMO
from mtl_keras.balancing.matrix_momentum import MConFIG
from mtl_keras.balancing.pipeline import Pipeline
from mtl_keras.balancing.running import RunningBalancer
from mtl_keras.model.derivatives import explained_derivatives
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
    unit_upstream,
)
from mtl_keras.model.labels import (
    batch_size,
    replicas,
    shared_samples,
    sum_over_replicas,
)
from mtl_keras.model.nonfinite import (
    NonFiniteGuard,
    finite_by_task,
    finite_gradients,
    on_all_replicas,
)
from mtl_keras.model.probe import BatchProbe
from mtl_keras.model.step import Step
from mtl_keras.model.task_variables import TaskVariables


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
            shared, own = self._running(step, variables, running)
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
            _task_rows(step.tape, losses, sources, upstream)
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
            return self._rows_uphill(step, variables, balancer)
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
                rows += _task_rows(step.tape, [loss], sources, [shared])
                owns.append(step.tape.gradient(loss, own_variables, own))
        return rows, owns

    def _rows_uphill(
        self, step: Step, variables: TaskVariables, balancer: SAMO
    ) -> tuple[list[list[Gradient]], list[list[Gradient]]]:
        """`_rows` of weights that are moved for each task in turn."""
        probe, shared = step.probe, variables.shared
        assert probe is not None
        upstream, _ = self._upstream(step)
        owned = list(itertools.chain(*variables.own.values()))
        gradients = step.tape.gradient(step.losses.values, [*shared, *owned], upstream)
        (gradients,) = sum_rows([gradients])
        by_variable = {
            id(v): tf.zeros(v.shape) if g is None else tf.convert_to_tensor(g)
            for v, g in zip([*shared, *owned], gradients, strict=True)
        }
        directions = balancer.directions([v.shape for v in shared])
        rises = _rises(probe, shared, directions, balancer.epsilon)
        trainable = probe.model.trainable_variables
        global_gradients = [by_variable[id(v)] for v in shared]
        rows, owns = [], []
        for index, own in enumerate(variables.own.values()):
            moves = by_id(
                [*shared, *own],
                [
                    *balancer.shift(global_gradients, directions[index], rises[index]),
                    *balancer.uphill([by_variable[id(v)] for v in own]),
                ],
            )
            point = _moved_weights(probe, moves)
            with tf.GradientTape() as tape:
                tape.watch(point)
                loss = probe.losses(point)[index]
            # Losses read variables of their own as they are, outside of the model.
            moved, own_of_losses = tape.gradient(
                loss, [point, trainable], upstream[index]
            )
            at_point = by_id(
                trainable,
                [add(*pair) for pair in zip(moved, own_of_losses, strict=True)],
            )
            rows.append([at_point[id(v)] for v in shared])
            owns.append([at_point[id(v)] for v in own])
        return rows, owns

    def _clip_factors(self, step: Step, rows: list[list[Gradient]]) -> tf.Tensor:
        """Returns per-task clipping factors, float32 `[T]`."""
        if self._clipnorm is None or not rows[0]:
            return tf.ones((len(rows),))
        # Task by task, as only the diagonal is wanted.
        squares = tf.stack([ops.gramian([row])[0, 0] for row in rows])
        squares = _of_all_replicas(step, squares)
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
        return _of_whole_batch(step, variables, update), own

    def _through_representation(
        self, step: Step, variables: TaskVariables
    ) -> tuple[list[Gradient], list[list[Gradient]]]:
        """T backward passes through the heads and one through the backbone."""
        rows, own, _ = self._task_gradients(step, step.sources, variables)
        update = self._aggregated(step, rows, step.sources, [])
        return _below_representation(step, variables, update), own

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
            factor = balancer.head_factor(_norm(gradients), _norm(further))
            both = zip(gradients, further, strict=True)
            result.append([add(one, scaled(other, factor)) for one, other in both])
        return result

    def _running(
        self, step: Step, variables: TaskVariables, balancer: RunningBalancer
    ) -> tuple[list[Gradient], list[list[Gradient]]]:
        """One backward pass with weights that follow the solution.

        With J the Jacobian of the T losses and w the weights the pass gives Jᵀw, which
        is linear in w. Its own derivative by w along Jᵀw is J Jᵀw = G w, one pass more.
        """
        sources = variables.shared
        if step.representation is not None:
            sources = step.sources
        self._watch(step, variables)
        losses = step.batch_losses * step.loss_weights
        upstream, own_upstream = self._upstream(step)
        own = _own_gradients(step, variables, own_upstream)
        sizes = self._sizes(step, own)
        weights = balancer.running_weights(losses, sizes, step.present)
        with tf.GradientTape(watch_accessed_variables=False) as second:
            second.watch(weights)
            parts = step.losses.layout.split(weights)
            factors = [w * factor for w, factor in zip(parts, upstream, strict=True)]
            update = step.tape.gradient(step.losses.values, sources, factors)
        reached = [g for g in update if g is not None]
        if step.representation is None:
            (update,) = sum_rows([update])
        totals = [g for g in update if g is not None]
        square = ops.gramian([totals])[0, 0]
        square = _of_all_replicas(step, square)
        norm = tf.sqrt(square)

        def products() -> tf.Tensor:
            if balancer.solve == "running_difference":
                rates = self._difference_quotients(step, variables, update, norm)
                rates *= step.loss_weights * step.loss_scale
            else:
                along = unit_upstream(reached, totals, norm)
                flat = [
                    g.values if isinstance(g, tf.IndexedSlices) else g for g in reached
                ]
                with explained_derivatives():
                    rates = second.gradient(flat, weights, along)
            rates = sum_over_replicas(tf.cast(rates, "float64"))
            return rates * norm / tf.square(tf.cast(step.loss_scale, "float64"))

        due = tf.constant(True)
        if balancer.update_every > 1:
            due = balancer.is_due(step.present)
        if balancer.update_every > 1 and replicas() == 1:
            gw = tf.cond(due, products, lambda: tf.zeros_like(weights, "float64"))
        else:
            gw = products()
        factor = balancer.running_factor(
            norm / tf.cast(step.loss_scale, "float64"), sizes, step.present
        )
        residual, is_any = balancer.follow(gw, losses, sizes, step.present, due)
        if self._pipeline.residual is not None:
            self._pipeline.residual.update_state(
                residual, sample_weight=tf.cast(is_any, "float32")
            )
        step.weights = weights * factor
        if step.representation is not None:
            update = _below_representation(step, variables, update)
        else:
            update = _of_whole_batch(step, variables, update)
        # Not on the representation, whose dtype may not hold the factor.
        return [scaled(gradient, factor) for gradient in update], own

    def _sizes(self, step: Step, own: list[list[Gradient]]) -> tf.Tensor:
        """Returns norms of the gradients of the tasks' own variables, float64 `[T]`.

        In place of one the size of the loss, of a task without such variables.

        Args:
            step: Its losses are weighted.
            own: By output, this replica's.
        """
        layout = step.losses.layout
        losses = step.batch_losses * step.loss_weights
        factors = tf.ones_like(losses) / step.loss_scale
        if self._pipeline.own_losses_unweighted:
            factors *= step.loss_weights
        sizes = []
        for loss, factor, row in zip(
            layout.split(losses), layout.split(factors), own, strict=True
        ):
            gradients = [gradient for gradient in row if gradient is not None]
            if not gradients:
                sizes.append(tf.cast(tf.abs(loss), "float64"))
                continue
            norm = _norm if loss.shape.rank == 0 else _column_norms
            sizes.append(norm(gradients) * tf.cast(factor, "float64"))
        return tf.where(step.present, layout.joined(sizes), 0.0)

    def _difference_quotients(
        self,
        step: Step,
        variables: TaskVariables,
        update: list[Gradient],
        norm: tf.Tensor,
    ) -> tf.Tensor:
        """Returns this replica's share of (L(θ + εv) − L(θ)) / ε, float32 `[T]`.

        Along the update, of unit length; ε is relative to the length of θ, the square
        root of the spacing of the dtype that the losses are computed in.
        """
        assert step.probe is not None
        squares = [
            tf.reduce_sum(tf.square(tf.cast(v.value, "float32")))
            for v in variables.shared
        ]
        # The losses themselves are float32 at best.
        spacing = coarsest_spacing(["float32", *self._compute_dtypes])
        epsilon = math.sqrt(spacing) * tf.sqrt(tf.add_n(squares))
        length = tf.math.divide_no_nan(epsilon, tf.cast(norm, "float32"))
        moves = by_id(variables.shared, [scaled(g, length) for g in update])
        moved = _moved_weights(step.probe, moves)
        difference = tf.stack(step.probe.losses(moved)) - step.losses.joined()
        difference = tf.where(step.present, difference, 0.0)
        return tf.math.divide_no_nan(difference, epsilon)

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
            return packed(shared, _own_gradients(step, variables, own_upstream))

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
        return update, _own_gradients(step, variables, own_upstream)

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


def _task_rows(
    tape: tf.GradientTape,
    losses: Sequence[tf.Tensor],
    sources: Sequence[Any],
    upstream: Sequence[tf.Tensor],
) -> list[list[Gradient]]:
    """One backward pass a task: gradients by task on the sources.

    Of a group of tasks in a loop of the graph, which is traced once.

    Args:
        tape: A persistent tape.
        losses: By output, scalars or `[tasks of the output]`.
        sources: Tensors or variables to differentiate by.
        upstream: By output, in the shapes of the losses.
    """
    rows: list[list[Gradient]] = []
    for loss, factor in zip(losses, upstream, strict=True):
        if loss.shape.rank == 0:
            rows.append(tape.gradient(loss, list(sources), factor))
            continue
        connected = [g is not None for g in tape.gradient(loss, list(sources))]
        reached = [v for v, is_any in zip(sources, connected, strict=True) if is_any]

        stacked = _column_rows(tape, loss, reached, factor)
        columns = iter([tf.unstack(rows_of, loss.shape[0]) for rows_of in stacked])
        by_source = [next(columns) if is_any else None for is_any in connected]
        rows += [
            [None if of_source is None else of_source[index] for of_source in by_source]
            for index in range(loss.shape[0])
        ]
    return rows


def _column_rows(
    tape: tf.GradientTape, loss: tf.Tensor, sources: Sequence[Any], factors: tf.Tensor
) -> list[tf.Tensor]:
    """Gradients of the entries of a loss `[T]`, by source `[T, …]`."""
    size, upstream = loss.shape[0], tf.linalg.diag(factors)

    def body(
        index: tf.Tensor, rows: list[tf.TensorArray]
    ) -> tuple[tf.Tensor, list[tf.TensorArray]]:
        gradients = tape.gradient(loss, sources, upstream[index])
        return index + 1, [
            array.write(index, tf.convert_to_tensor(gradient))
            for array, gradient in zip(rows, gradients, strict=True)
        ]

    arrays = [
        tf.TensorArray(tf.as_dtype(source.dtype), size, element_shape=source.shape)
        for source in sources
    ]
    # `tf.map_fn` bounds its iterations, which hides their number from XLA.
    _, arrays = tf.while_loop(lambda index, _: index < size, body, (0, arrays))
    return [array.stack() for array in arrays]


def _moved_weights(probe: BatchProbe, moves: Mapping[int, Gradient]) -> list[tf.Tensor]:
    """Returns the trainable weights after moves, in their dtypes.

    Args:
        probe: The step's.
        moves: By id of their variable; None, or no entry, for those that stay.
    """
    weights = []
    for variable, weight in zip(
        probe.model.trainable_variables, probe.weights(), strict=True
    ):
        move = moves.get(id(variable))
        if move is not None:
            weight = weight + tf.cast(tf.convert_to_tensor(move), weight.dtype)
        weights.append(weight)
    return weights


def _rises(
    probe: BatchProbe,
    shared: Sequence[keras.Variable],
    directions: Sequence[Sequence[tf.Tensor]],
    epsilon: float,
) -> list[tf.Tensor]:
    """Returns L_i(θ + εz_i) − L_i(θ − εz_i) for each task, of all replicas.

    Args:
        probe: The step's.
        shared: The V shared variables θ.
        directions: z, V tensors by task.
        epsilon: ε.
    """
    rises = []
    for index, direction in enumerate(directions):
        ahead, behind = (
            probe.losses(
                _moved_weights(
                    probe, by_id(shared, [scaled(z, length) for z in direction])
                )
            )[index]
            for length in (epsilon, -epsilon)
        )
        rises.append(ahead - behind)
    return tf.unstack(sum_over_replicas(tf.stack(rises)))


def _norm(gradients: list[Gradient]) -> tf.Tensor:
    """Returns the norm of gradients of the whole batch, float64 scalar."""
    return tf.sqrt(agreed(ops.gramian(sum_rows([gradients])))[0, 0])


def _column_norms(gradients: list[Gradient]) -> tf.Tensor:
    """Returns norms over all axes but the last, of the tasks of a group, `[T]`."""
    squares = []
    for gradient in sum_rows([gradients])[0]:
        values = tf.cast(tf.convert_to_tensor(gradient), "float64")
        axes = list(range(len(values.shape) - 1))
        squares.append(tf.reduce_sum(tf.square(values), axes))
    return tf.sqrt(agreed(tf.add_n(squares)))


def _of_all_replicas(step: Step, squares: tf.Tensor) -> tf.Tensor:
    """Returns squares of norms over the whole batch, the same on each replica.

    Gradients of a representation are those of a replica's own samples, those of
    variables are of all samples already.
    """
    is_share = step.representation is not None
    return sum_over_replicas(squares) if is_share else agreed(squares)


def _of_whole_batch(
    step: Step, variables: TaskVariables, update: list[Gradient]
) -> list[Gradient]:
    """Returns an update that each replica has of the whole batch, for the optimizer.

    Which is not to sum it over replicas, but where the gradients of added losses, each
    replica's share, come on top, or norms of such shares are clipped together with it.
    """
    if step.added or step.clips:
        return [scaled(gradient, 1.0 / replicas()) for gradient in update]
    step.summed = list(variables.shared)
    return update


def _own_gradients(
    step: Step, variables: TaskVariables, upstream: list[tf.Tensor]
) -> list[list[Gradient]]:
    """One backward pass through the heads: gradients by output on own variables."""
    own = list(itertools.chain(*variables.own.values()))
    gradients = iter(step.tape.gradient(step.losses.values, own, upstream))
    return [[next(gradients) for _ in task] for task in variables.own.values()]


def _below_representation(
    step: Step, variables: TaskVariables, update: list[Gradient]
) -> list[Gradient]:
    """One backward pass through the backbone, for an update of the representation."""
    upstream = [
        tf.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(step.sources, update, strict=True)
    ]
    return step.tape.gradient(step.sources, variables.shared, upstream)


def norms_on_last_shared_layer(
    step: Step, variables: Sequence[keras.Variable]
) -> tf.Tensor:
    """Returns ‖∇ L_i‖ on the shared layer next to the heads, float32 `[T]`.

    The gradients are those of the unweighted losses over all replicas.

    Args:
        step: Its tape is persistent.
        variables: Those of the layer; ones are returned for none.
    """
    losses = step.losses.values
    if not variables:
        return tf.ones(step.present.shape)
    upstream = [tf.fill(loss.shape, step.loss_scale) for loss in losses]
    rows = _task_rows(step.tape, losses, variables, upstream)
    gramian = agreed(ops.gramian(sum_rows(rows)))
    norms = tf.sqrt(tf.linalg.diag_part(gramian))
    return tf.cast(norms, "float32") / step.loss_scale
