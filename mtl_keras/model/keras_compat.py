"""The only place that reads Keras internals; written for Keras 3.15.

Keras resolves the many forms of `loss`, `loss_weights`, `metrics` and
`weighted_metrics` in `CompileLoss` and `CompileMetrics`, and offers no public way
to the resolved objects. Reading them here keeps every form that Keras accepts.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.callbacks.monitor_callback import MonitorCallback
from keras.src.models.functional import Functional, operation_fn
from keras.src.models.model import inject_functional_model_class
from keras.src.saving.keras_saveable import KerasSaveable

__all__ = ["KerasSaveable"]

_ACTIVATIONS = {"Sigmoid": tf.sigmoid, "Softmax": tf.nn.softmax}
_UNNAMED = re.compile(r"keras_tensor(_\d+)?")


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


def outputs_by_metric(
    model: keras.Model, outputs: Sequence[str]
) -> dict[str, list[keras.metrics.Metric]]:
    """Returns the metrics of `compile` by output; empty before they are built.

    Args:
        model: A compiled model.
        outputs: Names of all outputs.
    """
    compiled = model._compile_metrics
    if compiled is None or not compiled.built:
        return {}
    order = compiled._flatten_y({output: output for output in outputs})
    by_output: dict[str, list[keras.metrics.Metric]] = {}
    for metrics in (compiled._flat_metrics, compiled._flat_weighted_metrics):
        for output, of_output in zip(order, metrics, strict=True):
            by_output.setdefault(output, []).extend(
                of_output.metrics if of_output else ()
            )
    return by_output


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
    # A metric may have the name of a loss, whose result then replaces its own.
    _, *names = results
    return dict(zip(names, by_metric, strict=False))


def metric_function(
    metric: keras.metrics.Metric,
) -> tuple[Callable[[Any, Any], Any], Any] | None:
    """Returns the function that a metric averages; None for another kind of metric.

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


def fresh_metric(metric: keras.metrics.Metric) -> keras.metrics.Metric:
    """Returns a new metric as a metric was made, also of a function of one's own."""
    if type(metric) is keras.metrics.MeanMetricWrapper:
        options = {"name": metric.name, "dtype": metric.dtype, **metric._fn_kwargs}
        fresh = keras.metrics.MeanMetricWrapper(metric._fn, **options)
        fresh._direction = metric._direction
        return fresh
    return type(metric).from_config(metric.get_config())


def computed_loss(
    model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any
) -> tf.Tensor:
    """Returns the training loss by `compute_loss`, whatever arguments this takes."""
    return model._compute_loss(
        x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
    )


def infer_monitor_modes(
    model: keras.Model, callbacks: Sequence[Any], tasks: Sequence[str]
) -> None:
    """Sets `mode` where a callback monitors one task and leaves it to be inferred.

    Keras finds only metrics whose name has no output's in front.

    Args:
        model: A compiled model.
        callbacks: Callbacks of any kind.
        tasks: Names of the outputs with a loss.
    """
    modes = {f"{task}_loss": "min" for task in tasks}
    compiled = model._compile_metrics
    if compiled is not None and compiled.built:
        outputs = dict(zip(model.output, model.output, strict=True))
        for task, metrics in resolved_metrics(model, outputs, outputs).items():
            for metric in (*metrics.unweighted, *metrics.weighted):
                direction = getattr(metric, "_direction", None)
                if direction is not None:
                    mode = "max" if direction == "up" else "min"
                    modes[f"{task}_{metric.name}"] = mode
    for callback in callbacks:
        if isinstance(callback, MonitorCallback) and callback.mode == "auto":
            monitored = callback.monitor.removeprefix("val_")
            callback.mode = modes.get(monitored, "auto")


def loss_tracker(model: keras.Model) -> keras.metrics.Mean:
    """Returns the metric behind the logged `loss`."""
    return model._loss_tracker


