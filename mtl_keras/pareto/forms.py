"""Settings of a run with preferences: the form of conditioning and its arguments."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import keras
from pydantic import Field, StrictStr

from mtl_keras.decoding import Count, Decodable, Finite, decode
from mtl_keras.errors import InputError
from mtl_keras.pareto.conditioning import hypernetwork, manifold
from mtl_keras.pareto.model import PreferenceModel
from mtl_keras.pareto.sampling import SampledPreference
from mtl_keras.registry import named_class

_Alpha = Annotated[Finite, Field(ge=1e-3)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form(Decodable, abc.ABC):
    """How a run's model is conditioned on a preference, and the preferences drawn.

    Attributes:
        layers: The layers to condition; see `pareto.hypernetwork`.
        scalarisation: See `SampledPreference`.
        alpha: See `SampledPreference`.

    Raises:
        InputError: For arguments that `SampledPreference` does not take.
    """

    layers: Literal["heads"] | tuple[StrictStr, ...] | None = None
    scalarisation: Any = "linear"
    alpha: _Alpha | tuple[_Alpha, ...] = 1.0

    def __post_init__(self) -> None:
        self.balancer()

    @abc.abstractmethod
    def condition(self, model: keras.Model, num_tasks: int) -> PreferenceModel:
        """Returns the conditioned model.

        Args:
            model: See `pareto.hypernetwork`.
            num_tasks: Entries of the preference.
        """

    def balancer(self) -> SampledPreference:
        """Returns a new balancer that draws the preferences."""
        return SampledPreference(self.scalarisation, self.alpha)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifold(Form):
    """`pareto.manifold` and its arguments."""

    rank: Count | None = 4

    def condition(self, model: keras.Model, num_tasks: int) -> PreferenceModel:
        """See `Form.condition`."""
        return manifold(model, self.rank, layers=self.layers, num_tasks=num_tasks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hypernetwork(Form):
    """`pareto.hypernetwork` and its arguments."""

    hidden: tuple[Count, ...] = (32, 32)
    rank: Count | None = None

    def condition(self, model: keras.Model, num_tasks: int) -> PreferenceModel:
        """See `Form.condition`."""
        return hypernetwork(
            model,
            self.hidden,
            rank=self.rank,
            layers=self.layers,
            num_tasks=num_tasks,
        )


FORMS: Mapping[str, type[Form]] = {"hypernetwork": Hypernetwork, "manifold": Manifold}


def get(identifier: str | Mapping[str, Any]) -> Form:
    """Returns the settings that an identifier stands for.

    Args:
        identifier: `"manifold"`, `"hypernetwork"` or `{"class_name": …, "config": …}`.

    Raises:
        InputError: For an unknown name, or arguments that it lacks.
    """
    if isinstance(identifier, str):
        identifier = {"class_name": identifier}
    name = identifier.get("class_name")
    cls = named_class("form of preferences", name, FORMS)
    config = identifier.get("config") or {}
    if not isinstance(config, Mapping):
        raise InputError(
            f"Expected the arguments of {name!r} to be a table. Received: {config!r}."
        )
    return decode(cls, dict(config), str(name))
