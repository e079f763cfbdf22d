"""A functional Keras model with one named output per task."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtl_keras import balancing as balancing_lib
from mtl_keras.balancing.base import LossStep
from mtl_keras.balancing.pipeline import Pipeline
from mtl_keras.errors import InputError, check_number, unknown_name
from mtl_keras.model.arguments import as_list, check_names, tasks_with_loss
from mtl_keras.model.fit_hook import FitHook
from mtl_keras.model.gradients import GradientStepper, norms_on_last_shared_layer
from mtl_keras.model.keras_compat import (
    loss_tracker,
    may_overflow,
    resolved_losses,
    resolved_metrics,
    update_if,
)
from mtl_keras.model.labels import (
    Labels,
    arrange_labels,
    batch_size,
    leave_out,
    replicas,
    sub_batch,
    without_tasks,
)
from mtl_keras.model.nonfinite import NonFiniteGuard
from mtl_keras.model.probe import BatchProbe
from mtl_keras.model.representation import (
    SplitModel,
    check_shared_below,
    split_at_representation,
)
from mtl_keras.model.step import Forward, StepContext
from mtl_keras.model.task_losses import TaskLosses, task_losses, track_total
from mtl_keras.model.task_metrics import update_metrics
from mtl_keras.model.task_variables import (
    compute_dtypes,
    reached_variables,
    split_variables,
)
from mtl_keras.model.training_state import ModelWithTrainingState


@keras.saving.register_keras_serializable(package="mtl_keras")
class MultiTaskModel(ModelWithTrainingState):
    """A `keras.Model` that trains several tasks and balances them.

    Functional: layers reached by two or more outputs are shared, the others belong
    to their task; the model finds out by itself. All of Keras's training interface
    works as in `keras.Model`; `compile` takes one argument more, `balancing`.

    A sample weight of exactly 0 marks an absent label: losses and `metrics` are
    then averages over the labelled samples (see `compile`).

    Args:
        inputs: `keras.Input`, or a list or dict of them.
        outputs: `{task: KerasTensor}`; the keys are the task names.
        name: Name of the model.
        **kwargs: Passed on to `keras.Model`.

    Raises:
        InputError: When `outputs` is not a dict of single tensors.

    Example:

    ```python
    image = keras.Input((28, 28, 1))
    features = keras.layers.Dense(64, "relu")(keras.layers.Flatten()(image))
    model = mtl_keras.MultiTaskModel(
        image,
        {
            "digit": keras.layers.Dense(10, "softmax")(features),
            "even": keras.layers.Dense(1, "sigmoid")(features),
        },
    )
    model.compile(
        "adam",
        loss={"digit": "sparse_categorical_crossentropy",
              "even": "binary_crossentropy"},
        balancing="pcgrad",
    )
    ```
    """

    # The signature of a functional model, so that Keras can restore it as one.
    def __init__(
        self, inputs: Any, outputs: Any, name: str | None = None, **kwargs: Any
    ):
        if not isinstance(outputs, dict) or not all(
            isinstance(output, keras.KerasTensor) for output in outputs.values()
        ):
            raise InputError(
                "Expected `outputs` to be a dict {task name: KerasTensor}, as "
                '{"digit": digit, "even": even} in place of [digit, even]. '
                f"Received: {outputs!r}."
            )
        super().__init__(inputs, outputs, name=name, **kwargs)
        self._outputs_by_task = dict(outputs)
        self._loss_tasks: tuple[str, ...] = tuple(outputs)
        self._pipeline: Pipeline | None = None
        self._guard = NonFiniteGuard("raise")
        self.train_function: Any = None
        self._split: SplitModel | None = None
        self._stopped: frozenset[str] = frozenset()

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks: the outputs, after `compile` those with a loss.

        Sorted, as Keras orders the outputs of a dict.
        """
        return sorted(self._loss_tasks)

    @property
    def balancers(self) -> tuple[balancing_lib.Balancer, ...]:
        """The balancers that `compile` was given; empty before."""
        return self._pipeline.balancers if self._pipeline else ()

    def gradient_cosines(self) -> np.ndarray:
        """Returns the mean cosine of each pair of task gradients, float32 `[T, T]`.

        Over the steps of the present epoch, or of the last one, in the order of
        `tasks`; 0 for pairs that never met. Needs `compile(monitor="conflicts")`.

        Raises:
            InputError: Without the monitor.
        """
        if self._pipeline is None or self._pipeline.monitor is None:
            raise InputError('Expected a model compiled with monitor="conflicts".')
        return self._pipeline.monitor.cosines().numpy()

    @property
    def shared_variables(self) -> list[keras.Variable]:
        """Trainable variables that two or more tasks with a loss reach."""
        return split_variables(self, self._reached).shared

    def stop_tasks(self, tasks: Iterable[str]) -> None:
        """Takes tasks out of the training steps to come, also within a `fit`.

        A stopped task counts as absent from every batch: no loss, no gradient, no
        weight. Metrics and `evaluate` see it as before. `compile` lets all take part.

        Args:
            tasks: The tasks to leave out; all others take part (again).

        Raises:
            InputError: For a name that is no task of the compiled model.
        """
        stopped = frozenset(tasks)
        for task in stopped:
            if task not in self.tasks:
                raise unknown_name("task", task, self.tasks)
        if stopped != self._stopped:
            self._stopped = stopped
            if self.train_function is not None:
                self.make_train_function(force=True)

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: str | bool = "auto",
        auto_scale_loss: bool = True,
        *,
        balancing: Any = "equal",
        monitor: str | None = None,
        on_nonfinite: str = "raise",
        task_clipnorm: float | None = None,
    ) -> None:
        """Configures training. Takes all that `keras.Model.compile` takes.

        With sample weights, a weight of exactly 0 means that the label is absent.
        A task's loss is then Keras's value × batch size / labelled samples (for the
        reductions that average over the batch), `metrics` see labelled samples
        only, and `weighted_metrics` are weighted as in Keras. `loss` is logged as
        Keras defines it, Σ loss_weights · losses plus regularisation, whatever the
        method, so that runs compare.

        Args:
            optimizer: As in Keras.
            loss: As in Keras. Every output needs an entry in a dict; `None` leaves
                an output untrained.
            loss_weights: As in Keras; they multiply the losses before balancing.
                Tasks left out of a dict count 1.
            metrics: As in Keras.
            weighted_metrics: As in Keras.
            run_eagerly: As in Keras.
            steps_per_execution: As in Keras.
            jit_compile: As in Keras.
            auto_scale_loss: As in Keras.
            balancing: A name out of `mtl_keras.balancing.names()`, a configuration,
                a `Balancer`, or a list of a loss balancer and a gradient balancer.
            monitor: `"conflicts"` logs the share of task pairs whose gradients point
                against each other (`conflicts`) and how often the method fell back
                to the mean (`fallbacks`, since the start), and keeps the epoch's
                mean cosines for `gradient_cosines`. Costs T backward passes for a
                loss balancer.
            on_nonfinite: What a task loss or gradient that is NaN or infinite does.
                `"raise"`: an error names the task, the step and the batch; weights
                and optimizer stay as they were before that step. `"skip_step"`: the
                step updates nothing. `"skip_task"`: the task counts as absent from
                the batch, and the step is skipped only where no task is left, or
                something that belongs to no single task is not finite. Costs T
                backward passes. The skips of an epoch are logged as
                `<task>_nonfinite` and `skipped_steps`. A gradient that overflows
                in mixed precision is left to the loss scale.
            task_clipnorm: Scales each task's gradient on the shared variables (or
                on the representation) down to this norm before balancing. Costs T
                backward passes. The optimizer's own `clipnorm`, `global_clipnorm`
                and `clipvalue` act after balancing, on all variables.

        Raises:
            InputError: For an unknown balancing method, an output without a loss,
                or an entry for no output.
        """
        balancers = balancing_lib.get(balancing)
        if not isinstance(balancers, list):
            balancers = [balancers]
        pipeline = Pipeline(balancers, monitor)
        self._stopped = frozenset()
        guard = NonFiniteGuard(on_nonfinite)
        if task_clipnorm is not None:
            task_clipnorm = check_number("task_clipnorm", task_clipnorm, low=0.0)
        outputs = sorted(self._outputs_by_task)
        loss_tasks = tasks_with_loss(loss, outputs)
        check_names("metrics", metrics, outputs)
        check_names("weighted_metrics", weighted_metrics, outputs)
        check_names("loss_weights", loss_weights, outputs)
        if isinstance(loss_weights, dict) and loss_weights:
            loss_weights = {task: loss_weights.get(task, 1.0) for task in loss_tasks}
            if not isinstance(loss, (dict, list, tuple)):
                loss = dict.fromkeys(loss_tasks, loss)
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )
        self._loss_tasks = loss_tasks
        by_task = {task: self._outputs_by_task[task] for task in self.tasks}
        self._reached = reached_variables(self, by_task)
        shared = split_variables(self, self._reached).shared
        self._split = None
        if pipeline.gradients_of_representation and shared:
            self._split = split_at_representation(self, self._outputs_by_task)
            check_shared_below(self._split, shared)
        with self.distribute_strategy.scope():
            pipeline.build(self.tasks, shared)
            guard.build(self.tasks)
        self._pipeline = pipeline
        self._guard = guard
        self._task_clipnorm = task_clipnorm
        self._stepper = GradientStepper(
            pipeline, guard, task_clipnorm, compute_dtypes(self)
        )

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains the model; see `keras.Model.fit`."""
        bound = inspect.signature(super().fit).bind(*args, **kwargs)
        callbacks = bound.arguments.get("callbacks")
        if self._pipeline is not None:
            hook = FitHook(self._pipeline, self._guard)
            if isinstance(callbacks, keras.callbacks.CallbackList):
                callbacks.append(hook)
            else:
                bound.arguments["callbacks"] = [*as_list(callbacks), hook]
        return super().fit(*bound.args, **bound.kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Takes one step on one batch; see `keras.Model.train_on_batch`."""
        logs = super().train_on_batch(*args, **kwargs)
        self._guard.check()
        return logs

    def make_train_function(self, force: bool = False) -> Any:
        """Makes the function that runs an execution's steps; see Keras."""
        if force or self.train_function is None:
            super().make_train_function(force)
            if not self._guard.skips:
                self.train_function = self._guard.watching(self.train_function)
        return self.train_function

    def reset_metrics(self) -> None:
        """Resets all metrics and the mean task weights."""
        super().reset_metrics()
        if self._pipeline is not None:
            self._pipeline.reset_metrics()
            self._guard.reset()

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Returns Σ loss_weights · task losses plus regularisation; see Keras."""
        del x, training
        losses = self._task_losses(self._labels(y, y_pred, sample_weight), y_pred)
        return tf.add_n([*losses.values, *self._added_losses()])

    def task_losses(
        self, y: Any, y_pred: dict[str, Any], sample_weight: Any = None
    ) -> dict[str, tf.Tensor]:
        """Returns each task's loss on a batch, as training sees it.

        Args:
            y: Labels, in a form that `fit` takes.
            y_pred: The model's outputs.
            sample_weight: As in `fit`; 0 marks an absent label.

        Returns:
            `{task: float32 scalar}` in the order of `tasks`, times the task's
            `loss_weights`; 0 for a task without a label in the batch.
        """
        labels = self._labels(y, y_pred, sample_weight)
        losses = self._untracked_losses(labels, y_pred)
        return dict(zip(self.tasks, losses, strict=True))

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Updates the metrics and returns all results; see Keras."""
        del x
        labels = self._labels(y, y_pred, sample_weight)
        update_metrics(resolved_metrics(self, labels.y, y_pred), labels, y_pred)
        return self.get_metrics_result()

    def _labels(self, y: Any, y_pred: Any, sample_weight: Any) -> Labels:
        return arrange_labels(y, sample_weight, y_pred, self.tasks)

    def _added_losses(self) -> list[tf.Tensor]:
        """Returns regularisation and `add_loss` losses, this replica's share."""
        return [tf.reduce_sum(tf.cast(v, "float32")) / replicas() for v in self.losses]

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step: forward, task losses, balanced gradients, update."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        pipeline, guard = self._pipeline, self._guard
        assert pipeline is not None
        assert pipeline.task_weights is not None
        before = []
        if pipeline.needs_probe:
            before = [tf.identity(v.value) for v in self.non_trainable_variables]
        with (
            tf.GradientTape(persistent=self._stepper.needs_several_gradients) as tape,
            guard.statistics_of(self.non_trainable_variables),
        ):
            forward = self._forward(x, y, sample_weight)
        y_pred, labels, losses = forward.y_pred, forward.labels, forward.losses
        totals = losses.total_over_replicas()
        finite = tf.math.is_finite(totals)
        present = guard.taking_part(losses.present, finite)
        track_total(
            loss_tracker(self),
            losses,
            forward.added,
            batch_size(y_pred),
            present if guard.skips else None,
        )
        loss_scale = self.optimizer.scale_loss(tf.ones(()))
        context = StepContext(
            losses.values,
            forward.added,
            tf.where(present, totals, 0.0),
            present,
            loss_scale,
            may_overflow(self.optimizer, loss_scale),
            forward.representation,
            forward.sub_batches,
        )
        variables = split_variables(self, self._reached)
        balanced = self._stepper.gradients(tape, variables, context)
        verdict = guard.judge(
            losses.present,
            finite,
            balanced.finite,
            balanced.rest_finite,
            self.optimizer.iterations,
        )
        present = balanced.present & verdict.update
        step = LossStep(
            tf.where(present, totals, 0.0), present, self.optimizer.learning_rate
        )
        if pipeline.needs_gradient_norms:
            norms = norms_on_last_shared_layer(tape, context, variables)
            step = step._replace(gradient_norms=norms)
        trainable = self.trainable_variables
        gradients = [balanced.by_id[id(v)] for v in trainable]
        update_if(verdict.update, self.optimizer, gradients, trainable)
        if pipeline.needs_probe:
            probe = BatchProbe(self, x, labels, before, self._untracked_losses, present)
            step = step._replace(probe=probe)
        with guard.statistics_of(pipeline.loss_state):
            pipeline.update(step)
        pipeline.task_weights.update_state(balanced.weights, present)
        if guard.skips:
            y_pred, sample_weight = leave_out(verdict.kept, labels, y_pred, self.tasks)
        return {
            **self.compute_metrics(x, y, y_pred, sample_weight=sample_weight),
            **pipeline.logs(),
            **guard.logs(),
        }

    def _forward(self, x: Any, y: Any, sample_weight: Any) -> Forward:
        representation = None
        if self._split is None:
            y_pred = self(x, training=True)
        else:
            representation, y_pred = self._split.call(x)
        labels = self._labels(y, y_pred, sample_weight)
        labels = without_tasks(labels, self._stopped, batch_size(y_pred))
        losses = self._task_losses(labels, y_pred)
        assert self._pipeline is not None
        sub_batches = self._sub_batch_losses(
            labels, y_pred, self._pipeline.num_sub_batches
        )
        return Forward(
            y_pred, labels, losses, sub_batches, self._added_losses(), representation
        )

    def _task_losses(
        self, labels: Labels, y_pred: dict[str, Any], track: bool = True
    ) -> TaskLosses:
        resolved = resolved_losses(self, labels.y, y_pred)
        by_task = {task: resolved[task] for task in self.tasks}
        return task_losses(by_task, labels, y_pred, track, self._guard.skips)

    def _untracked_losses(
        self, labels: Labels, y_pred: dict[str, Any]
    ) -> list[tf.Tensor]:
        return self._task_losses(labels, y_pred, track=False).values

    def _sub_batch_losses(
        self, labels: Labels, y_pred: dict[str, Any], parts: int
    ) -> list[list[tf.Tensor]]:
        """Returns the task losses of disjoint parts of the batch."""
        size = batch_size(y_pred)
        return [
            self._untracked_losses(sub_batch(labels, part, parts, size), y_pred)
            for part in range(parts)
        ]