def loss_trackers(model: keras.Model) -> list[keras.metrics.Mean]:
    """Returns the metrics behind the logged `loss` and `<task>_loss`."""
    of_losses = model._compile_loss.metrics if model._compile_loss else []
    return [model._loss_tracker, *of_losses]


class GraphNode(NamedTuple):
    """One call of an operation in a functional graph."""

    operation: keras.Operation
    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]
    arguments: list[keras.Variable]
    """Variables that the operation was called with."""

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that the call reads, as far as the graph shows."""
        return [*getattr(self.operation, "variables", ()), *self.arguments]

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
    return [
        GraphNode(
            node.operation,
            list(node.input_tensors),
            list(node.outputs),
            [
                value
                for value in keras.tree.flatten(
                    (node.arguments.args, node.arguments.kwargs)
                )
                if isinstance(value, keras.Variable)
            ],
        )
        for node in _nodes(model)
    ]


def inlined_graph_nodes(model: keras.Model, *, every: bool = False) -> list[GraphNode]:
    """Returns the calls of a functional model and of models nested in it.

    A nested functional model of several outputs stands for the calls inside it, as
    an output of it depends on some of its layers only. The tensors inside are
    stand-ins, of which each call of the nested model has its own.

    Args:
        model: A functional model.
        every: Whether nested models of one output stand for their calls, too.
    """
    nodes: list[GraphNode] = []
    for node, call in zip(graph_nodes(model), _nodes(model), strict=True):
        inner = functional_of(node.operation)
        if inner is None or not (every or len(inner.outputs) > 1):
            nodes.append(node)
            continue
        tensors = dict(
            zip(map(id, inner.inputs), _call_inputs(inner, call), strict=True)
        )

        def outer(
            tensor: keras.KerasTensor,
            tensors: dict[int, keras.KerasTensor] = tensors,
        ) -> keras.KerasTensor:
            stand_in = keras.KerasTensor(tensor.shape, tensor.dtype)
            return tensors.setdefault(id(tensor), stand_in)

        for within in inlined_graph_nodes(inner, every=every):
            if within.inputs:
                nodes.append(
                    within._replace(
                        inputs=[outer(t) for t in within.inputs],
                        outputs=[outer(t) for t in within.outputs],
                    )
                )
        passing_on = keras.Operation(name=f"{inner.name}_output")
        nodes += [
            GraphNode(passing_on, [outer(result)], [output], [])
            for result, output in zip(inner.outputs, node.outputs, strict=True)
        ]
    return nodes


def inlined_outputs(
    model: keras.Model, outputs: Mapping[str, keras.KerasTensor]
) -> dict[str, keras.KerasTensor]:
    """Calls the layers of nested models of several outputs one by one.

    Args:
        model: A functional model.
        outputs: `{name: KerasTensor}`, outputs of the model.

    Returns:
        The same outputs, made of the same inputs by the same layers; those that
        depend on no nested model of several outputs are the tensors that they were.
    """
    tensors = {id(tensor): tensor for tensor in model.inputs}
    _call_inlined(model, tensors, None)
    return {name: tensors[id(output)] for name, output in outputs.items()}


def _call_inlined(
    model: Functional, tensors: dict[int, keras.KerasTensor], training: bool | None
) -> None:
    """Adds to `{id of a tensor of the model: tensor}`; its inputs are in it."""
    for node in _nodes(model):
        if node.is_input:
            continue
        arguments, options = node.arguments.fill_in(tensors)
        inner = functional_of(node.operation)
        if inner is not None and len(inner.outputs) > 1:
            inputs = [tensors[id(t)] for t in _call_inputs(inner, node)]
            within = dict(zip(map(id, inner.inputs), inputs, strict=True))
            _call_inlined(inner, within, options.get("training", training))
            results = [within[id(output)] for output in inner.outputs]
        elif all(tensors[id(t)] is t for t in node.input_tensors):
            results = node.outputs
        else:
            call = operation_fn(node.operation, training=training)
            results = keras.tree.flatten(call(*arguments, **options))
        tensors.update(zip(map(id, node.outputs), results, strict=True))


def _nodes(model: keras.Model) -> list[Any]:
    by_depth = model._nodes_by_depth
    return [
        node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]
    ]


def functional_of(operation: keras.Operation) -> Functional | None:
    """Returns the functional model that an operation is, or that a `Sequential` holds.

    None for other operations, and models with a `call` of their own.
    """
    if isinstance(operation, keras.Sequential):
        stock = type(operation).call is keras.Sequential.call
        return operation._functional if stock else None
    if isinstance(operation, Functional) and type(operation).call is Functional.call:
        return operation
    return None


def _call_inputs(model: Functional, node: Any) -> list[keras.KerasTensor]:
    """Returns the tensors of a nested model's call, in the order of its inputs."""
    arguments, options = node.arguments.args, node.arguments.kwargs
    return flat_inputs(model, arguments[0] if arguments else options["inputs"])


