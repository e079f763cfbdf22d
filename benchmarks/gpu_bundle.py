"""Packs programs of XLA for a GPU machine that has JAX and no TensorFlow.

    python benchmarks/gpu_bundle.py [--methods NAME,...] [--out FILE]

Writes build/gpu-bundle.tar.gz, of some 3 MB: StableHLO of the solvers (as custom calls,
and as TensorFlow's ops), of the sparse Gram matrix, and of whole training steps of the
methods on the Gram matrix, each with inputs and what it gives here; the sources of the
custom calls; and run.py, which builds these there, runs all programs and says which
results differ:

    tar xzf gpu-bundle.tar.gz && python gpu-bundle/run.py

That machine needs JAX with CUDA, NumPy and a C++ compiler. What it cannot tell is where
TensorFlow would place the ops of a step, how Keras's loop runs there, and anything of
cuDNN's recurrent layers, NCCL and memory growth: see benchmarks/gpu_check.py.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import pathlib
import re
import tarfile
from collections.abc import Callable
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import gpu_check
import keras
import numpy as np
import step
import tensorflow as tf

import mtl_keras
from mtl_keras import ops
from mtl_keras.ops import native

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = (
    "csrc/solvers/*",
    "csrc/kernels/simd*",
    "csrc/kernels/dtype.h",
    "csrc/xla/handlers.cc",
)
NAME = "gpu-bundle"


class Bundle:
    """An archive of programs, each with inputs, results and how near these must be."""

    def __init__(self, archive: tarfile.TarFile):
        self._archive = archive
        self._programs: list[dict[str, Any]] = []

    def add(self, name: str, content: bytes) -> None:
        """Adds a file."""
        info = tarfile.TarInfo(f"{NAME}/{name}")
        info.size = len(content)
        self._archive.addfile(info, io.BytesIO(content))

    def add_program(
        self,
        name: str,
        function: Callable[..., Any],
        arguments: list[Any],
        within: float,
        expected: list[Any] | None = None,
    ) -> None:
        """Adds a function's program.

        Args:
            name: Name of the program.
            function: A function of tensors, with variables or without.
            arguments: Tensors.
            within: How far a result may be off, relative to its largest number.
            expected: The first of its results, in their order; None for what it gives
                here.
        """
        call = tf.function(function, jit_compile=True, autograph=False)
        traced = call.get_concrete_function(*arguments)
        variables = {id(v.handle): v for v in traced.graph.variables}
        inputs = [
            variables[id(t)].numpy() if t.dtype == tf.resource else t.numpy()
            for t in (*tf.nest.flatten(arguments), *traced.captured_inputs)
        ]
        text = call.experimental_get_compiler_ir(*arguments)(stage="stablehlo")
        text = with_plain_booleans(text)
        if expected is None:
            expected = [t.numpy() for t in tf.nest.flatten(call(*arguments))]
        number = f"{len(self._programs):03d}"
        arrays = io.BytesIO()
        np.savez_compressed(
            arrays,
            **{f"input_{i}": value for i, value in enumerate(inputs)},
            **{f"expected_{i}": value for i, value in enumerate(expected)},
        )
        self.add(f"programs/{number}.mlir", text.encode())
        self.add(f"programs/{number}.npz", arrays.getvalue())
        calls = text.count("@mtl_keras_")
        self._programs.append(
            {"name": name, "file": number, "within": within, "calls": calls}
        )
        print(f"{name}: {len(text)} characters, {calls} custom calls", flush=True)

    def add_list(self) -> None:
        """Adds the list of programs."""
        self.add("programs.json", json.dumps(self._programs, indent=1).encode())


def with_plain_booleans(text: str) -> str:
    """Returns MLIR with boolean constants in words: versions pack bits differently."""

    def plain(match: re.Match) -> str:
        shape = [int(size) for size in match[2].split("x")]
        packed = np.frombuffer(bytes.fromhex(match[1]), "uint8")
        bits = np.unpackbits(packed, count=math.prod(shape), bitorder="little")
        values = json.dumps(bits.reshape(shape).astype(bool).tolist())
        return f"dense<{values}> : tensor<{match[2]}xi1>"

    return re.sub(r'dense<"0x([0-9A-F]+)"> : tensor<([0-9x]+)xi1>', plain, text)


def add_solvers(bundle: Bundle) -> None:
    """Adds all solvers in both forms, with the weights that the compiled ops give."""
    for name, solve in gpu_check.all_solvers().items():
        for tasks in gpu_check.SIZES:
            for number, gram in enumerate(gpu_check.gram_matrices(tasks, 2)):
                with ops.implementation("native"):
                    weights = solve(gram)[0].numpy()
                for way, within in (("auto", 0.0), ("tensorflow", 1e-9)):
                    if way == "tensorflow" and number:
                        continue
                    if (name, way) == ("aligned_mtl", "tensorflow"):
                        within = 1e-6
                    what = "call" if way == "auto" else "TensorFlow's ops"
                    with ops.implementation(way):
                        bundle.add_program(
                            f"{name}, T = {tasks}, {what}",
                            solve,
                            [gram],
                            within,
                            [weights],
                        )


def add_sparse(bundle: Bundle) -> None:
    """Adds the Gram matrix of sparse gradients, 4 × 8,192 ids."""
    rng = np.random.default_rng(0)
    values = tf.constant(rng.normal(size=(4, 8192, 16)), "float32")
    places = tf.constant(rng.integers(0, 8192, (4, 8192)))

    def gram(values: Any, places: Any) -> Any:
        shape = tf.constant([1_000_000, 16], tf.int64)
        pairs = zip(tf.unstack(values), tf.unstack(places), strict=True)
        return ops.gramian([[tf.IndexedSlices(v, p, shape)] for v, p in pairs])

    expected = gram(values, places).numpy()
    bundle.add_program("sparse Gram", gram, [values, places], 1e-9, [expected])


def add_steps(bundle: Bundle, methods: list[str]) -> None:
    """Adds a step of a small convolutional network of three tasks, by method."""
    for method in methods:
        keras.utils.set_random_seed(0)
        image = keras.Input((12, 12, 1))
        x = keras.layers.Conv2D(4, 3, activation="relu")(image)
        x = keras.layers.Flatten()(keras.layers.MaxPooling2D()(x))
        x = keras.layers.Dense(16, "relu")(x)
        tasks = ("a", "b", "c")
        model = mtl_keras.MultiTaskModel(
            image, {t: keras.layers.Dense(3, "softmax", name=t)(x) for t in tasks}
        )
        loss = dict.fromkeys(tasks, "sparse_categorical_crossentropy")
        model.compile("sgd", loss=loss, balancing=method, jit_compile=True)
        rng = np.random.default_rng(0)
        images = tf.constant(rng.normal(size=(16, 12, 12, 1)), "float32")
        labels = {t: tf.constant(rng.integers(0, 3, 16)) for t in tasks}
        model.make_train_function()
        model.train_step((images, labels))  # Creates what is left of its variables.

        one = _step_of(model)
        bundle.add_program(f"step, {method}", one, [images, labels], 1e-4)


def _step_of(model: keras.Model) -> Callable[..., list[Any]]:
    def one(images: Any, labels: Any) -> list[Any]:
        model.train_step((images, labels))
        return [v.value.read_value() for v in model.trainable_variables]

    return one


def main() -> None:
    """Packs everything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", default=",".join(step.gram_methods(3)))
    parser.add_argument(
        "--out", type=pathlib.Path, default=ROOT / "build" / f"{NAME}.tar.gz"
    )
    options = parser.parse_args()
    if not native.custom_calls_available():
        raise SystemExit("Expected the compiled ops with custom calls, to pack these.")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(options.out, "w:gz") as archive:
        bundle = Bundle(archive)
        for path in sorted((ROOT / "benchmarks" / "bundle").iterdir()):
            bundle.add(path.name, path.read_bytes())
        for pattern in SOURCES:
            for path in sorted(ROOT.glob(pattern)):
                bundle.add(str(path.relative_to(ROOT)), path.read_bytes())
        add_solvers(bundle)
        add_sparse(bundle)
        add_steps(bundle, options.methods.split(","))
        bundle.add_list()
    print(f"Wrote {options.out}, {options.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
