"""The dimensions of a search space, and how a study file writes them.

| In the file                               | Meaning                          |
|-------------------------------------------|----------------------------------|
| `width = 32`                              | fixed                            |
| `width = [16, 32, 64]`                    | one of these                     |
| `depth = { min = 2, max = 4 }`            | a range, both ends included      |
| `learning_rate = { min = 1e-4, max = 1e-2, log = true }` | searched by magnitude |
| `loss_weights = { max_ratio = 4.0 }`      | searched, see `LossWeights`      |
| `sharing = { class_name = "mmoe", search = true }` | see `search_space`  |
| `loss_weights = { left = 1.0, mask = 2.0 }` | fixed                          |
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from mtl_keras.errors import InputError, is_number, unknown_name

# The plain settings of a run that a study may search, with the type of their values.
SETTINGS: dict[str, type] = {
    "backbone": str,
    "schedule": str,
    "precision": str,
    "jit": bool,
    "steps_per_execution": int,
    "width": int,
    "depth": int,
    "batch_size": int,
    "learning_rate": float,
}
_EXPECTED = {
    float: "a number",
    int: "a whole number",
    str: "a name",
    bool: 'true, false or "auto"',
}
_RANGE = ("min", "max", "step", "log")


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A setting that is the same in every trial."""

    value: Any
    searched = False

    def sample(self, hp: Any, name: str) -> Any:
        """Returns the value; nothing is searched.

        Args:
            hp: KerasTuner's hyperparameters, as for any hypermodel.
            name: Name of the setting.
        """
        return self.value

    def examples(self) -> list[Any]:
        """Returns values that a check has to accept."""
        return [self.value]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A setting that takes one of several values."""

    values: tuple[Any, ...]
    searched = True

    def sample(self, hp: Any, name: str) -> Any:
        """Draws from KerasTuner; see `Fixed.sample`."""
        encoded = self._encoded()
        drawn = hp.Choice(name, encoded)
        # KerasTuner gives None for settings that their conditions switch off.
        return None if drawn is None else self.values[encoded.index(drawn)]

    def _encoded(self) -> list[Any]:
        """Returns the values as KerasTuner takes them: JSON texts where they differ."""
        for kind in (str, bool):
            if all(isinstance(value, kind) for value in self.values):
                return list(self.values)
        if all(map(is_number, self.values)):
            whole = all(isinstance(value, int) for value in self.values)
            return list(map(int if whole else float, self.values))
        return [json.dumps(value) for value in self.values]

    def examples(self) -> list[Any]:
        """Returns values that a check has to accept."""
        return list(self.values)


@dataclasses.dataclass(frozen=True)
class Range:
    """A number between two ends, both included.

    Attributes:
        low: The lower end.
        high: The upper end.
        step: Distance of the values; None means 1 for whole numbers, and any
            value for others.
        log: Whether to search by magnitude rather than by value.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False
    searched = True

    def sample(self, hp: Any, name: str) -> Any:
        """Draws from KerasTuner; see `Fixed.sample`."""
        sampling = "log" if self.log else "linear"
        if isinstance(self.low, int) and isinstance(self.high, int):
            step = None if self.log else (self.step or 1)
            return hp.Int(name, self.low, self.high, step=step, sampling=sampling)
        return hp.Float(name, self.low, self.high, step=self.step, sampling=sampling)

    def examples(self) -> list[Any]:
        """Returns values that a check has to accept."""
        return [self.low, self.high]


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Searched loss weights.

    Only the ratios of the weights matter to where a training converges; their
    common factor acts like the learning rate. The weights are therefore points of
    the simplex (scaled to sum to the number of tasks), by their log-ratios: each
    task's weight is searched as its ratio to the first task's, by magnitude, from
    `1 / max_ratio` to `max_ratio`.

    Attributes:
        max_ratio: The largest ratio to the first task's weight, above 1.
    """

    max_ratio: float
    searched = True

    def sample(self, hp: Any, tasks: Sequence[str]) -> dict[str, float]:
        """Draws one weight per task from KerasTuner.

        Args:
            hp: KerasTuner's hyperparameters, as for any hypermodel.
            tasks: Names of the tasks.
        """
        ratios = {tasks[0]: 1.0}
        for task in tasks[1:]:
            ratios[task] = hp.Float(
                f"loss_weight/{task}",
                1.0 / self.max_ratio,
                self.max_ratio,
                sampling="log",
                default=1.0,
            )
        scale = len(tasks) / sum(ratios.values())
        return {task: ratio * scale for task, ratio in ratios.items()}


Dimension = Fixed | Choice | Range


def parse_dimension(name: str, value: Any, kind: type | None = None) -> Dimension:
    """Returns a setting or argument: a list of values, `{ min, max }`, or one value.

    Args:
        name: Its name in messages, without `space.`.
        value: Its value in the study file.
        kind: Type of its values; None for any.

    Raises:
        InputError: If the type is wrong, or the list or the range is empty.
    """
    if isinstance(value, list):
        if not value:
            raise InputError(f"Expected space.{name} to list at least one value.")
        values = tuple(_value(name, kind, item) for item in value)
        if len(values) == 1:
            return Fixed(values[0])
        _check_values(name, values)
        return Choice(values)
    if isinstance(value, dict) and kind in (int, float, None):
        if kind is None:
            ends = [value.get("min"), value.get("max")]
            kind = int if all(isinstance(end, int) for end in ends) else float
        return _range(name, kind, value)
    return Fixed(_value(name, kind, value))


def parse_loss_weights(value: Any) -> LossWeights | Fixed:
    """Returns `space.loss_weights`: `{ max_ratio = R }`, or one number per task."""
    received = f"Received: {value!r}."
    if not isinstance(value, dict) or not value:
        raise InputError(
            "Expected space.loss_weights to be { max_ratio = NUMBER } or a table of "
            f"one number per task. {received}"
        )
    if "max_ratio" not in value:
        return Fixed(value)
    ratio = value["max_ratio"]
    if len(value) > 1:
        raise InputError(
            "Expected space.loss_weights to hold either max_ratio or weights of "
            f"tasks, not both. {received}"
        )
    if not is_number(ratio) or not 1 < ratio < math.inf:
        raise InputError(
            f"Expected space.loss_weights.max_ratio to be a number above 1. {received}"
        )
    return LossWeights(float(ratio))


def _check_values(name: str, values: Sequence[Any]) -> None:
    """Raises an InputError for equal values, or ones that JSON cannot hold."""
    try:
        texts = [json.dumps(value, sort_keys=True, allow_nan=False) for value in values]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Expected the values of space.{name} to be finite numbers, texts, true or "
            f"false, or lists or tables of these. Received: {values!r}."
        ) from error
    numbers = [value for value in values if is_number(value)]
    if len(set(texts)) < len(texts) or len(set(numbers)) < len(numbers):
        raise InputError(
            f"Expected the values of space.{name} to differ. Received: {values!r}."
        )


def _value(name: str, kind: type | None, value: Any) -> Any:
    if kind is float and is_number(value):
        return float(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if (
        kind is None
        or (kind is int and whole)
        or (kind in (str, bool) and isinstance(value, kind))
        or (kind is bool and value == "auto")
    ):
        return value
    raise InputError(
        f"Expected space.{name} to be {_EXPECTED[kind]}. Received: {value!r}."
    )


def _range(name: str, kind: type, table: dict[str, Any]) -> Range:
    for key in table:
        if key not in _RANGE:
            raise unknown_name(f"key in space.{name}", key, _RANGE)
    for key in ("min", "max"):
        if key not in table:
            raise InputError(
                f"Expected space.{name} to have min and max. Missing: {key}."
            )
    low, high = (_value(f"{name}.{key}", kind, table[key]) for key in ("min", "max"))
    log, step = table.get("log", False), table.get("step")
    if step is not None:
        step = _value(f"{name}.step", kind, step)
    for key, holds, expected in (
        ("min", low < high, "below max"),
        ("min", -math.inf < low, "finite"),
        ("max", high < math.inf, "finite"),
        ("log", isinstance(log, bool), "true or false"),
        ("min", not log or low > 0, "above 0 with log = true"),
        ("step", step is None or (step > 0 and not log), "above 0, without log = true"),
    ):
        if not holds:
            raise InputError(
                f"Expected space.{name}.{key} to be {expected}. Received: {table!r}."
            )
    return Range(low, high, step, log)
