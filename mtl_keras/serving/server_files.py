"""Configuration for `tensorflow_model_server`, beside the versions of a model."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from mtl_keras.files import atomic_write

MODELS, BATCHING = "models.config", "batching.config"
BATCH_SIZES = (1, 8, 32)
"""Batch sizes that the server pads to, and that exports are measured at."""


def write_server_files(path: pathlib.Path, model: str) -> None:
    """Writes `models.config` and `batching.config`, unless they are there.

    They belong to whoever runs the server: what has been changed in them stays.

    Args:
        path: The folder of versions.
        model: Name of the model on the server.
    """
    for name, text in (
        (MODELS, models_config(path, model)),
        (BATCHING, batching_parameters(BATCH_SIZES)),
    ):
        file = path / name
        if not file.exists():
            with atomic_write(file) as temporary:
                temporary.write_text(text, encoding="utf-8")


def models_config(path: pathlib.Path, model: str) -> str:
    """Returns the text for `--model_config_file`: serve the newest version."""
    config = model_server_config_pb2.ModelServerConfig()
    entry = config.model_config_list.config.add()
    entry.name = model
    # The server takes absolute paths only.
    entry.base_path = str(path.absolute())
    entry.model_platform = "tensorflow"
    entry.model_version_policy.latest.num_versions = 1
    return (
        "# tensorflow_model_server --model_config_file=models.config\n"
        "# base_path is where the server finds the folder of versions.\n"
        + text_format.MessageToString(config)
    )


def batching_parameters(sizes: Sequence[int]) -> str:
    """Returns the text for `--batching_parameters_file`.

    Requests are joined up to the largest size, and padded to the next one, so that
    the server runs the batch sizes that it was warmed up with. Without
    `pad_variable_length_inputs`, which would lengthen a sequence by copies of the
    request's first value, and so change the answer.

    Args:
        sizes: Batch sizes, rising.
    """
    # The message, BatchingParameters, is not part of tensorflow-serving-api.
    lines = [
        "# tensorflow_model_server --enable_batching",
        "#   --batching_parameters_file=batching.config",
        f"max_batch_size {{ value: {sizes[-1]} }}",
        "batch_timeout_micros { value: 2000 }",
        "max_enqueued_batches { value: 100 }",
        f"num_batch_threads {{ value: {os.cpu_count() or 1} }}",
        *(f"allowed_batch_sizes: {size}" for size in sizes),
    ]
    return "\n".join(lines) + "\n"
