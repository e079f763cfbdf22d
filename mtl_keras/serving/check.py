"""Checks an export where it is: loads, answers, compares, measures."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Mapping

import numpy as np
from tensorflow.core.framework import types_pb2

from mtl_keras.errors import InputError
from mtl_keras.serving.runtime import RefusedError, Runtime
from mtl_keras.serving.stock_ops import nodes, stock_operations
from mtl_keras.serving.versions import latest_version
from mtl_keras.serving.warmup import arrays, read_records

# Outputs of the same graph, compiled twice, differ by rounding only. Features of a deep
# model that computes in float16 were seen to differ by 17 of its roundings.
TOLERANCE = 1e-5
MIXED_TOLERANCE = 2.0**-5
_PRODUCTS = {"BatchMatMulV2", "Conv2D", "DepthwiseConv2dNative", "Einsum", "MatMul"}


@dataclasses.dataclass(frozen=True)
class Timing:
    """Latency and throughput of a signature, one request after the other.

    Attributes:
        batch_size: Samples in the request.
        median_ms: Median latency, in milliseconds.
        p95_ms: Latency that 95 % of the requests keep within, in milliseconds.
        samples_per_second: Throughput.

    Example:

    ```pycon
    >>> report = mtl_keras.serving.check(version, seconds=0.001)
    >>> [timing.batch_size for timing in report.signatures["a"].timings]
    [1, 8, 32]
    ```
    """

    batch_size: int
    median_ms: float
    p95_ms: float
    samples_per_second: float


@dataclasses.dataclass(frozen=True)
class SignatureReport:
    """Results of the check of one signature.

    Attributes:
        records: Number of warm-up records that were run.
        difference: Largest difference from the Keras model's answers, relative to
            the answer where that is above 1.
        problems: The differences, as text; empty where all is well.
        timings: One for each batch size.

    Example:

    ```pycon
    >>> report = mtl_keras.serving.check(version, seconds=0)
    >>> report.signatures["a"].difference < 1e-5
    True
    ```
    """

    records: int
    difference: float
    problems: tuple[str, ...]
    timings: tuple[Timing, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """Results of `check`.

    Attributes:
        version: Folder of the version.
        signatures: Reports by signature.

    Example:

    ```pycon
    >>> mtl_keras.serving.check(version, seconds=0).problems
    []
    ```
    """

    version: pathlib.Path
    signatures: Mapping[str, SignatureReport]

    @property
    def problems(self) -> list[str]:
        """All problems, each with its signature; empty where all is well."""
        return [
            f"{name}: {problem}"
            for name, report in self.signatures.items()
            for problem in report.problems
        ]


def check(
    path: str | pathlib.Path, *, tolerance: float | None = None, seconds: float = 0.2
) -> Report:
    """Loads an export as TensorFlow Serving does, and compares it with Keras.

    TensorFlow's loader loads it with the tag `serve`, and a session answers the
    warm-up records of each signature, which hold the Keras model's answers.
    Operations that a process with nothing but TensorFlow does not have are refused.

    Args:
        path: Folder of a version, or of versions, of which the newest is taken.
        tolerance: Largest difference between floats, absolute and relative. None
            means 1e-5, or 0.031 for a model that computes in float16 or bfloat16.
        seconds: How long to measure each signature and batch size; 0 for not at all.

    Returns:
        A report, also of what differs.

    Raises:
        InputError: If there is nothing to load, or no records to run.

    Example:

    ```python
    # version = mtl_keras.serving.export(model, "models/mine")
    report = mtl_keras.serving.check(version, seconds=0)
    assert not report.problems
    ```
    """
    version = _version(pathlib.Path(path))
    records = read_records(version)
    with Runtime(version) as runtime:
        graph = runtime.meta_graph.graph_def
        foreign = {node.op for node in nodes(graph)} - stock_operations()
        if foreign:
            raise InputError(
                f"{str(version)!r} uses operations that a server does not have: "
                f"{', '.join(sorted(foreign))}."
            )
        if tolerance is None:
            mixed = any(
                node.attr["T"].type in (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)
                for node in nodes(graph)
                if node.op in _PRODUCTS
            )
            tolerance = MIXED_TOLERANCE if mixed else TOLERANCE
        reports = {}
        for name in runtime.signatures:
            own = [
                record
                for record in records
                if record.request.model_spec.signature_name == name
            ]
            pairs = [
                (arrays(record.request.inputs), arrays(record.response.outputs))
                for record in own
            ]
            reports[name] = _check_signature(runtime, name, pairs, tolerance, seconds)
    return Report(version, reports)


def _version(path: pathlib.Path) -> pathlib.Path:
    if not path.is_dir():
        raise InputError(f"There is no export folder {str(path)!r}.")
    if (path / "saved_model.pb").is_file():
        return path
    version = latest_version(path)
    if version is None:
        raise InputError(f"{str(path)!r} holds no exported version.")
    return version


def _check_signature(
    runtime: Runtime,
    name: str,
    pairs: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]],
    tolerance: float,
    seconds: float,
) -> SignatureReport:
    problems = [] if pairs else ["no warm-up record"]
    worst = 0.0
    timings = []
    for inputs, expected in pairs:
        size = len(next(iter(inputs.values())))
        try:
            answer = runtime.predict(name, inputs)
        except RefusedError as error:
            problems.append(f"batch of {size}: {str(error).splitlines()[0]}")
            continue
        differences, difference = compare(answer, expected, tolerance)
        problems += [f"batch of {size}: {problem}" for problem in differences]
        worst = max(worst, difference)
        if seconds:
            timings.append(_measure(runtime, name, inputs, size, seconds))
    return SignatureReport(len(pairs), worst, tuple(problems), tuple(timings))


def compare(
    answer: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    tolerance: float,
) -> tuple[list[str], float]:
    """Compares two answers.

    Floats may differ by `tolerance`, or by this share of values above 1; everything
    else is to be equal, NaN and infinities in the same places.

    Returns:
        The differences, as text, and the largest difference between floats.
    """
    if set(answer) != set(expected):
        return [f"outputs {sorted(answer)} instead of {sorted(expected)}"], np.inf
    problems, worst = [], 0.0
    for name, wanted in expected.items():
        got = answer[name]
        if (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
            problems.append(
                f"{name} is {got.dtype} {got.shape} instead of {wanted.dtype} "
                f"{wanted.shape}"
            )
        elif wanted.dtype.kind == "f":
            difference = _difference(got, wanted)
            worst = max(worst, difference)
            if not difference <= tolerance:
                problems.append(f"{name} differs from the Keras model by {difference}")
        elif not np.array_equal(got, wanted):
            problems.append(f"{name} is not what the Keras model answers")
    return problems, worst


def _difference(got: np.ndarray, wanted: np.ndarray) -> float:
    finite = np.isfinite(wanted)
    if not np.array_equal(got[~finite], wanted[~finite], equal_nan=True):
        return np.inf
    got, wanted = got[finite].astype("float64"), wanted[finite].astype("float64")
    if not wanted.size:
        return 0.0
    return float(np.max(np.abs(got - wanted) / np.maximum(1, np.abs(wanted))))


def _measure(
    runtime: Runtime,
    name: str,
    inputs: Mapping[str, np.ndarray],
    size: int,
    seconds: float,
) -> Timing:
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        runtime.predict(name, inputs)
        times.append(time.perf_counter() - start)
    return Timing(
        size,
        1e3 * float(np.median(times)),
        1e3 * float(np.quantile(times, 0.95)),
        size * len(times) / sum(times),
    )
