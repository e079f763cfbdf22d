"""Data sets that other ones are made from."""

from __future__ import annotations

import os

import tensorflow_datasets as tfds

from mtl_keras.errors import InputError


def prepared(
    name: str, data_dir: str | os.PathLike, *, made: str, to_run: str
) -> tfds.core.DatasetBuilder:
    """Returns the builder of a data set that another one is made from.

    Args:
        name: The data set to read.
        data_dir: The folder that holds TensorFlow Datasets' prepared data.
        made: The data set that is made from it, for the message.
        to_run: The data set whose preparation brings it.

    Raises:
        InputError: It is not prepared in `data_dir`.
    """
    builder = tfds.builder(name, data_dir=os.fspath(data_dir))
    if not (builder.data_path / "dataset_info.json").exists():
        raise InputError(
            f"Expected the data set {name!r}, from which {made!r} is made, to be "
            f"prepared in {os.fspath(data_dir)}. Received: nothing there. Run: "
            f"mtl-keras datasets prepare {to_run} --downloads DIR"
        )
    return builder
