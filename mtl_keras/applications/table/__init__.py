"""Tables of one's own."""

from mtl_keras.applications.table import layers, titled

__all__ = ["layers", "titled"]