def flat_inputs(model: keras.Model, inputs: Any) -> list[Any]:
    """Returns the inputs of a functional model's call, in the order of its own."""
    if isinstance(inputs, dict) and not isinstance(model.input, dict):
        inputs = [inputs[tensor.name] for tensor in model.inputs]
    return keras.tree.flatten(inputs)


def input_names(model: keras.Model) -> list[str]:
    """Returns a name for each of `model.inputs` that is the same in every process.

    A dict's keys, else the names that the inputs were given; Keras numbers those
    without a name, which become `input`, or `input_0`, `input_1`, ….
    """
    if isinstance(model.input, dict):
        by_id = {id(x): key for key, x in model.input.items()}
        return [by_id[id(x)] for x in model.inputs]
    unnamed = [x for x in model.inputs if _UNNAMED.fullmatch(x.name)]
    names = {
        id(x): "input" if len(unnamed) == 1 else f"input_{index}"
        for index, x in enumerate(unnamed)
    }
    return [names.get(id(x), x.name) for x in model.inputs]


def standardized_inputs(model: keras.Model, inputs: Any) -> list[Any]:
    """Returns a batch as tensors in the order of `model.inputs`.

    Args:
        model: A functional model.
        inputs: A batch in any structure that the model can be called with.
    """
    return model._standardize_inputs(inputs)


@contextlib.contextmanager
def as_one_call(model: keras.Model) -> Iterator[None]:
    """Makes calls of a model's layers one call of the model.

    A call that is not inside of another one forgets the losses that its layers have
    added before.
    """
    model._get_call_context()
    try:
        yield
    finally:
        model._maybe_reset_call_context()


def as_functional(cls: type) -> type:
    """Class decorator: `cls` is a `Functional` model from the start.

    Keras makes it so when the first model is made, by a walk over the bases that does
    not take classes which meet `cls` twice.
    """
    inject_functional_model_class(cls)
    return cls


def identity_with_mask(tensor: Any) -> Any:
    """Returns a copy of a tensor that carries its Keras mask.

    Not its logits: the copy is there to be differentiated by.
    """
    return with_mask(tf.identity(tensor), mask_of(tensor))


def mask_of(tensor: Any) -> Any:
    """Returns the Keras mask that a tensor carries, or None."""
    return getattr(tensor, "_keras_mask", None)


def with_mask(tensor: Any, mask: Any) -> Any:
    """Returns the tensor, made to carry a Keras mask unless that is None."""
    if mask is not None:
        tensor._keras_mask = mask
    return tensor


def with_logits(function: Callable[[Any], Any], tensor: Any) -> Any:
    """Returns `function(tensor)`, made to carry its logits if the tensor does.

    Keras notes the logits of a softmax or sigmoid at its output, or looks for them at
    the operation in a graph, and computes crossentropies of these: a probability of 0
    or 1 has no gradient.

    Args:
        function: Selects or rearranges the entries of a tensor.
        tensor: An output of a model.
    """
    result = function(tensor)
    logits = getattr(tensor, "_keras_logits", None)
    operation = getattr(tensor, "op", None)
    if logits is not None:
        result._keras_logits = function(logits)
    elif (
        operation is not None
        and operation.type in _ACTIVATIONS
        and len(result.shape) <= len(tensor.shape)
    ):
        result = _ACTIVATIONS[operation.type](function(operation.inputs[0]))
    return result


