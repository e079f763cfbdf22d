"""Text: sentiment, question answering and translation over one encoder."""

from __future__ import annotations

from mtl_keras.applications.text.application import Text

__all__ = ["Text"]
