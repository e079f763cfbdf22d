"""Answers of the C program `predict.c`, which has no Python in it."""

from __future__ import annotations

import pathlib
import shutil
import struct
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

SOURCE = pathlib.Path(__file__).with_name("predict.c")


def build(folder):
    """Compiles the program against the libraries of the pip package."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tf.sysconfig.get_lib()
    program = folder / "predict"
    subprocess.run(
        [
            *(compiler, "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror"),
            *(f"-isystem{tf.sysconfig.get_include()}", str(SOURCE)),
            *("-o", str(program), f"-L{library}", f"-Wl,-rpath,{library}"),
            *("-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"),
        ],
        check=True,
    )
    return program


def answers(program, version, requests, folder):
    """Answers requests by the program.

    Args:
        program: `build`'s result.
        version: Folder of the SavedModel.
        requests: `[(signature, {input: array})]`.
        folder: For its files.

    Returns:
        `[{output: array}]`.
    """
    saved = saved_model_pb2.SavedModel.FromString(
        (version / "saved_model.pb").read_bytes()
    )
    signatures = saved.meta_graphs[0].signature_def
    plan, files = [], []
    for number, (name, inputs) in enumerate(requests):
        signature = signatures[name]
        assert set(inputs) == set(signature.inputs)
        outputs = {}
        for key, info in signature.inputs.items():
            file = folder / f"{number}-in-{key}"
            file.write_bytes(encode(np.asarray(inputs[key])))
            plan.append(f"feed {_place(info.name)} {file}")
        for key, info in signature.outputs.items():
            outputs[key] = folder / f"{number}-out-{key}"
            plan.append(f"fetch {_place(info.name)} {outputs[key]}")
        plan.append("run")
        files.append(outputs)
    (folder / "plan").write_text("\n".join(plan))
    done = subprocess.run(
        [program, version, folder / "plan"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(requests)}\n"
    return [
        {key: decode(file.read_bytes()) for key, file in outputs.items()}
        for outputs in files
    ]


def _place(tensor):
    operation, _, index = tensor.partition(":")
    return f"{operation} {index}"


def encode(array):
    dtype = tf.dtypes.as_dtype(array.dtype)
    head = struct.pack(
        f"=ii{array.ndim}q", dtype.as_datatype_enum, array.ndim, *array.shape
    )
    if dtype != tf.string:
        return head + array.tobytes()
    return head + b"".join(struct.pack("=q", len(t)) + t for t in array.ravel())


def decode(data):
    number, rank = struct.unpack_from("=ii", data)
    shape = struct.unpack_from(f"={rank}q", data, 8)
    dtype, start = tf.dtypes.as_dtype(number), 8 + 8 * rank
    if dtype != tf.string:
        return np.frombuffer(data, dtype.as_numpy_dtype, offset=start).reshape(shape)
    texts = []
    for _ in range(int(np.prod(shape))):
        (length,) = struct.unpack_from("=q", data, start)
        texts.append(data[start + 8 : start + 8 + length])
        start += 8 + length
    return np.array(texts, object).reshape(shape)
