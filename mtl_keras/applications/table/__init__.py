"""Tables of one's own."""

from mtl_keras.applications.table import layers

__all__ = ["layers"]
