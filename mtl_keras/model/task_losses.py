"""Task losses that average over labelled, unmasked elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from mtl_keras.errors import InputError
from mtl_keras.model.arguments import naming_output
from mtl_keras.model.columns import TaskLayout
from mtl_keras.model.keras_compat import (
    ResolvedLoss,
    mask_of,
    with_logits,
    with_mask,
)
from mtl_keras.model.labels import (
    Labels,
    fitted,
    gathered,
    or_the_first,
    replicas,
    sum_over_replicas,
)

# Operations on the tape for absent labels: two masks and a factor.
_DELAY = 3
_MEANS = ("sum_over_batch_size", "mean")

# Functions whose value of a sample is the mean of those of its elements, so that each
# element of an output `[batch, elements]` may have a weight of its own.
_MEANS_OF_ELEMENTS = (
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
    keras.losses.hinge,
    keras.losses.huber,
    keras.losses.log_cosh,
    keras.losses.mean_absolute_error,
    keras.losses.mean_absolute_percentage_error,
    keras.losses.mean_squared_error,
    keras.losses.mean_squared_logarithmic_error,
    keras.losses.poisson,
    keras.losses.squared_hinge,
)


class Tracked(NamedTuple):
    """Update of the metric that logs one loss."""

    output: int
    tracker: keras.metrics.Metric
    value: tf.Tensor
    """This replica's share of the loss; of a group of tasks, of each column's."""
    count: Any
    """Number of its elements; None where Keras does not know the batch."""


class TaskLosses(NamedTuple):
    """The losses of one batch, in the order of the outputs and tasks."""

    layout: TaskLayout
    """The tasks of each output."""
    terms: list[tuple[int, tf.Tensor]]
    """Each loss, in Keras's order, with the index of its output: this replica's share,
    times the `loss_weights`."""
    values: list[tf.Tensor]
    """To differentiate, by output: the sum of its terms."""
    present: tf.Tensor
    """bool `[T]`: has the task a label in the batch, on any replica?"""
    tracked: list[Tracked]
    """The losses that are logged."""
    scale: tf.Tensor | None
    """Factor of `values` over their means, a scalar; None for 1."""
    is_delayed: bool
    """Whether the terms have operations that are not Keras's; see `_delayed`."""

    def total_over_replicas(self) -> tf.Tensor:
        """Returns the losses of the whole batch, float32 `[T]`, without gradient."""
        return sum_over_replicas(tf.stop_gradient(self.joined()))

    def joined(self) -> tf.Tensor:
        """Returns `values` as one tensor, float32 `[T]`."""
        values = [tf.cast(value, "float32") for value in self.values]
        return self.layout.joined(values)

    def scaled(self, added: list[tf.Tensor]) -> list[tf.Tensor]:
        """Returns regularisation and `add_loss` losses as multiples, like `values`."""
        if self.is_delayed:
            added = [_delayed(value, _DELAY) for value in added]
        if self.scale is None:
            return added
        return [value * self.scale for value in added]

    def weighted_total(
        self, factors: Sequence[tf.Tensor], added: list[tf.Tensor]
    ) -> tf.Tensor:
        """Returns the sum of all losses to differentiate, made as Keras makes it.

        A tape walks from its target breadth first, and adds up the gradients of a
        tensor in the order in which it meets them. Rounding is that of stock Keras
        where this order is, so the operations are those of `compute_loss`.

        Args:
            factors: Of the losses, by output, in the shapes of `values`.
            added: Regularisation and `add_loss` losses, times their factors.
        """
        return _sum([term * factors[index] for index, term in self.terms], added)

    def total(
        self, added: list[tf.Tensor], taking_part: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns this replica's share of the loss that is logged, a scalar.

        Args:
            added: Regularisation and `add_loss` losses, as `scaled` returns them.
            taking_part: None, or bool `[T]`: the tasks whose losses count.
        """
        terms = [term for _, term in self.terms]
        if taking_part is not None:
            parts = self.layout.split(taking_part)
            terms = [tf.where(parts[index], term, 0.0) for index, term in self.terms]
        total = _sum(terms, added)
        return total if self.scale is None else total / self.scale

    def track(self, kept: tf.Tensor | None = None) -> None:
        """Updates the metrics that log the losses.

        Args:
            kept: None, or bool `[T]`: the tasks whose losses enter.
        """
        parts = None if kept is None else self.layout.split(kept)
        for output, tracker, value, count in self.tracked:
            if parts is not None:
                value = tf.where(parts[output], value, 0.0)
                # Without a count a batch counts as one.
                count = tf.cast(1.0 if count is None else count, "float32")
                count = tf.where(parts[output], count, 0.0)
            if value.shape.rank:
                # The mean over the labelled elements of all columns.
                total = tf.reduce_sum(count)
                value = tf.math.divide_no_nan(tf.reduce_sum(value * count), total)
                count = total
            tracker.update_state(value * float(replicas()), sample_weight=count)


class _Value(NamedTuple):
    """A loss as Keras computes it, with its divisors, on this replica."""

    value: tf.Tensor
    divisor: tf.Tensor | None = None
    """Keras's divisor; None for reductions that do not divide."""
    wanted: tf.Tensor | None = None
    """The divisor over labelled elements, to be summed over replicas."""
    labelled: tf.Tensor | None = None
    """Number of elements that are labelled and not masked."""
    elements: tf.Tensor | None = None
    """Number of unmasked elements; these four are None without sample weights."""


def task_losses(
    losses: dict[str, list[ResolvedLoss]],
    labels: Labels,
    y_pred: dict[str, Any],
    layout: TaskLayout,
) -> TaskLosses:
    """Computes each task's loss over its labelled elements.

    Keras's value where every label is there. Else, for the reductions that divide,
    the sum over the elements that are labelled and not masked, divided by their
    number (for `"mean_with_sample_weight"` by their weights), over all replicas.

    Args:
        losses: `keras_compat.resolved_losses`' result, in its order.
        labels: The batch's labels.
        y_pred: The model's outputs.
        layout: The tasks of each output.
    """
    outputs = sorted(y_pred)
    computed: dict[str, list[_Value]] = {}
    for task in layout.outputs:
        with naming_output(outputs.index(task), outputs):
            size = layout.size(task)
            computed[task] = [
                _value(task, one.loss, labels, y_pred[task])
                if size is None
                else _column_values(task, one.loss, labels, y_pred[task], size)
                for one in losses[task]
            ]
    flat = [value for values in computed.values() for value in values]
    totals = iter(_over_replicas(flat))
    is_delayed = any(value.labelled is not None for value in flat)
    weighted, tracked, present = [], [], []
    for index, task in enumerate(layout.outputs):
        terms, labelled = [], []
        for one, of_loss in zip(losses[task], computed[task], strict=True):
            factor, count = next(totals)
            value = of_loss.value
            if factor is not None:
                value *= tf.cast(factor, value.dtype)
            elif is_delayed:
                value = _delayed(value, 1 if of_loss.labelled is not None else _DELAY)
            if one.tracker is not None:
                of_batch = _tracked(index, one.tracker, value, count, y_pred[task])
                if layout.size(task) is not None:
                    of_batch = of_batch._replace(value=value)
                tracked.append(of_batch)
            if one.weight is not None:
                value *= one.weight
            terms.append(value)
            labelled.append(tf.constant(True) if count is None else count > 0)
        weighted.append(terms)
        present.append(tf.reduce_any(tf.stack(labelled), axis=0))
    sizes = [layout.size(output) for output in layout.outputs]
    scale = _scale(
        [v for n, row in zip(sizes, weighted, strict=True) if not n for v in row]
    )
    weighted = [
        [_scalar(value, scale, size) for value in row]
        for size, row in zip(sizes, weighted, strict=True)
    ]
    order = [layout.outputs.index(output) for output in losses]
    return TaskLosses(
        layout,
        [(index, value) for index in order for value in weighted[index]],
        [tf.add_n(row) for row in weighted],
        layout.joined(present),
        tracked,
        scale,
        is_delayed,
    )


def track_total(
    tracker: keras.metrics.Metric,
    losses: TaskLosses,
    added: list[tf.Tensor],
    size: tf.Tensor,
    taking_part: tf.Tensor | None,
) -> None:
    """Updates the metric that logs the whole loss.

    Args:
        tracker: The metric.
        losses: `task_losses`' result.
        added: Regularisation and `add_loss` losses.
        size: Samples in the batch.
        taking_part: None, or bool `[T]`: the losses of the other tasks, and a batch
            in which none is left, do not count.
    """
    total = losses.total(added, taking_part) * float(replicas())
    if taking_part is not None:
        counts = tf.reduce_any(taking_part) | ~tf.reduce_any(losses.present)
        counts &= tf.math.is_finite(total)
        total = tf.where(counts, total, 0.0)
        size = tf.where(counts, size, 0)
    tracker.update_state(total, sample_weight=size)


def element_values(
    function: Any, y: Any, y_pred: Any, rank: int, elementary: Any
) -> tf.Tensor:
    """Returns a loss's or metric's values, one for each element that has a weight.

    Args:
        function: From labels and outputs to values.
        y: Labels.
        y_pred: Outputs.
        rank: Axes of the sample weights and masks.
        elementary: The function by which `function` is known to be, or not to be, a
            mean over the elements of the last axis.

    Returns:
        The values as they are where they have as many axes, or no axis can be added.
    """
    values = function(y, y_pred)
    if len(values.shape) >= rank or elementary not in _MEANS_OF_ELEMENTS:
        return values
    if len(y.shape) == len(y_pred.shape) - 1 and y_pred.shape[-1] == 1:
        return function(tf.expand_dims(y, -1), y_pred)
    if len(y.shape) == len(y_pred.shape) == rank:
        return function(tf.expand_dims(y, -1), _with_last_axis(y_pred))
    return values


def _with_last_axis(y_pred: Any) -> Any:
    return with_logits(lambda tensor: tf.expand_dims(tensor, -1), y_pred)


def has_value_by_element(loss: keras.losses.Loss) -> bool:
    """Returns whether a loss has a value for each element of an output.

    Losses of other modules say so by an attribute `is_mean_over_elements`.
    """
    is_mean = getattr(loss, "fn", None) in _MEANS_OF_ELEMENTS
    return is_mean or getattr(loss, "is_mean_over_elements", False)


def compares_samples(loss: keras.losses.Loss) -> bool:
    """Returns whether a loss's value of one sample depends on the others.

    Losses of other modules say so by an attribute `compares_samples`.
    """
    is_pairwise = isinstance(loss, keras.losses.Circle)
    return is_pairwise or getattr(loss, "compares_samples", False)


def check_axes(kind: str, task: str, values: tf.Tensor, *weights: Any) -> None:
    """Raises `InputError` for weights or masks with more axes than the values.

    Args:
        kind: `"loss"`, or the metric with its name, for the message.
        task: The output.
        values: Values of a loss or metric.
        *weights: Sample weights or masks, or None.
    """
    for weight in weights:
        if axes(weight) > len(values.shape):
            raise InputError(
                f"Expected a {kind} of {task!r} that gives a value for each element "
                f"of its sample weights and mask, of shape {tuple(weight.shape)}. "
                f"Received values of shape {tuple(values.shape)}."
            )


def axes(tensor: Any) -> int:
    """Returns how many axes sample weights or a mask have, without a last one of 1."""
    return 0 if tensor is None else len(fitted(tensor, 1).shape)


class _Reduction(keras.losses.Loss):
    """Keras's reduction of values that are there already."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        del y_true
        return y_pred


def _value(task: str, loss: keras.losses.Loss, labels: Labels, y_pred: Any) -> _Value:
    y, weight, labelled = labels.y[task], labels.weights[task], labels.labelled[task]
    if weight is None:
        return _Value(_at_least_float32(loss(y, y_pred, None)))
    weight, labelled = fitted(_not_negative(weight), 1), fitted(labelled, 1)
    # Stop the gradient of absent labels: 0 × NaN is NaN.
    of_output = fitted(labelled, len(y_pred.shape))
    guarded = _differentiated_where(of_output, y_pred)
    reduces_itself = type(loss).__call__ is not keras.losses.Loss.__call__
    reduces_itself |= compares_samples(loss)
    if not reduces_itself:
        in_mask = mask_of(y_pred)
        values = element_values(
            loss.call,
            keras.ops.convert_to_tensor(y, dtype=loss.dtype),
            keras.ops.convert_to_tensor(guarded, dtype=loss.dtype),
            max(axes(weight), axes(in_mask)),
            # One number for a whole batch `[batch]`, as Keras has it.
            getattr(loss, "fn", None) if len(y_pred.shape) > 1 else None,
        )
        reduces_itself = len(values.shape) == 0
    if reduces_itself:
        guarded = with_mask(guarded, mask_of(y_pred))
        return _of_labelled(loss, y, guarded, weight, labelled)
    check_axes("loss", task, values, weight, in_mask)
    rank = len(values.shape)
    mask = _joint(fitted_or_none(in_mask, rank), fitted_or_none(mask_of(values), rank))
    weight, labelled = fitted(weight, rank), fitted(labelled, rank)
    if len(labels.weights[task].shape) < rank:
        # Keras divides by the sum of the weights as they are.
        weight = tf.broadcast_to(weight, tf.shape(values))
    # Not `zeros_like`, which the tape would walk through.
    zeros = tf.zeros(tf.shape(values), values.dtype)
    values = with_mask(tf.where(labelled, values, zeros), mask)
    reduction = _Reduction(reduction=loss.reduction, dtype=loss.dtype)
    value = _at_least_float32(reduction(values, values, weight))
    if mask is None:
        elements, counted = tf.ones_like(labelled), labelled
    else:
        counted = labelled & mask
        elements = tf.broadcast_to(mask, tf.shape(counted))
    elements, counted = _number(elements), _number(counted)
    divisor = wanted = None
    if loss.reduction in _MEANS:
        divisor, wanted = elements, counted
    elif loss.reduction == "mean_with_sample_weight":
        weight = tf.cast(weight, "float32")
        if mask is not None:
            weight *= tf.cast(mask, "float32")
        divisor = wanted = tf.reduce_sum(weight)
    return _Value(value, divisor, wanted, counted, elements)


def _column_values(
    output: str, loss: keras.losses.Loss, labels: Labels, y_pred: Any, size: int
) -> _Value:
    """Returns the loss of each column of a group of tasks, `[T]`.

    Each as that of an output `[batch, 1]` of its own.
    """
    y, weight = labels.y[output], labels.weights[output]
    if not has_value_by_element(loss) or loss.reduction in (None, "none"):
        raise InputError(
            f"Expected a loss of {output!r}, a group of tasks, that is a reduced mean "
            "over elements, as 'mse' or 'binary_crossentropy'. Received: "
            f"{type(loss).__name__} with reduction={loss.reduction!r}."
        )
    y = keras.ops.convert_to_tensor(y, dtype=loss.dtype)
    if y.shape.rank != 2 or y.shape[1] != size:
        raise InputError(
            f"Expected labels of {output!r} with a column for each of its {size} "
            f"tasks. Received labels of shape {tuple(y.shape)}."
        )
    labelled, ones = None, tf.ones_like(y_pred, "float32")
    if weight is None:
        weight = ones
    else:
        weight = tf.cast(fitted(_not_negative(weight), 2), "float32") * ones
        labelled = tf.broadcast_to(fitted(labels.labelled[output], 2), tf.shape(y_pred))
        # Stop the gradient of absent labels: 0 × NaN is NaN.
        y_pred = _differentiated_where(labelled, y_pred)
    y_pred = keras.ops.convert_to_tensor(y_pred, dtype=loss.dtype)
    values = loss.call(tf.expand_dims(y, -1), _with_last_axis(y_pred))
    # Neither may one column's NaN reach the others through their backward pass.
    finite = tf.stop_gradient(tf.math.is_finite(values))
    y_pred = _differentiated_where(finite, y_pred)
    values = loss.call(tf.expand_dims(y, -1), _with_last_axis(y_pred))
    values = tf.cast(values, "float32")
    if labelled is not None:
        values = tf.where(labelled, values, 0.0)
    total = tf.reduce_sum(values * weight, axis=0)
    number = tf.fill((size,), tf.cast(tf.shape(y)[0], "float32"))
    counted = number
    if labelled is not None:
        counted = tf.reduce_sum(tf.cast(labelled, "float32"), axis=0)
    if loss.reduction == "sum":
        return _Value(total / float(replicas()), None, None, counted, number)
    by_weight = loss.reduction == "mean_with_sample_weight"
    divisor = tf.reduce_sum(weight, axis=0) if by_weight else number
    value = tf.math.divide_no_nan(total, divisor) / float(replicas())
    wanted = divisor if by_weight else counted
    return _Value(value, divisor, wanted, counted, number)


def _differentiated_where(flags: tf.Tensor, y_pred: Any) -> Any:
    """Returns an output without a gradient where the flags are not set."""
    return with_logits(
        lambda tensor: tf.where(flags, tensor, tf.stop_gradient(tensor)), y_pred
    )


def _of_labelled(
    loss: keras.losses.Loss,
    y: tf.Tensor,
    y_pred: Any,
    weight: tf.Tensor,
    labelled: tf.Tensor,
) -> _Value:
    """Returns a loss that gives one number, of the labelled samples alone."""
    is_any = tf.reduce_any(labelled)
    entries = or_the_first(labelled)
    output = gathered(entries, y_pred)
    mask = mask_of(output)
    weight = tf.boolean_mask(weight, entries)
    if mask is not None:
        weight = fitted(weight, len(mask.shape))
    value = loss(tf.boolean_mask(y, entries), output, weight)
    value = tf.where(is_any, _at_least_float32(value), 0.0)
    number = _number(labelled)
    elements = tf.cast(tf.size(labelled), "float32")
    return _Value(value, number, number, number, elements)


def _not_negative(weight: tf.Tensor) -> tf.Tensor:
    message = "Expected sample weights of at least 0, which marks an absent label."
    check = tf.debugging.assert_non_negative(weight, message=message)
    if not weight.dtype.is_floating:
        weight = tf.cast(weight, "float32")
    with tf.control_dependencies([check] if check is not None else []):
        # XLA leaves assertions out: there the loss is not finite.
        return tf.where(weight < 0, tf.constant(math.nan, weight.dtype), weight)


def _at_least_float32(value: tf.Tensor) -> tf.Tensor:
    """Returns a loss in float32, in float64 if it was computed in this."""
    value = tf.convert_to_tensor(value)
    return value if value.dtype == tf.float64 else tf.cast(value, "float32")


def fitted_or_none(mask: Any, rank: int) -> tf.Tensor | None:
    """Returns a mask with trailing axes up to a rank, bool; None for None."""
    return None if mask is None else tf.cast(fitted(mask, rank), "bool")


def _joint(first: tf.Tensor | None, second: tf.Tensor | None) -> tf.Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second


def _number(flags: tf.Tensor) -> tf.Tensor:
    """Returns the number of flags that are set, a float32 scalar."""
    return tf.cast(tf.reduce_sum(tf.cast(flags, "int32")), "float32")


def _over_replicas(
    values: Sequence[_Value],
) -> list[tuple[tf.Tensor | None, tf.Tensor | None]]:
    """Returns each loss's factor, and its labelled elements over all replicas.

    Both are None for a loss without sample weights, and the factor for one whose
    reduction does not divide.
    """
    numbers = [
        [value.labelled if value.wanted is None else value.wanted, *value[3:]]
        for value in values
        if value.labelled is not None
    ]
    if not numbers:
        return [(None, None)] * len(values)
    # One sum for all: of a group of tasks each number is one for each column.
    sizes = [number.shape.num_elements() for row in numbers for number in row]
    flat = [tf.reshape(number, (-1,)) for row in numbers for number in row]
    parts = tf.split(sum_over_replicas(tf.concat(flat, axis=0)), sizes)
    totals = iter(parts)
    result: list[tuple[tf.Tensor | None, tf.Tensor | None]] = []
    for value in values:
        if value.labelled is None:
            result.append((None, None))
            continue
        shape = value.labelled.shape
        wanted, labelled, elements = (tf.reshape(next(totals), shape) for _ in range(3))
        factor = None
        if value.divisor is not None:
            factor = tf.math.divide_no_nan(value.divisor * float(replicas()), wanted)
            factor = tf.where(labelled < elements, factor, 1.0)
        result.append((factor, labelled))
    return result


def _tracked(
    task: int,
    tracker: keras.metrics.Metric,
    value: tf.Tensor,
    count: tf.Tensor | None,
    y_pred: Any,
) -> Tracked:
    """Returns the logged value of a loss: its mean over labelled elements."""
    if len(value.shape) and count is None:
        value = tf.reduce_mean(value) / float(replicas())
    elif len(value.shape):
        total = tf.reduce_sum(value)
        value = tf.math.divide_no_nan(total, tf.cast(count, total.dtype))
    # Without sample weights as Keras does it: its static batch size, which may be
    # unknown.
    number = y_pred.shape[0] if count is None else count / float(replicas())
    return Tracked(task, tracker, value, number)


def _sum(terms: list[tf.Tensor], added: list[tf.Tensor]) -> tf.Tensor:
    """Returns the sum of all losses, a scalar, by the operations of stock Keras."""
    terms = [tf.reduce_sum(v) if v.shape.rank else v for v in terms]
    total = sum(terms)
    return tf.reduce_sum(tf.stack([total, *added])) if added else total


def _delayed(value: tf.Tensor, operations: int) -> tf.Tensor:
    """Returns the value behind operations that do nothing.

    Sample weights put `_DELAY` operations between an output and its loss that Keras
    has not. With as many before the other losses the tape meets gradients in the same
    order; see `TaskLosses.weighted_total`.
    """
    for _ in range(operations):
        value = tf.identity(value)
    return value


def _scale(values: Sequence[tf.Tensor]) -> tf.Tensor | None:
    """Returns Keras's factor of every mean where a loss is not reduced, or None.

    It adds the losses with one value for each sample to the scalars, and
    differentiates the sum of the result.
    """
    unreduced = [value for value in values if len(value.shape)]
    if not unreduced:
        return None
    largest = max(unreduced, key=lambda value: len(value.shape))
    return tf.cast(tf.size(largest), "float32") * float(replicas())


def _scalar(
    value: tf.Tensor, scale: tf.Tensor | None, columns: int | None
) -> tf.Tensor:
    """Returns the sum over the batch where losses are not reduced, in float32."""
    if scale is not None:
        scale = tf.cast(scale, value.dtype)
        if columns is None and len(value.shape):
            scale /= tf.cast(tf.size(value), value.dtype) * float(replicas())
            value = tf.reduce_sum(value)
        value *= scale
    return tf.cast(value, "float32")
