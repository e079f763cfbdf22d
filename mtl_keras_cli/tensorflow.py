"""Loading TensorFlow without its start-up noise."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator

# What TensorFlow prints on a healthy machine while it is loaded and looks for
# devices. It comes from C++ code that runs before any log level is read, so
# that only the stream itself can be filtered.
_NOISE = re.compile(
    r"^WARNING: All log messages before absl::InitializeLog"
    r"|^[IW]\d{4} \d\d:\d\d:\d\d"  # information and warnings
    r"|^I0000 |^W0000 "
    r"|^To enable the following instructions"
    r"|^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] "
    r"|failed call to cuInit.*(UNKNOWN ERROR \(303\)|NO_DEVICE)"  # no GPU driver
)
# What a machine with a GPU should hear of one that TensorFlow cannot use.
_OF_GPUS = re.compile(r"GPU|CUDA|cuda|dlopen|lib(cu|nv)\w+\.so")


def has_gpu() -> bool:
    """Whether the machine has an NVIDIA GPU, whether TensorFlow can use it or not."""
    return any(pathlib.Path("/dev").glob("nvidia[0-9]*"))


def is_noise(line: str) -> bool:
    """Whether a line of TensorFlow's start is not worth reading on this machine."""
    if has_gpu() and re.match(r"[WE]|.*: [WE] ", line) and _OF_GPUS.search(line):
        return False
    return _NOISE.search(line) is not None


def load(starts: bool = True, gpus: bool = True) -> None:
    """Imports TensorFlow, without its start-up noise on standard error.

    TF_CPP_MIN_LOG_LEVEL=0 in the environment shows everything.

    Args:
        starts: Whether to have TensorFlow start up, too, so that its messages about
            devices are filtered as well. One that joins a cluster must not yet.
        gpus: Whether this process may use GPUs. One that only schedules must not,
            so that all of their memory is left to its workers.
    """
    # Several processes may share a GPU, as the workers of a search and their chief do.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") == "0":
        if not gpus:
            import tensorflow as tf

            tf.config.set_visible_devices([], "GPU")
        return
    with _filtered_stderr():
        import tensorflow as tf

        if not gpus:
            tf.config.set_visible_devices([], "GPU")
        if starts:
            tf.config.list_logical_devices()
    tf.get_logger().setLevel("ERROR")

    from absl import logging

    logging.set_verbosity(logging.ERROR)


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    """Context manager: filters the start-up noise out of file descriptor 2."""
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if not is_noise(line):
                    print(line, file=sys.stderr)
