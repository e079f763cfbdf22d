"""Saving and loading what training needs to go on as before."""

from __future__ import annotations

from typing import Any

import keras

from mtl_keras import balancing as balancing_lib
from mtl_keras.balancing.pipeline import Pipeline
from mtl_keras.model.multi_worker import MultiWorkerModel
from mtl_keras.model.nonfinite import NonFiniteGuard

_OWN_ARGUMENTS = ("balancing", "monitor", "on_nonfinite", "task_clipnorm")
_STATE_PREFIXES = ("balancing.", "seed_states.")


class ModelWithTrainingState(MultiWorkerModel):
    """The part of `MultiTaskModel` that is about its files.

    A model file then holds, beside what Keras saves, how `compile` balanced the tasks
    and the state that this has.
    """

    _pipeline: Pipeline | None
    _guard: NonFiniteGuard
    _task_clipnorm: float | None

    def get_compile_config(self) -> dict[str, Any]:
        """Returns Keras's compile configuration with that of the balancing."""
        config = super().get_compile_config()
        if config and self._pipeline is not None:
            config["balancing"] = [
                balancing_lib.serialize(b) for b in self._pipeline.balancers
            ]
            config["monitor"] = self._pipeline.monitored
            config["on_nonfinite"] = self._guard.policy
            config["task_clipnorm"] = self._task_clipnorm
            # Keras saves the optimizer that `compile` was given, not the one that it
            # put around it to scale losses. Under another global policy than that of
            # the training the state would then be of no use, and dropped.
            config["optimizer"] = keras.saving.serialize_keras_object(self.optimizer)
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles from `get_compile_config`'s result, as `load_model` does."""
        config = dict(config)
        own = {key: config.pop(key) for key in _OWN_ARGUMENTS if key in config}
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config, **own)
        self.optimizer.build(self.trainable_variables)

    def save_own_variables(self, store: Any) -> None:
        """Saves, beside Keras's own, what training needs to go on as before.

        That is the state of the balancers, and the seed states of layers such as
        `Dropout`, which Keras leaves out.
        """
        super().save_own_variables(store)
        for key, variable in self._training_state().items():
            store[key] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` saved.

        State of a method that this model was not compiled with is left alone, so
        that weights can be carried between methods and stock Keras models.
        """
        keys = set(store.keys())
        super().load_own_variables(
            {key: store[key] for key in keys if not key.startswith(_STATE_PREFIXES)}
        )
        for key, variable in self._training_state().items():
            if key in keys and tuple(store[key].shape) == tuple(variable.shape):
                variable.assign(store[key])

    def state(self, *, epoch_means: bool = False) -> dict[str, keras.Variable]:
        """Returns all that training changes, by a stable key.

        Weights, seed states, and the variables of the optimizer and the balancing:
        a training that sets them goes on as if it had never stopped.

        Args:
            epoch_means: Whether to add what the logs of the present epoch are means
                of. Some metrics have it from the first batch on only.
        """
        assert self._pipeline is not None
        variables = [*self.variables, *self.optimizer.variables]
        if epoch_means:
            for metric in (*self.metrics, *self._pipeline.metrics):
                variables += metric.variables
            variables += self._guard.counts
        numbered = {f"variable.{index}": v for index, v in enumerate(variables)}
        return numbered | self._pipeline.state

    def _training_state(self) -> dict[str, keras.Variable]:
        weights = {id(v) for v in self.weights}
        seeds = [v for v in self.non_trainable_variables if id(v) not in weights]
        state = {f"seed_states.{index}": v for index, v in enumerate(seeds)}
        return state | (self._pipeline.state if self._pipeline is not None else {})
