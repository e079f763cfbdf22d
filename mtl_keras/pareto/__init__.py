"""One model for all trade-offs: a preference over the tasks is an input of the model.

A functional model is conditioned on the preference (`hypernetwork`, `manifold`), is
trained with a preference drawn for each step (`SampledPreference`), and answers at any
preference that a request holds.
"""

from __future__ import annotations

from mtl_keras.optional import on_first_use
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


# It loads Matplotlib, which a model does not need.
__getattr__ = on_first_use(__name__, {"plot_front": "plots"})
