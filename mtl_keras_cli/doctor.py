"""`mtl-keras doctor`: versions and devices of the machine, for bug reports."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from mtl_keras_cli import tensorflow
from mtl_keras_cli.text import make_console, plain_table

_PACKAGES = (
    "tensorflow",
    "keras",
    "keras-tuner",
    "tensorflow-datasets",
    "tensorboard",
    "numpy",
)


def doctor() -> None:
    """Show versions, devices, and what is compiled in."""
    tensorflow.load()
    import keras
    import tensorflow as tf

    import mtl_keras
    from mtl_keras.data.catalog import resolve_data_dir

    table = plain_table("", "")
    table.add_row("mtl_keras", mtl_keras.__version__)
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for package in _PACKAGES:
        table.add_row(package, importlib.metadata.version(package))
    for device in tf.config.list_physical_devices():
        details = tf.config.experimental.get_device_details(device)
        name = details.get("device_name", f"{os.cpu_count()} cores")
        table.add_row(f"device {device.name.split(':', 1)[1]}", name)
    if tensorflow.has_gpu() and not tf.config.list_physical_devices("GPU"):
        table.add_row(
            "device GPU",
            "not used: TensorFlow lacks CUDA's libraries, as it says above; "
            "pip install 'mtl_keras[gpu]'",
        )
    table.add_row("a trial's device", _trial_device())
    precision = f"{keras.config.dtype_policy().name} where the study names none"
    table.add_row("a trial's precision", precision)
    table.add_row("XLA", _compiled_applications())
    table.add_row("balancing ops", _balancing_ops())
    table.add_row("data folder", str(resolve_data_dir()))
    make_console().print(table)


def _balancing_ops() -> str:
    """Returns whether the ops are those of C++, outside XLA and under it."""
    from mtl_keras.ops import native

    if not native.native_in_use():
        return "TensorFlow"
    if native.custom_calls_available():
        return "compiled; under XLA the solvers, as custom calls"
    return "compiled; TensorFlow under XLA"


def _compiled_applications() -> str:
    """Returns the applications whose default models XLA compiles by itself."""
    import tensorflow as tf

    from mtl_keras import applications

    if not tf.config.list_physical_devices("GPU"):
        return "off without a GPU (--jit, or jit = true in a study)"
    compiled = []
    for name in applications.names():
        application = applications.get(name)
        model = application.build()
        model.compile(loss=application.losses())
        if model.jit_compile:
            compiled.append(name)
    return f"on for {', '.join(compiled)}, from 2,000 steps on"


def _trial_device() -> str:
    """Returns the devices of a trial of `tune`, and of `tune --workers` in brackets."""
    import tensorflow as tf

    gpus = len(tf.config.list_physical_devices("GPU"))
    if not gpus:
        cores = len(os.sched_getaffinity(0))
        return f"{cores} cores (their share of them with --workers)"
    growth = os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH") == "true"
    memory = "memory grows" if growth else "all of its memory"
    return f"GPU 0 of {gpus}, {memory} (one GPU each with --workers)"
