"""What a training run is made of, checked before anything is trained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mtl_keras.errors import InputError, unknown_name

if TYPE_CHECKING:
    from mtl_keras.applications import Application

# A name, or {"class_name": ..., "config": ...}, as the registries take them.
Spec = str | dict[str, Any]
SCHEDULES = ("cosine", "warmup_cosine", "constant")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings of one training run.

    A field that is None takes the application's default; `validate` fills it
    in, so that the `config.json` of a run folder names every setting.

    Attributes:
        application: Name of an application, for example `"vision"`.
        data: Name of a data set, for example `"multi_digits/digits"`.
        tasks: The tasks to train; None means all.
        backbone: Name of one of the application's backbones.
        sharing: How tasks share: a name or a config dictionary.
        balancing: How tasks are balanced: a name, a config dictionary, or a list
            of a loss balancer and a gradient balancer.
        width: Width of the backbone, in the application's units.
        depth: Depth of the backbone, in stages.
        epochs: Passes over the training split.
        batch_size: Samples per step.
        learning_rate: The first learning rate.
        optimizer: A Keras optimizer: a name or a config dictionary; None means the
            application's own.
        schedule: How the learning rate goes on: `"cosine"` (a decay to 0 over
            all steps), `"warmup_cosine"` (the same, after a rise from 0 over a
            twentieth of them) or `"constant"`.
        precision: A Keras dtype policy for the whole model, one of `PRECISIONS`;
            None means Keras's global one. Outputs stay float32.
        seed: Seed of weights, shuffling and dropout.
        loss_weights: Weight of each task's loss, `{task: weight}`; tasks left
            out weigh 1.
        limit: Use only this many training samples; None means all.
    """

    application: str
    data: str | None = None
    tasks: tuple[str, ...] | None = None
    backbone: str | None = None
    sharing: Spec | None = None
    balancing: Spec | list[Spec] = "equal"
    width: int | None = None
    depth: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    loss_weights: Mapping[str, float] | None = None
    limit: int | None = None
    optimizer: Spec | None = None
    schedule: str = "cosine"
    precision: str | None = None

    def validate(self) -> RunConfig:
        """Checks every field and fills in the application's defaults.

        Returns:
            A config without None, except for `loss_weights`, `limit`,
            `optimizer` and `precision`.

        Raises:
            InputError: If a name is unknown (with the nearest names), a number is
                out of range, or two balancing methods are of one kind. Nothing has
                been written or trained.
        """
        from mtl_keras import balancing, sharing
        from mtl_keras.balancing.pipeline import Pipeline
        from mtl_keras.runs.optimizers import make_optimizer

        application = self.get_application()
        defaults = application.defaults
        filled = dataclasses.replace(
            self,
            data=application.default_data if self.data is None else self.data,
            tasks=tuple(application.tasks if self.tasks is None else self.tasks),
            **{
                name: getattr(defaults, name)
                for name in (
                    "backbone",
                    "sharing",
                    "width",
                    "depth",
                    "epochs",
                    "batch_size",
                    "learning_rate",
                )
                if getattr(self, name) is None
            },
        )
        filled._check_names(application)
        filled._check_numbers()
        found = balancing.get(filled.balancing)
        # Two methods of one kind are refused here, and not by `compile` later.
        Pipeline(found if isinstance(found, list) else [found])
        sharing.get(filled.sharing).check_tasks(filled.tasks or ())
        make_optimizer(filled.optimizer, float(filled.learning_rate))  # type: ignore[arg-type]
        return filled

    def get_application(self) -> Application:
        """Returns the application, as it is for the data set.

        Raises:
            InputError: If the application, or its data set, is unknown.
        """
        from mtl_keras import applications

        return applications.get(self.application).for_data(self.data)

    def _check_names(self, application: Application) -> None:
        assert self.tasks is not None
        if not self.tasks:
            raise InputError(
                "Expected at least one task. Known tasks: "
                f"{', '.join(application.tasks)}."
            )
        for task in self.tasks:
            if task not in application.tasks:
                raise unknown_name(
                    f"task of {application.name!r}", task, application.tasks
                )
        twice = [task for task in self.tasks if self.tasks.count(task) > 1]
        if twice:
            raise InputError(f"Expected each task once. Received twice: {twice[0]!r}.")
        if self.backbone not in application.backbones:
            raise unknown_name(
                f"backbone of {application.name!r}",
                self.backbone,
                application.backbones,
            )
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)
        if self.precision is not None and self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        for task, weight in (self.loss_weights or {}).items():
            if task not in self.tasks:
                raise unknown_name("task in loss_weights", task, self.tasks)
            if not is_number(weight) or not math.isfinite(weight) or weight < 0:
                raise InputError(
                    f"Expected the loss weight of {task!r} to be a number of at "
                    f"least 0. Received: {weight!r}."
                )

    def _check_numbers(self) -> None:
        for name in ("width", "depth", "epochs", "batch_size"):
            check_count(name, getattr(self, name))
        if self.depth > _DEEPEST:  # type: ignore[operator]
            raise InputError(
                f"Expected depth to be at most {_DEEPEST}. Received: {self.depth}."
            )
        if self.limit is not None:
            check_count("limit", self.limit)
        if not is_number(self.learning_rate) or not 0 < self.learning_rate < math.inf:  # type: ignore[operator]
            raise InputError(
                "Expected learning_rate to be a number above 0. "
                f"Received: {self.learning_rate!r}."
            )
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise InputError(
                "Expected seed to be a whole number from 0 to 4294967295. "
                f"Received: {self.seed!r}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON has them."""
        values = dataclasses.asdict(self)
        if self.tasks is not None:
            values["tasks"] = list(self.tasks)
        return values

    def identity(self) -> str:
        """Returns a hash of all settings: equal for the same training, and only then.

        Methods count with all their arguments, defaults included, however they are
        written: `"dwa"`, `"DWA"` and `{"class_name": "dwa", "config": {"temperature":
        2}}` are one.

        Returns:
            64 hexadecimal digits (SHA-256 of canonical JSON).

        Raises:
            InputError: For an unknown method or optimizer.
        """
        import keras

        from mtl_keras import balancing, sharing
        from mtl_keras.runs.optimizers import make_optimizer

        values = self.to_dict()
        several = isinstance(self.balancing, (list, tuple))
        values["balancing"] = [
            _canonical_method(balancing.serialize(balancing.get(spec)), spec)  # type: ignore[arg-type]
            for spec in (self.balancing if several else [self.balancing])
        ]
        if self.sharing is not None:
            method = sharing.serialize(sharing.get(self.sharing))
            values["sharing"] = _canonical_method(method, self.sharing)
        if self.optimizer is not None:
            optimizer = make_optimizer(self.optimizer, 1.0)
            values["optimizer"] = keras.saving.serialize_keras_object(optimizer)
        text = json.dumps(_canonical_numbers(values), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Makes a config from `to_dict`'s dictionary.

        Raises:
            InputError: If a key is unknown, or `application` is missing.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise unknown_name("run setting", key, known)
        if "application" not in values:
            raise InputError("Expected a run config with the key 'application'.")
        values = dict(values)
        for name, value in values.items():
            expected = _JSON_TYPES[name]
            if value is not None and not isinstance(value, expected):
                raise InputError(
                    f"Expected {name} to be {_described(expected)}. "
                    f"Received: {str(value)!r:.100}."
                )
        if values.get("tasks") is not None:
            values["tasks"] = tuple(map(str, values["tasks"]))
        return cls(**values)


_LARGEST_COUNT = 2**31 - 1
_DEEPEST = 1_000  # beyond it, building a model takes hours

# What JSON has for each field, where it has not null.
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "application": (str,),
    "data": (str,),
    "tasks": (list, tuple),
    "backbone": (str,),
    "optimizer": (str, dict),
    "schedule": (str,),
    "precision": (str,),
    "sharing": (str, dict),
    "balancing": (str, dict, list),
    "loss_weights": (dict,),
    **dict.fromkeys(
        (
            *("width", "depth", "epochs", "batch_size", "learning_rate"),
            *("seed", "limit"),
        ),
        (int, float),
    ),
}
_WORDS = {str: "a name", list: "a list", dict: "a table", int: "a number"}


def _described(types: tuple[type, ...]) -> str:
    return " or ".join(_WORDS[kind] for kind in types if kind in _WORDS)


def spec_name(spec: Any, write: Callable[[Any], str] = repr) -> str:
    """Writes a name or config as people read it.

    `{"class_name": "dwa", "config": {"temperature": 1}}` is `dwa(temperature=1)`,
    and a list is its members with a plus between them.

    Args:
        spec: What a registry's `get` takes.
        write: How to write an argument's value.
    """
    if isinstance(spec, dict):
        given = ", ".join(f"{k}={write(v)}" for k, v in spec.get("config", {}).items())
        return f"{spec.get('class_name')}({given})"
    if isinstance(spec, (list, tuple)):
        return " + ".join(spec_name(member, write) for member in spec)
    return str(spec)


def _canonical_method(serialized: Any, spec: Any) -> Any:
    """Returns a serialized method without what is drawn anew for each instance.

    Args:
        serialized: What Keras's serialization gives for the method.
        spec: What the method was made from. A seed that it does not give is drawn.
    """
    if not isinstance(serialized, dict) or "class_name" not in serialized:
        return serialized
    given = (spec.get("config") or {}) if isinstance(spec, dict) else {}
    return {
        "class_name": serialized.get("registered_name") or serialized["class_name"],
        "config": {
            key: _canonical_method(value, given.get(key))
            for key, value in serialized["config"].items()
            if key != "seed" or given.get(key) is not None
        },
    }


def _canonical_numbers(values: Any) -> Any:
    """Returns JSON values with whole numbers as integers: 1.0 and 1 are one setting."""
    if isinstance(values, Mapping):
        return {str(key): _canonical_numbers(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_canonical_numbers(value) for value in values]
    if isinstance(values, float) and values.is_integer():
        return int(values)
    return values


def is_number(value: Any) -> bool:
    """Whether a value is an int or float, and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_count(name: str, value: Any) -> None:
    """Raises an InputError unless `value` is a whole number from 1 to 2147483647."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(
            f"Expected {name} to be a whole number of at least 1. Received: {value!r}."
        )
    if value > _LARGEST_COUNT:
        raise InputError(
            f"Expected {name} to be a whole number of at most {_LARGEST_COUNT}. "
            f"Received: {value!r:.100}."
        )
