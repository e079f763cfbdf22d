"""One model for all trade-offs: a preference over the tasks is an input of the model.

A functional model is conditioned on the preference (`hypernetwork`, `manifold`), is
trained with a preference drawn for each step (`SampledPreference`), and answers at any
preference that a request holds.
"""

from __future__ import annotations

from typing import Any

from mtl_keras.pareto.conditioning import hypernetwork, manifold
from mtl_keras.pareto.front import Front, front
from mtl_keras.pareto.model import PreferenceModel
from mtl_keras.pareto.sampling import SampledPreference

__all__ = [
    "Front",
    "PreferenceModel",
    "SampledPreference",
    "front",
    "hypernetwork",
    "manifold",
    "plot_front",
]


def __getattr__(name: str) -> Any:
    # Loads Matplotlib, which a model does not need.
    if name == "plot_front":
        from mtl_keras.pareto.plots import plot_front

        return plot_front
    raise AttributeError(f"module 'mtl_keras.pareto' has no attribute {name!r}")
