"""The learning rate's schedule and the optimizer of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras

from mtl_keras.errors import InputError, unknown_name

if TYPE_CHECKING:
    from mtl_keras.applications import Application

SCHEDULES = ("cosine", "warmup_cosine", "constant")
_WARMUP = 0.05  # of all steps


def learning_rate_schedule(schedule: str, learning_rate: float, steps: int) -> Any:
    """Returns the learning rate of an optimizer: a number or a Keras schedule."""
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    if schedule == "constant":
        return float(learning_rate)
    if schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    warmup = max(1, round(_WARMUP * steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        max(1, steps - warmup),
        warmup_target=learning_rate,
        warmup_steps=warmup,
    )


def make_optimizer(
    spec: str | Mapping[str, Any] | None,
    learning_rate: Any,
    application: Application | None = None,
) -> keras.optimizers.Optimizer:
    """Returns a new optimizer of a name or config; None for the application's own.

    Raises an InputError if Keras knows no such optimizer, or no such argument.
    """
    if spec is None:
        if application is None:
            return keras.optimizers.Adam(learning_rate)
        return application.optimizer(learning_rate)
    if isinstance(spec, str):
        spec = {"class_name": spec, "config": {}}
    try:
        config = {**(spec.get("config") or {}), "learning_rate": learning_rate}
        cls = type(keras.optimizers.get(spec["class_name"]))
        return cls(**config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"The optimizer {spec!r} cannot be made: {' '.join(str(error).split())}"
        ) from error