def call_again(
    model: keras.Model,
    inputs: Any,
    called_for: Callable[[keras.Operation], Callable[..., Any]] | None = None,
) -> Any:
    """Calls a functional model's layers one by one on other symbolic inputs.

    Unlike `model(inputs)`, which is one node of a graph, this adds a node for each
    layer, so that an output depends on those layers alone that it needs.

    Args:
        model: A functional model.
        inputs: `keras.KerasTensor`s in the structure of its inputs.
        called_for: From an operation to what is called in its place; None for the
            operations themselves.

    Returns:
        `keras.KerasTensor`s in the structure of its outputs.
    """
    if called_for is None:
        return model._run_through_graph(inputs)
    return model._run_through_graph(inputs, operation_fn=called_for)


def call_between(
    model: keras.Model,
    tensors: dict[int, keras.KerasTensor],
    through: Collection[int],
    end: keras.KerasTensor,
) -> keras.KerasTensor:
    """Calls the layers that lead from some tensors to another on other tensors.

    Args:
        model: A functional model.
        tensors: Tensors to call them on, by the id of the model's own tensor.
        through: Ids of the tensors on the way, the ends included.
        end: The model's own tensor that they lead to.

    Returns:
        The tensor in place of the end.
    """
    tensors = dict(tensors)
    for node in _nodes(model):
        made = [id(tensor) for tensor in node.outputs]
        is_new = not any(key in tensors for key in made)
        if is_new and any(key in through for key in made):
            arguments, options = node.arguments.fill_in(tensors)
            results = keras.tree.flatten(node.operation(*arguments, **options))
            tensors.update(zip(made, results, strict=True))
    return tensors[id(end)]


def saving_as_hdf5() -> bool:
    """Returns whether a model's configuration is asked for by Keras's HDF5 format."""
    return bool(global_state.get_global_attribute("use_legacy_config"))


def variables_beside(
    model: keras.Model, variable: keras.Variable
) -> list[keras.Variable]:
    """Returns the trainable variables of the innermost layer that a variable is of.

    Layers of nested models may have the same name, and their variables the same path.

    Args:
        model: The model.
        variable: One of its trainable variables.
    """
    for layer in model._flatten_layers():
        own = [v for v in layer._trainable_variables if v.trainable]
        if any(one is variable for one in own):
            return own
    return [variable]


def may_overflow(
    optimizer: keras.optimizers.Optimizer, loss_scale: tf.Tensor
) -> tf.Tensor | bool:
    """Returns whether non-finite gradients are left to a loss-scaling optimizer.

    It skips such a step and halves the scale. At a scale of 1 or less, an overflow is
    not the scale's doing.

    Args:
        optimizer: The optimizer.
        loss_scale: Scalar, its present scale.
    """
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return False
    return loss_scale > 1.0


