"""Multi-task attention network."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from mtl_keras.errors import check_number
from mtl_keras.sharing.base import Sharing

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class AttentionModule(layers.Layer):
    """One task's attention mask over the channels of a shared stage.

    Called on `[shared]`, or on `[shared, attended]` with the task's attended features
    of the stage before: all `[batch, …, channels]`. Returns shared · mask with
    mask = σ(BN(W₂ relu(BN(W₁ [shared, attended])))) at every place alike, which for
    images are convolutions of 1x1. Where the shared stage made an image or a
    sequence smaller, attended is averaged to its size.

    Args:
        reduction: Width of the hidden layer, as a share of the shared channels.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, reduction: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.reduction = reduction
        self.supports_masking = True

    def build(self, input_shape: list[tuple[int | None, ...]]) -> None:
        """Creates the mask's layers."""
        shared, *attended = input_shape
        channels = shared[-1]
        assert channels is not None
        self.pooling = _pooling(attended[0], shared) if attended else None
        width = channels + sum(shape[-1] or 0 for shape in attended)
        hidden = max(1, round(self.reduction * channels))
        policy = self.dtype_policy
        self.block = keras.Sequential(
            [
                layers.Dense(hidden, use_bias=False, dtype=policy, name="hidden"),
                layers.BatchNormalization(dtype=policy, name="hidden_norm"),
                layers.ReLU(dtype=policy, name="relu"),
                layers.Dense(channels, use_bias=False, dtype=policy, name="mask"),
                layers.BatchNormalization(dtype=policy, name="mask_norm"),
                layers.Activation("sigmoid", dtype=policy, name="sigmoid"),
            ],
            name="attention",
        )
        self.block.build((*shared[:-1], width))

    def call(self, inputs: list[Any]) -> Any:
        """Returns the attended features."""
        shared, *attended = inputs
        x = shared
        if attended:
            other = attended[0]
            if self.pooling is not None:
                other = self.pooling(other)
            if len(other.shape) != len(shared.shape):
                other = _spread(other, shared)
            x = ops.concatenate([shared, other], axis=-1)
        return shared * self.block(x)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the mask of the shared features."""
        del inputs
        return None if mask is None else mask[0]

    def compute_output_shape(
        self, input_shape: list[tuple[int | None, ...]]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the shared features."""
        return tuple(input_shape[0])

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "reduction": self.reduction}


def _pooling(
    attended: tuple[int | None, ...], shared: tuple[int | None, ...]
) -> layers.Layer | None:
    """Returns the layer that brings one size to the other, if one is needed."""
    size = shared[1:-1]
    if attended[1:-1] == size:
        return None
    images, sequences = len(attended) == 4, len(attended) == 3
    if len(attended) == len(shared) and None not in (*size, *attended[1:-1]):
        if images:
            return layers.AdaptiveAveragePooling2D(size)
        if sequences:
            return layers.AdaptiveAveragePooling1D(size[0])
    return _MeanOverPlaces()


class _MeanOverPlaces(layers.Layer):
    """The mean over all inner axes, `[batch, d]`."""

    def call(self, inputs: Any) -> Any:
        return ops.mean(inputs, axis=list(range(1, len(inputs.shape) - 1)))


def _spread(vector: Any, like: Any) -> Any:
    """Repeats `[batch, d]` at every place of `like`, `[batch, …, c]`."""
    inner = ops.shape(like)[1:-1]
    x = ops.reshape(vector, (-1, *[1] * len(inner), vector.shape[-1]))
    return ops.broadcast_to(x, (ops.shape(like)[0], *inner, vector.shape[-1]))


@_register
class MTAN(Sharing):
    """Multi-task attention network: a shared backbone, attention for each task.

    After each shared stage a task's attention module weighs the channels, place by
    place, and passes the attended features on to its next module.

    Liu et al., "End-to-End Multi-Task Learning with Attention", CVPR 2019, arXiv
    1803.10704. Differs from the paper in that modules read and mask a stage's
    output, since stages of any layers have no inside to read; and in that the
    convolution of the paper between two modules is left to the first layer of the
    second module.

    Args:
        reduction: Width of a module's hidden layer, as a share of the stage's
            channels.

    Example:

    ```pycon
    >>> inputs = keras.Input((8,))
    >>> stages = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu")]
    >>> sharing = mtl_keras.sharing.MTAN()
    >>> features = sharing(inputs, stages, ["a", "b"])
    >>> {task: tensor.shape for task, tensor in features.items()}
    {'a': (None, 8), 'b': (None, 8)}
    ```
    """

    method = "mtan"
    search_space = {"reduction": [0.25, 0.5, 1.0]}  # noqa: RUF012

    def __init__(self, reduction: float = 1.0):
        self.reduction = check_number("reduction", reduction, low=1e-3)

    def connect(
        self,
        inputs: keras.KerasTensor,
        stages: list[keras.layers.Layer],
        tasks: list[str],
    ) -> dict[str, keras.KerasTensor]:
        """See `Sharing.connect`."""
        x = inputs
        attended: dict[str, list[keras.KerasTensor]] = {task: [] for task in tasks}
        for level, stage in enumerate(stages):
            x = stage(x)
            for task in tasks:
                module = AttentionModule(
                    self.reduction, name=f"{task}_attention_{level}"
                )
                attended[task] = [module([x, *attended[task]])]
        return {task: last for task, (last,) in attended.items()}

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"reduction": self.reduction}
