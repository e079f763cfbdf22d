"""Hard parameter sharing."""

from __future__ import annotations

import keras

from mtl_keras.sharing.base import Sharing, in_turn


@keras.saving.register_keras_serializable(package="mtl_keras")
class Hard(Sharing):
    """One backbone for all tasks; only the heads are the tasks' own.

    Caruana, "Multitask Learning", Machine Learning 28, 1997.

    Example:

    ```pycon
    >>> inputs = keras.Input((8,))
    >>> stages = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu")]
    >>> sharing = mtl_keras.sharing.Hard()
    >>> features = sharing(inputs, stages, ["a", "b"])
    >>> {task: tensor.shape for task, tensor in features.items()}
    {'a': (None, 8), 'b': (None, 8)}
    ```
    """

    method = "hard"

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect`."""
        return dict.fromkeys(tasks, in_turn(stages, inputs))
