"""Runs the programs of a GPU bundle through JAX; needs neither TensorFlow nor Keras.

    python gpu-bundle/run.py [--platform cuda] [--calls N]

Builds the solvers' custom calls with the machine's C++ compiler, runs all programs, and
compares its results with those of the machine that packed it. Prints a line for each,
and writes results.json beside this file, with the medians of times in milliseconds.
Exit code 1 if a program fails or a result is off, 2 without such a device.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

# Products of float32 keep their digits.
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_triton_gemm=false"
)

import jax
import numpy as np
from jax.extend.backend import get_backend
from jaxlib import xla_client

HERE = pathlib.Path(__file__).resolve().parent
SIMD = {"simd_avx2": "-mavx2 -mfma"}
SIMD["simd_avx512"] = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma"


def built() -> ctypes.CDLL:
    """Returns the library with the handlers of the custom calls."""
    sources = [HERE / "ffi_api.cc", HERE / "csrc/xla/handlers.cc"]
    sources += [*(HERE / "csrc").glob("solvers/*.cc")]
    is_x86 = platform.machine() == "x86_64"
    for path in (HERE / "csrc/kernels").glob("*.cc"):
        if is_x86 or path.stem not in SIMD:
            sources.append(path)
    objects = []
    for path in sources:
        target = HERE / f"{path.stem}.o"
        flags = f"-std=c++17 -O3 -fPIC -w {SIMD.get(path.stem, '')}"
        include = [f"-I{HERE / 'csrc'}", f"-I{jax.ffi.include_dir()}"]
        command = ["g++", *flags.split(), *include, "-c", str(path), "-o", str(target)]
        subprocess.run(command, check=True)
        objects.append(str(target))
    library = HERE / "libcalls.so"
    # Else JAX's own function of the same name might be taken.
    linked = ["-shared", "-Wl,-Bsymbolic", *objects, "-o", str(library), "-ldl"]
    subprocess.run(["g++", *linked], check=True)
    return ctypes.CDLL(str(library))


def register(library: ctypes.CDLL, texts: list[str], xla_platform: str) -> None:
    """Registers the custom calls that programs name."""
    find = library.mtl_keras_handler
    find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    names = {
        word.partition("(")[0]
        for text in texts
        for word in text.split("@")[1:]
        if word.startswith("mtl_keras_")
    }
    for name in sorted(names):
        handler = find(f"{name}@{'CUDA' if xla_platform != 'cpu' else 'Host'}".encode())
        if handler is None:
            raise SystemExit(f"The sources have no custom call {name}.")
        jax.ffi.register_ffi_target(
            name, jax.ffi.pycapsule(handler), platform=xla_platform
        )


def compiled(text: str, backend: Any) -> Any:
    """Returns an executable of StableHLO on a backend's first device."""
    devices = xla_client.DeviceList((backend.devices()[0],))
    options = xla_client.CompileOptions()
    return backend.compile_and_load(text, devices, options)


def called(executable: Any, arrays: list[np.ndarray], device: Any) -> tuple[Any, float]:
    """Runs a program; returns its results, and its milliseconds."""
    # Made anew, as a program may keep its variables in the place of its arguments.
    arguments = [jax.device_put(array, device) for array in arrays]
    jax.block_until_ready(arguments)
    start = time.perf_counter()
    results = executable.execute_sharded(arguments)
    results = results.disassemble_into_single_device_arrays()
    jax.block_until_ready(results)
    milliseconds = 1e3 * (time.perf_counter() - start)
    return [of_one[0] for of_one in results], milliseconds


def check(program: dict[str, Any], backend: Any, calls: int) -> dict[str, Any]:
    """Runs one program some times; returns how far it is off, and its times."""
    text = (HERE / "programs" / f"{program['file']}.mlir").read_text()
    with np.load(HERE / "programs" / f"{program['file']}.npz") as file:
        inputs = [file[f"input_{i}"] for i in range(sum("input" in n for n in file))]
        expected = [file[f"expected_{i}"] for i in range(len(file.files) - len(inputs))]
    device = backend.devices()[0]
    start = time.perf_counter()
    executable = compiled(text, backend)
    seconds = time.perf_counter() - start
    results, _ = called(executable, inputs, device)
    off = 0.0
    for result, value in zip(results, expected, strict=False):
        difference = np.abs(np.asarray(result, "float64") - value)
        off = max(off, float(np.max(difference) / max(np.max(np.abs(value)), 1e-30)))
    times = [called(executable, inputs, device)[1] for _ in range(calls + 3)][3:]
    enough = len(results) >= len(expected) and np.isfinite(off)
    return {
        "passed": bool(enough and off <= program["within"]),
        "off": off,
        "within": program["within"],
        "ms": float(np.median(times)),
        "compile_seconds": round(seconds, 2),
        "custom_calls": program["calls"],
    }


def main() -> int:
    """Runs all programs and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--platform", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--calls", type=int, default=20, help="calls to time")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    try:
        backend = get_backend(options.platform)
    except RuntimeError as error:
        print(f"JAX sees no {options.platform}: {error}", file=sys.stderr)
        return 2
    device = backend.devices()[0]
    programs = json.loads((HERE / "programs.json").read_text())
    paths = (HERE / "programs" / f"{program['file']}.mlir" for program in programs)
    # As XLA's registry calls it.
    name = "CUDA" if options.platform == "cuda" else "cpu"
    register(built(), [path.read_text() for path in paths], name)
    results: dict[str, Any] = {
        "device": device.device_kind,
        "jax": jax.__version__,
        "programs": {},
    }
    for program in programs:
        try:
            row = check(program, backend, options.calls)
        except Exception as error:  # Each is a result of its program.
            row = {"passed": False, "error": f"{type(error).__name__}: {error}"[:500]}
        results["programs"][program["name"]] = row
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        figures = f"off {row['off']:.1e}, {row['ms']:.3f} ms" if "off" in row else ""
        status = "passed" if row["passed"] else "FAILED"
        print(f"{status}  {program['name']:40} {figures}{row.get('error', '')}")
    return int(not all(row["passed"] for row in results["programs"].values()))


if __name__ == "__main__":
    sys.exit(main())
