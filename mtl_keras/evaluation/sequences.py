"""Loss and metrics of sequences that a model scores itself.

A decoder that is given the right sequence as an input tells, for each sample, the
sequence's log-likelihood, how many of its tokens were the most probable ones, and
how many tokens it has: `[batch, 3]`. The label says nothing more.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

LOG_LIKELIHOOD, HITS, TOKENS = range(3)

_register = keras.saving.register_keras_serializable(package="mtl_keras")


@_register
class SequenceCrossentropy(keras.losses.Loss):
    """Negative log-likelihood per token, averaged over the tokens of a sample.

    Args:
        name: Name of the loss.
        reduction: As in Keras.
        dtype: As in Keras.

    Example:

    ```pycon
    >>> loss = mtl_keras.evaluation.SequenceCrossentropy()
    >>> outputs = np.array([[-3.0, 1.0, 2.0]])  # log-likelihood, hits, tokens
    >>> float(loss(np.zeros((1, 1)), outputs))
    1.5
    ```
    """

    def __init__(
        self,
        name: str = "sequence_crossentropy",
        reduction: str = "sum_over_batch_size",
        dtype: Any = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the losses, `[batch]`; `y_true` is not read."""
        del y_true
        return -y_pred[:, LOG_LIKELIHOOD] / ops.maximum(y_pred[:, TOKENS], 1)


@_register
class TokenAccuracy(keras.metrics.Metric):
    """Share of all tokens that were the most probable ones, given those before.

    Args:
        name: Name of the metric.
        dtype: dtype of the result.

    Example:

    ```pycon
    >>> metric = mtl_keras.evaluation.TokenAccuracy()
    >>> metric.update_state(None, np.array([[-3.0, 1.0, 2.0]]))
    >>> float(metric.result())
    0.5
    ```
    """

    def __init__(self, name: str = "token_accuracy", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)
        self.hits = self.add_variable((), "zeros", name="hits")
        self.tokens = self.add_variable((), "zeros", name="tokens")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: Not read.
            y_pred: `[batch, 3]`.
            sample_weight: `[batch]`; 0 leaves out.
        """
        del y_true
        y_pred = ops.cast(y_pred, self.dtype)
        if sample_weight is not None:
            y_pred = y_pred * ops.cast(sample_weight, self.dtype)[:, None]
        self.hits.assign_add(ops.sum(y_pred[:, HITS]))
        self.tokens.assign_add(ops.sum(y_pred[:, TOKENS]))

    def result(self) -> Any:
        """Returns the share; 0 before the first token."""
        return self.hits / ops.maximum(self.tokens, 1)
