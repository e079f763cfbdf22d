"""Callbacks for `fit`: early stopping and progress by task, best by Δm, conflicts."""

from __future__ import annotations

from mtl_keras.callbacks.conflict_images import ConflictImages
from mtl_keras.callbacks.delta_checkpoint import DeltaCheckpoint
from mtl_keras.callbacks.task_affinity import TaskAffinity
from mtl_keras.callbacks.task_early_stopping import TaskEarlyStopping
from mtl_keras.callbacks.task_progress import TaskProgress

__all__ = [
    "ConflictImages",
    "DeltaCheckpoint",
    "TaskAffinity",
    "TaskEarlyStopping",
    "TaskProgress",
]
