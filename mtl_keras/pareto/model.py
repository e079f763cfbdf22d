"""The model whose input `preference` chooses the trade-off between its tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtl_keras import balancing as balancing_lib
from mtl_keras.balancing.arguments import PerTask, preference_per_task
from mtl_keras.errors import InputError
from mtl_keras.model import MultiTaskModel
from mtl_keras.pareto.sampling import SampledPreference

PREFERENCE = "preference"
"""Name of the input that holds the preference."""


@keras.saving.register_keras_serializable(package="mtl_keras")
class PreferenceModel(MultiTaskModel):
    """A `MultiTaskModel` with an input `preference`, `[batch, T]` or `[1, T]`.

    `hypernetwork` and `manifold` make one of a model. Each training step reads the
    preference that its balancer, a `SampledPreference`, drew; the data hold none.
    Called, evaluated and asked for predictions without a preference, the model answers
    at the uniform one; at another where the inputs hold it (`with_preference`).

    Entries of the preference are in the order of `tasks`. Where data are not a dict,
    they are the other inputs: a tensor, or a list in their order.

    Args:
        inputs: `{name: keras.Input}`, one of them `preference` of shape `[T]`.
        outputs: `{task: KerasTensor}`; see `MultiTaskModel`.
        name: Name of the model.
        **kwargs: Passed on to `keras.Model`.

    Raises:
        InputError: For inputs without `preference`.

    Example:

    ```python
    inputs = {"x": keras.Input((4,)), "preference": keras.Input((2,))}
    features = keras.layers.Concatenate()(list(inputs.values()))
    outputs = {task: keras.layers.Dense(1)(features) for task in "ab"}
    conditioned = mtl_keras.pareto.PreferenceModel(inputs, outputs)
    conditioned.compile("adam", loss="mse")
    ```
    """

    def __init__(
        self, inputs: Any, outputs: Any, name: str | None = None, **kwargs: Any
    ):
        if not isinstance(inputs, Mapping) or PREFERENCE not in inputs:
            raise InputError(
                f"Expected `inputs` to be a dict with {PREFERENCE!r}. "
                f"Received: {inputs!r}."
            )
        super().__init__(inputs, outputs, name=name, **kwargs)
        self._data_inputs = [key for key in inputs if key != PREFERENCE]
        self._sampled: SampledPreference | None = None

    def compile(self, *args: Any, balancing: Any = None, **kwargs: Any) -> None:
        """Configures training; see `MultiTaskModel.compile`.

        `balancing` is a `SampledPreference`, alone or in a list with a gradient
        balancer; None for one with its default arguments.

        Raises:
            InputError: See `MultiTaskModel.compile`; for other balancing, and where
                the preference has not one entry for each task.
        """
        if balancing is None:
            balancing = SampledPreference()
        chosen = balancing_lib.get(balancing)
        balancers = chosen if isinstance(chosen, list) else [chosen]
        if not any(isinstance(b, SampledPreference) for b in balancers):
            raise InputError(
                "Expected `balancing` to be a SampledPreference, alone or with a "
                f"gradient balancer. Received: balancing={balancing!r}."
            )
        super().compile(*args, balancing=balancers, **kwargs)
        (self._sampled,) = (
            b for b in self.balancers if isinstance(b, SampledPreference)
        )
        width = self.input[PREFERENCE].shape[-1]
        if width != len(self.tasks):
            raise InputError(
                f"Expected a preference with an entry for each task {self.tasks}; "
                "`num_tasks` of the conditioning is their number. Received: a model "
                f"whose preference has {width}."
            )

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the outputs, at the uniform preference where inputs hold none."""
        return super().__call__(self._completed(inputs), *args, **kwargs)

    def stateless_call(
        self, trainable: Any, non_trainable: Any, inputs: Any, **kwargs: Any
    ) -> Any:
        """See `keras.Model.stateless_call`; as `__call__`.

        Args:
            trainable: Values of the trainable variables.
            non_trainable: Values of the others.
            inputs: Inputs, with or without a preference.
            **kwargs: Passed on.
        """
        inputs = self._completed(inputs)
        return super().stateless_call(trainable, non_trainable, inputs, **kwargs)

    def _completed(self, inputs: Any) -> dict[str, Any]:
        """Returns inputs by name, the uniform preference where they hold none."""
        by_name = self._by_name(inputs)
        # Zeros count as uniform; one row for the batch.
        width = self.input[PREFERENCE].shape[-1]
        return {PREFERENCE: keras.ops.zeros((1, width)), **by_name}

    def with_preference(self, x: Any, preference: PerTask) -> dict[str, Any]:
        """Returns a batch's inputs with a preference for all of its samples.

        Args:
            x: Inputs without the preference: a dict, a list or a tensor.
            preference: T numbers in the order of `tasks`, or `{task: number}`; not
                negative and not all zero. Their sum does not matter.

        Returns:
            `{name: inputs}` with `preference`, float32 `[batch, T]`.

        Raises:
            InputError: For a preference that does not fit the tasks.
        """
        by_name = self._by_name(x)
        row = tf.constant([preference_per_task(preference, self.tasks)], "float32")
        size = tf.shape(by_name[self._data_inputs[0]])[0]
        return {**by_name, PREFERENCE: tf.tile(row, [size, 1])}

    def _by_name(self, x: Any) -> dict[str, Any]:
        """Returns inputs by name, without the preference where data hold none.

        Arrays become tensors, as Keras takes no mixture of both.
        """
        x = keras.tree.map_structure(
            lambda v: tf.convert_to_tensor(v) if isinstance(v, np.ndarray) else v, x
        )
        if isinstance(x, Mapping):
            return dict(x)
        values = list(x) if isinstance(x, (list, tuple)) else [x]
        names = self._data_inputs
        if len(values) == len(names) + 1:
            # As Keras flattens them.
            names = sorted([*names, PREFERENCE])
        if len(values) != len(names):
            raise InputError(
                f"Expected the inputs {self._data_inputs}. "
                f"Received: a list of {len(values)}."
            )
        return dict(zip(names, values, strict=True))

    def _step_inputs(self, x: Any) -> Any:
        by_name = self._by_name(x)
        if PREFERENCE in by_name:
            raise InputError(
                f"Expected training data without {PREFERENCE!r}: the preference of "
                "each step is drawn. Received: inputs with one."
            )
        assert self._sampled is not None
        row = tf.convert_to_tensor(self._sampled.preference)[None]
        return {**by_name, PREFERENCE: row}
