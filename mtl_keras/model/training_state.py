"""Saving and loading the state from which a training resumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from mtl_keras import balancing as balancing_lib
from mtl_keras.balancing.pipeline import Pipeline
from mtl_keras.errors import InputError
from mtl_keras.model.keras_compat import KerasSaveable, saving_as_hdf5
from mtl_keras.model.labelled_samples import LabelledSamples
from mtl_keras.model.multi_worker import MultiWorkerModel
from mtl_keras.model.nonfinite import NonFiniteGuard

_OWN_ARGUMENTS = (
    "balancing",
    "columns",
    "missing_labels",
    "monitor",
    "on_nonfinite",
    "skip_unlabelled",
    "task_clipnorm",
)
_STATE_PREFIXES = ("balancing.", "seed_states.")


class TrainingState(KerasSaveable):
    """A model's state beside its weights, in a place of its own in weights files.

    A stock Keras model, which has no such part, passes over it.

    Args:
        variables: Returns the variables by a stable key.
    """

    def __init__(self, variables: Callable[[], dict[str, keras.Variable]]):
        self._variables = variables

    def _obj_type(self) -> str:
        return "Layer"  # One of the types that Keras knows, and saves alike.

    def save_own_variables(self, store: Any) -> None:
        """Saves all variables."""
        for key, variable in self._variables().items():
            store[key] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Loads the variables that the file has, in the shape that they have here."""
        keys = set(store.keys())
        for key, variable in self._variables().items():
            if key in keys and tuple(store[key].shape) == tuple(variable.shape):
                variable.assign(store[key])


class ModelWithTrainingState(MultiWorkerModel):
    """The part of `MultiTaskModel` that is about its files.

    A model file then holds, beside what Keras saves, how `compile` balanced the tasks
    and the state that this has.
    """

    _pipeline: Pipeline | None
    _guard: NonFiniteGuard
    _task_clipnorm: float | None
    _missing_labels: str | None
    _labelled_samples: LabelledSamples | None
    _compile_arguments: dict[str, Any]
    """Arguments of `compile` that Keras resolves for this machine, or leaves out."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._saved_state = TrainingState(self._training_state)

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the model; see `keras.Model.save`.

        Raises:
            InputError: For an HDF5 file.
        """
        if str(filepath).endswith((".h5", ".hdf5")):
            raise _not_as_hdf5(f": {str(filepath)!r}")
        super().save(filepath, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration of the functional model."""
        if saving_as_hdf5():
            raise _not_as_hdf5(" an HDF5 file")
        return super().get_config()

    def get_compile_config(self) -> dict[str, Any]:
        """Returns Keras's compile configuration with that of the balancing."""
        config = super().get_compile_config()
        if config and self._pipeline is not None:
            config.update(self._compile_arguments)
            config["balancing"] = [
                balancing_lib.serialize(b) for b in self._pipeline.balancers
            ]
            config["monitor"] = self._pipeline.monitored
            config["on_nonfinite"] = self._guard.policy
            config["task_clipnorm"] = self._task_clipnorm
            config["missing_labels"] = self._missing_labels
            config["skip_unlabelled"] = self._labelled_samples is not None
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

    def load_own_variables(self, store: Any) -> None:
        """Loads Keras's own variables, and the training state of older files.

        Balancing state of a method that this model was not compiled with is left
        alone, so that weights can be carried between methods.
        """
        entries = {key: store[key] for key in store.keys()}  # noqa: SIM118
        state = {k: v for k, v in entries.items() if k.startswith(_STATE_PREFIXES)}
        super().load_own_variables(
            {key: value for key, value in entries.items() if key not in state}
        )
        self._saved_state.load_own_variables(state)

    def state(self, *, epoch_means: bool = False) -> dict[str, keras.Variable]:
        """Returns all that training changes, by a stable key.

        Weights, seed states, and the variables of the optimizer and the balancing:
        a training that sets them resumes as if it had never stopped.

        Args:
            epoch_means: Whether to add the variables of the means that the present
                epoch logs. Some metrics have them from the first batch on only.
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


def _not_as_hdf5(received: str) -> InputError:
    return InputError(
        "Expected a path that ends in '.keras'; HDF5 files of whole models hold no "
        "balancing (weights alone go into a file '*.weights.h5'). "
        f"Received{received}."
    )
