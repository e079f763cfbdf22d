"""Embedding tables whose cost per step follows the batch, not the table."""

from __future__ import annotations

from mtl_keras.embeddings.lazy_adam import LazyAdam
from mtl_keras.embeddings.sparse_embedding import SparseEmbedding

__all__ = ["LazyAdam", "SparseEmbedding"]
