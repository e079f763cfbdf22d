"""Adaptive information transfer between tasks that form a chain."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from mtl_keras.errors import InputError, check_number, unknown_name
from mtl_keras.sharing.base import Sharing, at_least_float32, task_towers

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class InformationTransfer(keras.layers.Layer):
    """Attention over the features of an earlier task and a task's own.

    Called on `[earlier, own]`, both `[batch, …, d]`; returns `[batch, …, d]`.
    With p = relu(W earlier + b) and q = own, it is the sum over u in {p, q} of
    softmax(⟨key(u), query(u)⟩ / √d) · value(u), at every place alike.

    Args:
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape: list[tuple[int | None, ...]]) -> None:
        """Creates the four dense layers."""
        shape = input_shape[1]
        width = shape[-1]
        self.transfer = keras.layers.Dense(
            width, "relu", dtype=self.dtype_policy, name="transfer"
        )
        self.key, self.query, self.value = (
            keras.layers.Dense(
                width, use_bias=False, dtype=self.dtype_policy, name=name
            )
            for name in ("key", "query", "value")
        )
        for dense in (self.transfer, self.key, self.query, self.value):
            dense.build(shape)

    def call(self, inputs: list[Any]) -> Any:
        """Returns the attended features."""
        earlier, own = inputs
        sources = ops.stack([self.transfer(earlier), own], axis=-2)
        products = self.key(sources) * self.query(sources)
        scores = ops.sum(products, axis=-1, keepdims=True) / own.shape[-1] ** 0.5
        return ops.sum(ops.softmax(scores, axis=-2) * self.value(sources), axis=-2)

    def compute_mask(self, inputs: Any, mask: Any) -> Any:
        """Returns the mask of the task's own features."""
        return None if mask is None else mask[1]


@_register
class ExpectationCalibrator(keras.layers.Layer):
    """Penalty on a later step of a chain that is likelier than the one before.

    Called on `[earlier, later]` probabilities of one shape; returns `later` and
    adds the loss strength · mean(max(later − earlier, 0)). In float32 under mixed
    precision too.

    Args:
        strength: Factor of the loss, at least 0.
        **kwargs: See `keras.layers.Layer`.
    """

    auxiliary_inputs = (0,)
    """Only the loss reads `earlier`, so the output does not depend on it."""

    def __init__(self, strength: float, **kwargs):
        super().__init__(**{"dtype": at_least_float32(), **kwargs})
        self.strength = strength

    def call(self, inputs: list[Any]) -> Any:
        """Returns the later probability."""
        earlier, later = inputs
        self.add_loss(self.strength * ops.mean(ops.relu(later - earlier)))
        return later

    def serving_call(self, inputs: list[Any]) -> Any:
        """Returns the later probability, without a look at the earlier one."""
        return inputs[1]

    def compute_output_shape(
        self, input_shape: list[tuple[int | None, ...]]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the later probability."""
        return tuple(input_shape[1])

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "strength": self.strength}


@_register
class AITM(Sharing):
    """Adaptive information transfer multi-task: each task informs the next.

    For tasks that form a chain, where every step presupposes the one before
    (impression → click → purchase). A tower for each task, over inputs
    (embeddings) that all share. From the second task on, attention weighs the
    features of the task before against the tower's own; and a loss
    (`connect_outputs`) asks that no step is likelier than the one before it. The
    outputs are therefore P(click), P(click and purchase): over all impressions,
    not given the step before. Tasks outside the chain have a tower and nothing
    more.

    Xi et al., "Modeling the Sequential Dependence among Audience Multi-step
    Conversions with Multi-task Learning in Targeted Display Advertising", KDD
    2021, arXiv 2105.08489. Differs from the paper in that the towers are copies of
    all backbone stages of any kind, and that attention works at each place of
    features that have several.

    Args:
        chain: Task names in the order of the steps; `None` for all tasks in the order
            in which the features were made. Give it where one instance makes several
            models.
        strength: Factor α of the calibrating loss.

    Raises:
        InputError: For a chain that is a string or names a task twice.

    Example:

    ```pycon
    >>> inputs = keras.Input((8,))
    >>> stages = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu")]
    >>> sharing = mtl_keras.sharing.AITM(chain=["a", "b"])
    >>> features = sharing(inputs, stages, ["a", "b"])
    >>> {task: tensor.shape for task, tensor in features.items()}
    {'a': (None, 8), 'b': (None, 8)}
    ```
    """

    method = "aitm"
    search_space = {"strength": {"min": 0.01, "max": 1.0, "log": True}}  # noqa: RUF012

    def __init__(self, chain: Sequence[str] | None = None, strength: float = 0.6):
        if isinstance(chain, str) or len(set(chain or ())) < len(chain or ()):
            raise InputError(
                "Expected `chain` to be a list of different tasks. "
                f"Received: chain={chain!r}."
            )
        self.chain = None if chain is None else list(chain)
        # By the tasks that have features, the order in which these were connected.
        self._orders: dict[frozenset[str], list[str]] = {}
        self.strength = check_number("strength", strength, low=0.0)

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect`."""
        features = task_towers(inputs, stages, tasks)
        order = self._orders.setdefault(frozenset(tasks), tasks)
        if self.chain is None and order != tasks:
            raise InputError(
                "Expected `chain` for aitm where the order of the tasks changes. "
                f"Received: chain=None, {order}, then {tasks}."
            )
        for earlier, later in self._steps(tasks):
            features[later] = InformationTransfer(name=f"{later}_transfer")(
                [features[earlier], features[later]]
            )
        return features

    def connect_outputs(
        self, outputs: Mapping[str, keras.KerasTensor]
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect_outputs`: adds the calibrating loss."""
        calibrated = dict(outputs)
        order = self._orders.get(frozenset(outputs), list(outputs))
        if self.chain is None and frozenset(outputs) not in self._orders:
            raise InputError(
                "Expected `chain` for aitm where it has not connected the features of "
                f"these tasks. Received: chain=None, outputs of {order}."
            )
        for earlier, later in self._steps(order):
            pair = [outputs[earlier], outputs[later]]
            if pair[0].shape != pair[1].shape:
                raise InputError(
                    "Expected outputs of one shape along the chain of aitm. Received: "
                    f"{earlier!r} {pair[0].shape}, {later!r} {pair[1].shape}."
                )
            calibrated[later] = ExpectationCalibrator(
                self.strength, name=f"{later}_calibrator"
            )(pair)
        return calibrated

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """See `Sharing.check_tasks`: those of the chain have to be there."""
        for task in self.chain or ():
            if task not in tasks:
                raise unknown_name("task in the chain of aitm", task, tasks)

    def _steps(self, tasks: list[str]) -> list[tuple[str, str]]:
        return list(itertools.pairwise(tasks if self.chain is None else self.chain))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"chain": self.chain, "strength": self.strength}