def clips(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns whether an optimizer clips gradients, before it sums over replicas."""
    inner = inner_optimizer(optimizer)
    bounds = (inner.clipnorm, inner.clipvalue, inner.global_clipnorm)
    return any(bound is not None for bound in bounds)


def inner_optimizer(
    optimizer: keras.optimizers.Optimizer,
) -> keras.optimizers.Optimizer:
    """Returns the optimizer that a loss-scaling one wraps, another as it is."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def batch_structure(iterator: Any, data_batch: Any) -> Any:
    """Returns a batch of `fit` or `train_on_batch` as `KerasTensor`s, or None.

    None stands for data whose shapes only the step itself learns: Python's own
    numbers, and what is not as Keras 3.15 passes it to `_maybe_symbolic_build`.

    Args:
        iterator: Keras's epoch iterator, or None.
        data_batch: The batch, without an iterator.
    """
    if iterator is not None:
        dataset = getattr(iterator, "_distributed_dataset", None)
        data_batch = getattr(dataset, "element_spec", None)
    leaves = keras.tree.flatten(data_batch)
    if not all(
        leaf is None or (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
        for leaf in leaves
    ):
        return None
    return keras.tree.map_structure(
        lambda leaf: leaf if leaf is None else _symbolic(leaf), data_batch
    )


def _symbolic(value: Any) -> keras.KerasTensor:
    return keras.KerasTensor(
        tuple(value.shape), keras.backend.standardize_dtype(value.dtype)
    )


def build_optimizer(
    optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]
) -> None:
    """Builds an optimizer as its first update would, unless it is built."""
    if not optimizer.built and variables:
        with keras.name_scope(optimizer.name, caller=optimizer):
            optimizer.build(variables)


def update_if(
    condition: tf.Tensor,
    optimizer: keras.optimizers.Optimizer,
    gradients: list[Any],
    variables: list[keras.Variable],
    summed: Collection[keras.Variable] = (),
) -> None:
    """Applies gradients where a condition holds; else nothing moves at all.

    Args:
        condition: bool scalar, the same on every replica.
        optimizer: The optimizer; built here if it is not yet, as a branch of a
            graph may not create variables.
        gradients: By variable.
        variables: Variables to update; may be empty.
        summed: Those whose gradients are already summed over replicas.
    """
    if not variables:
        return
    build_optimizer(optimizer, variables)
    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        with _summing_all_but(summed, optimizer), _checking_values(optimizer):
            tf.cond(
                condition, lambda: _apply(optimizer, gradients, variables), _nothing
            )
        return

    # A replica may not branch around what synchronises it with the others, as the
    # update does; `LossScaleOptimizer` goes the same way.
    def of_all_replicas(
        strategy: tf.distribute.Strategy, condition: Any, gradients: list[Any]
    ) -> None:
        def update() -> tf.Tensor:
            with _summing_all_but(summed, optimizer), _checking_values(optimizer):
                strategy.extended.call_for_each_replica(
                    _apply, args=(optimizer, gradients, variables)
                )
            return tf.constant(True)

        (first, *_) = strategy.experimental_local_results(condition)
        tf.cond(first, update, _nothing)

    tf.distribute.get_replica_context().merge_call(
        of_all_replicas, args=(condition, gradients)
    )


@contextlib.contextmanager
def _summing_all_but(
    summed: Collection[keras.Variable], optimizer: keras.optimizers.Optimizer
) -> Iterator[None]:
    """Has an optimizer take gradients of these variables as they are."""
    optimizer, whole = inner_optimizer(optimizer), {id(v.value) for v in summed}
    if not whole:
        yield
        return
    sum_over_replicas = optimizer._all_reduce_sum_gradients

    def of_others(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        pairs = list(pairs)
        rest = [pair for pair in pairs if id(pair[1]) not in whole]
        if any(gradient is not None for gradient, _ in rest):
            rest = sum_over_replicas(rest)
        others = iter(rest)
        return [pair if id(pair[1]) in whole else next(others) for pair in pairs]

    optimizer._all_reduce_sum_gradients = of_others
    try:
        yield
    finally:
        del optimizer._all_reduce_sum_gradients


@contextlib.contextmanager
def _checking_values(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Has a loss-scaling optimizer check the values of sparse gradients alone.

    Keras spreads its flags over a tensor of the size of the table, for which there is
    no kernel on GPUs either.
    """
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        yield
        return
    check = optimizer.check_finite

    def of_values(gradients: Iterable[Any]) -> Any:
        return check(
            [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
        )

    optimizer.check_finite = of_values
    try:
        yield
    finally:
        del optimizer.check_finite


def _apply(
    optimizer: keras.optimizers.Optimizer, gradients: list[Any], variables: list[Any]
) -> tf.Tensor:
    # As Keras's trainer does it, for the sake of optimizers that override it.
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return tf.constant(True)


def _nothing() -> tf.Tensor:
    return tf.constant(False)
