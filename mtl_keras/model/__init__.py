"""The multi-task model."""

from mtl_keras.model.multi_task_model import MultiTaskModel

__all__ = ["MultiTaskModel"]
