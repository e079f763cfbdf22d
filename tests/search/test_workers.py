"""Searches by many workers, of which some die."""

from __future__ import annotations

import collections
import contextlib
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

from mtl_keras.search import keras_tuner_compat, load_study
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
SMALL = """
application = "tiny"
oracle = "{oracle}"
trials = {trials}
epochs = 1
[space]
balancing = ["equal", {{ class_name = "dwa", search = {{ temperature = [1, 2.5] }} }}]
width = [4, 8]
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def oracle_of(tiny, tmp_path):
    def make(trials, oracle="random", state="state", study=STUDY):
        path = tmp_path / "study.toml"
        path.write_text(study.format(trials=trials, oracle=oracle))
        made = keras_tuner_compat.make(StudyHyperModel(load_study(path)))
        made._set_project_dir(str(tmp_path), state)
        return made

    return make


def finish(oracle, trial, value=1.0):
    oracle.update_trial(trial.trial_id, {"val_mean": value})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)


def test_state_torn_by_a_kill_between_two_writes_is_reconciled(oracle_of, tmp_path):
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


def test_a_grid_resumes_wherever_it_was_stopped(oracle_of, tmp_path):
    def run(oracle, count):
        drawn = []
        for _ in range(count):
            trial = oracle.create_trial("a")
            if trial.status == "STOPPED":
                break
            drawn.append((trial.trial_id, dict(trial.hyperparameters.values)))
            finish(oracle, trial)
        return drawn

    whole = run(oracle_of(5, "grid", "whole"), 5)
    assert len({json.dumps(values, sort_keys=True) for _, values in whole}) == 5

    # Killed while a trial was under way, at every number of finished ones; each
    # process raises the number of trials.
    drawn = []
    for done in range(5):
        oracle = oracle_of(done + 1, "grid", "cut")
        if done:
            oracle.reload()
        assert int(oracle.create_trial("a").trial_id) == done
        again = oracle_of(done + 1, "grid", "cut")
        again.reload()
        drawn += run(again, 5)
    assert [values for _, values in drawn] == [values for _, values in whole]

    # A small grid ends, and stays ended.
    small = oracle_of(99, "grid", "small", SMALL)
    assert len(run(small, 99)) == 6
    again = oracle_of(200, "grid", "small", SMALL)
    again.reload()
    assert run(again, 1) == []


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
    messages = []
    chief = Chief(oracle, "127.0.0.1:0", silence=0.5, say=messages.append)
    chief.start()
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(chief.port))
    monkeypatch.setattr("mtl_keras.search.workers._beat", lambda *a: None)
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "silent")
    silent = WorkerClient(oracle)
    space = oracle.get_space

    def other_thread():
        print("said meanwhile by another thread")
        return space()

    with monkeypatch.context() as patch:
        patch.setattr(oracle, "get_space", other_thread)
        silent.get_space()
    assert capsys.readouterr().out == "said meanwhile by another thread\n"
    lost = silent.create_trial("silent")
    while "silent" in oracle.ongoing_trials:
        time.sleep(0.05)
        assert not chief.ended()
    assert messages == [f"silent died; its trial {lost.trial_id} goes back"]

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


def start_process(role, folder, seconds, *arguments, deadly=""):
    command = [sys.executable, PROCESS, role, str(folder), str(seconds), *arguments]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "DEADLY": deadly}
    return subprocess.Popen(command, env=environment)


def started(folder):
    file = folder / "started"
    return (
        [line.split() for line in file.read_text().splitlines()]
        if file.exists()
        else []
    )


def statuses(folder):
    files = folder.glob("out/trials/[!.]*")
    records = [json.loads(path.read_text()) for path in files]
    return {str(int(r["trial"])): r["status"] for r in records}


@pytest.mark.slow
@pytest.mark.parametrize("role", ["alone", "local"])
def test_a_trial_that_aborts_its_process_is_tried_twice(tmp_path, role):
    (tmp_path / "study.toml").write_text(STUDY.format(trials=4, oracle="random"))
    assert start_process(role, tmp_path, 0.1, deadly="1").wait(timeout=900) == 0
    assert statuses(tmp_path) == {
        "0": "COMPLETED",
        "1": "FAILED",
        "2": "COMPLETED",
        "3": "COMPLETED",
    }
    assert [name for name, *_ in started(tmp_path)].count("1") == 2
    record = json.loads((tmp_path / "out/trials/1.json").read_text())
    assert "died 2 times, the last time with signal SIGABRT" in record["error"]


@pytest.mark.slow
def test_a_study_survives_kills_of_a_worker_of_itself_and_of_both(tmp_path):
    trials = 12
    (tmp_path / "study.toml").write_text(STUDY.format(trials=trials, oracle="random"))

    def reach(study, count):
        while len(statuses(tmp_path)) < count:
            assert study.poll() is None
            time.sleep(0.1)

    study = start_process("local", tmp_path, 1.0)
    reach(study, 2)
    os.kill(int(started(tmp_path)[-1][2]), signal.SIGKILL)
    reach(study, 4)
    study.kill()
    study.wait()
    study = start_process("local", tmp_path, 1.0)
    reach(study, 7)
    study.kill()
    for _, _, process in started(tmp_path)[-2:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)
    study.wait()
    # No worker outlives the process that schedules it.
    for _, _, process in started(tmp_path):
        until = time.monotonic() + 60
        while pathlib.Path(f"/proc/{process}").exists():
            assert time.monotonic() < until
            time.sleep(0.1)
    assert start_process("local", tmp_path, 1.0).wait(timeout=900) == 0
    assert statuses(tmp_path) == {str(n): "COMPLETED" for n in range(trials)}
    counts = collections.Counter(name for name, *_ in started(tmp_path))
    # Those under way at each of the three kills at most.
    assert trials <= counts.total() <= trials + 5


@pytest.mark.slow
def test_a_search_survives_kills_of_a_worker_and_of_its_chief(tmp_path):
    trials = 16
    (tmp_path / "study.toml").write_text(STUDY.format(trials=trials, oracle="random"))
    address = f"127.0.0.1:{free_port()}"

    def start(role):
        return start_process(role, tmp_path, 1.5, "--chief", address)

    def records():
        return list((tmp_path / "out" / "trials").glob("[!.]*.json"))

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
    counts = collections.Counter(name for name, *_ in started(tmp_path))
    twice = [name for name, count in counts.items() if count > 1]
    assert len(twice) <= 1
    assert all(
        str(first.pid)
        in {process for name, process, _ in started(tmp_path) if name == trial}
        for trial in twice
    )
    assert (tmp_path / "out" / "report.html").is_file()
    assert pathlib.Path(tmp_path / "out" / "results.csv").is_file()
