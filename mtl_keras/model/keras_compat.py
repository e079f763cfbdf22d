"""The only place that reads Keras internals; written for Keras 3.15.

Keras resolves the many forms of `loss`, `loss_weights`, `metrics` and
`weighted_metrics` in `CompileLoss` and `CompileMetrics`, and offers no public way
to the resolved objects. Reading them here keeps every form that Keras accepts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf


class ResolvedLoss(NamedTuple):
    """One of a task's losses as `compile` resolved it."""

    loss: keras.losses.Loss
    weight: float | None
    tracker: keras.metrics.Metric | None


def resolved_losses(
    model: keras.Model, y: dict[str, Any], y_pred: dict[str, Any]
) -> dict[str, list[ResolvedLoss]]:
    """Returns the losses, static weights and loss metrics of each task with a loss.

    Args:
        model: A compiled model.
        y: Labels by task.
        y_pred: Outputs by task; shapes decide what `"crossentropy"` means.
    """
    compile_loss = model._compile_loss
    if not compile_loss.built:
        compile_loss.build(y, y_pred)
    flat = compile_loss._flat_losses
    trackers = compile_loss.metrics or [None] * len(flat)
    resolved: dict[str, list[ResolvedLoss]] = {}
    for entry, tracker in zip(flat, trackers, strict=True):
        loss = ResolvedLoss(entry.loss, entry.loss_weights, tracker)
        resolved.setdefault(entry.path[0], []).append(loss)
    return resolved


class ResolvedMetrics(NamedTuple):
    """One task's metrics as `compile` resolved them."""

    unweighted: list[keras.metrics.Metric]
    weighted: list[keras.metrics.Metric]


def resolved_metrics(
    model: keras.Model, y: dict[str, Any], y_pred: dict[str, Any]
) -> dict[str, ResolvedMetrics]:
    """Returns `metrics` and `weighted_metrics` by task.

    Args:
        model: A compiled model.
        y: Labels by task.
        y_pred: Outputs by task; shapes decide what `"accuracy"` means.
    """
    compiled = model._compile_metrics
    if compiled is None:
        return {}
    if not compiled.built:
        compiled.build(y, y_pred)
    # The flattening of the labels gives the order of the tasks.
    tasks = compiled._flatten_y({task: task for task in y_pred})
    return {
        task: ResolvedMetrics(
            list(unweighted.metrics) if unweighted else [],
            list(weighted.metrics) if weighted else [],
        )
        for task, unweighted, weighted in zip(
            tasks,
            compiled._flat_metrics,
            compiled._flat_weighted_metrics,
            strict=True,
        )
    }


def outputs_of_metrics(
    model: keras.Model, outputs: Sequence[str], results: Mapping[str, Any]
) -> dict[str, str]:
    """Returns the output that each logged metric of `compile` belongs to.

    Args:
        model: A compiled model.
        outputs: Names of all outputs.
        results: All that is logged, in the order of Keras: the metrics of `compile`
            come after `loss`.
    """
    compiled = model._compile_metrics
    if compiled is None or not compiled.built:
        return {}
    order = compiled._flatten_y({output: output for output in outputs})
    by_metric = [
        output
        for metrics in (compiled._flat_metrics, compiled._flat_weighted_metrics)
        for output, of_output in zip(order, metrics, strict=True)
        for _ in (of_output.metrics if of_output else ())
    ]
    losses = {tracker.name for tracker in loss_trackers(model)}
    names = [name for name in results if name not in losses]
    return dict(zip(names, by_metric, strict=False))


def metric_function(
    metric: keras.metrics.Metric,
) -> tuple[Callable[[Any, Any], Any], Any] | None:
    """Returns what a metric takes the mean of; None for another kind of metric.

    Args:
        metric: Any metric.

    Returns:
        From labels and outputs to values, and the function that it wraps.
    """
    if (
        not isinstance(metric, keras.metrics.MeanMetricWrapper)
        or type(metric).update_state is not keras.metrics.MeanMetricWrapper.update_state
    ):
        return None
    return functools.partial(metric._fn, **metric._fn_kwargs), metric._fn


def loss_tracker(model: keras.Model) -> keras.metrics.Mean:
    """Returns the metric behind the logged `loss`."""
    return model._loss_tracker


