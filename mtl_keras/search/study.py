"""Study files: what a search explores, read and checked from TOML."""

from __future__ import annotations

import dataclasses
import pathlib
import tomllib
from collections.abc import Mapping
from typing import Any

from mtl_keras.errors import InputError, unknown_name
from mtl_keras.runs.config import RunConfig, check_count
from mtl_keras.search.architectures import Architectures, parse_sharing
from mtl_keras.search.space import (
    SETTINGS,
    Dimension,
    Fixed,
    LossWeights,
    parse_dimension,
    parse_loss_weights,
)

ORACLES = ("bayesian", "grid", "hyperband", "random")


@dataclasses.dataclass(frozen=True)
class Study:
    """A search, as a study file describes it.

    Attributes:
        application: Name of the application.
        trials: How many trials to run at most.
        epochs: Epochs of one trial (`hyperband`: of its longest trials).
        space: The searched and fixed settings; what is left out takes the
            application's default.
        loss_weights: How the losses are weighted; None means equally.
        data: Name of the data set; None means the application's default.
        tasks: The tasks; None means all of them.
        seed: Seed of the oracle, and of every trial.
        oracle: `"random"`, `"bayesian"`, `"hyperband"` or `"grid"`.
        limit: Training samples of a trial; None means all.
        objective: `"mean"` (over the tasks' main metrics) or one task's name.
    """

    application: str
    trials: int
    epochs: int
    space: Mapping[str, Dimension | Architectures]
    loss_weights: LossWeights | Fixed | None = None
    data: str | None = None
    tasks: tuple[str, ...] | None = None
    seed: int = 0
    oracle: str = "bayesian"
    limit: int | None = None
    objective: str = "mean"

    @property
    def searched(self) -> list[str]:
        """The names of the settings that differ between trials."""
        names = [n for n, d in self.space.items() if not isinstance(d, Fixed)]
        if isinstance(self.loss_weights, LossWeights):
            names.append("loss_weights")
        return names

    def base_config(self) -> RunConfig:
        """Returns the settings that all trials share; the rest is None."""
        return RunConfig(
            application=self.application,
            data=self.data,
            tasks=self.tasks,
            epochs=self.epochs,
            seed=self.seed,
            limit=self.limit,
        )

    def validate(self) -> Study:
        """Checks every setting, and every value that a trial could draw.

        Returns:
            The study with `data` and `tasks` filled in.

        Raises:
            InputError: If anything in the study would fail in a trial.
        """
        for name in ("trials", "epochs"):
            check_count(name, getattr(self, name))
        if self.oracle not in ORACLES:
            raise unknown_name("oracle", self.oracle, ORACLES)
        base = self.base_config()
        first = base.validate()
        assert first.tasks is not None
        if self.objective not in ("mean", *first.tasks):
            raise unknown_name("objective", self.objective, ("mean", *first.tasks))
        for name, dimension in self.space.items():
            for value in dimension.examples():
                dataclasses.replace(base, **{name: value}).validate()
        if isinstance(self.loss_weights, Fixed):
            dataclasses.replace(base, loss_weights=self.loss_weights.value).validate()
        elif self.loss_weights is not None and len(first.tasks) < 2:
            raise InputError(
                "Expected at least two tasks to search loss_weights over. "
                f"Received: {', '.join(first.tasks)}."
            )
        if not self.searched:
            raise InputError(
                "Expected [space] to leave something to search: a list of values, a "
                "range { min = ..., max = ... }, or loss_weights = { max_ratio = ... }."
            )
        return dataclasses.replace(self, data=first.data, tasks=first.tasks)

    def to_dict(self) -> dict[str, Any]:
        """Returns the study as JSON has it, to compare it with another one."""
        values = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        values["space"] = {n: dataclasses.asdict(d) for n, d in self.space.items()}
        if self.loss_weights is not None:
            values["loss_weights"] = dataclasses.asdict(self.loss_weights)
        return values


def load_study(path: str | pathlib.Path) -> Study:
    """Reads and checks a study file.

    Args:
        path: A TOML file; `tuning/vision.toml` explains the keys.

    Returns:
        The study with `data` and `tasks` filled in.

    Raises:
        InputError: If the file cannot be read, or a key, type, name or range is
            wrong. The message starts with the file's name.
    """
    path = pathlib.Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"There is no study file {str(path)!r}.") from error
    except OSError as error:
        raise InputError(
            f"The study file {str(path)!r} cannot be read: {error.strerror}."
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not a TOML file: {error}") from error
    try:
        return _parse(table).validate()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _parse(table: dict[str, Any]) -> Study:
    types: dict[str, type] = {
        "application": str,
        "data": str,
        "tasks": list,
        "seed": int,
        "oracle": str,
        "trials": int,
        "epochs": int,
        "limit": int,
        "objective": str,
        "space": dict,
    }
    for key, value in table.items():
        if key not in types:
            raise unknown_name("key", key, types)
        if not isinstance(value, types[key]) or isinstance(value, bool):
            raise InputError(
                f"Expected {key} to be {_WORDS[types[key]]}. Received: {value!r}."
            )
    for key in ("application", "trials", "epochs", "space"):
        if key not in table:
            raise InputError(f"Expected the key {key!r}, which is missing.")
    values = dict(table)
    space = values.pop("space")
    dimensions: dict[str, Dimension | Architectures] = {}
    weights = None
    for name, value in space.items():
        if name == "loss_weights":
            weights = parse_loss_weights(value)
        elif name == "sharing":
            dimensions[name] = parse_sharing(value)
        elif name in SETTINGS:
            dimensions[name] = parse_dimension(name, value)
        else:
            raise unknown_name("key in [space]", name, (*SETTINGS, "loss_weights"))
    if "tasks" in values:
        for task in values["tasks"]:
            if not isinstance(task, str):
                raise InputError(
                    f"Expected tasks to be a list of names. Received: {task!r}."
                )
        values["tasks"] = tuple(values["tasks"])
    return Study(space=dimensions, loss_weights=weights, **values)


_WORDS = {
    str: "a text",
    list: "a list of names",
    int: "a whole number",
    dict: "a table",
}
