"""Policies for losses and gradients that are not finite."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtl_keras.balancing.arguments import check_choice
from mtl_keras.errors import NonFiniteError
from mtl_keras.model.columns import TaskLayout
from mtl_keras.model.labels import sum_over_replicas
from mtl_keras.model.task_metrics import LabelledBatches

POLICIES = ("raise", "skip_task", "skip_step")
# Elements of a gradient that is checked together with others, which copies it.
_SMALL = 1 << 14


class NonFiniteGuard:
    """Detects losses and gradients that are not finite, and applies the policy.

    Everything happens in the graph: the numbers of a failed step lie in a variable,
    which the host reads between executions. A failed step updates nothing, and
    under `"raise"` no later one does either, so that the host may read it late.

    Args:
        policy: One of `POLICIES`; see `MultiTaskModel.compile`.

    Attributes:
        epoch: The epoch of `fit`, from 0; None outside.
        labelled_batches: How many batches of the epoch had a label, by output.
    """

    def __init__(self, policy: str):
        check_choice("on_nonfinite", policy, POLICIES)
        self.policy = policy
        self.epoch: int | None = None
        self._tasks: tuple[str, ...] = ()
        self._seen: tf.Tensor | None = None

    @property
    def skips(self) -> bool:
        """Whether training continues after a number that is not finite."""
        return self.policy != "raise"

    def build(self, layout: TaskLayout, outputs: Sequence[str]) -> None:
        """Creates the variables for these tasks, and outputs with or without a loss."""
        self._layout = layout
        self._tasks = tasks = tuple(layout.tasks)
        self.labelled_batches = LabelledBatches(outputs)
        size = len(tasks)
        self._batch = _counter("batch", ())
        # By task and, last, of whole steps.
        self._counts = _counter("nonfinite", (size + 1,))
        # By task the loss, by task the gradient, and the rest; then step and batch,
        # which are 0 until a step fails.
        self._record = _counter("nonfinite_record", (2 * size + 3,))

    @property
    def counts(self) -> list[keras.Variable]:
        """The counters of an epoch."""
        return [self._batch, self._counts, *self.labelled_batches.variables]

    def reset(self) -> None:
        """Starts the counts of an epoch anew."""
        for variable in self.counts:
            variable.assign(np.zeros(variable.shape))

    def forget(self) -> None:
        """Makes the model trainable again after a failed step."""
        self._seen = None
        self._record.assign(np.zeros(self._record.shape))

    def taking_part(self, present: tf.Tensor, finite: tf.Tensor) -> tf.Tensor:
        """Returns which tasks train, bool `[T]`.

        Args:
            present: bool `[T]`, the tasks with labels.
            finite: bool `[T]`.
        """
        if self.policy == "skip_task":
            return present & finite
        return present & tf.reduce_all(finite)

    def judge(
        self,
        present: tf.Tensor,
        losses: tf.Tensor,
        gradients: tf.Tensor,
        rest: tf.Tensor,
        step: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Counts or records a step's failures, and decides on its update.

        Args:
            present: bool `[T]`, the tasks with labels.
            losses: bool `[T]`, whose loss is finite.
            gradients: bool `[T]`, whose gradient is finite.
            rest: bool scalar, whether all that the update is made of is finite.
            step: Integer scalar, the updates so far.

        Returns:
            Whether to update the model, a bool scalar, and the tasks whose losses and
            outputs may enter means and metrics, bool `[T]`; the same on every replica.
        """
        self._batch.assign_add(1)
        finite = losses & gradients
        if self.policy == "skip_task":
            kept = finite
            update = rest & (tf.reduce_any(present & finite) | ~tf.reduce_any(present))
        else:
            update = rest & tf.reduce_all(finite)
            kept = tf.fill(tf.shape(finite), update)
        if self.skips:
            failures = tf.concat([~finite, [~update]], axis=0)
            self._counts.assign_add(tf.cast(failures, "int64"))
            return update, kept
        earlier = tf.convert_to_tensor(self._record)
        is_first = tf.equal(earlier[-2], 0)
        flags = tf.cast(tf.concat([~losses, ~gradients, [~rest]], axis=0), "int64")
        where = tf.stack([tf.cast(step, "int64") + 1, self._batch + 0])
        record = tf.concat([flags, where], axis=0)
        self._record.assign(tf.where(is_first & ~update, record, earlier))
        return update & is_first, kept

    @contextlib.contextmanager
    def statistics_of(self, variables: Sequence[keras.Variable]) -> Iterator[None]:
        """Context manager: restores statistics that are not finite afterwards.

        Only where training continues. Variables not of floats are left alone.
        """
        floats = [v for v in variables if self.skips and "float" in v.dtype]
        before = [tf.identity(v.value) for v in floats]
        yield
        for variable, old in zip(floats, before, strict=True):
            new = tf.convert_to_tensor(variable.value)
            finite = tf.reduce_all(tf.math.is_finite(new))
            variable.assign(tf.where(finite, new, old))

    def logs(self) -> dict[str, tf.Tensor]:
        """Returns the epoch's counts; nothing under `"raise"`."""
        if not self.skips:
            return {}
        counts = tf.cast(self._counts, "float32")
        logs = self._layout.named("_nonfinite", counts[:-1], 1.0)
        return {**logs, "skipped_steps": counts[-1]}

    def warn_of_skips(self) -> None:
        """Warns where most steps of an epoch, or of one task in it, were skipped."""
        if not self.skips:
            return
        batches = int(self._batch.numpy())
        *by_task, steps = self._counts.numpy().tolist()
        most = [
            f"those of task {task!r} ({count})"
            for task, count in zip(self._tasks, by_task, strict=True)
            if 2 * count > batches
        ]
        if 2 * steps > batches:
            most = [f"all tasks' ({steps})"]
        if most:
            warnings.warn(
                f"Of the {batches} steps of this epoch most were skipped: "
                f"{', '.join(most)}. Their loss or gradient was NaN or infinite. Give "
                "labels that are missing, as NaN, a sample weight of 0.",
                stacklevel=2,
            )

    def watching(self, train_function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Returns a training function that raises after a step that failed.

        It looks at the record of the execution before the last, so that an
        accelerator need not stop for the host; `check` looks at the last one.
        """

        def watched(iterator: Any) -> Any:
            seen = self._seen
            logs = train_function(iterator)
            self._seen = tf.identity(self._record.value)
            if seen is not None:
                self._raise_if_failed(seen)
            return logs

        return watched

    def check(self) -> None:
        """Raises `NonFiniteError` if a step failed under `"raise"`."""
        if self._seen is not None:
            seen, self._seen = self._seen, None
            self._raise_if_failed(seen)

    def _raise_if_failed(self, record: tf.Tensor) -> None:
        numbers = record.numpy()
        if numbers[-2] == 0:
            return
        self.forget()
        raise NonFiniteError(self._message(numbers))

    def _message(self, record: np.ndarray) -> str:
        *flags, step, batch = record.tolist()
        size = len(self._tasks)
        losses = [t for t, bad in zip(self._tasks, flags[:size], strict=True) if bad]
        # A loss that is not finite has such a gradient, too.
        gradients = [
            task
            for task, bad in zip(self._tasks, flags[size:-1], strict=True)
            if bad and not losses
        ]
        if losses:
            origin = f"the loss of {_named(losses)}"
        elif gradients:
            origin = f"the gradient of {_named(gradients)}"
        else:
            origin = (
                "a gradient on variables that tasks share or a regularisation loss, "
                f"with all losses of {_named(self._tasks)} finite"
            )
        epoch = "" if self.epoch is None else f" of epoch {self.epoch + 1}"
        return (
            f"Expected finite numbers in training. Received NaN or infinity at step "
            f"{step} (batch {batch}{epoch}, all counted from 1): {origin}. The model's "
            "weights are those before this step. Look at the data of this batch: a "
            "label that is missing, as NaN, needs a sample weight of 0. Else lower the "
            "learning rate, clip gradients, or, for rare bad batches, compile with "
            'on_nonfinite="skip_task" or "skip_step".'
        )


def finite_gradients(groups: Sequence[Sequence[Any]]) -> tf.Tensor:
    """Returns for each list of gradients whether all are finite, bool `[len]`.

    Small gradients of one size are checked together: by themselves each would cost an
    accelerator, or XLA, a kernel or two.

    Args:
        groups: Lists of tensors, `tf.IndexedSlices` or None; a replica's own.
    """
    batches: dict[Any, list[tuple[int, tf.Tensor]]] = {}
    for group, gradients in enumerate(groups):
        for index, values in enumerate(_values(gradients)):
            size = values.shape.num_elements()
            is_small = size is not None and size <= _SMALL
            # By name, as a dtype equals its number.
            key = (values.dtype.name, size) if is_small else (group, index)
            batches.setdefault(key, []).append((group, values))
    flags, owners = [], []
    for batch in batches.values():
        rows = tf.stack([tf.reshape(values, (-1,)) for _, values in batch])
        flags.append(tf.reduce_all(tf.math.is_finite(rows), axis=1))
        owners += [group for group, _ in batch]
    if not flags:
        return tf.ones((len(groups),), "bool")
    of_others = np.arange(len(groups))[:, None] != np.array(owners)
    return tf.reduce_all(tf.concat(flags, axis=0) | of_others, axis=1)


def finite_by_task(layout: TaskLayout, gradients: Sequence[Sequence[Any]]) -> tf.Tensor:
    """Returns for each task whether its own gradients are finite, bool `[T]`.

    Args:
        layout: The outputs and their tasks.
        gradients: By output, those of its own variables.
    """
    if not layout.columns:
        return finite_gradients(gradients)
    sizes = [layout.size(output) for output in layout.outputs]
    columns = [
        finite_gradients([of_output])
        if size is None
        else _finite_columns(of_output, size)
        for of_output, size in zip(gradients, sizes, strict=True)
    ]
    return layout.joined(columns)


def _finite_columns(gradients: Sequence[Any], size: int) -> tf.Tensor:
    """Returns by entry of the last axis whether gradients are finite, bool `[size]`."""
    finite = tf.ones((size,), "bool")
    for gradient in _values(gradients):
        rows = tf.reshape(gradient, (-1, size))
        finite &= tf.reduce_all(tf.math.is_finite(rows), axis=0)
    return finite


def _values(gradients: Sequence[Any]) -> list[tf.Tensor]:
    return [
        g.values if isinstance(g, tf.IndexedSlices) else g
        for g in gradients
        if g is not None
    ]


def on_all_replicas(flags: tf.Tensor) -> tf.Tensor:
    """Returns where a flag is set on every replica, bool, as `flags`."""
    return tf.equal(sum_over_replicas(tf.cast(~flags, "float32")), 0.0)


def _counter(name: str, shape: tuple[int, ...]) -> keras.Variable:
    return keras.Variable(
        "zeros",
        shape=shape,
        dtype="int64",
        trainable=False,
        # All replicas count the same.
        aggregation="only_first_replica",
        name=name,
    )


def _named(tasks: Sequence[str]) -> str:
    return ", ".join(map(repr, tasks))
