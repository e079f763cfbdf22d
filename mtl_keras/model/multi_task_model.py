"""A functional Keras model with one named output per task."""

from __future__ import annotations

import contextlib
import inspect
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtl_keras import balancing as balancing_lib
from mtl_keras.balancing.base import LossStep
from mtl_keras.balancing.conflicts import ConflictMonitor
from mtl_keras.balancing.pipeline import Pipeline
from mtl_keras.errors import InputError, check_number, unknown_name
from mtl_keras.model.arguments import (
    arrange_losses,
    as_list,
    check_names,
    check_task_names,
    explained,
)
from mtl_keras.model.backward import norms_on_last_shared_layer
from mtl_keras.model.class_weights import checked, is_by_output, with_class_weight
from mtl_keras.model.column_metrics import ColumnMetric, with_column_metrics
from mtl_keras.model.columns import (
    TaskLayout,
    check_columns,
    variables_by_column,
    weights_by_output,
)
from mtl_keras.model.fit_hook import FitHook, MonitorModes
from mtl_keras.model.gradients import GradientStepper
from mtl_keras.model.keras_compat import (
    as_functional,
    batch_structure,
    build_optimizer,
    clips,
    computed_loss,
    inner_optimizer,
    loss_tracker,
    loss_trackers,
    may_overflow,
    outputs_by_metric,
    outputs_of_metrics,
    resolved_losses,
    resolved_metrics,
    standardized_inputs,
    update_if,
    variables_beside,
)
from mtl_keras.model.labelled_samples import LabelledSamples
from mtl_keras.model.labels import (
    Labels,
    arrange_labels,
    batch_size,
    by_output,
    leave_out,
    nan_as_absent,
    replicas,
    shared_samples,
    sub_batch,
    sum_over_replicas,
    without_tasks,
)
from mtl_keras.model.nonfinite import (
    NonFiniteGuard,
    finite_gradients,
    on_all_replicas,
)
from mtl_keras.model.probe import BatchProbe
from mtl_keras.model.refusals import (
    check_boundary,
    check_groups,
    check_one_loss,
    check_running,
    check_skipping,
    is_equal,
)
from mtl_keras.model.representation import (
    SplitModel,
    check_shared_below,
    reached_around_representation,
    split_at_representation,
)
from mtl_keras.model.step import Step
from mtl_keras.model.summary import (
    column_width,
    described,
    printed_layers,
    with_column,
)
from mtl_keras.model.task_losses import (
    TaskLosses,
    has_value_by_element,
    task_losses,
    track_total,
)
from mtl_keras.model.task_metrics import (
    has_value,
    update_metrics,
    where_computed,
    with_logs,
)
from mtl_keras.model.task_variables import (
    TaskVariables,
    compute_dtypes,
    reached_in_step,
    reached_variables,
    split_variables,
    tasks_by_operation,
)
from mtl_keras.model.training_state import ModelWithTrainingState


