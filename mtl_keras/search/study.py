"""Study files: what a search explores, read and checked from TOML."""

from __future__ import annotations

import dataclasses
import pathlib
import tomllib
from typing import Any

from mtl_keras import applications
from mtl_keras.errors import InputError, unknown_name
from mtl_keras.runs.config import RunConfig, check_count
from mtl_keras.runs.folder import read_text
from mtl_keras.search.objectives import Objective, parse_objectives
from mtl_keras.search.search_space import SearchSpace, parse_space
from mtl_keras.search.space import Fixed

ORACLES = ("bayesian", "grid", "hyperband", "pareto", "random")


@dataclasses.dataclass(frozen=True)
class Study:
    """A search, as a study file describes it.

    Attributes:
        application: Name of the application.
        trials: How many trials to run at most.
        epochs: Epochs of one trial (`hyperband`: of its longest trials).
        space: The searched and fixed settings; what is left out takes the
            application's default.
        data: Name of the data set; None means the application's default.
        tasks: The tasks; None means all of them.
        seed: Seed of the oracle, and of every trial.
        oracle: `"random"`, `"bayesian"`, `"hyperband"`, `"grid"`, or `"pareto"` for
            several objectives.
        limit: Training samples of a trial; None means all.
        objective: `"mean"` (over the tasks' main metrics), `"delta_m"` (over
            single-task baselines of the same budget), a task's name (its main
            metric), `"<task>_<metric>"`, or a list of these for `"pareto"`.
        patience: Epochs without a better objective after which a trial stops; None
            means never.
    """

    application: str
    trials: int
    epochs: int
    space: SearchSpace
    data: str | None = None
    tasks: tuple[str, ...] | None = None
    seed: int = 0
    oracle: str = "bayesian"
    limit: int | None = None
    objective: str | tuple[str, ...] = "mean"
    patience: int | None = None

    @property
    def searched(self) -> list[str]:
        """The names of the settings that differ between trials."""
        return self.space.searched

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives, one or several, of a validated study."""
        application = self.base_config().get_application()
        return parse_objectives(self.objective, application, self.tasks or ())

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
        if self.patience is not None:
            check_count("patience", self.patience)
        base = self.base_config()
        first = base.validate()
        assert first.tasks is not None
        study = dataclasses.replace(self, data=first.data, tasks=first.tasks)
        study._check_objectives()
        weights = self.space.loss_weights
        for name, dimension in self.space.dimensions.items():
            for value in dimension.examples():
                dataclasses.replace(base, **{name: value}).validate()
        if isinstance(weights, Fixed):
            dataclasses.replace(base, loss_weights=weights.value).validate()
        elif weights is not None and len(first.tasks) < 2:
            raise InputError(
                "Expected at least two tasks to search loss_weights over. "
                f"Received: {', '.join(first.tasks)}."
            )
        if not self.searched:
            raise InputError(
                "Expected [space] to leave something to search: a list of values, a "
                "range { min = ..., max = ... }, or loss_weights = { max_ratio = ... }."
            )
        return study

    def _check_objectives(self) -> None:
        several = len(self.objectives) > 1
        if several != (self.oracle == "pareto"):
            raise InputError(
                'Expected oracle = "pareto" with several objectives, and another one '
                f"with a single objective. Received: oracle = {self.oracle!r} and "
                f"objective = {self.objective!r}."
            )
        if several and self.patience is not None:
            raise InputError(
                "Expected no patience with several objectives, of which one may still "
                f"improve. Received: patience = {self.patience}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the study as JSON has it, to compare it with another one."""
        return dataclasses.asdict(self)


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
        table = tomllib.loads(read_text(path))
    except FileNotFoundError as error:
        raise InputError(f"There is no study file {str(path)!r}.") from error
    except OSError as error:
        raise InputError(
            f"The study file {str(path)!r} cannot be read: {error.strerror}."
        ) from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a TOML file: {error}") from error
    if isinstance(table.get("application"), str):
        # The file is named by whoever starts the study, and with it its application.
        name = applications.canonical(table["application"], path.parent)
        table["application"] = applications.allow(name)
    try:
        return _parse(table).validate()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _parse(table: dict[str, Any]) -> Study:
    types: dict[str, type | tuple[type, ...]] = {
        "application": str,
        "data": str,
        "tasks": list,
        "seed": int,
        "oracle": str,
        "trials": int,
        "epochs": int,
        "limit": int,
        "objective": (str, list),
        "patience": int,
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
    space = parse_space(values.pop("space"))
    for key in ("tasks", "objective"):
        if isinstance(values.get(key), list):
            for name in values[key]:
                if not isinstance(name, str):
                    raise InputError(
                        f"Expected {key} to be a list of names. Received: {name!r}."
                    )
            values[key] = tuple(values[key])
    return Study(space=space, **values)


_WORDS: dict[Any, str] = {
    str: "a text",
    (str, list): "a name or a list of names",
    list: "a list of names",
    int: "a whole number",
    dict: "a table",
}
