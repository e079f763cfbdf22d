"""`make gpu-check`: how checks end, and the checks themselves on the CPU."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import ops
from mtl_keras.ops import native

PATH = pathlib.Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # Where dataclasses look for it.
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_check"]


def run(*arguments):
    return subprocess.run(
        [sys.executable, PATH, *map(str, arguments)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_without_a_gpu_it_is_one_line_and_code_2(tmp_path):
    done = run("--slack", 20, "--out", tmp_path / "gpu.json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "No GPU to check: TensorFlow sees no GPU.\n"
    assert not (tmp_path / "gpu.json").exists()


def test_the_most_important_checks_fit_into_ten_minutes(gpu_check):
    assert len(gpu_check.CHECKS) == 15
    names = list(gpu_check.chosen(10, None))
    assert names[0] == "machine"
    assert sum(gpu_check.CHECKS[name].seconds for name in names) <= 600
    assert {"native_solvers", "agreement", "placement"} <= set(names)
    assert list(gpu_check.chosen(None, None)) == list(gpu_check.CHECKS)
    assert list(gpu_check.chosen(None, ["gram"])) == ["machine", "gram"]


PROGRAMS = {
    "passed": 'print(\'noise\'); print(\'{"status": "passed", "message": ""}\')',
    "crashed": 'import os; print(\'{"status": "passed"}x\'); os.abort()',
    "timeout": "import time; time.sleep(60)",
}


@pytest.mark.parametrize("status", PROGRAMS)
def test_how_a_check_may_end(status, gpu_check, monkeypatch, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAMS[status])
    monkeypatch.setattr(gpu_check, "__file__", str(program))
    limit = 0.5 if status == "timeout" else 60
    result = gpu_check.in_a_process("gram", "GPU", limit)
    assert result["status"] == status
    assert result["expected"] == gpu_check.CHECKS["gram"].expected
    assert result["seconds"] >= 0.0


def test_results_are_kept_and_a_failure_is_exit_code_1(
    gpu_check, monkeypatch, tmp_path, capsys
):
    def result(name, device, limit):
        if name == "machine":
            return {"status": "passed", "message": "", "found": {"count": 1}} | extra
        status = "failed" if name == "sparse" else "passed"
        return {"status": status, "message": f"{name} of {device}"} | extra

    extra = {"seconds": 1.0, "expected": "what it should be"}
    monkeypatch.setattr(gpu_check, "in_a_process", result)
    out = tmp_path / "gpu.json"
    for only, code in ((["gram"], 0), (["sparse"], 1), (["two_gpus"], 0)):
        arguments = ["gpu_check", "--out", str(out), "--only", *only]
        monkeypatch.setattr(sys, "argv", arguments)
        assert gpu_check.main() == code
        checks = json.loads(out.read_text())["checks"]
        assert list(checks) == ["machine", *only]
    assert checks["two_gpus"]["status"] == "skipped"
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("TensorFlow sees the GPU")
    assert printed[-1].endswith("Needs 2 GPUs; here: 1.")


def test_ops_of_the_size_of_gradients_are_found_where_they_do_not_belong(gpu_check):
    def graph(*nodes):
        return tf.compat.v1.GraphDef(
            node=[
                tf.compat.v1.NodeDef(name=op, op=op, device=f"/job:a/device:{device}:0")
                for op, device in nodes
            ]
        )

    steps = [
        graph(("MatMul", "GPU"), ("MtlKeras>UpGrad", "CPU")),
        graph(("_Fused", "CPU")),
    ]
    elsewhere = gpu_check.misplaced(steps, "GPU")
    assert elsewhere == {"MtlKeras>UpGrad": 1, "_Fused": 1}
    assert gpu_check.data_sized(elsewhere) == []
    steps.append(graph(("_FusedMatMul", "CPU"), ("MtlKeras>TaskGramian", "CPU")))
    elsewhere = gpu_check.misplaced(steps, "GPU")
    assert gpu_check.data_sized(elsewhere) == ["MtlKeras>TaskGramian", "_FusedMatMul"]


@pytest.mark.skipif(
    not native.custom_calls_available(), reason="built without XLA's headers"
)
@pytest.mark.parametrize("jit", [False, True])
def test_solvers_that_are_not_compiled_are_noticed(gpu_check, jit):
    gram = tf.constant([[2.0, -1.0], [-1.0, 3.0]], "float64")
    for implementation, compiled in (("auto", True), ("tensorflow", False)):
        solve = gpu_check.all_solvers()["upgrad"]
        call = tf.function(solve, jit_compile=jit, autograph=False)
        with ops.implementation(implementation):
            assert gpu_check.compiled_solver(call, gram, jit, "CPU") is compiled


def test_weights_that_differ_from_the_cpus_fail_the_check(gpu_check, monkeypatch):
    def trained(method, tasks, jit):
        return np.full(4, {"equal": 0.0}.get(method, 1.0) + (off if jit else 0.0))

    monkeypatch.setattr(gpu_check, "trained", trained)
    monkeypatch.setattr(gpu_check, "gram_methods", lambda device: ["upgrad", "mgda"])
    off = 5e-5
    gpu_check.agreement("CPU", found := {})
    assert found["mgda"] == pytest.approx({"from equal": 1.0, "graph": 0.0, "XLA": off})
    off = 2e-4
    with pytest.raises(AssertionError, match=r"upgrad, XLA is off by 2\.0e-04"):
        gpu_check.agreement("CPU", {})


@pytest.mark.skipif(
    not native.custom_calls_available(), reason="built without XLA's headers"
)
def test_a_bundle_holds_programs_with_inputs_and_results(gpu_check, monkeypatch):
    monkeypatch.syspath_prepend(str(PATH.parent))
    gpu_bundle = importlib.import_module("gpu_bundle")
    solve = gpu_check.all_solvers()["upgrad"]
    scale = tf.Variable(2.0, dtype="float64")
    gram = tf.constant([[2.0, -1.0], [-1.0, 3.0]], "float64")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        bundle = gpu_bundle.Bundle(archive)
        bundle.add_program("scaled", lambda g: solve(scale * g)[0], [gram], 1e-9)
        bundle.add_list()
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        files = {
            member.name.removeprefix("gpu-bundle/"): archive.extractfile(member).read()
            for member in archive.getmembers()
        }
    (program,) = json.loads(files["programs.json"])
    assert program == {"name": "scaled", "file": "000", "within": 1e-9, "calls": 1}
    assert b"@mtl_keras_UpGrad" in files["programs/000.mlir"]
    arrays = np.load(io.BytesIO(files["programs/000.npz"]))
    np.testing.assert_array_equal(arrays["input_0"], gram)
    assert arrays["input_1"] == 2.0
    np.testing.assert_array_equal(arrays["expected_0"], solve(2.0 * gram)[0])
    plain = gpu_bundle.with_plain_booleans('dense<"0x09"> : tensor<2x2xi1>')
    assert plain == "dense<[[true, false], [false, true]]> : tensor<2x2xi1>"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="no JAX")
def test_a_bundle_runs_through_jax(tmp_path):
    archive = tmp_path / "bundle.tar.gz"
    command = [sys.executable, PATH.with_name("gpu_bundle.py"), "--out", archive]
    subprocess.run([*command, "--methods", "upgrad"], check=True)
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    run_there = [
        sys.executable,
        tmp_path / "gpu-bundle" / "run.py",
        "--platform",
        "cpu",
    ]
    subprocess.run(run_there, check=True)


@pytest.mark.slow
def test_every_check_passes_on_the_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    done = run("--device", "CPU", "--slack", 20, "--out", out)
    assert done.returncode == 0, done.stdout
    checks = json.loads(out.read_text())["checks"]
    assert {check["status"] for check in checks.values()} == {"passed"}
    assert len(checks) == 15
