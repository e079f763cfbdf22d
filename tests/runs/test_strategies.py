"""Training over several devices and machines."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from mtl_keras import balancing
from mtl_keras.errors import InputError
from mtl_keras.runs import RunConfig, load_run, strategies, train

ROOT = pathlib.Path(__file__).resolve().parents[2]
BENCHMARK = ROOT / "benchmarks" / "multiworker.py"
ENV = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}


def compared(methods):
    """The largest differences of weights, by method; see the benchmark."""
    command = [sys.executable, str(BENCHMARK), *methods]
    done = subprocess.run(
        command, env=ENV, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)["largest_difference_of_a_weight"]


@pytest.mark.parametrize(
    "methods", [["uncertainty", "upgrad"], balancing.names()], ids=["two", "all"]
)
@pytest.mark.slow
def test_two_workers_train_as_one_process_does(methods):
    for method, difference in compared(methods).items():
        assert difference["between_workers"] == 0.0, method
        allowed = 1e-4
        if not isinstance(balancing.get(method), balancing.GramBalancer):
            # Some divide by losses that come near zero: rounding alone moves them.
            allowed = max(allowed, 10.0 * difference["of_one_process_nudged"])
        assert difference["from_one_process"] < allowed, method


def start(out, *arguments, task=None):
    """Starts `mtl-keras train tiny`, as a worker of a cluster or alone."""
    env = {**ENV, "PYTHONPATH": str(ROOT / "tests")}
    if task is not None:
        env["TF_CONFIG"] = json.dumps(task)
        arguments += ("--strategy", "multiworker")
    program = (
        "from mtl_keras import applications\n"
        "from tiny_application import Tiny\n"
        "applications.register('tiny', Tiny)\n"
        "from mtl_keras_cli.app import app\n"
        "app()\n"
    )
    command = [sys.executable, "-c", program, "train", "tiny", "--out", str(out)]
    return subprocess.Popen(
        [*command, *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def cluster(size):
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(size)]
    workers = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()
    return [
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        for index in range(size)
    ]


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_others_and_a_restart_resumes(tmp_path, tiny):
    arguments = ["--epochs", "20", "--balancing", "upgrad"]
    alone = start(tmp_path / "alone", *arguments)
    assert alone.wait() == 0, alone.stderr.read()
    out = tmp_path / "workers"
    chief, other = (start(out, *arguments, task=task) for task in cluster(2))
    saved = tmp_path / ".workers.partial" / "checkpoints"
    while not any(saved.glob("epoch-00000[3-9]*")):
        assert chief.poll() is None, chief.stderr.read()
        time.sleep(0.1)
    other.kill()
    assert chief.wait(timeout=300) == 2
    last_line = chief.stderr.read().splitlines()[-1]
    assert last_line.startswith("mtl-keras: Another worker of this training has ended")
    assert not out.exists()
    again = [start(out, *arguments, task=task) for task in cluster(2)]
    for process in again:
        assert process.wait(timeout=300) == 0, process.stderr.read()
    assert "Resuming the unfinished run" in again[0].stdout.read()
    weights = (
        load_run(path).model().get_weights() for path in (tmp_path / "alone", out)
    )
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_mirrored_run_is_a_run(tmp_path, tiny, mirrored):
    """Over two devices: the same weights and results as on one."""
    config = RunConfig("tiny", balancing="pcgrad", epochs=2)
    one = train(config, tmp_path / "one")
    two = train(config, tmp_path / "two", strategy=mirrored)
    for task, metrics in one.metrics.items():
        assert two.metrics[task] == pytest.approx(metrics, rel=1e-4)
    weights = (load_run(result.path).model().get_weights() for result in (one, two))
    for single, over_two in zip(*weights, strict=True):
        np.testing.assert_allclose(over_two, single, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "not JSON",
        "[]",
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
    ],
)
def test_a_wrong_tf_config_is_one_clear_line(text, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match=r"TF_CONFIG.*Received: "):
        strategies.make("multiworker")
    with pytest.raises(InputError, match=r"Unknown strategy.*'mirrored'"):
        strategies.make("mirorred")
