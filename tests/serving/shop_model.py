"""A model with inputs of every sort, for tests of its export."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

import mtl_keras

CLASS_NAMES = {"kind": ["tool", "toy", "book"], "sold": ["no", "yes"]}


def shop_model():
    """A model with an input of every sort: three tasks over a shared trunk.

    Only `amount` reads `history`.
    """
    image = keras.Input((6, 6, 1), dtype="uint8", name="image")
    title = keras.Input((), dtype="string", name="title")
    price = keras.Input((1,), name="price")
    history = keras.Input((None,), dtype="int64", name="history")
    tokens = layers.TextVectorization(
        vocabulary=["red", "blue", "big"], output_sequence_length=3, name="words"
    )(title)
    x = layers.Concatenate(name="joined")(
        [
            layers.Flatten(name="pixels")(layers.Rescaling(1 / 255)(image)),
            layers.Flatten()(layers.Embedding(6, 2, name="word")(tokens)),
            price,
        ]
    )
    x = layers.Dense(8, "relu", name="trunk")(layers.Dropout(0.2)(x))
    past = layers.Embedding(10, 4, name="item")(history)
    past = layers.GlobalAveragePooling1D(name="past")(past)
    kind = layers.Dense(3, "softmax", name="kind")(x)
    sold = layers.Dense(1, "sigmoid", name="sold")(layers.Dense(4, name="sold_x")(x))
    both = layers.Concatenate(name="amount_x")([x, past])
    amount = layers.Dense(1, name="amount")(layers.Activation("gelu")(both))
    inputs = {"image": image, "title": title, "price": price, "history": history}
    return mtl_keras.MultiTaskModel(
        inputs, {"kind": kind, "sold": sold, "amount": amount}
    )


def shop_inputs(count, seed=0):
    rng = np.random.default_rng(seed)
    titles = np.array([b"red toy", b"big blue book", b"", b"tool"], object)
    return {
        "image": rng.integers(0, 256, (count, 6, 6, 1)).astype("uint8"),
        "title": rng.choice(titles, count),
        "price": (5 * rng.normal(size=(count, 1))).astype("float32"),
        "history": rng.integers(0, 10, (count, 5)),
    }
