"""Methods that balance the tasks of a model; named in `compile(balancing=…)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from mtl_keras.balancing.base import (
    Balancer,
    GradientBalancer,
    GramBalancer,
    LossBalancer,
)
from mtl_keras.balancing.gram_based import (
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    GradVac,
    Krum,
    Nash,
    PCGrad,
    UPGrad,
)
from mtl_keras.balancing.loss_based import DWA, Equal, Static, Uncertainty
from mtl_keras.errors import InputError
from mtl_keras.registry import deserialize_named

__all__ = [
    "DWA",
    "IMTLG",
    "MGDA",
    "AlignedMTL",
    "Balancer",
    "CAGrad",
    "ConFIG",
    "DualProj",
    "Equal",
    "FairGrad",
    "GradVac",
    "GradientBalancer",
    "GramBalancer",
    "Krum",
    "LossBalancer",
    "Nash",
    "PCGrad",
    "Static",
    "UPGrad",
    "Uncertainty",
    "deserialize",
    "get",
    "names",
    "serialize",
]

_METHODS: dict[str, type[Balancer]] = {
    cls.method: cls
    for cls in (
        AlignedMTL,
        CAGrad,
        ConFIG,
        DWA,
        DualProj,
        Equal,
        FairGrad,
        GradVac,
        IMTLG,
        Krum,
        MGDA,
        Nash,
        PCGrad,
        Static,
        UPGrad,
        Uncertainty,
    )
}
_CLASSES = {cls.__name__: cls for cls in _METHODS.values()}


def names() -> list[str]:
    """Returns the names that `get` accepts, sorted."""
    return sorted(_METHODS)


def serialize(balancer: Balancer) -> dict[str, Any]:
    """Returns the configuration of a balancer, as `keras.saving` writes it."""
    return keras.saving.serialize_keras_object(balancer)


def deserialize(
    config: dict[str, Any], custom_objects: dict[str, Any] | None = None
) -> Balancer:
    """Returns the balancer of a configuration.

    Args:
        config: `serialize`'s result, or `{"class_name": …, "config": …}` with the
            name of a method or of its class.
        custom_objects: Further classes by name.

    Raises:
        InputError: For an unknown name or arguments that the method lacks.
    """
    return deserialize_named(
        "balancing method", config, {**_METHODS, **_CLASSES, **(custom_objects or {})}
    )


def get(
    identifier: str | dict[str, Any] | Balancer | Sequence[Any] | None,
) -> Balancer | list[Balancer]:
    """Returns the balancer that an identifier stands for.

    Args:
        identifier: A name out of `names()`, a class name, a configuration
            `{"class_name": …, "config": …}`, or an instance. A list of them gives
            a list, for a loss balancer combined with a gradient balancer. `None`
            is `"equal"`.

    Raises:
        InputError: For an unknown name or another type.
    """
    if identifier is None:
        return Equal()
    if isinstance(identifier, Balancer):
        return identifier
    if isinstance(identifier, dict):
        return deserialize(identifier)
    if isinstance(identifier, str):
        return deserialize({"class_name": identifier})
    if isinstance(identifier, (list, tuple)):
        return [_one(item) for item in identifier]
    raise InputError(
        "Expected `balancing` to be a name, a configuration, a Balancer, or a list "
        f"of these. Received: {identifier!r} of type {type(identifier).__name__}."
    )


def _one(identifier: Any) -> Balancer:
    balancer = get(identifier)
    if isinstance(balancer, list):
        raise InputError(f"Expected a flat list of balancers. Received: {identifier}.")
    return balancer
