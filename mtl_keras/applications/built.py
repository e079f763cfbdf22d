"""A model of one's own: a function that builds it, with the tasks of a data file."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from mtl_keras import errors
from mtl_keras.applications.base import Application, Task, TrainingDefaults
from mtl_keras.model import MultiTaskModel

if TYPE_CHECKING:
    import tensorflow as tf

    from mtl_keras.applications.table.application import Table

_BACKBONE = "own"


class BuiltModel(Application):
    """A function that builds a `MultiTaskModel`, on the data of a data file.

    The function may take any of these arguments: `table`, the
    `mtl_keras.applications.Table`; `tasks`, the names of the outputs to build;
    `sharing`, `width` and `depth`, as `Application.build` takes them. It returns a
    model with raw columns as inputs and the tasks as outputs, by their names; layers
    such as `keras.layers.Normalization` may be adapted to `table.load("train", …)`.

    Args:
        function: The function.
        name: What it was named by.
        table: The table; None before `for_data`.
    """

    default_data = ""
    backbones = (_BACKBONE,)

    def __init__(
        self,
        function: Callable[..., MultiTaskModel],
        name: str,
        table: Table | None = None,
    ):
        self.function = function
        self.name = name
        self._table = table

    def for_data(self, data: str | None) -> Application:
        """See `Application.for_data`.

        Args:
            data: Path of the data file.

        Raises:
            InputError: Without a data file.
        """
        from mtl_keras.applications.table.application import Table

        if not data:
            raise errors.InputError(
                f"Expected a data file beside the function {self.name!r}: --data "
                "FILE.toml. Received: none."
            )
        table = Table(data, group_tasks=False)
        return BuiltModel(self.function, self.name, table)

    @property
    def table(self) -> Table:
        """The table that the model is for."""
        if self._table is None:
            raise errors.InputError(f"Expected {self.name!r} with a data file.")
        return self._table

    @property
    def tasks(self) -> Mapping[str, Task]:  # type: ignore[override]
        """The table's tasks."""
        return self.table.tasks

    @property
    def defaults(self) -> TrainingDefaults:  # type: ignore[override]
        """The table's, with the one backbone that there is."""
        import dataclasses

        return dataclasses.replace(self.table.defaults, backbone=_BACKBONE)

    def load(
        self,
        split: str,
        *,
        data: str | None = None,
        batch_size: int,
        tasks: Iterable[str] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        limit: int | None = None,
        data_dir: str | os.PathLike | None = None,
        epoch: tf.Variable | None = None,
    ) -> tf.data.Dataset:
        """See `Table.load`."""
        del data, data_dir
        return self.table.load(
            split,
            batch_size=batch_size,
            tasks=tasks,
            shuffle=shuffle,
            seed=seed,
            limit=limit,
            epoch=epoch,
        )

    def inputs(self) -> dict[str, keras.KerasTensor]:
        """See `Application.inputs`: the table's columns."""
        return self.table.inputs()

    def summary(self) -> str:
        """See `Application.summary`."""
        return self.table.summary()

    def class_names(self) -> Mapping[str, Sequence[str]]:
        """See `Application.class_names`."""
        return self.table.class_names()

    def missing_values(self) -> Mapping[str, float]:
        """See `Served.missing_values`."""
        return self.table.missing_values()

    def build(
        self,
        *,
        backbone: str | None = None,
        sharing: Any = None,
        width: int | None = None,
        depth: int | None = None,
        tasks: Iterable[str] | None = None,
    ) -> MultiTaskModel:
        """See `Application.build`: what the function returns, with the chosen tasks.

        Raises:
            InputError: If it returns something else, or a task has no output.
        """
        del backbone
        chosen = [task.name for task in self.select(tasks).values()]
        offered = {
            "table": self.table,
            "tasks": chosen,
            "sharing": self.defaults.sharing if sharing is None else sharing,
            "width": self.defaults.width if width is None else width,
            "depth": self.defaults.depth if depth is None else depth,
        }
        parameters = inspect.signature(self.function).parameters
        model = self.function(**{k: v for k, v in offered.items() if k in parameters})
        if not isinstance(model, keras.Model) or not isinstance(model.output, dict):
            raise errors.InputError(
                f"Expected {self.name!r} to return a MultiTaskModel. Received: "
                f"{model!r:.100}."
            )
        for name in chosen:
            if name not in model.output:
                raise errors.unknown_name("output of the model", name, model.output)
        outputs = {name: model.output[name] for name in chosen}
        return MultiTaskModel(model.input, outputs)
