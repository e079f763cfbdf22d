"""Searches by many workers, of which some die."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import keras_tuner
import pytest

from mtl_keras.search import load_study, oracles
from mtl_keras.search.hypermodel import StudyHyperModel
from mtl_keras.search.workers import Chief, WorkerClient

PROCESS = pathlib.Path(__file__).with_name("search_process.py")
STUDY = """
application = "tiny"
oracle = "{oracle}"
trials = {trials}
epochs = 1
[space]
balancing = ["equal", {{ class_name = "dwa", search = true }}]
width = {{ min = 4, max = 400 }}
learning_rate = {{ min = 1e-4, max = 1e-1, log = true }}
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def oracle_of(tiny, tmp_path):
    def make(trials, oracle="random"):
        path = tmp_path / "study.toml"
        path.write_text(STUDY.format(trials=trials, oracle=oracle))
        made = oracles.make(StudyHyperModel(load_study(path)))
        made._set_project_dir(str(tmp_path), "state")
        return made

    return make


def finish(oracle, trial, value=1.0):
    oracle.update_trial(trial.trial_id, {"val_mean": value})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)


def test_what_a_kill_between_two_writes_leaves_is_put_in_order(oracle_of, tmp_path):
    oracle = oracle_of(4)
    finish(oracle, oracle.create_trial("a"))
    kept = (tmp_path / "state" / "oracle.json").read_text()
    # The trials' own files get ahead of the oracle's: one ends, one begins.
    ended, begun = oracle.create_trial("a"), oracle.create_trial("b")
    finish(oracle, ended)
    (tmp_path / "state" / "oracle.json").write_text(kept)

    again = oracle_of(4)
    again.reload()
    assert again.end_order == ["0", "1"]
    assert again.start_order == ["0", "1", "2"]
    taken = [again.create_trial(worker).trial_id for worker in "cd"]
    assert taken == [begun.trial_id, "3"]
    # Nothing is left, but two trials are under way and might come back.
    assert again.create_trial("e").status == "IDLE"
    again.give_back("c")
    assert again.create_trial("e").trial_id == begun.trial_id


def test_a_restarted_chief_takes_the_result_of_a_trial_begun_before(oracle_of):
    oracle = oracle_of(4)
    begun = oracle.create_trial("a")

    again = oracle_of(4)
    again.reload()
    assert again.left_running == {"a": begun.trial_id}
    again.take_up("a", begun.trial_id)
    finish(again, begun)
    assert again.end_order == [begun.trial_id]
    assert again.create_trial("a").trial_id == "1"


def test_a_second_result_of_a_trial_changes_nothing(oracle_of):
    oracle = oracle_of(3)
    slow = oracle.create_trial("slow")
    oracle.give_back("slow")
    other = oracle.create_trial("other")
    assert other.trial_id == slow.trial_id
    finish(oracle, slow, 1.0)
    assert not oracle.ongoing_trials
    other.status = "COMPLETED"
    oracle.end_trial(other)
    assert oracle.end_order == [slow.trial_id]
    assert oracle.trials[slow.trial_id].score == 1.0


def test_failures_in_a_row_stop_the_search(oracle_of):
    oracle = oracle_of(9)
    for number in range(3):
        assert not oracle.stopped, number
        trial = oracle.create_trial("a")
        finish(oracle, trial, float("nan"))
    assert oracle.stopped
    assert oracle.create_trial("b").status == "STOPPED"


def test_a_silent_worker_loses_its_trial_to_another(oracle_of, monkeypatch, capsys):
    oracle = oracle_of(3, "bayesian")
    said = []
    chief = Chief(oracle, "127.0.0.1:0", silence=0.5, say=said.append)
    chief.start()
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(chief.port))
    monkeypatch.setattr("mtl_keras.search.workers._beat", lambda *a: None)
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "silent")
    silent = WorkerClient(oracle)
    lost = silent.create_trial("silent")
    while "silent" in oracle.ongoing_trials:
        time.sleep(0.05)
        assert not chief.ended()
    assert said == [f"silent died; its trial {lost.trial_id} goes back"]

    monkeypatch.setenv("KERASTUNER_TUNER_ID", "busy")
    busy = WorkerClient(oracle)
    run = []

    def work():
        while (trial := busy.create_trial("busy")).status != "STOPPED":
            run.append(trial.trial_id)
            finish(busy, trial, float(len(run)))

    worker = threading.Thread(target=work)
    worker.start()
    while not chief.ended():
        time.sleep(0.05)
    worker.join()
    chief.stop()
    assert run == [lost.trial_id, "1", "2"]
    # Conditions of the space travel without a word on standard output.
    assert capsys.readouterr().out == ""
    assert isinstance(oracle, keras_tuner.oracles.BayesianOptimizationOracle)


@pytest.mark.slow
def test_a_search_survives_kills_of_a_worker_and_of_its_chief(tmp_path):
    trials = 16
    (tmp_path / "study.toml").write_text(STUDY.format(trials=trials, oracle="random"))
    address = f"127.0.0.1:{free_port()}"

    def start(role):
        arguments = [sys.executable, PROCESS, role, str(tmp_path), address, "1.5"]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        return subprocess.Popen(arguments, env=environment)

    def records():
        return list((tmp_path / "out" / "trials").glob("*.json"))

    def wait_for(count):
        until = time.monotonic() + 1500
        while len(records()) < count:
            assert time.monotonic() < until
            time.sleep(0.1)

    processes = [start("chief"), start("worker"), start("worker")]
    chief, first, second = processes
    try:
        wait_for(3)
        first.send_signal(signal.SIGKILL)
        wait_for(6)
        chief.send_signal(signal.SIGKILL)
        chief.wait()
        time.sleep(2)
        processes.append(start("chief"))
        assert processes[-1].wait(timeout=1500) == 0
        assert second.wait(timeout=300) == 0
    finally:
        for process in processes:
            process.kill()

    names = sorted(int(path.stem) for path in records())
    assert names == list(range(trials))
    state = json.loads((tmp_path / "out" / "state" / "oracle.json").read_text())
    assert sorted(map(int, state["end_order"])) == list(range(trials))
    assert not state["ongoing_trials"]
    assert not state["retry_queue"]
    for path in (tmp_path / "out" / "state").glob("trial_*/trial.json"):
        trial = json.loads(path.read_text())
        assert trial["status"] == "COMPLETED"
        (observation,) = trial["metrics"]["metrics"]["val_mean"]["observations"]
        assert len(observation["value"]) == 1
    # Only the trial of the killed worker was run again.
    started = [line.split() for line in (tmp_path / "started").read_text().splitlines()]
    counts = collections.Counter(name for name, _ in started)
    twice = [name for name, count in counts.items() if count > 1]
    assert len(twice) <= 1
    assert all(
        str(first.pid) in {process for name, process in started if name == trial}
        for trial in twice
    )
    assert (tmp_path / "out" / "report.html").is_file()
    assert pathlib.Path(tmp_path / "out" / "results.csv").is_file()