@as_functional
@keras.saving.register_keras_serializable(package="mtl_keras")
class MultiTaskModel(ModelWithTrainingState):
    """A `keras.Model` that trains several tasks and balances them.

    Functional: layers reached by two or more outputs are shared, the others belong
    to their task; the model finds out by itself. All of Keras's training interface
    works as in `keras.Model`; `compile` takes one argument more, `balancing`.
    A subclass may override `compute_loss` as Keras documents it, for equal weights:
    its one loss cannot be split by task.

    A sample weight of exactly 0 marks an absent label: losses and `metrics` are
    then averages over what is labelled and not masked (see `compile`).

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
        self._layout = TaskLayout(sorted(outputs))
        self._pipeline: Pipeline | None = None
        self._guard = NonFiniteGuard("raise")
        self.train_function: Any = None
        self._split: SplitModel | None = None
        self._stopped: frozenset[str] = frozenset()
        self._missing_labels: str | None = None
        self._labelled_samples: LabelledSamples | None = None
        self._class_weight: dict[str, dict[int, float]] = {}

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks: the outputs, after `compile` those with a loss.

        Sorted, as Keras orders the outputs of a dict. In place of an output that
        `compile` made a group of tasks stand the names of its columns, in their order.
        """
        return list(self._layout.tasks)

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """Names of the tasks of each output that `compile` made a group of them."""
        return dict(self._layout.columns)

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
        return self._conflict_monitor().cosines().numpy()

    def gradient_conflicts(self) -> dict[str, np.ndarray]:
        """Returns how sure the conflicts of each pair of tasks are, float64 `[T, T]`.

        Over the steps that `gradient_cosines` is of. `"cosines"`: its means.
        `"shared_samples"`: samples with labels of both tasks, mean over the steps in
        which the two met. `"steps"`: how many these are. `"confidence"`: how sure it is
        that the mean cosine is negative, 0 to 1, by a one-sided t-test over the steps;
        0.5 says nothing, and below two steps it is NaN.

        Raises:
            InputError: Without the monitor.
        """
        return self._conflict_monitor().tables()

    def _conflict_monitor(self) -> ConflictMonitor:
        if self._pipeline is None or self._pipeline.monitor is None:
            raise InputError('Expected a model compiled with monitor="conflicts".')
        return self._pipeline.monitor

    @property
    def shared_variables(self) -> list[keras.Variable]:
        """Trainable variables that two or more tasks with a loss reach.

        As the functional graph shows, and after a step as its operations do, which
        also show what closures read.
        """
        return self._split_variables(self._reached).shared

    def _split_variables(self, reached: dict[str, set[int]]) -> TaskVariables:
        groups = {o: self._outputs_by_task[o] for o in self._layout.columns}
        by_column = variables_by_column(self, groups)
        return split_variables(self, reached, groups, by_column)

    def layer_tasks(self) -> dict[str, list[str]]:
        """Returns the tasks that depend on each layer, `{name of layer: tasks}`.

        As the functional graph shows: all tasks for a layer that all share, one for a
        layer of a head, none for a layer of outputs without a loss alone. Nested
        models are listed as one layer.
        """
        by_id = self._tasks_by_operation()
        return {layer.name: by_id.get(id(layer), []) for layer in self.operations}

    def _tasks_by_operation(self) -> dict[int, list[str]]:
        by_id = tasks_by_operation(
            self, {o: self._outputs_by_task[o] for o in self._layout.outputs}
        )
        columns = self._layout.columns
        return {
            key: [task for o in outputs for task in columns.get(o, (o,))]
            for key, outputs in by_id.items()
        }

    def summary(
        self,
        line_length: int | None = None,
        positions: list[float] | None = None,
        print_fn: Callable[[str], Any] | None = None,
        expand_nested: bool = False,
        show_trainable: bool = False,
        layer_range: Sequence[str] | None = None,
    ) -> None:
        """Prints Keras's summary with a column of the tasks of each layer.

        `shared` where all tasks depend on the layer, `3 of 8` where some do, else the
        name of its task; see `layer_tasks`.

        Args:
            line_length: As in Keras, at most the terminal's; else 120.
            positions: As in Keras, of its own columns.
            print_fn: As in Keras.
            expand_nested: As in Keras.
            show_trainable: As in Keras.
            layer_range: As in Keras.
        """
        by_id = self._tasks_by_operation()
        cells = [
            (layer.name, described(by_id.get(id(layer), []), len(self.tasks)))
            for layer in printed_layers(self.operations, expand_nested)
        ]
        columns = shutil.get_terminal_size().columns
        if line_length is None:
            line_length = min(120, columns - 4)
        # Keras truncates lines wider than the terminal.
        line_length = min(line_length, columns)
        text: list[str] = []
        super().summary(
            line_length - column_width(cells),
            positions,
            text.append,
            expand_nested,
            show_trainable,
            layer_range,
        )
        (print_fn or print)(with_column("".join(text), cells))

    @property
    def _reached(self) -> dict[str, set[int]]:
        """The ids of the variables that each task's loss reaches, as far as known."""
        key = self._ids_of_trainable()
        if self.compiled and key in self._stepper.reached:
            return self._stepper.reached[key]
        return self._reached_in_graph()

    def _reached_in_graph(self) -> dict[str, set[int]]:
        # Not kept, as layers may get variables later (LoRA).
        by_output = {o: self._outputs_by_task[o] for o in self._layout.outputs}
        return reached_variables(self, by_output)

    def _ids_of_trainable(self) -> tuple[int, ...]:
        return tuple(id(v) for v in self.trainable_variables)

    def stop_tasks(self, tasks: Iterable[str]) -> None:
        """Excludes tasks from the training steps to come, also within a `fit`.

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
        columns: Mapping[str, Sequence[str]] | None = None,
        missing_labels: str | None = None,
        skip_unlabelled: bool = False,
    ) -> None:
        """Configures training. Takes all that `keras.Model.compile` takes.

        With sample weights, a weight of exactly 0 means that the label is absent, of
        a sample or of an element (a token, a pixel). A task's loss is then the average
        over what is labelled and not masked (for the reductions that average), Keras's
        own value where no label is absent. `metrics` see what is labelled only, and
        `weighted_metrics` are weighted as in Keras. NaN is logged for a loss or metric
        without a label in the epoch. `loss` is logged as Keras defines it,
        Σ loss_weights · losses plus regularisation, whatever the method, so that runs
        compare.

        Args:
            optimizer: As in Keras.
            loss: As in Keras. Every output needs an entry in a dict; `None` leaves
                an output untrained. The losses in a list for one output are added up.
            loss_weights: As in Keras; they multiply the losses before balancing.
                Tasks left out of a dict count 1; columns of `columns` are tasks too.
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
                mean cosines for `gradient_cosines`, and what to believe of them for
                `gradient_conflicts`. Costs T backward passes for a
                loss balancer or a running solve. Of a running solve both it and
                `"residual"` log how far the weights are from the solution
                (`residual`, 0 at it; see `RunningBalancer`) and the fallbacks.
            on_nonfinite: Policy for a task loss or gradient that is NaN or infinite.
                `"raise"`: an error names the task, the step and the batch; weights
                and optimizer stay as they were before that step. `"skip_step"`: the
                step updates nothing. `"skip_task"`: the task counts as absent from
                the batch, and the step is skipped only where no task is left, or
                something that belongs to no single task is not finite. Costs T
                backward passes. The skips of an epoch are logged as
                `<task>_nonfinite` and `skipped_steps`, with a warning where they are
                most. A gradient that overflows in mixed precision is left to the loss
                scale.
            task_clipnorm: Scales each task's gradient on the shared variables (or
                on the representation) down to this norm before balancing. Costs T
                backward passes. The optimizer's own `clipnorm`, `global_clipnorm`
                and `clipvalue` act after balancing, on all variables.
            columns: `{output: names}` of outputs `[batch, T]` that are groups of T
                tasks, one for each column, without layers, losses or metrics of their
                own. Labels are `[batch, T]`, sample weights too where labels are
                absent by task. The loss, a mean over elements such as
                `"binary_crossentropy"`, is one for each column, as of T outputs
                `[batch, 1]`; metrics are means over samples, their square roots (RMSE),
                `"auc"` (ROC or PR) or R². Logged are the means over columns (the loss's
                over labelled elements); `column_results` has each column's. Columns of
                a `Dense` layer that makes them belong to their tasks, all else is
                shared.
            missing_labels: `"nan"`: NaN in a label of floats, also of class ids,
                counts as a sample weight of 0, in training and evaluation. A label
                with as many axes as its output is absent element by element for
                losses that are means over elements (`"mse"`,
                `"binary_crossentropy"`), else (`"categorical_crossentropy"`) where
                anything on its last axis is NaN. `None`: NaN is a number that is not
                finite.
            skip_unlabelled: Whether a training step computes each output, shared
                layers included, on the samples alone whose sample weight for it is
                not 0: a forward pass for each output that has sample weights. The
                losses are the same, but for layers that relate samples of a batch
                (batch normalisation), draw random numbers, or add losses (once in
                each pass). Pays where data sets that label one task each meet in a
                batch: T backward passes then take no longer than one. Is slower where
                most samples have labels of several tasks. Shapes depend on the batch,
                which XLA does not take: `jit_compile="auto"` is False.

        Raises:
            InputError: For an unknown balancing method or `missing_labels`, an option
                that `skip_unlabelled` does not go with, an output without a loss, an
                entry for no output, a loss of several outputs together, a task name
                that TensorFlow does not take, or a class that overrides
                `compute_loss` with other than equal weights.
        """
        class_name = type(self).__name__
        overrides_call = type(self).call is not MultiTaskModel.call
        balancers = balancing_lib.get(balancing)
        if not isinstance(balancers, list):
            balancers = [balancers]
        pipeline = Pipeline([b.owned_by(self) for b in balancers], monitor)
        self._stopped = frozenset()
        guard = NonFiniteGuard(on_nonfinite)
        if missing_labels not in (None, "nan"):
            raise InputError(
                "Expected `missing_labels` to be None or 'nan'. "
                f"Received: missing_labels={missing_labels!r}."
            )
        if task_clipnorm is not None:
            task_clipnorm = check_number("task_clipnorm", task_clipnorm, low=0.0)
        if skip_unlabelled:
            overrides = overrides_call or self._overrides_compute_loss
            check_skipping(class_name, pipeline, overrides, jit_compile)
            jit_compile = False
        if self._overrides_compute_loss:
            check_one_loss(class_name, pipeline, guard, task_clipnorm)
        outputs = sorted(self._outputs_by_task)
        check_task_names(outputs)
        check_names("metrics", metrics, outputs)
        check_names("weighted_metrics", weighted_metrics, outputs)
        groups = check_columns(columns, self._outputs_by_task)
        loss_outputs: Sequence[str] = outputs
        if loss is not None or not self._overrides_compute_loss:
            loss, loss_weights, loss_outputs = arrange_losses(
                loss, weights_by_output(loss_weights, groups), outputs
            )
        as_passed = {"metrics": metrics, "weighted_metrics": weighted_metrics}
        if groups:
            metrics = with_column_metrics(metrics, outputs, groups)
            weighted_metrics = with_column_metrics(weighted_metrics, outputs, groups)
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
        if pipeline.gradient_balancer is not None:
            optimizer = inner_optimizer(self.optimizer)
            pipeline.gradient_balancer.check_optimizer(optimizer)
        self._compile_arguments = {
            "jit_compile": jit_compile,
            "auto_scale_loss": auto_scale_loss,
        }
        self._layout = TaskLayout(loss_outputs, groups)
        if groups:
            self._compile_arguments["columns"] = {o: list(n) for o, n in groups.items()}
            self._compile_arguments |= {
                name: keras.saving.serialize_keras_object(value)
                for name, value in as_passed.items()
            }
            check_groups(groups, pipeline, self._overrides_compute_loss)
        self._missing_labels = missing_labels
        self._labelled_samples = None
        if skip_unlabelled:
            self._labelled_samples = LabelledSamples(self, self._outputs_by_task)
        shared = self._split_variables(self._reached_in_graph()).shared
        self._split = None
        if pipeline.needs_boundary and shared:
            check_boundary(class_name, overrides_call)
            self._split = split_at_representation(self, self._outputs_by_task)
            check_shared_below(self._split, shared)
        if pipeline.running_balancer is not None:
            check_running(
                pipeline.running_balancer, self, self._split, shared, task_clipnorm
            )
        with self.distribute_strategy.scope():
            named = self._layout.named if groups else None
            pipeline.build(self.tasks, shared, named)
            guard.build(self._layout, outputs)
        self._pipeline = pipeline
        self._guard = guard
        self._task_clipnorm = task_clipnorm
        self._stepper = GradientStepper(
            pipeline, guard, task_clipnorm, compute_dtypes(self)
        )

    def column_results(self) -> dict[str, dict[str, np.ndarray]]:
        """Returns weights and metrics by column of outputs that are groups of tasks.

        Of the present epoch, or since the last `evaluate`, as the metrics have it.

        Returns:
            For each such output `{name: float32 [T]}`: `"weight"`, the mean task
            weights, and its metrics, NaN where a column has no label (of an AUC, not
            both classes). In the order of `columns`.
        """
        results: dict[str, dict[str, np.ndarray]] = {}
        if self._pipeline is None or self._pipeline.task_weights is None:
            return results
        means = self._layout.split(self._pipeline.task_weights.means())
        by_output = dict(zip(self._layout.outputs, means, strict=True))
        metrics = outputs_by_metric(self, sorted(self._outputs_by_task))
        for output in self._layout.columns:
            results[output] = {"weight": by_output[output].numpy()}
            for metric in metrics.get(output, ()):
                if isinstance(metric, ColumnMetric):
                    results[output][metric.name] = metric.by_column().numpy()
        return results

    def metrics_without_value(self) -> dict[str, list[str]]:
        """Returns metrics that have no value on the labels since the last `evaluate`.

        Keras gives a number for them all the same: 0 for the area under a curve of
        samples of one class, 0 or what rounding leaves for R² of labels that are all
        one number.

        Returns:
            Names of metrics by output, for outputs that have some.
        """
        metrics = outputs_by_metric(self, sorted(self._outputs_by_task))
        names = {
            output: [metric.name for metric in own if not has_value(metric)]
            for output, own in metrics.items()
        }
        return {output: own for output, own in names.items() if own}

    def check_balanced(self) -> None:
        """Raises `InputError` if a training passed by balancing or class weights.

        As a subclass's `train_step` does that does not call this class's.
        """
        assert self._pipeline is not None
        stock = is_equal(self._pipeline.balancers) and not self._class_weight
        if not self._stepper.was_called and not stock:
            raise InputError(
                f"Expected {type(self).__name__}.train_step to call "
                "super().train_step, which balances the tasks and weights the "
                "classes, or balancing='equal' and no class weights by output. "
                f"Received: balancing={[b.name for b in self._pipeline.balancers]}, "
                f"class_weight={self._class_weight}."
            )

    @property
    def _overrides_compute_loss(self) -> bool:
        return type(self).compute_loss is not MultiTaskModel.compute_loss

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains the model; see `keras.Model.fit`.

        `class_weight` may also be given by output, `{"sold": {0: 1.0, 1: 9.0}}`: the
        same as sample weights of these values. Classes left out count 1; with 0, the
        class's labels are absent.

        Raises:
            InputError: For labels, sample weights or class weights that an output
                cannot take, or both of the latter for one output.
            NonFiniteError: See `compile`.
        """
        bound = inspect.signature(super().fit).bind(*args, **kwargs)
        self._take_class_weight(bound)
        if self._pipeline is None:
            return super().fit(*bound.args, **bound.kwargs)
        callbacks = bound.arguments.get("callbacks")
        hook = FitHook(self._pipeline, self._guard)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            user_callbacks = as_list(callbacks)
            bound.arguments["callbacks"] = [
                MonitorModes(user_callbacks),
                *user_callbacks,
                hook,
            ]
            with explained(sorted(self._outputs_by_task)):
                return super().fit(*bound.args, **bound.kwargs)
        # Keras takes such a list as it is; it is the caller's, so ours leave it.
        user_callbacks = callbacks.callbacks
        callbacks.callbacks = [MonitorModes(user_callbacks), *user_callbacks, hook]
        try:
            for own in (callbacks.callbacks[0], hook):
                own.set_model(self)
            with explained(sorted(self._outputs_by_task)):
                return super().fit(*bound.args, **bound.kwargs)
        finally:
            callbacks.callbacks = user_callbacks

    def _take_class_weight(self, bound: inspect.BoundArguments) -> None:
        """Keeps class weights by output, which Keras refuses, for the steps."""
        class_weight = {}
        if is_by_output(bound.arguments.get("class_weight")):
            by_output = bound.arguments.pop("class_weight")
            class_weight = checked(by_output, sorted(self._outputs_by_task))
        for output in class_weight:
            if output in self._layout.columns:
                raise InputError(
                    "Expected `sample_weight` for the columns of a group of tasks. "
                    f"Received: class_weight of {output!r}."
                )
        if class_weight != self._class_weight:
            self._class_weight = class_weight
            self.train_function = None

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the losses and metrics; see `keras.Model.evaluate`."""
        with explained(sorted(self._outputs_by_task)):
            return super().evaluate(*args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Takes one step on one batch; see `keras.Model.train_on_batch` and `fit`."""
        bound = inspect.signature(super().train_on_batch).bind(*args, **kwargs)
        self._take_class_weight(bound)
        with explained(sorted(self._outputs_by_task)):
            logs = super().train_on_batch(*bound.args, **bound.kwargs)
        self._guard.check()
        return logs

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the losses and metrics of a batch; see `keras.Model`."""
        with explained(sorted(self._outputs_by_task)):
            return super().test_on_batch(*args, **kwargs)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None):
        """Builds losses and metrics; Keras leaves them to the first step.

        TensorFlow traces a step twice if it creates variables.
        """
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
        batch = batch_structure(iterator, data_batch)
        if self._pipeline is None or batch is None or not self._takes_data_as_it_is():
            return
        _, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        outputs, tasks = dict(self._outputs_by_task), self._layout.outputs
        y = by_output(y, outputs, "labels", required=tasks)
        resolved_losses(self, y, outputs)
        resolved_metrics(self, y, outputs)

    def _takes_data_as_it_is(self) -> bool:
        """Returns whether no subclass may rearrange labels before a step."""
        steps = type(self).train_step, type(self).test_step
        return steps == (MultiTaskModel.train_step, MultiTaskModel.test_step)

    def make_train_function(self, force: bool = False) -> Any:
        """Makes the function that runs an execution's steps; see Keras."""
        makes = force or self.train_function is None
        if self._pipeline is not None and (makes or self.run_eagerly):
            # Layers may be frozen or thawed since `compile`.
            with self.distribute_strategy.scope():
                self._pipeline.build_variables(self.shared_variables)
                build_optimizer(self.optimizer, self.trainable_variables)
        if makes:
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
        losses.track()
        return losses.total(losses.scaled(self._added_losses()))

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

    def shared_samples(
        self, y: Any, y_pred: dict[str, Any], sample_weight: Any = None
    ) -> tf.Tensor:
        """Returns how many samples of a batch two tasks share, float32 `[T, T]`.

        Args:
            y: Labels, in a form that `fit` takes.
            y_pred: The model's outputs.
            sample_weight: As in `fit`; 0 marks an absent label.
        """
        labels = self._labels(y, y_pred, sample_weight)
        return shared_samples(labels, self._layout, batch_size(y_pred))

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Updates the metrics and returns all results; see Keras."""
        del x
        labels = self._labels(y, y_pred, sample_weight)
        metrics = resolved_metrics(self, labels.y, y_pred)
        if metrics:
            update_metrics(metrics, labels, y_pred)
            self._guard.labelled_batches.update_state(labels.labelled)
        return self.get_metrics_result()

    def get_metrics_result(self) -> dict[str, Any]:
        """Returns the results of all metrics, NaN for those without any label.

        A replica's own results within a step are as Keras has them.
        """
        results = super().get_metrics_result()
        if self._pipeline is None or replicas() > 1:
            return results
        outputs = sorted(self._outputs_by_task)
        return where_computed(
            results,
            loss_trackers(self),
            outputs_of_metrics(self, outputs, results),
            self._guard.labelled_batches,
        )

    def _labels(self, y: Any, y_pred: Any, sample_weight: Any) -> Labels:
        if self._missing_labels == "nan":
            y, sample_weight = nan_as_absent(
                y,
                sample_weight,
                y_pred,
                self._layout.outputs,
                lambda labels: self._losses_by_element(labels, y_pred),
            )
        return arrange_labels(y, sample_weight, y_pred, self._layout.outputs)

    def _losses_by_element(
        self, y: dict[str, Any], y_pred: dict[str, Any]
    ) -> dict[str, bool]:
        """Returns the tasks all of whose losses have a value for each element."""
        return {
            task: all(has_value_by_element(one.loss) for one in losses)
            for task, losses in resolved_losses(self, y, y_pred).items()
        }

    def _added_losses(self) -> list[tf.Tensor]:
        """Returns regularisation and `add_loss` losses, this replica's share."""
        added = [tf.reduce_sum(tf.cast(value, "float32")) for value in self.losses]
        if replicas() == 1:
            return added
        return [value * (1.0 / replicas()) for value in added]

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step: forward, task losses, balanced gradients, update."""
        self._stepper.was_called = True
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = self._step_inputs(x)
        if self._class_weight:
            sample_weight = with_class_weight(
                y, sample_weight, self._class_weight, self._outputs_by_task
            )
        if self._overrides_compute_loss:
            return self._step_on_one_loss(x, y, sample_weight)
        pipeline, guard = self._pipeline, self._guard
        assert pipeline is not None
        assert pipeline.task_weights is not None
        before = []
        if pipeline.needs_probe:
            before = [tf.identity(v.value) for v in self.non_trainable_variables]
        step = self._forward(x, y, sample_weight)
        if pipeline.needs_probe:
            step.probe = BatchProbe(self, x, step, before, self._untracked_losses)
        variables = self._task_variables(step)
        gradients = self._stepper.gradients(step, variables)
        update, kept = guard.judge(
            step.losses.present,
            tf.math.is_finite(step.totals),
            step.finite,
            step.rest_finite,
            self.optimizer.iterations,
        )
        step.present &= update
        learned = LossStep(
            step.batch_losses,
            step.present,
            tf.cast(self.optimizer.learning_rate, "float32"),
            probe=step.probe,
        )
        if pipeline.needs_gradient_norms:
            shared = self._split_variables(self._reached_in_graph()).shared
            last = variables_beside(self, shared[-1]) if shared else []
            norms = norms_on_last_shared_layer(step, last)
            learned = learned._replace(gradient_norms=norms)
        trainable = self.trainable_variables
        update_if(
            update,
            self.optimizer,
            [gradients[id(v)] for v in trainable],
            trainable,
            step.summed,
        )
        with guard.statistics_of(pipeline.loss_state):
            pipeline.update(learned)
        pipeline.task_weights.update_state(
            step.loss_weights * step.weights, step.present
        )
        y_pred = step.y_pred
        if guard.skips:
            parts = self._layout.split(kept)
            by_output = dict(zip(self._layout.outputs, parts, strict=True))
            y_pred, sample_weight = leave_out(by_output, step.labels, y_pred)
        results = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return with_logs(results, {**pipeline.logs(), **guard.logs()})

    def _step_inputs(self, x: Any) -> Any:
        """Returns the inputs of a training step; a subclass adds those of its own."""
        return x

    def _step_on_one_loss(self, x: Any, y: Any, sample_weight: Any) -> dict[str, Any]:
        """One step on the loss of a subclass's `compute_loss`, as Keras takes it."""
        pipeline, guard, optimizer = self._pipeline, self._guard, self.optimizer
        assert pipeline is not None
        assert pipeline.task_weights is not None
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = computed_loss(self, x, y, y_pred, sample_weight)
            scaled = optimizer.scale_loss(loss)
        loss_tracker(self).update_state(
            loss * tf.cast(replicas(), loss.dtype), sample_weight=batch_size(y_pred)
        )
        trainable = self.trainable_variables
        gradients = tape.gradient(scaled, trainable)
        finite = tf.reduce_all(tf.math.is_finite(sum_over_replicas(loss)))
        (usable,) = tf.unstack(on_all_replicas(finite_gradients([gradients])))
        usable |= may_overflow(optimizer, optimizer.scale_loss(tf.ones(())))
        present = tf.ones((len(self.tasks),), "bool")
        update, _ = guard.judge(
            present, present & finite, present, usable, optimizer.iterations
        )
        update_if(update, optimizer, gradients, trainable)
        pipeline.task_weights.update_state(tf.cast(present, "float32"), present)
        results = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return with_logs(results, pipeline.logs())

    def _forward(self, x: Any, y: Any, sample_weight: Any) -> Step:
        """Runs the model and logs its losses; returns the state of the step."""
        assert self._pipeline is not None
        guard, split = self._guard, self._split
        on_boundary = self._pipeline.gradients_of_representation
        inputs: list[Any] = []
        boundary: list[Any] | None = None
        heads_tape = None
        with (
            tf.GradientTape(persistent=self._stepper.needs_several_gradients) as tape,
            guard.statistics_of(self.non_trainable_variables),
        ):
            if split is not None:
                inputs = standardized_inputs(self, x)
                boundary = split.below(inputs)
                heads_tape = tf.GradientTape(persistent=True)
            with heads_tape or contextlib.nullcontext():
                if self._labelled_samples is not None:
                    y_pred = self._labelled_samples.outputs(x, sample_weight)
                elif split is None or boundary is None:
                    y_pred = self(x, training=True)
                else:
                    y_pred = split.above(boundary, inputs)
                labels = self._labels(y, y_pred, sample_weight)
                stopped = self._layout.masks(sorted(self._stopped))
                labels = without_tasks(labels, stopped, y_pred)
                losses = self._task_losses(labels, y_pred)
            sub_batches = self._sub_batch_losses(
                labels, y_pred, self._pipeline.num_sub_batches
            )
            added = losses.scaled(self._added_losses())
        totals = losses.total_over_replicas()
        finite = tf.math.is_finite(totals)
        present = guard.taking_part(losses.present, finite)
        losses.track(finite if guard.skips else None)
        track_total(
            loss_tracker(self),
            losses,
            added,
            batch_size(y_pred),
            present if guard.skips else None,
        )
        loss_scale = self.optimizer.scale_loss(tf.ones(()))
        return Step(
            tape=tape,
            heads_tape=heads_tape,
            boundary=boundary,
            representation=boundary if on_boundary else None,
            y_pred=y_pred,
            labels=labels,
            losses=losses,
            sub_batches=sub_batches,
            added=added,
            totals=totals,
            present=present,
            loss_scale=loss_scale,
            may_overflow=may_overflow(self.optimizer, loss_scale),
            clips=clips(self.optimizer),
        )

    def _task_variables(self, step: Step) -> TaskVariables:
        """Returns the split of the trainable variables, from the recorded step."""
        key = self._ids_of_trainable()
        known = tf.executing_eagerly() and key in self._stepper.reached
        if self._stepper.needs_several_gradients and not known:
            outputs = self._layout.outputs
            losses = dict(zip(outputs, step.losses.values, strict=True))
            reached = self._reached_in_graph()
            if self._split is None:
                reached = reached_in_step(self, step.tape, losses, reached)
            else:
                reached = reached_around_representation(
                    self._split,
                    (step.tape, step.heads_tape),
                    losses,
                    step.sources,
                    self.trainable_variables,
                    reached,
                )
            self._stepper.reached[key] = reached
        return self._split_variables(self._reached)

    def _task_losses(self, labels: Labels, y_pred: dict[str, Any]) -> TaskLosses:
        # At the root TensorFlow takes fewer names for a scope.
        with tf.name_scope("task_losses"):
            resolved = resolved_losses(self, labels.y, y_pred)
            return task_losses(resolved, labels, y_pred, self._layout)

    def _untracked_losses(
        self, labels: Labels, y_pred: dict[str, Any]
    ) -> list[tf.Tensor]:
        """Returns this replica's share of the T task losses, scalars."""
        losses = self._task_losses(labels, y_pred)
        if not self._layout.columns:
            return losses.values
        return tf.unstack(losses.joined(), len(self.tasks))

    def _sub_batch_losses(
        self, labels: Labels, y_pred: dict[str, Any], parts: int
    ) -> list[list[tf.Tensor]]:
        """Returns the task losses of disjoint parts of the batch."""
        size = batch_size(y_pred)
        return [
            self._task_losses(sub_batch(labels, part, parts, size), y_pred).values
            for part in range(parts)
        ]
