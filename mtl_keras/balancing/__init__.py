"""Methods that balance the tasks of a model; named in `compile(balancing=…)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from mtl_keras.balancing.base import (
    Balancer,
    GradientBalancer,
    GradientStep,
    GramBalancer,
    LossBalancer,
    LossStep,
    Probe,
)
from mtl_keras.balancing.bilevel import AutoLambda
from mtl_keras.balancing.gram_auxiliary import PCD, AuxiNash, GradientCosine
from mtl_keras.balancing.gram_based import (
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    GradVac,
    Krum,
    PCGrad,
)
from mtl_keras.balancing.gram_programs import (
    PIVRG,
    ConsMTL,
    DualProj,
    FairGrad,
    Nash,
    UPGrad,
)
from mtl_keras.balancing.gram_sharpness import SAMO
from mtl_keras.balancing.gram_stochastic import CRMOGM, MoDo, SDMGrad
from mtl_keras.balancing.loss_based import DWA, Equal, Static, Uncertainty
from mtl_keras.balancing.loss_learned import FAMO, IMTLL, LDCMTL, GradNorm
from mtl_keras.balancing.loss_scalarising import (
    COSMOS,
    GLS,
    PBI,
    STCH,
    UWSO,
    EPOLike,
    RandomWeighting,
    ScaleInvariant,
)
from mtl_keras.balancing.matrix_auxiliary import MetaBalance
from mtl_keras.balancing.matrix_averaging import DBMTL, ExcessMTL, MoCo
from mtl_keras.balancing.matrix_based import GradDrop, MatrixBalancer, TrimmedMean
from mtl_keras.balancing.matrix_momentum import MConFIG
from mtl_keras.balancing.running import RunningBalancer
from mtl_keras.errors import InputError
from mtl_keras.registry import deserialize_named, named_class

__all__ = [
    "COSMOS",
    "CRMOGM",
    "DBMTL",
    "DWA",
    "FAMO",
    "GLS",
    "IMTLG",
    "IMTLL",
    "LDCMTL",
    "MGDA",
    "PBI",
    "PCD",
    "PIVRG",
    "SAMO",
    "STCH",
    "UWSO",
    "AlignedMTL",
    "AutoLambda",
    "AuxiNash",
    "Balancer",
    "CAGrad",
    "ConFIG",
    "ConsMTL",
    "DualProj",
    "EPOLike",
    "Equal",
    "ExcessMTL",
    "FairGrad",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "GradientBalancer",
    "GradientCosine",
    "GradientStep",
    "GramBalancer",
    "Krum",
    "LossBalancer",
    "LossStep",
    "MConFIG",
    "MatrixBalancer",
    "MetaBalance",
    "MoCo",
    "MoDo",
    "Nash",
    "PCGrad",
    "Probe",
    "RandomWeighting",
    "RunningBalancer",
    "SDMGrad",
    "ScaleInvariant",
    "Static",
    "TrimmedMean",
    "UPGrad",
    "Uncertainty",
    "deserialize",
    "get",
    "get_class",
    "names",
    "serialize",
]

_METHODS: dict[str, type[Balancer]] = {
    cls.method: cls
    for cls in (
        AlignedMTL,
        AutoLambda,
        AuxiNash,
        CAGrad,
        ConFIG,
        ConsMTL,
        COSMOS,
        CRMOGM,
        DBMTL,
        DualProj,
        DWA,
        EPOLike,
        Equal,
        ExcessMTL,
        FairGrad,
        FAMO,
        GLS,
        GradDrop,
        GradientCosine,
        GradNorm,
        GradVac,
        IMTLG,
        IMTLL,
        Krum,
        LDCMTL,
        MConFIG,
        MetaBalance,
        MGDA,
        MoCo,
        MoDo,
        Nash,
        PBI,
        PCD,
        PCGrad,
        PIVRG,
        RandomWeighting,
        SAMO,
        ScaleInvariant,
        SDMGrad,
        Static,
        STCH,
        TrimmedMean,
        Uncertainty,
        UPGrad,
        UWSO,
    )
}
_CLASSES = {cls.__name__: cls for cls in _METHODS.values()}


def names() -> list[str]:
    """Returns the names that `get` accepts, sorted.

    Example:

    ```pycon
    >>> mtl_keras.balancing.names()[:3]
    ['aligned_mtl', 'auto_lambda', 'auxinash']
    ```
    """
    return sorted(_METHODS)


def get_class(name: str) -> type[Balancer]:
    """Returns the class that `get` makes an object of for a name.

    Args:
        name: A name out of `names()`, or a class name.

    Raises:
        InputError: For an unknown name.

    Example:

    ```pycon
    >>> mtl_keras.balancing.get_class("mgda").__name__
    'MGDA'
    ```
    """
    return named_class("balancing method", name, {**_METHODS, **_CLASSES})


def serialize(balancer: Balancer) -> dict[str, Any]:
    """Returns the configuration of a balancer, as `keras.saving` writes it.

    Example:

    ```pycon
    >>> config = mtl_keras.balancing.serialize(mtl_keras.balancing.MGDA())
    >>> config["class_name"]
    'MGDA'
    ```
    """
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

    Example:

    ```pycon
    >>> config = {"class_name": "fairgrad", "config": {"alpha": 1.0}}
    >>> mtl_keras.balancing.deserialize(config).alpha
    1.0
    ```
    """
    return deserialize_named(
        "balancing method",
        config,
        {**_METHODS, **_CLASSES, **(custom_objects or {})},
        Balancer,
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

    Example:

    ```pycon
    >>> mtl_keras.balancing.get({"class_name": "cagrad", "config": {"c": 0.5}}).c
    0.5
    ```
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
