"""Configuration of a training run, validated before anything is trained."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import keras
from pydantic import (
    Field,
    PlainValidator,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
)

from mtl_keras import balancing, sharing
from mtl_keras.balancing import Equal, GradientBalancer
from mtl_keras.balancing.base import Balancer
from mtl_keras.balancing.pipeline import Pipeline
from mtl_keras.decoding import Count, Decodable, Finite, decode
from mtl_keras.encoding import encode
from mtl_keras.errors import InputError, unknown_name
from mtl_keras.pareto import forms
from mtl_keras.registry import spec_name
from mtl_keras.runs.optimizers import SCHEDULES, make_optimizer

if TYPE_CHECKING:
    from mtl_keras.applications import Application


def _spec(value: Any) -> Any:
    if isinstance(value, (str, Mapping)):
        return value
    raise InputError(
        f"Expected a name or a table with class_name. Received: {value!r:.100}."
    )


def _specs(value: Any) -> Any:
    several = isinstance(value, (list, tuple))
    return [_spec(member) for member in value] if several else _spec(value)


def _jit(value: Any) -> Any:
    if value == "auto" or isinstance(value, bool):
        return value
    raise InputError(f'Expected true, false or "auto". Received: {value!r:.100}.')


# A name, or {"class_name": ..., "config": ...}, as the registries take them.
Spec = Annotated[str | dict[str, Any], PlainValidator(_spec)]
Specs = Annotated[Spec | list[Spec], PlainValidator(_specs)]
Jit = Annotated[bool | str, PlainValidator(_jit)]
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")

_DEEPEST = 1_000  # beyond it, building a model takes hours


@dataclasses.dataclass(frozen=True)
class RunConfig(Decodable):
    """The settings of one training run, as a user gives them.

    A field that is None takes the application's default; `validate` returns the
    settings with every default filled in.

    Attributes:
        application: Name of an application, for example `"vision"`.
        data: Name of a data set, for example `"multi_digits/digits"`.
        tasks: The tasks to train; None means all.
        backbone: Name of one of the application's backbones.
        sharing: How tasks share: a name or a config dictionary. None means the
            application's way; for one task `"hard"`, one backbone and one head.
        balancing: How tasks are balanced: a name, a config dictionary, or a list
            of a loss balancer and a gradient balancer. None means the application's
            way; for one task, and with `preferences` or `loss_weights`, `"equal"`.
        width: Width of the backbone, in the application's units.
        depth: Depth of the backbone, in stages.
        epochs: Passes over the training split.
        batch_size: Samples per step.
        learning_rate: The first learning rate.
        optimizer: A Keras optimizer: a name or a config dictionary; None means the
            application's own.
        schedule: Schedule of the learning rate: `"cosine"` (a decay to 0 over
            all steps), `"warmup_cosine"` (the same, after a rise from 0 over a
            twentieth of them) or `"constant"`.
        precision: A Keras dtype policy for the whole model, one of `PRECISIONS`;
            None means Keras's global one. Outputs stay float32.
        jit: Whether XLA compiles the steps. `"auto"` means Keras's choice (with a GPU
            and layers that can be compiled) for trainings of at least 2,000 steps,
            as compiling takes seconds to minutes; compiled, a last training batch
            that is smaller is left out, for one shape.
        steps_per_execution: Steps that one call of the compiled training takes, so that
            Python has less to do between them; the last call of an epoch takes those
            that are left. The result is the same; progress is shown, and checkpoints
            are saved, between calls.
        seed: Seed of weights, shuffling and dropout.
        loss_weights: Weight of each task's loss, `{task: weight}`; tasks left
            out weigh 1.
        limit: Use only this many training samples, of which those without a label of
            `tasks` are left out; None means all.
        patience: Epochs without a better validation score (the mean over tasks of
            the main metrics) before the training ends; None for all epochs. The
            model is that of the last epoch.
        accumulate: Whether each step takes a batch of every data set that the tasks
            come from, of applications whose batches are of one each (text), so that
            gradients of all tasks meet; None means no.
        preferences: How the model is conditioned on a preference over the tasks,
            `"manifold"` or `"hypernetwork"`, or a config dictionary with arguments
            of `mtl_keras.pareto.manifold` or `hypernetwork` and with `scalarisation`
            and `alpha` of `SampledPreference`, which then weighs the losses:
            `balancing` may be a gradient balancer. None for a model without.
    """

    application: StrictStr
    data: StrictStr | None = None
    tasks: tuple[StrictStr, ...] | None = None
    backbone: StrictStr | None = None
    sharing: Spec | None = None
    balancing: Specs | None = None
    width: StrictInt | None = None
    depth: StrictInt | None = None
    epochs: StrictInt | None = None
    batch_size: StrictInt | None = None
    learning_rate: StrictFloat | None = None
    seed: StrictInt = 0
    loss_weights: Mapping[StrictStr, StrictFloat] | None = None
    limit: StrictInt | None = None
    optimizer: Spec | None = None
    schedule: StrictStr = "cosine"
    precision: StrictStr | None = None
    jit: Jit = "auto"
    steps_per_execution: StrictInt = 1
    patience: StrictInt | None = None
    accumulate: StrictBool | None = None
    preferences: Spec | None = None

    def validate(self) -> TrainingConfig:
        """Checks every field and fills in the application's defaults.

        Raises:
            InputError: If a name is unknown (with the nearest names), a number is
                out of range, or two balancing methods are of one kind. Nothing has
                been written or trained.
        """
        application = _application(self)
        defaults = {
            "tasks": tuple(application.tasks),
            **dataclasses.asdict(application.defaults),
        }
        settings = {
            name: defaults.get(name) if value is None else value
            for name, value in vars(self).items()
        }
        settings["data"] = application.data_name(self.data)
        tasks = settings["tasks"]
        alone = isinstance(tasks, (list, tuple)) and len(tasks) == 1
        weighted = self.preferences is not None or self.loss_weights is not None
        if self.balancing is None and (alone or weighted):
            settings["balancing"] = "equal"
        if self.sharing is None and alone:
            settings["sharing"] = "hard"
        return decode(TrainingConfig, settings)


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Decodable):
    """The settings of one training, checked, with every default filled in.

    `RunConfig.validate` makes it, or `decode` from the values of `config.json`. The
    attributes are those of `RunConfig`.

    Raises:
        InputError: As `RunConfig.validate`.
    """

    application: StrictStr
    data: StrictStr
    tasks: tuple[StrictStr, ...]
    backbone: StrictStr
    sharing: Spec
    balancing: Specs
    width: Count
    depth: Annotated[StrictInt, Field(ge=1, le=_DEEPEST)]
    epochs: Count
    batch_size: Count
    learning_rate: Annotated[Finite, Field(gt=0)]
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)]
    loss_weights: Mapping[StrictStr, Annotated[Finite, Field(ge=0)]] | None
    limit: Count | None
    optimizer: Spec | None
    schedule: StrictStr
    precision: StrictStr | None
    jit: Jit
    patience: Count | None
    accumulate: StrictBool | None = None
    steps_per_execution: Count = 1
    preferences: Spec | None = None

    def __post_init__(self) -> None:
        application = self.get_application()
        self._check_names(application)
        # Two methods of one kind are refused here, and not by `compile` later.
        Pipeline(self._balancers())
        application.check_sharing(sharing.get(self.sharing), self.tasks)
        if self.preferences is not None:
            self._check_preferences(application)
        _check_optimizer(json.dumps(self.optimizer))

    def validate(self) -> TrainingConfig:
        """Returns the config itself, which is validated."""
        return self

    def get_application(self) -> Application:
        """Returns the application, as it is for the data set."""
        return _application(self)

    def _check_names(self, application: Application) -> None:
        if not self.tasks:
            raise InputError(
                "Expected at least one task. Known tasks: "
                f"{', '.join(application.tasks)}."
            )
        owner = f"of {application.name!r}"
        for kind, names, known in (
            (f"task {owner}", self.tasks, application.tasks),
            (f"backbone {owner}", [self.backbone], application.backbones),
            ("schedule", [self.schedule], SCHEDULES),
            ("precision", {self.precision} - {None}, PRECISIONS),
            ("task in loss_weights", self.loss_weights or (), self.tasks),
        ):
            for name in names:
                if name not in known:
                    raise unknown_name(kind, name, known)
        for task in self.tasks:
            if self.tasks.count(task) > 1:
                raise InputError(f"Expected each task once. Received twice: {task!r}.")
        if self.accumulate is not None and not application.accumulates:
            raise InputError(
                f"Expected no `accumulate` {owner}, whose batches are not of one data "
                f"set each. Received: accumulate={self.accumulate}."
            )

    def preference_form(self) -> forms.Form | None:
        """Returns the settings of `preferences`; None for a model without."""
        return None if self.preferences is None else forms.get(self.preferences)

    def gradient_balancers(self) -> list[GradientBalancer]:
        """Returns new balancers of `balancing` that combine gradients, or none."""
        return [m for m in self._balancers() if isinstance(m, GradientBalancer)]

    def _balancers(self) -> list[Balancer]:
        methods = balancing.get(self.balancing)
        return methods if isinstance(methods, list) else [methods]

    def _check_preferences(self, application: Application) -> None:
        self.preference_form()
        kinds = (Equal, GradientBalancer)
        if not all(isinstance(method, kinds) for method in self._balancers()):
            raise InputError(
                "Expected no loss balancer beside `preferences`, which weigh the "
                f"losses. Received: balancing={spec_name(self.balancing)!r}."
            )
        if application.columns_of(self.tasks):
            raise InputError(
                "Expected tasks with outputs of their own for `preferences`. "
                f"Received: {len(self.tasks)} tasks that are columns of one output."
            )
        outputs = list(application.outputs_of(self.tasks))
        untrained = sharing.get(self.sharing).untrained(outputs)
        if len(outputs) - len(untrained) < 2:
            raise InputError(
                "Expected at least two tasks for `preferences`, as one has nothing to "
                f"trade. Received: {list(self.tasks)}."
            )

    def identity(self) -> str:
        """Returns a hash of all settings: equal for the same training, and only then.

        Methods count with all their arguments, defaults included, however they are
        written: `"dwa"`, `"DWA"` and `{"class_name": "dwa", "config": {"temperature":
        2}}` are one.

        Returns:
            64 hexadecimal digits (SHA-256 of canonical JSON).
        """
        values = encode(self)
        if not self.accumulate:
            del values["accumulate"]
        if self.steps_per_execution == 1:
            del values["steps_per_execution"]
        del values["preferences"]
        if (form := self.preference_form()) is not None:
            drawn = keras.saving.serialize_keras_object(form.balancer())
            values["preferences"] = {
                **encode(form),
                "form": type(form).__name__,
                "scalarisation": _canonical_method(drawn, None),
            }
        several = isinstance(self.balancing, (list, tuple))
        values["balancing"] = [
            _canonical_method(balancing.serialize(balancing.get(spec)), spec)  # type: ignore[arg-type]
            for spec in (self.balancing if several else [self.balancing])
        ]
        method = sharing.serialize(sharing.get(self.sharing))
        values["sharing"] = _canonical_method(method, self.sharing)
        if self.optimizer is not None:
            optimizer = make_optimizer(self.optimizer, 1.0)
            values["optimizer"] = keras.saving.serialize_keras_object(optimizer)
        values = json.loads(json.dumps(values), parse_float=_canonical_number)
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@functools.lru_cache
def _check_optimizer(spec: str) -> None:
    """Once for each, as JSON: TensorFlow keeps 70 kB of every optimizer made."""
    make_optimizer(json.loads(spec), 1.0)


def _canonical_method(serialized: Any, spec: Any) -> Any:
    """Returns a serialized method without drawn seeds, which its spec lacks."""
    if not isinstance(serialized, dict) or "class_name" not in serialized:
        return serialized
    arguments = (spec.get("config") or {}) if isinstance(spec, dict) else {}
    return {
        "class_name": serialized.get("registered_name") or serialized["class_name"],
        "config": {
            key: _canonical_method(value, arguments.get(key))
            for key, value in serialized["config"].items()
            if key != "seed" or arguments.get(key) is not None
        },
    }


def _canonical_number(text: str) -> float:
    """Returns a number of JSON, whole ones as integers: 1.0 and 1 are one setting."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _application(config: RunConfig | TrainingConfig) -> Application:
    # Loads the generators of toy data, which only those who train applications need.
    from mtl_keras import applications

    return applications.get(config.application).for_data(config.data)
