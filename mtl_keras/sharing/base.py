"""What every way of sharing is: from backbone stages to features per task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from mtl_keras.errors import InputError


class Sharing:
    """A functional builder: backbone stages in, features per task out.

    It adds ordinary Keras layers to the functional graph and is not a layer
    itself. The model's summary, plots and files therefore show its parts, and a
    part that serves one task is seen to be that task's own.
    """

    method = "sharing"
    """Name in the registry."""

    def __call__(
        self,
        inputs: keras.KerasTensor,
        stages: Sequence[keras.layers.Layer],
        tasks: Sequence[str],
    ) -> dict[str, keras.KerasTensor]:
        """Connects the stages.

        Args:
            inputs: What the first stage reads.
            stages: The backbone in its order: any Keras layers, also
                `keras.Sequential` or functional models.
            tasks: Task names.

        Returns:
            `{task: features}`, each shaped as the last stage's output.

        Raises:
            InputError: Without stages or tasks.
        """
        if not stages or not tasks:
            raise InputError(
                "Expected at least one backbone stage and one task. "
                f"Received: {len(stages)} stages, tasks={list(tasks)}."
            )
        return self.connect(inputs, list(stages), list(tasks))

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """Does what `__call__` says; the part that each method implements."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Sharing:
        """Returns an instance made from `get_config`'s result."""
        return cls(**config)


def copy_stage(stage: keras.layers.Layer, name: str) -> keras.layers.Layer:
    """Returns a fresh layer with the stage's configuration and weights of its own.

    Args:
        stage: Any Keras layer or model.
        name: Name of the copy; names of layers within a copied model stay.
    """
    config = {**stage.get_config(), "name": name}
    return type(stage).from_config(config)