def loss_trackers(model: keras.Model) -> list[keras.metrics.Mean]:
    """Returns the metrics behind the logged `loss` and `<task>_loss`."""
    return [model._loss_tracker, *model._compile_loss.metrics]


class GraphNode(NamedTuple):
    """One call of an operation in a functional graph."""

    operation: keras.Operation
    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]

    @property
    def used_inputs(self) -> list[keras.KerasTensor]:
        """The inputs that the outputs depend on.

        All but those whose indices a layer names in an attribute
        `auxiliary_inputs`, as it reads them for a loss that it adds alone.
        """
        auxiliary = getattr(self.operation, "auxiliary_inputs", ())
        return [t for index, t in enumerate(self.inputs) if index not in auxiliary]


def graph_nodes(model: keras.Model) -> list[GraphNode]:
    """Returns the calls of a functional model, inputs first."""
    by_depth = model._nodes_by_depth
    return [
        GraphNode(node.operation, list(node.input_tensors), list(node.outputs))
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
    ]


def identity_with_mask(tensor: Any) -> Any:
    """Returns a copy of a tensor that carries its Keras mask."""
    return with_mask(tf.identity(tensor), mask_of(tensor))


def mask_of(tensor: Any) -> Any:
    """Returns the Keras mask that a tensor carries, or None."""
    return getattr(tensor, "_keras_mask", None)


def with_mask(tensor: Any, mask: Any) -> Any:
    """Returns the tensor, made to carry a Keras mask unless that is None."""
    if mask is not None:
        tensor._keras_mask = mask
    return tensor


def call_again(model: keras.Model, inputs: Any) -> Any:
    """Calls a functional model's layers one by one on other symbolic inputs.

    Unlike `model(inputs)`, which is one node of a graph, this adds a node for each
    layer, so that an output depends on those layers alone that it needs.

    Args:
        model: A functional model.
        inputs: `keras.KerasTensor`s in the structure of its inputs.

    Returns:
        `keras.KerasTensor`s in the structure of its outputs.
    """
    return model._run_through_graph(inputs)


def may_overflow(
    optimizer: keras.optimizers.Optimizer, loss_scale: tf.Tensor
) -> tf.Tensor | bool:
    """Whether gradients that are not finite are for the optimizer to deal with.

    One that scales losses skips such a step and halves the scale. At a scale of 1 or
    less, what overflows does so by itself.

    Args:
        optimizer: The optimizer.
        loss_scale: Scalar, its present scale.
    """
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return False
    return loss_scale > 1.0


def update_if(
    condition: tf.Tensor,
    optimizer: keras.optimizers.Optimizer,
    gradients: list[Any],
    variables: list[keras.Variable],
) -> None:
    """Applies gradients where a condition holds; else nothing moves at all.

    Args:
        condition: bool scalar, the same on every replica.
        optimizer: The optimizer; built here if it is not yet, as a branch of a
            graph may not create variables.
        gradients: By variable.
        variables: What to update.
    """
    if not optimizer.built:
        with keras.name_scope(optimizer.name, caller=optimizer):
            optimizer.build(variables)
    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        tf.cond(condition, lambda: _apply(optimizer, gradients, variables), _nothing)
        return

    # A replica may not branch around what synchronises it with the others, as the
    # update does; `LossScaleOptimizer` goes the same way.
    def of_all_replicas(
        strategy: tf.distribute.Strategy, condition: Any, gradients: list[Any]
    ) -> None:
        def update() -> tf.Tensor:
            strategy.extended.call_for_each_replica(
                _apply, args=(optimizer, gradients, variables)
            )
            return tf.constant(True)

        (first, *_) = strategy.experimental_local_results(condition)
        tf.cond(first, update, _nothing)

    tf.distribute.get_replica_context().merge_call(
        of_all_replicas, args=(condition, gradients)
    )


def _apply(
    optimizer: keras.optimizers.Optimizer, gradients: list[Any], variables: list[Any]
) -> tf.Tensor:
    optimizer.apply(gradients, variables)
    return tf.constant(True)


def _nothing() -> tf.Tensor:
    return tf.constant(False)
