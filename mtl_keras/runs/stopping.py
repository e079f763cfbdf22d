"""Early stopping of a run by the mean of its tasks' main metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from mtl_keras.runs.results import by_task, main_metrics, metric_names, score


class EarlyStop(keras.callbacks.Callback):
    """Callback that ends a training once its validation score stops improving.

    The score is the mean over tasks of the main metrics, as a study has it. All history
    of the run counts, so that a resumed run stops where a whole one would have stopped.
    """

    def __init__(self, application: Any, tasks: Sequence[str], patience: int):
        super().__init__()
        self._application = application
        self._metrics = metric_names(application, tasks)
        self._patience = patience
        self._scores: list[float] = []

    def resume(self, history: Mapping[str, Sequence[float]]) -> bool:
        """Resumes from finished epochs' logs; returns whether training has ended."""
        epochs = max(map(len, history.values()), default=0)
        self._scores = [
            self._score(
                {name: v[epoch] for name, v in history.items() if epoch < len(v)}
            )
            for epoch in range(epochs)
        ]
        return self._is_over()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Ends the training after an epoch too many without improvement."""
        self._scores.append(self._score(logs or {}))
        if self._is_over():
            self.model.stop_training = True

    def _score(self, logs: Mapping[str, float]) -> float:
        main = main_metrics(by_task(logs, self._metrics, "val_"), self._application)
        value = score(main, self._application)
        return -math.inf if math.isnan(value) else value

    def _is_over(self) -> bool:
        if not self._scores:
            return False
        best = self._scores.index(max(self._scores))
        return len(self._scores) - 1 - best >= self._patience
