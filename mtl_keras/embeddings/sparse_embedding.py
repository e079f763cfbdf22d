"""A lookup that touches only the rows it returns."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mtl_keras.errors import check_integer


@keras.saving.register_keras_serializable(package="mtl_keras")
class SparseEmbedding(keras.layers.Layer):
    """`keras.layers.Embedding` without its copy of the table.

    Keras's layer reads the whole table and then gathers from what it read. From the
    first sparse update on, TensorFlow makes a copy for such a read, so that each step
    costs a pass over the table. This layer gathers from the variable itself. Its
    gradient is a `tf.IndexedSlices`, like that of Keras's layer.

    Args:
        input_dim: Number of rows of the table.
        output_dim: Width of a row.
        embeddings_initializer: As in `keras.layers.Embedding`.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Any = "uniform",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.input_dim = check_integer("input_dim", input_dim, low=1)
        self.output_dim = check_integer("output_dim", output_dim, low=1)
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the table."""
        # Casting it, as mixed precision would, is a pass over the table too.
        self.embeddings = self.add_weight(
            shape=(self.input_dim, self.output_dim),
            initializer=self.embeddings_initializer,
            name="embeddings",
            autocast=False,
        )

    def call(self, inputs: Any) -> Any:
        """Returns rows.

        Args:
            inputs: Whole numbers from 0 to `input_dim - 1`, any shape.
        """
        return tf.cast(tf.gather(self.embeddings.value, inputs), self.compute_dtype)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Returns the shape of the rows."""
        return (*input_shape, self.output_dim)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "input_dim": self.input_dim,
            "output_dim": self.output_dim,
            "embeddings_initializer": keras.initializers.serialize(
                self.embeddings_initializer
            ),
        }
