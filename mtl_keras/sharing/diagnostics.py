"""Expert utilisation and gate entropy, as metrics and by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from mtl_keras.errors import InputError
from mtl_keras.sharing.gates import Gate

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class GateEntropy(keras.metrics.Mean):
    """Mean entropy of a gate's weights, as a share of the largest, log E.

    0 if each sample is routed to a single expert, 1 if all experts weigh the same.
    `update_state` takes weights `[batch, E]` that sum to 1.

    Args:
        name: Name of the metric.
        dtype: See `keras.metrics.Metric`.

    Example:

    ```pycon
    >>> metric = mtl_keras.sharing.GateEntropy()
    >>> metric.update_state([[1.0, 0.0], [0.5, 0.5]])
    >>> float(metric.result())
    0.5
    ```
    """

    def __init__(self, name: str = "gate_entropy", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, weights: Any, sample_weight: Any = None) -> None:
        """Adds a batch."""
        weights = ops.cast(weights, self.dtype)
        terms = weights * ops.log(ops.maximum(weights, 1e-12))
        largest = max(np.log(weights.shape[-1]), 1e-12)
        super().update_state(-ops.sum(terms, axis=-1) / largest, sample_weight)


@_register
class ExpertUtilisation(keras.metrics.Metric):
    """Mean weight of each expert over all samples, `[E]`; sums to 1.

    `update_state` takes weights `[batch, E]` that sum to 1.

    Args:
        num_experts: E.
        name: Name of the metric.
        dtype: See `keras.metrics.Metric`.

    Example:

    ```pycon
    >>> metric = mtl_keras.sharing.ExpertUtilisation(num_experts=2)
    >>> metric.update_state(tf.constant([[1.0, 0.0], [0.5, 0.5]]))
    >>> metric.result().numpy()
    array([0.75, 0.25], dtype=float32)
    ```
    """

    def __init__(
        self, num_experts: int, name: str = "expert_utilisation", dtype: Any = None
    ):
        super().__init__(name=name, dtype=dtype)
        self.num_experts = num_experts
        self.total = self.add_variable((num_experts,), "zeros", name="total")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, weights: Any, sample_weight: Any = None) -> None:
        """Adds a batch."""
        weights = ops.cast(weights, self.dtype)
        rows = ops.ones_like(weights[:, 0])
        if sample_weight is not None:
            rows = ops.reshape(ops.cast(sample_weight, self.dtype), (-1,))
        self.total.assign_add(ops.sum(weights * rows[:, None], axis=0))
        self.count.assign_add(ops.sum(rows))

    def result(self) -> Any:
        """Returns the mean weights; zeros before the first sample."""
        return self.total / ops.maximum(self.count, 1e-12)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "num_experts": self.num_experts}


class ExpertMetrics(keras.callbacks.Callback):
    """Logs expert utilisation and gate entropy after every epoch.

    Adds `<gate>_entropy` and `<gate>_<expert>` to the epoch's logs (and so to the
    history, TensorBoard and CSV files), measured on given samples; the training
    itself pays nothing.

    Args:
        inputs: Batches of the model's inputs: a `tf.data.Dataset`, with or without
            labels, or any other iterable that can be read again.

    Example:

    ```python
    inputs = keras.Input((4,))
    features = mtl_keras.sharing.MMoE(2)(
        inputs, [keras.layers.Dense(8)], ["a", "b"]
    )
    outputs = {task: keras.layers.Dense(1)(f) for task, f in features.items()}
    mixture = mtl_keras.MultiTaskModel(inputs, outputs)
    mixture.compile("adam", loss="mse")
    mixture.fit(x, y, callbacks=[mtl_keras.sharing.ExpertMetrics([x])])
    ```
    """

    def __init__(self, inputs: Iterable[Any]):
        super().__init__()
        self.inputs = inputs

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measures."""
        del epoch
        if logs is None:
            return
        for gate, (entropy, usage) in gate_metrics(self.model, self.inputs).items():
            logs[f"{gate}_entropy"] = float(entropy.result())
            for expert, share in zip(
                self.model.get_layer(gate).experts, usage.result(), strict=True
            ):
                logs[f"{gate}_{expert.replace(' ', '_')}"] = float(share)


def gate_metrics(
    model: keras.Model, inputs: Iterable[Any]
) -> dict[str, tuple[GateEntropy, ExpertUtilisation]]:
    """Measures every gate of a model.

    Args:
        model: A functional model with gates (`mmoe`, `omoe`, `cgc`, `ple`,
            `dselect_k`).
        inputs: Batches of its inputs, with or without labels.

    Returns:
        `{name of the gate: (entropy, utilisation)}`.

    Raises:
        InputError: For a model without gates.
    """
    gates = [layer for layer in model.layers if isinstance(layer, Gate)]
    if not gates:
        raise InputError(
            "Expected a model with gates, as mmoe, omoe, cgc, ple and dselect_k make "
            f"it. Received: {model.name!r} without any."
        )
    probe = keras.Model(model.inputs, {gate.name: gate.output for gate in gates})
    metrics = {
        gate.name: (
            GateEntropy(f"{gate.name}_entropy"),
            ExpertUtilisation(len(gate.experts), f"{gate.name}_utilisation"),
        )
        for gate in gates
    }
    for batch in inputs:
        x = batch[0] if isinstance(batch, tuple) else batch
        for name, weights in probe(x, training=False).items():
            for metric in metrics[name]:
                metric.update_state(weights)
    return metrics


def usage(
    model: keras.Model, inputs: Iterable[Any] | None = None
) -> Mapping[str, Mapping[str, float]]:
    """Returns usage by gate and unit, for `mtl_keras.evaluation.plots.expert_usage`.

    Rows are gates (mean weights over samples), cross-stitch and sluice units (size of
    the trained weights) and choices of branches (probabilities); each row sums to 1.

    Args:
        model: A functional model.
        inputs: Batches of its inputs; needed where it has gates.

    Returns:
        `{name of the layer: {name of the part that it uses: share}}`.

    Raises:
        InputError: For a model of which no part mixes others.

    Example:

    ```python
    inputs = keras.Input((4,))
    features = mtl_keras.sharing.MMoE(2)(
        inputs, [keras.layers.Dense(8)], ["a", "b"]
    )
    mixture = mtl_keras.MultiTaskModel(inputs, features)
    mtl_keras.sharing.usage(mixture, [x])  # {gate: {expert: share}}
    ```
    """
    rows: dict[str, dict[str, float]] = {}
    gates = any(isinstance(layer, Gate) for layer in model.layers)
    metrics = gate_metrics(model, inputs or ()) if gates else {}
    for layer in model.layers:
        if layer.name in metrics:
            shares, names = metrics[layer.name][1].result(), layer.experts
        elif hasattr(layer, "usage"):
            shares, names = layer.usage(), layer.sources
        else:
            continue
        rows[layer.name] = dict(
            zip(names, map(float, ops.convert_to_numpy(shares)), strict=True)
        )
    if not rows:
        raise InputError(
            "Expected a model in which tasks mix experts, columns or branches. "
            f"Received: {model.name!r}, where none does."
        )
    return rows
